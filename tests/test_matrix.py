"""Which cells are measured."""

import pytest

from frostline import machine, matrix, runtimes
from frostline.errors import UserError
from frostline.inference import rules
from frostline.matrix import Asked


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(runtimes, "cuda_devices", lambda: 0)


FACTS = machine.facts()


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
    common |= {"outcome": "ok", "reason": None, "host_copies": True, "server": way.server, "machine": FACTS, **how}
    return [{**common, "scenario": scenario, "batch_size": size, **more} for scenario, size in way.cells]


def test_a_rate_under_another_bound_is_another_measurement():
    manifest = {"run": "r", "run_time": "t"}
    one, tighter, own = (ways(runtimes=("tf_serving_grpc",), latency_bound=bound)[0] for bound in (0.1, 0.01, None))
    records = told(one, latency_bound_asked_seconds=0.1)
    assert matrix.missing(one, manifest, records) == []
    assert matrix.missing(tighter, manifest, records) == matrix.missing(own, manifest, records) == [("server", 1)]
    assert matrix.missing(one, manifest, told(one)) == [("server", 1)] and not matrix.missing(own, manifest, told(own))


def test_another_cpu_library_or_server_is_measured_again():
    manifest = {"run": "r", "run_time": "t"}
    onnx, grpc = (ways(runtimes=(name,))[0] for name in ("onnxruntime", "tf_serving_grpc"))
    assert matrix.missing(onnx, manifest, told(onnx)) == matrix.missing(grpc, manifest, told(grpc)) == []
    older = {**FACTS, "versions": FACTS["versions"] | {"onnxruntime": "0.1", "onnxruntime-gpu": "0.1"}}
    for facts in (FACTS | {"cpu": "another"}, older, None):
        assert matrix.missing(onnx, manifest, told(onnx, machine=facts)) == list(onnx.cells)
    assert matrix.missing(grpc, manifest, told(grpc, machine=older)) == []  # which is not made of it
    assert matrix.missing(grpc, manifest, told(grpc, server="binary")) == list(grpc.cells)
    newer = told(onnx, machine=older) + told(onnx)
    assert matrix.missing(onnx, manifest, newer) == [] and matrix.figures(onnx, manifest, newer) == told(onnx)


def test_what_cannot_be_measured_here_stays_as_another_machine_measured_it(monkeypatch):
    (way,) = (way for way in ways(runtimes=("saved_model",)) if way.reason == "no CUDA device")
    there = {"machine": FACTS | {"cpu": "another"}}
    both = told(way, **there) + told(way, host_copies=False, **there)
    assert matrix.missing(way, {"run": "r", "run_time": "t"}, both) == []


def test_what_is_not_installed_is_skipped_before_a_process_is_started(monkeypatch):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    (way,) = ways(runtimes=("openvino",))[:1]
    assert way.reason == "openvino is not installed; it comes with the openvino extra"


def test_a_runtime_that_costs_nothing_is_not_measured_for_ten_minutes():
    quick, valid = (ways(runtimes=("null",), profile=profile)[0] for profile in ("quick", "valid"))
    assert quick.reason is None and valid.reason.startswith("measured in quick alone: ")


def test_a_cell_without_one_of_its_two_records_is_measured_again(monkeypatch):
    monkeypatch.setattr(runtimes, "cuda_devices", lambda: 1)
    (way,) = (way for way in ways(runtimes=("saved_model",)) if way.how.device == "gpu")
    held = told(way, host_copies=False)
    assert matrix.missing(way, {"run": "r", "run_time": "t"}, told(way) + held[:1]) == list(way.cells[1:])


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
