"""Which cells are measured."""

import pytest

from frostline import machine, matrix, runtimes
from frostline.errors import UserError
from frostline.inference import rules
from frostline.matrix import Asked


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(runtimes, "cuda_devices", lambda: 0)


def ways(**asked):
    return matrix.ways(Asked(**asked))


def test_everything_is_measured_unless_told_otherwise():
    found = ways()
    assert {way.runtime for way in found} == set(runtimes.RUNTIMES)
    local = next(way for way in found if way.runtime == "onnxruntime")
    assert local.cells == (("single_stream", 1), ("offline", 32), ("offline", 256))
    remote = [way for way in found if way.runtime == "tf_serving_rest"]
    assert [way.how.payload for way in remote] == ["pixels", "jpeg"]
    assert remote[0].cells == (("single_stream", 1), ("offline", 32), ("server", 1))


def test_of_a_quick_try_only_what_is_deployed_is_measured_and_briefly():
    assert matrix.of_a_study(quick=False) == Asked(runtimes=matrix.OF_A_STUDY)
    found = matrix.ways(matrix.of_a_study(quick=True))
    assert {way.runtime for way in found} == {"saved_model", "onnxruntime"} and all(way.brief for way in found)
    brief = rules.brief(rules.PROFILES["quick"])
    assert brief.name == "quick" and brief.most == brief.windows == rules.LAST and brief.seconds < 0.5


def test_the_gpu_is_skipped_for_a_reason_and_float16_is_for_it_alone():
    found = [(way.how.device, way.how.variant, way.reason) for way in ways(runtimes=("onnxruntime",))]
    assert found == [("cpu", "float32", None), ("cpu", "int8", None)] + [
        ("gpu", variant, "no CUDA device") for variant in ("float32", "float16", "int8")
    ]


def test_batch_sizes_are_those_of_offline():
    (way,) = ways(runtimes=("openvino",), batch_sizes=(8, 9))[:1]
    assert way.cells == (("single_stream", 1), ("offline", 8), ("offline", 9))
    (way,) = ways(runtimes=("null",), scenarios=("single_stream",), batch_sizes=(8,), threads=1)
    assert way.cells == (("single_stream", 1),) and way.how.threads == 1


def test_the_server_scenario_is_for_what_asks_a_server():
    assert {way.runtime for way in ways(scenarios=("server",))} == {"tf_serving_grpc", "tf_serving_rest"}
    with pytest.raises(UserError, match="--scenario server is for a runtime that asks a server: tf_serving_grpc"):
        ways(scenarios=("server",), runtimes=("onnxruntime",))


def told(way, **more):
    """A record of each cell of a way."""
    how = {"variant": way.how.variant, "payload": way.how.payload, "device": way.how.device, "threads": machine.cores()}
    common = {"kind": "infer", "run": "r", "run_time": "t", "runtime": way.runtime, "profile": way.profile}
    common |= {"outcome": "ok", "reason": None, "host_copies": True, **how}
    return [{**common, "scenario": scenario, "batch_size": size, **more} for scenario, size in way.cells]


def test_a_rate_under_another_bound_is_another_measurement():
    manifest = {"run": "r", "run_time": "t"}
    one, tighter, own = (ways(runtimes=("tf_serving_grpc",), latency_bound=bound)[0] for bound in (0.1, 0.01, None))
    records = told(one, latency_bound_asked_seconds=0.1)
    assert matrix.missing(one, manifest, records) == []
    assert matrix.missing(tighter, manifest, records) == matrix.missing(own, manifest, records) == [("server", 1)]
    assert matrix.missing(one, manifest, told(one)) == [("server", 1)] and not matrix.missing(own, manifest, told(own))


def test_what_failed_with_or_without_copies_is_measured_again(monkeypatch):
    monkeypatch.setattr(runtimes, "cuda_devices", lambda: 1)
    (way,) = (way for way in ways(runtimes=("saved_model",)) if way.how.device == "gpu")
    good, held = told(way), told(way, host_copies=False)
    failed = [{**good[0], "outcome": "failed"}, *good[1:]]
    manifest = {"run": "r", "run_time": "t"}
    assert matrix.missing(way, manifest, good + held) == []
    assert (
        matrix.missing(way, manifest, failed + held) == matrix.missing(way, manifest, held + failed) == [way.cells[0]]
    )
    assert matrix.missing(way, manifest, failed + held + good) == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"runtimes": ("onnxruntim",)}, "unknown runtime 'onnxruntim'; did you mean 'onnxruntime'"),
        ({"scenarios": ("ofline",)}, "unknown scenario 'ofline'; did you mean 'offline'"),
        ({"profile": "fast"}, "unknown profile 'fast'; there are: quick, valid"),
        ({"threads": 4096}, "--threads 4096: this machine has"),
    ],
)
def test_what_does_not_exist_is_the_users_mistake(asked, told):
    with pytest.raises(UserError, match=told):
        Asked(**asked)
