"""Random views of training images, by Keras's layers but outside of every network: uint8 in, uint8 out.

An image's view depends on the seed, the stage, the epoch and the image alone, not on the batch that it is shown in.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from frostline.studies import Augment, Stage

TIMED_IMAGES, TIMED_SECONDS = 64, 0.1
DRAWN, CHOSEN, FIXED = 1, 2, 3  # what a seed is for; the order of an epoch is drawn without such a mark
Draws = list[dict[str, np.ndarray]]  # for each layer what it draws, one row an image


@dataclass
class Views:
    """Views of uint8 images [N, H, W, 3], each known by a number: view v of image i is v * N + i.

    Without `count` every epoch draws a view of its own, v being the epoch. With it there are `count` views, drawn with
    `split_seed`, so that seeds share them, and an epoch chooses one for each image. `seed` is of the run and the
    stage; `seconds` is what showing took.
    """

    images: np.ndarray
    settings: Augment
    count: int | None
    seed: tuple[int, int]
    split_seed: int
    draw: Callable[..., Draws]
    program: Callable[[Any, Draws], Any]
    seconds: float = 0.0


@dataclass(frozen=True)
class Shown:
    """Some views, by their numbers, that are made when they are asked for; stands in for an array [N, H, W, 3]."""

    views: Views
    numbers: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.numbers), *self.views.images.shape[1:])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return show(self.views, self.numbers[rows])


def build(stage: Stage, images: np.ndarray, *, seed: int, number: int, split_seed: int) -> Views | None:
    """The views that a stage shows of its training images, `number` being that of the stage; None: the images."""
    if stage.augment is None:
        return None
    layers = _layers(stage.augment)
    draw = functools.lru_cache(maxsize=1)(functools.partial(_draw, layers, images.shape[1:]))
    program = _program(layers, images.shape[1:])
    return Views(images, stage.augment, stage.augment_views, (seed, number), split_seed, draw, program)


def numbers(views: Views, epoch: int) -> np.ndarray:
    """The number of the view that an epoch shows of each image [N]."""
    count = len(views.images)
    if views.count is None:
        return epoch * count + np.arange(count)
    rng = np.random.default_rng((*views.seed, epoch, CHOSEN))
    return rng.integers(views.count, size=count) * count + np.arange(count)


def every(views: Views) -> Shown:
    """All views of all images, where their number is fixed."""
    assert views.count
    return Shown(views, np.arange(views.count * len(views.images)))


def show(views: Views, numbers: np.ndarray) -> np.ndarray:
    """Uint8 views [B, H, W, 3] by their numbers, which are of one epoch where every epoch draws its own."""
    before = time.perf_counter()
    count = len(views.images)
    if views.count is None:
        epoch = int(numbers[0]) // count
        drawn, rows = views.draw((*views.seed, epoch, DRAWN), count), numbers - epoch * count
    else:
        drawn, rows = views.draw((views.split_seed, FIXED), views.count * count), numbers
    own = [{name: values[rows] for name, values in layer.items()} for layer in drawn]
    shown = views.program(views.images[numbers % count], own).numpy()
    views.seconds += time.perf_counter() - before
    return shown


def seconds_per_image(settings: Augment, *, size: int) -> float:
    """Seconds a view of an image of `size` pixels takes, tracing left out."""
    images = np.random.default_rng(0).integers(0, 256, (TIMED_IMAGES, size, size, 3), dtype=np.uint8)
    views = build(Stage(augment=settings), images, seed=0, number=1, split_seed=0)
    assert views
    show(views, numbers(views, 0))
    views.seconds, shown = 0.0, 0
    while views.seconds < TIMED_SECONDS:
        show(views, numbers(views, 0))
        shown += TIMED_IMAGES
    return views.seconds / shown


def describe(stage: Stage) -> str | None:
    """What a stage does to its training images, in words; None where nothing."""
    if stage.augment is None:
        return None
    given = [f"{k} {v}" for k, v in dataclasses.asdict(stage.augment).items() if v]
    return ", ".join(given + ([f"{stage.augment_views} views"] if stage.augment_views else []))


# -- by Keras's layers ---------------------------------------------------------------------------------


def _layers(settings: Augment) -> list[Any]:
    """The layers in their order. Given a seed, for without one each would draw it from Python's generator.

    Keras flips "horizontal_and_vertical" with one coin for both, so both have a layer; and of a single contrast it
    takes the upper half alone.
    """
    from keras import layers

    one: dict[str, Any] = {"dtype": "float32", "seed": 0}
    fill = one | {"fill_mode": settings.fill}
    directions = ("horizontal", "vertical") if settings.flip == "both" else (settings.flip,)
    known = [
        *[(direction, layers.RandomFlip, (direction,), one) for direction in directions],
        (settings.rotation, layers.RandomRotation, (settings.rotation,), fill),
        (settings.translation, layers.RandomTranslation, (settings.translation, settings.translation), fill),
        (settings.shear, layers.RandomShear, (settings.shear, settings.shear), fill),
        (settings.zoom, layers.RandomZoom, (settings.zoom,), fill),
        (settings.brightness, layers.RandomBrightness, (settings.brightness,), one),
        (settings.contrast, layers.RandomContrast, ((settings.contrast, settings.contrast),), one),
    ]
    return [layer(*factors, **options) for asked, layer, factors, options in known if asked]


def _draw(layers: Sequence[Any], shape: tuple[int, ...], seed: tuple[int, ...], count: int) -> Draws:
    """What each layer draws for `count` images of a shape; a symbolic batch spares it the images themselves."""
    import keras
    import tensorflow as tf

    batch = keras.KerasTensor((count, *shape), dtype="uint8")
    seeds = np.random.SeedSequence(seed).generate_state(len(layers))
    with tf.device("CPU"):  # the same numbers wherever the network trains
        drawn = [
            layer.get_random_transformation(batch, training=True, seed=keras.random.SeedGenerator(int(own)))
            for layer, own in zip(layers, seeds, strict=True)
        ]
    return [{name: values.numpy() for name, values in one.items() if tf.is_tensor(values)} for one in drawn]


def _program(layers: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """Uint8 images and what is drawn for them to uint8 views: float32 between the layers, rounded at the end."""
    import tensorflow as tf

    def run(images: Any, drawn: Draws) -> Any:
        x = tf.cast(images, tf.float32)
        for layer, own in zip(layers, drawn, strict=True):
            x = layer.transform_images(x, own, training=True)
        return tf.cast(tf.clip_by_value(tf.round(x), 0, 255), tf.uint8)

    def any_number(array: np.ndarray) -> Any:
        return tf.TensorSpec((None, *array.shape[1:]), array.dtype)

    drawn = [{k: any_number(v) for k, v in one.items()} for one in _draw(layers, shape, (0,), 1)]
    signature = [any_number(np.zeros((1, *shape), np.uint8)), drawn]
    return tf.function(run, input_signature=signature, autograph=False)
