"""The studies on the real data sets, in a folder that FROSTLINE_REAL_DATA names."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

DATA = os.environ.get("FROSTLINE_REAL_DATA")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA, reason="FROSTLINE_REAL_DATA names no folder with the real data"),
]


def test_cifar10_split_on_real_images(tmp_path):
    command = [sys.executable, "-m", "frostline.cli", "run", "cifar10_split", "--data-dir", DATA, "--limit", "500"]
    flags = ["--epochs", "1", "--seeds", "0", "--precision", "float32", "--xla", "off", "--no-infer"]
    only = ["--only", "output", "--only", "dense_output"]
    places = ["--results", tmp_path / "results", "--exports", tmp_path / "exports"]
    done = subprocess.run([*command, *flags, *only, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = [sys.executable, "-m", "frostline.cli", "table", tmp_path / "results", "--format", "json"]
    rows = {r["freeze"]: r for r in json.loads(subprocess.run(table, capture_output=True, check=True).stdout)}
    assert [rows[name]["trainable_params"] for name in ("pretrain", "output", "dense_output")] == [
        1_633_733,
        325,
        8_581,
    ]
    assert {row["total_params"] for row in rows.values()} == {1_633_733}
    assert {row["protocol"] for row in rows.values()} == {"document"}
    assert all(0 < row["test_top1"] == row["validation_top1"] for row in rows.values())
    assert (tmp_path / "exports/onnx/cifar10_split.output/1/model.onnx").is_file()


def test_features_of_efficientnet_lite0_tell_cats_from_dogs():
    from sklearn.linear_model import LogisticRegression

    from frostline import datasets, lite0, models
    from frostline.studies import Backbone, Data

    folder = Path(DATA, "cats_and_dogs")
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    try:
        metadata.version(lite0.PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{lite0.PACKAGE} is not installed")
    data = datasets.load(Data("image_folder", path=str(folder), image_size=224), limit=150)
    net = models.build(Backbone("efficientnet_lite0"), "linear", "backbone", 224, 2)
    models.load_published(net, "efficientnet_lite0", skip=set())
    train, test = (net.backbone.predict(x.images, 16, verbose=0).mean(axis=(1, 2)) for x in (data.train, data.test))
    assert train.shape == (150, 1280) and np.isfinite(train).all()
    assert LogisticRegression(max_iter=1000).fit(train, data.train.labels).score(test, data.test.labels) > 0.95
