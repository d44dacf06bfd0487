"""What every entry of the literal tables must do; adding an entry adds its tests."""

import numpy as np
import pytest

from frostline import backbones, device, freezing, heads, models, runtimes
from frostline.datasets import DATASETS
from frostline.studies import Backbone, Stage


@pytest.mark.parametrize("table", [DATASETS, backbones.BACKBONES, runtimes.RUNTIMES], ids=lambda t: next(iter(t)))
def test_every_entry_says_what_it_is_in_one_line(table):
    for name, entry in table.items():
        assert entry.summary and "\n" not in entry.summary, name


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_backbone(name):
    device.seed_everything(0)
    net = models.build(Backbone(name), "linear", "backbone", 32, 3)
    logits = net.model.predict(np.zeros((2, 32, 32, 3), np.uint8), verbose=0)
    assert logits.shape == (2, 3) and np.isfinite(logits).all()
    assert set(net.groups.values()) >= {"head", "last_1"}
    probe = freezing.apply(net.model, net.groups, Stage(train=("head/.*",)))
    everything = freezing.apply(net.model, net.groups, Stage(train=("all",)))
    assert 0 < probe.trainable_params < everything.trainable_params <= everything.total_params


@pytest.mark.parametrize("name", heads.HEADS)
def test_head(name):
    device.seed_everything(0)
    net = models.build(Backbone("small_cnn"), name, "backbone", 32, 4)
    assert net.model.output_shape == (None, 4)
    assert net.model.layers[-1].dtype_policy.compute_dtype == "float32"
    assert heads.describe(heads.HEADS[name]).endswith("output")
