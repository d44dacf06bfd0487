import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import pytest

TINY_STUDY = """
title = "tiny"
[data]
dataset = "digits"
classes = [5, 6]
[backbone]
name = "small_cnn"
weights = "none"
[train]
batch_size = 16
epochs = 1
[[freeze]]
name = "output"
train = ["head/output"]
[[freeze]]
name = "all"
"""


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run what takes minutes, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="takes minutes; type: make test-slow")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """No test reads or fills the cache of the person who runs it; children inherit this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FROSTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def tiny_study():
    return TINY_STUDY


@pytest.fixture
def images():
    """Uint8 [40, 32, 32, 3] with labels that the pixels tell, int32 [40]."""
    import numpy as np

    rng = np.random.default_rng(0)
    labels = np.arange(40, dtype=np.int32) % 2
    pixels = rng.integers(0, 100, (40, 32, 32, 3)) + 120 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels
