"""What happens to requests while versions and configurations change under a running server."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import serving_models
from serving_models import predict_log, save_line, until
from test_serving import LINE, ask, predict_request

from frostline import serving
from frostline.serving import backends
from frostline.serving.flags import Flags
from frostline.serving.status import Refused
from frostline.serving.versions import Unavailable

RETRY = ["--max_num_load_retries=100", "--load_retry_interval_micros=200000"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Versions to publish: 1 and 2 are good; 3 has a warm-up that fails; 4 is good and warms up."""
    folder = tmp_path_factory.mktemp("lines")
    for number in (1, 2, 3, 4):
        save_line(folder / str(number), 0.0, number)
    serving_models.write_warmup(folder / "3", [predict_log("not_an_input", [1.0])])
    serving_models.write_warmup(folder / "4", [predict_log("x", [1.0])])
    return folder


@pytest.fixture
def exports(tmp_path, lines):
    publish(lines / "1", tmp_path / "saved_model" / "half_plus_two")
    return tmp_path


def publish(version, base):
    """Copy a version out of sight and show it by one rename."""
    shutil.copytree(version, base / f".tmp-{version.name}")
    os.rename(base / f".tmp-{version.name}", base / version.name)


def states(server):
    found = ask(server, LINE)[1]["model_version_status"]
    return {int(entry["version"]): (entry["state"], entry["status"]["error_message"]) for entry in found}


def answer(server, where=""):
    return ask(server, f"{LINE}{where}:predict", {"instances": [1.0]})


def test_versions_come_and_go(exports, lines):
    base = exports / "saved_model" / "half_plus_two"
    flags = ["--max_num_load_retries=0"]
    with serving.running(exports, [], backend="embedded", flags=flags) as server:
        publish(lines / "2", base)
        until(lambda: answer(server) == (200, {"predictions": [2.0]}))
        until(lambda: states(server)[1][0] == "END")
        publish(lines / "3", base)
        until(lambda: states(server).get(3, [""])[0] == "END")
        assert "Missing but required: {x}" in states(server)[3][1]
        assert answer(server) == (200, {"predictions": [2.0]})
        assert answer(server, "/versions/3")[0] == 404
        shutil.copytree(lines / "4", base / "5", ignore=shutil.ignore_patterns("variables"))  # half a version
        until(lambda: states(server).get(5, [""])[0] == "END")
        assert answer(server) == (200, {"predictions": [2.0]})
        publish(lines / "4", base)  # the newest is the broken one still
        assert answer(server) == (200, {"predictions": [2.0]})
        shutil.rmtree(base / "5")
        until(lambda: answer(server) == (200, {"predictions": [4.0]}))


def config_text(base, more):
    return f"""model_config_list {{ config {{
        name: "half_plus_two" base_path: "{base}" model_platform: "tensorflow" {more} }} }}"""


def test_a_changed_configuration_is_followed_and_a_wrong_one_is_not(exports, lines, tmp_path):
    import grpc
    from google.protobuf import text_format
    from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

    base = exports / "saved_model" / "half_plus_two"
    publish(lines / "2", base)
    path = tmp_path / "own.config"
    both = "model_version_policy { all {} }"
    path.write_text(config_text(base, both))
    flags = ["--model_config_file_poll_wait_seconds=1", "--file_system_poll_wait_seconds=1", *RETRY]
    log = tmp_path / "log.txt"
    with _running_with(path, flags, log) as server:
        until(lambda: answer(server, "/versions/1") == (200, {"predictions": [1.0]}))
        labels = 'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }'
        path.write_text(config_text(base, both + labels))
        until(lambda: answer(server, "/labels/stable") == (200, {"predictions": [1.0]}))
        assert answer(server, "/labels/canary") == (200, {"predictions": [2.0]})
        for wrong in ("model_config_lst {}", config_text("relative", both), ""):
            path.write_text(wrong)
            time.sleep(1.5)  # the server polls each second; nothing must happen, so there is nothing to wait for
            assert answer(server, "/labels/stable") == (200, {"predictions": [1.0]})

        with grpc.insecure_channel(server.grpc) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)

            def reload(text):
                request = model_management_pb2.ReloadConfigRequest()
                text_format.Parse(text, request.config)
                return stub.HandleReloadConfigRequest(request, timeout=60)

            moved = both + labels.replace("value: 1", "value: 9")
            for text, code, words in (
                (config_text(base, moved), "FAILED_PRECONDITION", "label to version 9 of model half_plus_two"),
                (config_text("relative", ""), "INVALID_ARGUMENT", "absolute path"),
                ("custom_model_config {}", "INVALID_ARGUMENT", "ServerModelConfig type not supported"),
            ):
                with pytest.raises(grpc.RpcError, match=words) as caught:
                    reload(text)
                assert caught.value.code().name == code
            one = "model_version_policy { specific { versions: 1 } }"
            assert reload(config_text(base, one)).status.error_code == 0
            until(lambda: answer(server) == (200, {"predictions": [1.0]}))


def test_what_changed_while_the_first_models_were_loaded_is_followed(tmp_path):
    from frostline.serving import server

    path = tmp_path / "own.config"
    path.write_text(config_text("/elsewhere", ""))

    async def follow():
        applied = asyncio.Queue()
        flags = Flags(model_config_file=str(path))
        served = types.SimpleNamespace(flags=flags, models=types.SimpleNamespace(apply=applied.put, models={}))
        polling = asyncio.create_task(server._poll_config(served))
        try:
            return await asyncio.wait_for(applied.get(), 30)
        finally:
            polling.cancel()

    assert asyncio.run(follow())["half_plus_two"].base_path == Path("/elsewhere")


def test_a_reload_over_grpc_is_undone_at_the_next_poll_of_the_file(tmp_path, capsys):
    from frostline.serving import server

    path, applied = tmp_path / "own.config", []
    path.write_text(config_text("/elsewhere", ""))

    async def follow():
        async def apply(asked):
            applied.append(asked)
            models.models = asked

        models = types.SimpleNamespace(apply=apply, models={})
        served = types.SimpleNamespace(flags=Flags(model_config_file=str(path)), models=models)
        polling = asyncio.create_task(server._poll_config(served))
        for _ in range(2):
            for _ in range(20):
                await asyncio.sleep(0)
            models.models = {}  # what HandleReloadConfigRequest was given
        polling.cancel()

    asyncio.run(follow())
    assert len(applied) == 2 and applied[0] == applied[1] != {}
    assert capsys.readouterr().err == f"frostline: {path} is in force\n" * 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Unavailable("UNKNOWN", "model(s) did not become available: m"), "is in force, but model(s) did not become"),
        (Refused("INVALID_ARGUMENT", "a label too early"), "is not in force: INVALID_ARGUMENT: a label too early"),
    ],
)
def test_a_configuration_is_said_to_be_in_force_where_it_is(tmp_path, capsys, error, told):
    from frostline.serving import server

    path = tmp_path / "own.config"
    path.write_text(config_text("/elsewhere", ""))

    async def follow():
        asked = asyncio.Event()

        async def apply(models):
            asked.set()
            raise error

        models = types.SimpleNamespace(apply=apply, models={})
        served = types.SimpleNamespace(flags=Flags(model_config_file=str(path)), models=models)
        polling = asyncio.create_task(server._poll_config(served))
        await asyncio.wait_for(asked.wait(), 30)
        for _ in range(20):  # until it has said so
            await asyncio.sleep(0)
        polling.cancel()

    asyncio.run(follow())
    assert f"{path} {told}" in capsys.readouterr().err


def test_what_was_refused_is_tried_again_and_told_once(tmp_path, capsys, monkeypatch):
    from frostline.serving import server

    path, tries = tmp_path / "own.config", []
    path.write_text(config_text("/elsewhere", ""))
    monkeypatch.setattr(server, "NEW_MODELS_SECONDS", 0.01)

    async def follow():
        done = asyncio.Event()

        async def apply(asked):
            tries.append(asked)
            if len(tries) < 3:
                raise Refused("FAILED_PRECONDITION", "a label too early")
            if len(tries) == 3:  # somebody else's configuration is being applied
                await asyncio.Event().wait()
            models.models = asked
            done.set()

        models = types.SimpleNamespace(apply=apply, models={})
        served = types.SimpleNamespace(flags=Flags(model_config_file=str(path)), models=models)
        polling = asyncio.create_task(server._poll_config(served))
        await asyncio.wait_for(done.wait(), 30)
        for _ in range(20):
            await asyncio.sleep(0)
        polling.cancel()

    asyncio.run(follow())
    told = [line.removeprefix(f"frostline: {path} ") for line in capsys.readouterr().err.splitlines()]
    assert len(tries) == 4 and told == [
        "is not in force: FAILED_PRECONDITION: a label too early",
        "is not in force yet: another configuration is being applied",
        "is in force",
    ]


def test_a_warm_up_comes_through_the_batching_that_requests_come_through(tmp_path):
    from frostline.serving import core

    save_line(tmp_path / "1", 0.0, 1)
    serving_models.write_warmup(tmp_path / "1", [predict_log("x", [1.0, 2.0, 3.0])])
    (tmp_path / "own.config").write_text("max_batch_size { value: 2 }")
    batched = core.make(Flags(enable_batching=True, batching_parameters_file=str(tmp_path / "own.config")))
    with pytest.raises(Refused, match="Task size 3 is larger than maximum input batch size 2"):
        batched.models._load("m", 1, tmp_path / "1")
    alone = core.make(Flags())
    alone.models._close(alone.models._load("m", 1, tmp_path / "1"))


def test_with_parameters_of_its_own_for_each_a_version_without_them_is_not_batched(tmp_path, monkeypatch):
    from frostline.serving import core

    monkeypatch.setattr(core.servables, "load", lambda name, version, path, flags, limits: limits)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "batching_params.pbtxt").write_text("max_batch_size { value: 7 }")

    def largest(version, **flags):
        found = core.make(Flags(enable_model_warmup=False, **flags)).models._load("m", version, tmp_path / str(version))
        return found and found.max_batch_size

    each = {"enable_batching": True, "enable_per_model_batching_parameters": True}
    assert (largest(1, **each), largest(2, **each)) == (None, 7)
    assert (largest(1, enable_batching=True), largest(2, enable_batching=True), largest(2)) == (1000, 1000, None)


def test_a_full_server_is_one_to_ask_again():
    from frostline.serving import core

    made = core.make(Flags())
    made.waiting = core.MAX_WAITING + made.flags.grpc_max_threads
    with pytest.raises(Refused) as caught:
        asyncio.run(core.in_thread(made, print))
    assert caught.value.code == "UNAVAILABLE"


def test_a_version_that_cannot_warm_up_gives_its_memory_back(monkeypatch):
    from frostline.serving import core

    closed = []
    monkeypatch.setattr(core.servables, "load", lambda name, version, *_: f"{name} {version}")
    monkeypatch.setattr(core.servables, "close", closed.append)
    monkeypatch.setattr(core.jobs, "warm_up", lambda servable: {}["no such signature"])
    made = core.make(Flags())
    with pytest.raises(KeyError, match="no such signature"):
        made.models._load("m", 3, Path("m/3"))
    assert closed == ["m 3"]


def test_a_large_request_is_looked_at_beside_the_others(monkeypatch):
    from frostline.serving import core

    threads = []

    def look(servable, request):
        threads.append(threading.current_thread().name)
        raise core.invalid("enough")

    monkeypatch.setitem(core.jobs.JOBS, "Predict", look)
    made = core.make(Flags())
    monkeypatch.setattr(made.models, "borrow", contextlib.nullcontext)
    for image in (b"", bytes(2 * core.LARGE)):
        with pytest.raises(Refused, match="enough"):
            asyncio.run(core.answer(made, "Predict", predict_request("m", image_bytes=[image])))
    assert threads[0] == "MainThread" and threads[1].startswith("request")


@contextlib.contextmanager
def _running_with(path, flags, log):
    """A server of an own configuration, as `running` starts one of its own making."""
    port, rest = backends._free_ports(2)
    ports = [f"--port={port}", f"--rest_api_port={rest}", f"--model_config_file={path}"]
    command = [sys.executable, "-m", "frostline.serving.server", *flags, *ports]
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=out)
    server = backends.Server(f"127.0.0.1:{port}", f"http://127.0.0.1:{rest}", "embedded", child.pid)
    try:
        backends._wait(child, server.rest, ["half_plus_two"], log)
        yield server
    finally:
        child.stdin.close()  # which ends it
        assert child.wait(30) == 0


def test_batching_answers_as_single_requests_do(exports, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    path = tmp_path / "batching.config"
    path.write_text("max_batch_size { value: 8 } batch_timeout_micros { value: 1000 } allowed_batch_sizes: [4, 8]")
    save_line(exports / "saved_model" / "line" / "1", 2.0, 1.0)
    flags = ["--enable_batching", f"--batching_parameters_file={path}"]
    with (
        serving.running(exports, ["line"], backend="embedded", flags=flags) as server,
        grpc.insecure_channel(server.grpc) as channel,
        ThreadPoolExecutor(16) as pool,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def one(i):
            return stub.Predict(predict_request("line", x=[float(i)]), timeout=60).outputs["y"].float_val[0]

        assert list(pool.map(one, range(100))) == [2 * i + 1 for i in range(100)]
        many = ask(server, "/v1/models/line:predict", {"instances": [1.0] * 9})
        assert many == (400, {"error": "Task size 9 is larger than maximum input batch size 8"})
        scalar = {"signature_name": "two", "inputs": {"a": [1.0], "b": 1}}
        assert "at least one dimension" in ask(server, "/v1/models/line:predict", scalar)[1]["error"]


@pytest.mark.slow
def test_200_clients_see_no_failure_while_versions_change(exports, lines):
    """60 s of requests; in the meantime version 2 is published, then one that cannot warm up, then a good one."""
    import asyncio

    import aiohttp

    base = exports / "saved_model" / "half_plus_two"
    seen, failures = set(), []

    async def client(session, url, end):
        while time.monotonic() < end:
            try:
                async with session.post(url, json={"instances": [1.0]}) as found:
                    text = await found.json()
                    seen.add(text["predictions"][0]) if found.status == 200 else failures.append(text)
            except Exception as error:
                failures.append(repr(error))

    async def clients(url, seconds):
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(client(session, url, time.monotonic() + seconds) for _ in range(200)))

    flags = ["--max_num_load_retries=0", "--enable_batching"]
    with serving.running(exports, [], backend="embedded", flags=flags) as server:
        load = threading.Thread(target=lambda: asyncio.run(clients(f"{server.rest}{LINE}:predict", 60)))
        load.start()
        until(lambda: 1.0 in seen)
        publish(lines / "2", base)
        until(lambda: 2.0 in seen)
        publish(lines / "3", base)
        until(lambda: states(server).get(3, [""])[0] == "END")
        publish(lines / "4", base)
        until(lambda: 4.0 in seen)
        load.join()
        until(lambda: states(server)[2][0] == "END")
        found = states(server)
    assert failures == []
    assert seen == {1.0, 2.0, 4.0}
    assert [found[n][0] for n in (1, 2, 3, 4)] == ["END", "END", "END", "AVAILABLE"], json.dumps(found)
