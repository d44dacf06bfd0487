"""Tiny SavedModels for the tests of the server."""

import itertools
import struct

CLASSES = ("cat", "dog", "owl")
SIZE = 8


def save_line(folder, slope, offset, warmup=None):
    """y = slope * x + offset for a vector x, as in TensorFlow Serving's documentation, and its Regress form."""
    import tensorflow as tf

    class Line(tf.Module):
        def __init__(self):
            super().__init__()
            self.slope, self.offset = tf.Variable(float(slope)), tf.Variable(float(offset))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def answer(self, x):
            return {"y": self.slope * x + self.offset}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def regress(self, inputs):
            x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
            return {"outputs": self.slope * x + self.offset}

        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.float32, name="a"), tf.TensorSpec([], tf.int32, name="b")]
        )
        def two(self, a, b):
            return {"sum": a + tf.cast(b, tf.float32), "count": tf.size(a)}

    model = Line()
    signatures = {"serving_default": model.answer, "regress": model.regress, "two": model.two}
    tf.saved_model.save(model, str(folder), signatures=signatures)
    if warmup is not None:
        write_warmup(folder, warmup)
    return folder


def save_xla(folder):
    """2 * x by a function that demands XLA."""
    import tensorflow as tf

    class Double(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def answer(self, x):
            return {"y": self.compiled(x)}

        @tf.function(jit_compile=True)
        def compiled(self, x):
            return 2 * x

    model = Double()
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.answer})


def write_warmup(folder, records):
    """Serialized PredictionLogs as the warm-up of a version."""
    import tensorflow as tf

    (folder / "assets.extra").mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for record in records:
            writer.write(record)


def predict_log(alias, value):
    """A warm-up record that predicts `value`."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    request = predict_pb2.PredictRequest()
    request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return prediction_log_pb2.PredictionLog(predict_log={"request": request}).SerializeToString()


def save_images(folder):
    """Mean brightness per channel as class scores: uint8 images, encoded images, and tf.Examples of encoded images."""
    import keras
    import tensorflow as tf

    inputs = keras.Input((SIZE, SIZE, 3), name="images", dtype="uint8")
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs)))

    def from_images(images):
        scores = tf.nn.softmax(model(images))
        best, order = tf.math.top_k(scores, k=len(CLASSES))
        return {"probabilities": scores, "top_k_scores": best, "top_k_classes": tf.gather(tf.constant(CLASSES), order)}

    def decode(encoded):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        image.set_shape([None, None, 3])
        return tf.cast(tf.round(tf.image.resize(image, (SIZE, SIZE))), tf.uint8)

    def from_bytes(image_bytes):
        return from_images(tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec((SIZE, SIZE, 3), tf.uint8)))

    def classify(inputs):
        features = tf.io.parse_example(inputs, {"image/encoded": tf.io.FixedLenFeature([], tf.string)})
        found = from_bytes(features["image/encoded"])
        return {"classes": found["top_k_classes"], "scores": found["top_k_scores"]}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default", from_images, [tf.TensorSpec((None, SIZE, SIZE, 3), tf.uint8, name="images")]
    )
    archive.add_endpoint("serving_bytes", from_bytes, [tf.TensorSpec((None,), tf.string, name="image_bytes")])
    archive.add_endpoint("classify", classify, [tf.TensorSpec((None,), tf.string, name="inputs")])
    archive.write_out(str(folder), verbose=False)
    return folder


def encoded(color, form="PNG", size=(SIZE, SIZE)):
    """An encoded image of one color."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, form)
    return out.getvalue()


def bomb(side=60_000, more=b""):
    """A PNG of a few kilobytes that says it has side x side pixels; `more` follows its header."""
    import zlib

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = _chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + more + data + _chunk(b"IEND", b"")


def unreadable_png():
    """A bomb that TensorFlow reads and Pillow does not: a checksum that does not matter is wrong."""
    return bomb(9000, _chunk(b"gAMA", bytes(4))[:-1] + b"?")


def _chunk(kind, data):
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def growing_gif():
    """A GIF that begins as one pixel, and whose second frame has 60,000 x 60,000."""
    frames = [b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\x00" for side in (1, 60_000)]
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + b"".join(frames) + b";"


def until(condition, seconds=60):
    """Ask again until something is true; the condition itself is the synchronisation with another process."""
    import time

    deadline = time.monotonic() + seconds
    for _ in itertools.count():
        if condition():
            return
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
