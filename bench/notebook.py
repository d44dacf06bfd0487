"""The notebook way: what a person writes who follows the documents. Public Keras alone, no frostline.

python bench/notebook.py CONFIGURATION IMAGES EPOCHS      prints the seconds of each epoch as JSON
"""

import json
import sys
import time

import keras
import numpy as np

TRAINS = {"output": 1, "dense_output": 3, "fully_connected": 6, "all": 99}  # how many layers from the end
configuration, count, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
x = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8).astype("float32")
y = rng.integers(0, 5, count)

layers = [
    *[keras.layers.Conv2D(32, 3, activation="relu"), keras.layers.Conv2D(64, 3, activation="relu")],
    *[keras.layers.MaxPooling2D(2), keras.layers.Dropout(0.2), keras.layers.Flatten()],
    *[keras.layers.Dense(128, activation="relu"), keras.layers.Dropout(0.2)],
    *[keras.layers.Dense(64, activation="relu"), keras.layers.Dropout(0.2)],
    keras.layers.Dense(5, activation="softmax"),
]
for layer in layers[: -TRAINS[configuration]]:
    layer.trainable = False
model = keras.Sequential([keras.Input((32, 32, 3)), *layers])
model.compile("rmsprop", "sparse_categorical_crossentropy", metrics=["accuracy"])

seconds = []
stopwatch = keras.callbacks.LambdaCallback(
    on_epoch_begin=lambda epoch, logs: seconds.append(-time.perf_counter()),
    on_epoch_end=lambda epoch, logs: seconds.append(seconds.pop() + time.perf_counter()),
)
model.fit(x, y, batch_size=64, epochs=epochs, callbacks=[stopwatch], verbose=0)
print(json.dumps({"seconds": seconds, "trainable": sum(int(np.prod(w.shape)) for w in model.trainable_weights)}))
