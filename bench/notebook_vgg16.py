"""The notebook way: a frozen VGG16, a new head, one `fit`. Public Keras alone, no frostline.

python bench/notebook_vgg16.py FOLDER WIDTH EPOCHS      prints the seconds of each epoch, and of the last test, as JSON
"""

import json
import sys
import time
from pathlib import Path

import keras
import numpy as np

folder, width, epochs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = {name: np.load(folder / f"{name}.npy") for name in ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")}

base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
base.trainable = False
inputs = keras.Input((32, 32, 3))
x = base(keras.applications.vgg16.preprocess_input(inputs), training=False)
x = keras.layers.Flatten()(x)
x = keras.layers.Dense(width, activation="relu")(x)
x = keras.layers.Dropout(0.5)(x)
model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x))
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

seconds = []
for _ in range(epochs):
    started = time.perf_counter()
    model.fit(data["x_train"], data["y_train"], validation_data=(data["x_val"], data["y_val"]), verbose=0)
    seconds.append(time.perf_counter() - started)
started = time.perf_counter()
model.evaluate(data["x_test"], data["y_test"], verbose=0)
print(json.dumps({"seconds": seconds, "test_seconds": time.perf_counter() - started}))
