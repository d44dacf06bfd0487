"""What every entry of the literal tables must do; adding an entry adds its tests."""

import numpy as np
import pytest

from frostline import backbones, device, exporting, freezing, frontier, heads, machine, models, runtimes
from frostline.datasets import DATASETS, Dataset, Split
from frostline.exporting import checking
from frostline.studies import Backbone, Stage

# One network of each kind, the least side of its images, and its parameters: the others of a kind are larger.
SMALLEST = [
    ("small_cnn", 32, 19_392),
    ("residual_cnn", 32, 1_698_304),
    ("vgg16", 32, 14_714_688),
    ("inception_v3", 75, 21_802_784),
    ("inception_resnet_v2", 75, 54_336_736),
    ("xception", 71, 20_861_480),
    ("resnet50", 32, 23_587_712),
    ("resnet50_v2", 32, 23_564_800),
    ("densenet121", 32, 7_037_504),
    ("nasnet_mobile", 32, 4_269_716),
    ("mobilenet", 32, 3_228_864),
    ("mobilenet_v2", 32, 2_257_984),
    ("mobilenet_v3_small", 32, 939_120),
    ("efficientnet_b0", 32, 4_049_571),
    ("efficientnet_lite0", 32, 3_413_024),
    ("efficientnet_v2_b0", 32, 5_919_312),
    ("convnext_tiny", 32, 27_820_128),
]


@pytest.mark.parametrize("table", [DATASETS, backbones.BACKBONES, runtimes.RUNTIMES], ids=lambda t: next(iter(t)))
def test_every_entry_says_what_it_is_in_one_line(table):
    for name, entry in table.items():
        assert entry.summary and "\n" not in entry.summary, name


@pytest.mark.parametrize("name", runtimes.RUNTIMES)
def test_what_the_figures_of_a_runtime_depend_on_is_recorded(name):
    packages = runtimes.RUNTIMES[name].packages
    assert packages and set(packages) <= set(machine.LIBRARIES)


@pytest.mark.parametrize(("name", "size", "parameters"), SMALLEST)
def test_backbone(name, size, parameters):
    device.seed_everything(0)
    net = models.build(Backbone(name), "linear", "backbone", size, 3)
    assert net.backbone.count_params() == parameters
    logits = net.model(np.zeros((2, size, size, 3), np.uint8)).numpy()
    assert logits.shape == (2, 3) and np.isfinite(logits).all()
    assert all(hasattr(x, "inference_only") for x in net.model.layers if "BatchNormalization" in type(x).__name__)
    everything = freezing.apply(net.model, net.groups, Stage(train=("all",)))
    groups = sorted(set(net.groups.values()))
    assert groups == ["head", *(f"last_{i}" for i in range(1, len(groups)))]
    parts = [freezing.apply(net.model, net.groups, Stage(train=(f"{group}/.*",))).trainable_params for group in groups]
    assert all(parts) and sum(parts) == everything.trainable_params <= everything.total_params


@pytest.mark.parametrize("name", ["small_cnn", "vgg16", "mobilenet_v2", "efficientnet_b0", "convnext_tiny"])
def test_backbone_survives_its_export_and_a_cut(name):
    device.seed_everything(0)
    net = models.build(Backbone(name), "linear", "backbone", 32, 3)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    calibrate(net.model, pixels)
    logits = net.model(pixels).numpy()
    assert not np.allclose(logits[0], logits[1], rtol=1e-2)
    assert np.allclose(models.standard(net.model)(pixels), logits, rtol=1e-5, atol=1e-5)
    freezing.apply(net.model, net.groups, Stage(train=("head/.*",)))
    cut = frontier.split(net.model)
    assert np.allclose(cut.suffix(cut.prefix(pixels)), logits, rtol=1e-5, atol=1e-5)


EXPORTED = [
    pytest.param(name, size, marks=() if name in ("small_cnn", "mobilenet_v3_small") else pytest.mark.slow)
    for name, size, _ in SMALLEST
]


@pytest.mark.parametrize(("name", "size"), EXPORTED)
def test_backbone_is_exported_checked_converted_and_answers_equally(name, size, tmp_path):
    device.seed_everything(0)
    net = models.build(Backbone(name), "linear", "backbone", size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, (48, size, size, 3)).astype(np.uint8)
    calibrate(net.model, pixels[:16])
    labels = (np.arange(16) % 3).astype(np.int32)
    splits = [Split(pixels[i : i + 16], labels, [str(i + j) for j in range(16)]) for i in (0, 16, 32)]
    published = exporting.publish(
        models.standard(net.model),
        name=name,
        activation="softmax",
        class_names=("a", "b", "c"),
        images=pixels[:5],
        facts={"study": "contracts", "run": name, "run_time": "now"},
        exports=tmp_path,
        data=Dataset(*splits, ("a", "b", "c")),
        onnx_variants=exporting.VARIANTS,
    )
    assert published.variants["float32"]["outcome"] == "ok" and published.accuracy.keys() >= {"saved_model"}
    # Random weights answer all images alike, so that rounding may change the best class, and a gate refuse it.
    assert all("agreement" in about for about in published.variants.values()), published.variants
    assert checking.check(tmp_path) == [{"model": name, "version": "1", "wrong": []}]


def calibrate(model, pixels):
    """Give each BatchNormalization the statistics of these pixels: with those it starts from, deep networks die out."""
    norms = [x for x in model.layers if hasattr(x, "inference_only")]
    for layer in norms:
        layer.momentum = 0.0
    model(pixels, training=True)


@pytest.mark.parametrize("name", heads.HEADS)
def test_head(name):
    device.seed_everything(0)
    net = models.build(Backbone("small_cnn"), name, "backbone", 32, 4)
    assert net.model.output_shape == (None, 4)
    assert net.model.layers[-1].dtype_policy.compute_dtype == "float32"
    assert heads.describe(heads.HEADS[name]).endswith("output")
