"""Views of images: what Keras's layers draw and do, image by image, whatever the batch."""

import random

import keras
import numpy as np
import pytest

from frostline import augment, device
from frostline.studies import Augment, Stage

EVERYTHING = Augment("both", rotation=0.1, translation=0.1, shear=0.1, zoom=0.1, brightness=0.1, contrast=0.1)
COUNT, SIZE = 30, 12


@pytest.fixture(scope="module")
def images():
    """Smooth pictures, no two alike and none its own mirror image."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    waves = [np.sin(0.3 * x + 0.1 * y + i)[..., None] * [90, 60, 30] + 120 for i in range(COUNT)]
    return np.stack(waves).astype(np.uint8)


def build(images, settings=EVERYTHING, count=None, seed=3, number=1, split_seed=0):
    stage = Stage(augment=settings, augment_views=count)
    return augment.build(stage, images, seed=seed, number=number, split_seed=split_seed)


def epoch(views, number=0):
    return augment.show(views, augment.numbers(views, number))


def test_a_stage_without_augmentation_shows_its_images():
    assert augment.build(Stage(), np.zeros((1, 4, 4, 3), np.uint8), seed=0, number=1, split_seed=0) is None


@pytest.mark.parametrize("count", [None, 4])
def test_a_view_does_not_depend_on_its_batch(images, count):
    whole, views = epoch(build(images, count=count), 1), build(images, count=count)
    order = np.random.default_rng(0).permutation(COUNT)
    chosen = augment.numbers(views, 1)[order]
    for size in (1, 7, 16):
        parts = [augment.show(views, chosen[i : i + size]) for i in range(0, COUNT, size)]
        assert np.array_equal(np.concatenate(parts), whole[order])
    assert whole.dtype == np.uint8 and whole.shape == images.shape


def test_every_epoch_stage_and_seed_has_views_of_its_own(images):
    shown = [epoch(build(images, seed=s, number=n), e) for s, n, e in [(3, 1, 0), (3, 1, 1), (3, 2, 0), (4, 1, 0)]]
    differ = [np.mean(a != b) for i, a in enumerate(shown) for b in shown[:i]]
    assert min(differ) > 0.5 and np.mean(shown[0] != images) > 0.5
    assert np.array_equal(shown[1], epoch(build(images), 1))


def test_the_global_generators_are_left_alone(images):
    def drawn(views):
        keras.utils.set_random_seed(0)
        views and epoch(build(images))
        return keras.random.uniform((3,)).numpy().tolist(), random.random(), np.random.random()

    assert drawn(True) == drawn(False)


def test_fixed_views_are_shared_by_seeds_and_chosen_by_epochs(images):
    one, other = build(images, count=4, seed=0), build(images, count=4, seed=1)
    every = augment.every(one)
    assert len(every) == 4 * COUNT and every.shape == (4 * COUNT, SIZE, SIZE, 3)
    assert np.array_equal(every[0 : 4 * COUNT], augment.every(other)[0 : 4 * COUNT])
    assert not np.array_equal(every[0:COUNT], every[COUNT : 2 * COUNT])
    assert not np.array_equal(every[0:COUNT], augment.every(build(images, count=4, split_seed=1))[0:COUNT])
    numbers = [augment.numbers(v, e) for v, e in [(one, 0), (one, 1), (other, 0)]]
    assert all(np.array_equal(n % COUNT, np.arange(COUNT)) for n in numbers)
    assert len({tuple(n // COUNT) for n in numbers}) == 3 and set(numbers[0] // COUNT) == {0, 1, 2, 3}
    assert np.array_equal(epoch(one), every[0 : 4 * COUNT][numbers[0]])


def test_flips(images):
    mirrored = {"horizontal": (images[:, :, ::-1],), "vertical": (images[:, ::-1],)}
    mirrored["both"] = (*mirrored["horizontal"], *mirrored["vertical"], images[:, ::-1, ::-1])
    for flip, others in mirrored.items():
        shown = epoch(build(images, Augment(flip)))
        alike = [[np.array_equal(a, b) for a, b in zip(shown, other, strict=True)] for other in (images, *others)]
        assert np.all(np.sum(alike, axis=0) == 1)  # each is one of them
        assert all(any(row) for row in alike)  # and each of them occurs: Keras's own "both" throws one coin for two


FACTORS = ("rotation", "translation", "shear", "zoom", "brightness", "contrast")


@pytest.mark.parametrize("factor", FACTORS)
def test_each_factor_goes_both_ways_as_far_as_it_says(images, factor):
    views = build(images, Augment(**{factor: 0.2}))
    (drawn,) = views.draw((0, 1), 2000)
    scale = {"rotation": 360, "translation": SIZE, "brightness": 255}.get(factor, 1)
    middle = {"zoom": 1, "contrast": 1}.get(factor, 0)
    names = {"rotation": "angle", "translation": "translations", "shear": "shear_factor", "zoom": "height_zoom"}
    names |= {"brightness": "rgb_delta", "contrast": "contrast_factor"}
    values = (drawn[names[factor]] - middle) / scale
    assert -0.2 <= values.min() < -0.19 and 0.19 < values.max() <= 0.2 + 1e-6
    assert np.mean(epoch(views) != images) > 0.3


def test_pixels_are_rounded_and_clipped():
    grey = np.full((200, 4, 4, 3), 250, np.uint8)
    shown = epoch(build(grey, Augment(brightness=0.1)))
    (drawn,) = build(grey, Augment(brightness=0.1)).draw((3, 1, 0, augment.DRAWN), 200)
    expected = np.clip(np.round(250 + drawn["rgb_delta"]), 0, 255).astype(np.uint8)
    assert np.array_equal(shown, np.broadcast_to(expected, grey.shape)) and shown.max() == 255 > shown.min()


def test_fill(images):
    far = {"translation": 0.9}
    black = [(epoch(build(images, Augment(**far, fill=fill))) == 0).mean() for fill in ("nearest", "constant")]
    assert black[0] == 0 and black[1] > 0.2


def test_mixed_precision_does_not_coarsen_pixels(images):
    right = epoch(build(images))
    device.configure("mixed_bfloat16")
    try:
        assert np.array_equal(epoch(build(images)), right)
    finally:
        device.configure("float32")


def test_what_showing_takes_is_counted(images):
    views = build(images)
    assert views.seconds == 0
    epoch(views)
    first = views.seconds
    epoch(views, 1)
    assert 0 < first < views.seconds
    assert augment.seconds_per_image(Augment("horizontal"), size=8) > 0


def test_it_is_told_in_words():
    assert augment.describe(Stage()) is None
    stage = Stage(augment=Augment("horizontal", zoom=0.1), augment_views=4)
    assert augment.describe(stage) == "flip horizontal, zoom 0.1, fill nearest, 4 views"
