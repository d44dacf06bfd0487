"""Keras layers of ours. Imported inside functions only, because it imports Keras."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("frostline")
class Dropout(keras.layers.Dropout):
    """Dropout whose mask comes from the Philox generator, so that it is the same with and without XLA.

    Keras's own layer leaves the generator to TensorFlow, which chooses another one when it compiles with XLA; and the
    bits must not pass through floats, which XLA makes of them in another way. Sixteen bits decide about an element, so
    the rate is kept to 2^-16. Inputs and outputs: float [N, ...].
    """

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        seed = tf.cast(self.seed_generator.next(), tf.int32)
        size = tf.size(inputs)
        words = tf.random.stateless_uniform(
            [(size + 3) // 4], seed, minval=None, maxval=None, dtype=tf.int64, alg="philox"
        )
        bits = tf.reshape(tf.reshape(tf.bitcast(words, tf.int16), [-1])[:size], tf.shape(inputs))
        keep = bits >= tf.constant(round(self.rate * 2**16) - 2**15, tf.int16)
        return tf.where(keep, inputs / (1 - self.rate), tf.zeros((), inputs.dtype))


@keras.saving.register_keras_serializable("frostline")
class BatchNormalization(keras.layers.BatchNormalization):
    """BatchNormalization that can be told to run in inference mode whatever `training` says.

    With `inference_only` the moving statistics are used and never moved; gamma and beta can still train. Passing
    `training=False` where the layer is called is not enough: in Keras 3.15 `fit` overrides it. The attribute is read
    when the model is traced, so it is set before `compile`.
    """

    inference_only = False

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False if self.inference_only else training, mask=mask)


@keras.saving.register_keras_serializable("frostline")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of logits [N, classes] and labels [N] of which the share `smoothing` is spread over all classes.

    Keras smooths labels only where they are one-hot.
    """

    def __init__(self, smoothing=0.0, name="smoothed_crossentropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.smoothing = smoothing

    def call(self, y_true, y_pred):
        labels = keras.ops.cast(keras.ops.reshape(y_true, [-1]), "int32")
        one_hot = keras.ops.one_hot(labels, y_pred.shape[-1], dtype=y_pred.dtype)
        return keras.losses.categorical_crossentropy(one_hot, y_pred, from_logits=True, label_smoothing=self.smoothing)

    def get_config(self):
        return {**super().get_config(), "smoothing": self.smoothing}


def residual_block(x, filters, name, regularizer=None):
    """Two 3×3 convolutions beside a shortcut, then max-pooling: [N, h, w, c] to [N, h // 2, w // 2, filters].

    Batch normalization follows each convolution; where c is another number, the shortcut is a 1×1 convolution.
    """

    def convolve(x, part, side, bias=True):
        x = keras.layers.Conv2D(
            filters, side, padding="same", use_bias=bias, kernel_regularizer=regularizer, name=f"{name}_{part}"
        )(x)
        return keras.layers.BatchNormalization(name=f"{name}_{part}_norm")(x)

    y = keras.layers.ReLU(name=f"{name}_relu_1")(convolve(x, "conv_1", 3))
    y = convolve(y, "conv_2", 3)
    shortcut = x if x.shape[-1] == filters else convolve(x, "shortcut", 1, bias=False)
    y = keras.layers.ReLU(name=f"{name}_relu_2")(keras.layers.Add(name=f"{name}_add")([y, shortcut]))
    return keras.layers.MaxPooling2D(2, name=f"{name}_pool")(y)


# What stands in for these layers in an export, so that it loads without frostline.
STANDARD = {Dropout: keras.layers.Dropout, BatchNormalization: keras.layers.BatchNormalization}
