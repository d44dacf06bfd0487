"""What the embedded server lets in, before TensorFlow decodes any of it."""

import io
import itertools
import json

import pytest
from PIL import Image
from serving_models import bomb, encoded, growing_gif, unreadable_png

pytest.importorskip("tensorflow")

from frostline.serving import json_values, tensors
from frostline.serving.status import Refused

SIZE = (6000, 4000)  # three of them are too many


def jpeg(size):
    """A JPEG of this size whose first segment Pillow cannot read; TensorFlow does not look into it."""
    good = encoded("lime", "JPEG", (8, 8))
    frame = good.index(b"\xff\xc0")
    sized = good[: frame + 5] + size[1].to_bytes(2) + size[0].to_bytes(2) + good[frame + 9 :]
    return sized[:2] + b"\xff\xdb\x00\x03\xff" + sized[2:]


def animated(form):
    out = io.BytesIO()
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "lime", "blue")]
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    "image",
    [bomb(), unreadable_png(), growing_gif(), jpeg((9000, 9000)), encoded("lime", "WEBP", (8000, 8000))],
    ids=["png", "png that Pillow refuses", "gif that grows", "jpeg that Pillow refuses", "webp"],
)
def test_an_image_of_too_many_pixels_is_refused_however_it_is_written(image):
    with pytest.raises(Refused, match="may decode to"):
        tensors.check_images([image])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_images_count_together(form):
    images = [encoded("lime", form, SIZE)] * 3
    tensors.check_images(images[:2])
    with pytest.raises(Refused, match=f"these have more: {3 * 6000 * 4000}"):
        tensors.check_images(images)


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_every_frame_counts(form):
    assert tensors._pixels(animated(form)) == 3 * 40 * 30


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_what_is_cut_short_is_left_to_tensorflow(form):
    whole = encoded("lime", form, (40, 30))
    for length in range(len(whole)):
        tensors.check_images([whole[:length]])


def test_a_wrong_document_is_quoted_by_its_beginning():
    small = {"instances": {"x": [1, "é", None]}}
    assert json_values.quote(small) == json.dumps(small, indent=4, ensure_ascii=False)
    pieces = itertools.count()

    class Endless(list):
        def __iter__(self):
            return pieces

        def __bool__(self):
            return True

    assert json_values.quote(Endless([0])).endswith("...") and next(pieces) < 1024


def test_a_string_many_times_is_refused():
    import tensorflow as tf

    proto = tf.make_tensor_proto([b"x"])
    proto.tensor_shape.dim[0].size = 10**6
    with pytest.raises(Refused, match="more than 65536 strings"):
        tensors.array(proto, "image_bytes")
    with pytest.raises(Refused, match="may hold 65536 strings"):
        tensors.check_images([b"x"] * 10**5)


@pytest.mark.parametrize("sizes", [[-1], [2**63 - 1, -(2**60)]])
def test_a_negative_size_is_refused(sizes):
    import tensorflow as tf

    proto = tf.make_tensor_proto([1])
    del proto.tensor_shape.dim[:]
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    with pytest.raises(Refused, match="tensor parsing error: x"):
        tensors.array(proto, "x")
