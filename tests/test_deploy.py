import base64
import contextlib
import io
import json
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
import serving_fake
from PIL import Image

from frostline import batching, cli, client, deploy, protos
from frostline.deploy import Served, Server, bundling, config, rollout
from frostline.errors import UserError

SIGNATURES = {
    "serving_default": {
        "inputs": {"images": {"dtype": "uint8", "shape": [None, 8, 8, 3]}},
        "outputs": {"probabilities": {"dtype": "float32", "shape": [None, 2]}},
    },
    "serving_bytes": {
        "inputs": {"image_bytes": {"dtype": "string", "shape": [None]}},
        "outputs": {"top_k_classes": {"dtype": "string", "shape": [None, 2]}},
    },
}


def publish(exports, name, *versions):
    for version in versions:
        folder = exports / "saved_model" / name / str(version)
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").touch()
        about = {"name": name, "version": version, "study": "pets", "freeze": "output", "class_names": ["cat", "dog"]}
        (folder / "manifest.json").write_text(json.dumps(about | {"signatures": SIGNATURES}))


@pytest.fixture
def exports(tmp_path):
    publish(tmp_path, "tiny", 1)
    publish(tmp_path, "pets.all", 3, 12)
    (tmp_path / "saved_model" / "tiny" / ".tmp-2-ab").mkdir()
    (tmp_path / "saved_model" / "tiny" / "7").mkdir()  # half a version
    return tmp_path


def served(exports, name="tiny"):
    return config.served(config.entry(config.read(exports / "serving" / "models.config"), name))


def run(*args):
    return cli.main([str(arg) for arg in args])


# -- the bundle ----------------------------------------------------------------------------------------


def test_every_model_is_served_with_its_newest_version(exports):
    folder, told = deploy.bundle(exports)
    assert folder == exports / "serving" and told == []
    found = protos.read(folder / "models.config", protos.ModelServerConfig).model_config_list.config
    assert [(one.name, one.base_path, one.model_platform) for one in found] == [
        ("pets.all", "/models/pets.all", "tensorflow"),
        ("tiny", "/models/tiny", "tensorflow"),
    ]
    assert [list(one.model_version_policy.specific.versions) for one in found] == [[12], [1]]
    assert [dict(one.version_labels) for one in found] == [{"stable": 12, "canary": 12}, {"stable": 1, "canary": 1}]


def test_every_file_is_read_by_what_it_is_for(exports):
    yaml = pytest.importorskip("yaml")
    folder, _ = deploy.bundle(exports, models_at="/srv/models")
    monitoring = protos.read(folder / "monitoring.config", protos.MonitoringConfig)
    assert monitoring.prometheus_config.enable and monitoring.prometheus_config.path == "/monitoring/prometheus/metrics"
    found = protos.read(folder / "batching.config", protos.BatchingParameters)
    assert tuple(found.allowed_batch_sizes) == batching.ALLOWED_SIZES and found.num_batch_threads.value >= 1
    services = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]
    assert {name: one["profiles"] for name, one in services.items()} == {"cpu": ["cpu"], "gpu": ["gpu"]}
    assert services["gpu"]["image"] == services["cpu"]["image"] + "-gpu"
    for one in services.values():
        assert "../saved_model:/srv/models:ro" in one["volumes"]
        assert "--batching_parameters_file=/serving/batching.config" in one["command"]
        assert all(path.is_file() for path in mentioned(folder, one["command"]))
        assert one["healthcheck"]["test"] == ["CMD", "bash", "/serving/health.sh"]
    request = json.loads((folder / "request.json").read_text())
    (row,) = request["instances"]
    assert Image.open(io.BytesIO(base64.b64decode(row["b64"]))).size == (320, 240)
    assert stat.S_IMODE((folder / "curl.sh").stat().st_mode) == 0o755


def test_a_bucket_is_no_folder_to_mount(exports):
    yaml = pytest.importorskip("yaml")
    folder, _ = deploy.bundle(exports, models_at="gs://bucket/models/")
    entries = config.read(folder / "models.config").model_config_list.config
    assert [one.base_path for one in entries] == ["gs://bucket/models/pets.all", "gs://bucket/models/tiny"]
    services = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]
    assert [one["volumes"] for one in services.values()] == [[".:/serving:ro"]] * 2


def mentioned(folder, command):
    paths = [flag.partition("=")[2] for flag in command]
    return [folder / path.removeprefix("/serving/") for path in paths if path.startswith("/serving/")]


def test_the_server_of_ours_takes_these_flags(exports):
    yaml = pytest.importorskip("yaml")
    flags = pytest.importorskip("frostline.serving.flags")
    folder, _ = deploy.bundle(exports)
    command = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]["cpu"]["command"]
    found = flags.parse(command)
    assert found.model_config_file_poll_wait_seconds == 10 and found.enable_batching
    assert found.allow_version_labels_for_unavailable_models
    tries = 1 + found.max_num_load_retries
    assert tries * found.load_retry_interval_micros / 1e6 < cli.parser().parse_args(["rollout", "m"]).timeout


def test_the_readme_is_made_of_the_manifests(exports):
    folder, _ = deploy.bundle(exports)
    text = (folder / "README.md").read_text()
    assert "# 2 models for TensorFlow Serving" in text and "### pets.all" in text and "Classes: `cat`, `dog`." in text
    row = "| `serving_default` | `images` uint8 [N, 8, 8, 3] | `probabilities` float32 [N, 2] |"
    assert text.count(row) == 2 and "Version 12: configuration `output` of study `pets`" in text
    assert ':classify` with\n`{"signature_name": "classify", "examples": [{"image/encoded": {"b64": ...}}]}`' in text


def test_the_readme_follows_the_stable_version(exports, capsys):
    deploy.bundle(exports, models_at="/srv/models")
    before = (exports / "serving" / "README.md").read_text()
    publish(exports, "tiny", 2)
    for words, version in [(("rollout",), 1), (("rollout",), 1), (("rollout", "--promote"), 2), (("rollback",), 1)]:
        os.utime(exports / "serving" / "models.config", (0, 0))
        assert run(words[0], "tiny", *words[1:], "--exports", exports) == 0
        text = (exports / "serving" / "README.md").read_text()
        assert text == before.replace("tiny\n\nVersion 1:", f"tiny\n\nVersion {version}:")
    (exports / "saved_model" / "pets.all" / "12" / "manifest.json").write_text("{")
    assert run("rollback", "tiny", "--exports", exports) == 0  # the step is done, whatever the README
    assert "12/manifest.json is damaged" in capsys.readouterr().err and served(exports) == ONE


def test_renewing_keeps_versions_labels_and_places(exports):
    deploy.bundle(exports, models_at="/srv/models/")
    publish(exports, "tiny", 2)
    publish(exports, "another", 5)
    _, told = deploy.bundle(exports)
    typed = f"frostline rollout tiny --exports {exports}"
    assert told == [f"tiny: version 2 is published, 1 is served; type: {typed}"]
    assert served(exports) == Served((1,), 1, 1) and served(exports, "another") == Served((5,), 5, 5)
    whole = config.read(exports / "serving" / "models.config")
    assert {one.base_path for one in whole.model_config_list.config} == {
        "/srv/models/tiny", "/srv/models/another", "/srv/models/pets.all"
    }  # fmt: skip


def test_what_has_gone_is_left_out_and_said(exports):
    publish(exports, "tiny", 2)
    deploy.bundle(exports)
    (exports / "saved_model" / "tiny" / "2").rename(exports / "away")
    (exports / "saved_model" / "pets.all").rename(exports / "away2")
    _, told = deploy.bundle(exports)
    assert told == [
        f"pets.all has gone from the exports, and from {exports / 'serving' / 'models.config'}",
        "tiny: a served version has gone; now version 1; stable is 1, canary is 1; start the server again",
    ]


@pytest.mark.parametrize(
    ("measured", "sizes", "micros"),
    [
        ({1: (100, 0.002), 32: (150, 0.2), 256: (900, 0.3)}, (1, 2, 4, 8, 16, 32), 2000),
        ({1: (100, 0.002), 8: (140, 0.1), 32: (150, 0.2)}, (1, 2, 4, 8), 2000),
        ({1: (100, 0.05), 32: (105, 0.2)}, (1,), 10_000),
        ({32: (105, 0.2)}, (1, 2, 4, 8, 16, 32), batching.TIMEOUT_MICROS),
        ({1: (None, None), 256: (5, 0.1)}, batching.ALLOWED_SIZES, batching.TIMEOUT_MICROS),
    ],
)
def test_batch_sizes_are_those_that_were_measured(measured, sizes, micros):
    row = {"runtime": "saved_model", "device": "cpu", "model": "tiny"}
    records = [
        row | {"batch_size": size, "images_per_second": speed, "latency_p50_seconds": seconds}
        for size, (speed, seconds) in measured.items()
    ]
    slow = {"runtime": "onnxruntime", "device": "cpu", "model": "tiny", "batch_size": 1, "images_per_second": 1e6}
    found = bundling.batch_sizes([*records, slow, {"kind": "train"}])
    assert found[:2] == (sizes, micros)
    assert found[2].startswith("measured: with" if sizes != batching.ALLOWED_SIZES or 32 in measured else "defaults")


def test_batching_is_left_out_where_it_does_not_pay(exports):
    row = {"runtime": "saved_model", "device": "cpu", "model": "tiny", "latency_p50_seconds": 0.001}
    records = [row | {"batch_size": size, "images_per_second": 100} for size in (1, 32)]
    folder, _ = deploy.bundle(exports, records)
    assert "--enable_batching=true" not in (folder / "docker-compose.yml").read_text()
    found = protos.read(folder / "batching.config", protos.BatchingParameters)
    assert list(found.allowed_batch_sizes) == [1] and found.max_execution_batch_size.value == 1


def test_the_command_uses_measurements_and_says_what_is_newer(exports, tmp_path, capsys):
    from frostline import records

    row = {"kind": "infer", "runtime": "saved_model", "device": "cpu", "model": "tiny", "latency_p50_seconds": 0.004}
    (tmp_path / "r").mkdir()
    for size in (1, 8):
        records.append(tmp_path / "r", row | {"batch_size": size, "images_per_second": 100 * size})
    assert run("bundle", exports, "--results", tmp_path / "r") == 0
    assert capsys.readouterr().out == f"{exports / 'serving'}\n"
    text = (exports / "serving" / "batching.config").read_text()
    assert (
        "max_execution_batch_size { value: 8 }" in text
        and "max_batch_size { value: 32 }" in text
        and "batch_timeout_micros { value: 4000 }" in text
    )
    publish(exports, "tiny", 2)
    assert run("bundle", exports) == 0
    assert f"type: frostline rollout tiny --exports {exports}\n" in capsys.readouterr().err


def test_health_and_curl_ask_every_model(exports):
    folder, _ = deploy.bundle(exports)
    (folder / "health.sh").write_text((folder / "health.sh").read_text().replace("pets.all ", ""))
    (folder / "curl.sh").write_text((folder / "curl.sh").read_text().replace("pets.all ", ""))
    server, url = serving_fake.rest_server(serving_fake.Model())
    try:
        host, port = url.removeprefix("http://").split(":")
        healthy = subprocess.run(["bash", folder / "health.sh", host, port], capture_output=True, text=True)
        assert (healthy.returncode, healthy.stdout) == (0, "")
        (folder / "health.sh").write_text((folder / "health.sh").read_text().replace("in tiny", "in tiny huge"))
        ill = subprocess.run(["bash", folder / "health.sh", host, port], capture_output=True, text=True)
        assert (ill.returncode, ill.stdout) == (1, "huge: 404\n")
        proxy = {**os.environ, "http_proxy": "http://127.0.0.1:1"}  # which knows nothing of this machine
        asked = subprocess.run(["bash", folder / "curl.sh", url], capture_output=True, text=True, env=proxy)
        assert asked.returncode == 0 and '"top_k_classes"' in asked.stdout
        (folder / "curl.sh").write_text((folder / "curl.sh").read_text().replace("in tiny", "in huge"))
        asked = subprocess.run(["bash", folder / "curl.sh", url], capture_output=True, text=True)
        assert asked.returncode == 22 and "Servable not found for request" in asked.stdout
    finally:
        server.shutdown()
        server.server_close()
    gone = subprocess.run(["bash", folder / "health.sh", host, port], capture_output=True, text=True)
    assert gone.returncode != 0


# -- the steps -----------------------------------------------------------------------------------------

ONE, LOADED, CANARY = Served((1,), 1, 1), Served((1, 2), 1, 1), Served((1, 2), 1, 2)
PROMOTED, TWO = Served((1, 2), 2, 2), Served((2,), 2, 2)


def test_the_way_there():
    assert rollout.forward("m", ONE, [1, 2], None).state == LOADED
    assert rollout.forward("m", LOADED, [1, 2], None).state == CANARY
    assert rollout.forward("m", LOADED, [1, 2, 3], None).state == CANARY  # what is on its way comes first
    assert rollout.promote("m", CANARY).state == PROMOTED
    assert rollout.finish("m", PROMOTED).state == TWO


@pytest.mark.parametrize(("now", "then"), [(LOADED, ONE), (CANARY, LOADED), (PROMOTED, LOADED), (TWO, PROMOTED)])
def test_every_step_can_be_taken_back(now, then):
    assert rollout.back("m", now, [1, 2]).state == then


def test_an_older_version_may_be_rolled_out():
    assert rollout.forward("m", TWO, [1, 2], 1).state == PROMOTED
    assert rollout.forward("m", PROMOTED, [1, 2], 1).state == Served((1, 2), 2, 1)
    assert rollout.promote("m", Served((1, 2), 2, 1)).state == LOADED


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda: rollout.forward("m", ONE, [1], None), "m 1 is stable already; publish another version"),
        (lambda: rollout.forward("m", ONE, [1, 2], 4), "m has no version 4; there are: 1, 2"),
        (lambda: rollout.forward("m", CANARY, [1, 2], None), "m 2 is canary already; type: frostline rollout m --pro"),
        (lambda: rollout.forward("m", CANARY, [1, 2, 3], 3), "m 2 is canary; type first"),
        (lambda: rollout.forward("m", PROMOTED, [1, 2, 3], 3), "m 1 is loaded and has no label; type first"),
        (lambda: rollout.promote("m", ONE), "m has no canary to promote: version 1; stable is 1"),
        (lambda: rollout.promote("m", LOADED), "m has no canary to promote: versions 1, 2; stable is 1"),
        (lambda: rollout.finish("m", CANARY), "m 2 is canary; type first"),
        (lambda: rollout.finish("m", ONE), "nothing to finish for m"),
        (
            lambda: rollout.finish("m", LOADED),
            "m 2 has no label, and --finish would unload it; type: frostline rollout m .*, or frostline rollback m to",
        ),
        (lambda: rollout.forward("m", LOADED, [1, 2, 3], 3), "m 2 is loaded and .* type first: frostline rollback m$"),
        (lambda: rollout.back("m", ONE, [1, 2]), "m has nothing before version 1 to go back to"),
    ],
)
def test_steps_that_make_no_sense(step, message):
    with pytest.raises(UserError, match=message):
        step()


def everything():
    """Every state that commands can lead to from one served version, with three published, and each step there."""
    published, known = [1, 2, 3], {Served((2,), 2, 2)}
    steps = [lambda now, v=v: rollout.forward("m", now, published, v) for v in (None, *published)]
    steps += [lambda now: rollout.promote("m", now), lambda now: rollout.finish("m", now),
              lambda now: rollout.back("m", now, published)]  # fmt: skip
    moves, said, fresh = [], [], list(known)
    while fresh:
        now = fresh.pop()
        for step in steps:
            try:
                done = step(now)
            except UserError:
                continue
            new = done.state
            moves.append((now, new))
            said.append((new, done.then))
            if new not in known:
                known.add(new)
                fresh.append(new)
    return known, moves, said


def test_no_step_is_one_that_a_server_refuses():
    known, moves, _ = everything()
    assert len(known) > 8 and len(moves) > 20
    for now, new in moves:
        assert {new.stable, new.canary} <= set(now.versions) & set(new.versions), (now, new)
        assert new != now
        assert {now.stable, now.canary} <= set(new.versions) or set(now.versions) - set(new.versions) <= {
            number for number in now.versions if number not in (now.stable, now.canary)
        }, (now, new)


def test_what_a_step_says_to_type_next_can_be_done():
    typed = [(now, command) for now, then in everything()[2] for command in re.findall(r"frostline (roll[^,]+)", then)]
    for now, command in typed:
        match command.split():
            case ["rollback", "m"]:
                rollout.back("m", now, [1, 2, 3])
            case ["rollout", "m", "--promote"]:
                rollout.promote("m", now)
            case ["rollout", "m", "--finish"]:
                rollout.finish("m", now)
            case ["rollout", "m", "--version", number]:
                rollout.forward("m", now, [1, 2, 3], int(number))
            case _:
                pytest.fail(command)
    assert len({command.split()[-1] for _, command in typed}) > 4


# -- writing them --------------------------------------------------------------------------------------


def test_without_a_server_each_command_is_one_step(exports, capsys):
    deploy.bundle(exports)
    publish(exports, "tiny", 2)
    for words, state, then in [
        (("rollout",), LOADED, "once it is loaded, frostline rollout tiny --version 2"),
        (("rollout",), CANARY, "frostline rollout tiny --promote"),
        (("rollout", "--promote"), PROMOTED, "frostline rollback tiny"),
        (("rollback",), LOADED, "frostline rollback tiny"),
        (("rollout", "--version", "2"), CANARY, "--promote"),
        (("rollout", "--promote"), PROMOTED, "--finish"),
        (("rollout", "--finish"), TWO, ""),
    ]:
        os.utime(exports / "serving" / "models.config", (0, 0))
        assert run(words[0], "tiny", *words[1:], "--exports", exports) == 0
        out = capsys.readouterr().out
        assert served(exports) == state and "At its next poll the server" in out
        assert then.replace("tiny", f"tiny --exports {exports}") in out
    assert served(exports, "pets.all") == Served((12,), 12, 12)


def test_a_label_is_not_moved_before_a_server_can_have_loaded_its_version(exports):
    deploy.bundle(exports)
    publish(exports, "tiny", 2)
    step = lambda now, given: rollout.forward("tiny", now, [1, 2], None)  # noqa: E731
    deploy.take(exports, "tiny", step, None, print)
    written = (exports / "serving" / "models.config").stat().st_mtime
    with pytest.raises(UserError, match=r"has not loaded tiny 2 yet would refuse .* again in 20 s"):
        deploy.take(exports, "tiny", step, None, print, clock=lambda: written + 10)
    assert served(exports) == LOADED
    deploy.take(exports, "tiny", step, None, print, clock=lambda: written + 30)
    assert served(exports) == CANARY


def test_a_rollback_moves_no_label_before_a_server_can_have_loaded_its_version(exports):
    publish(exports, "tiny", 2)
    deploy.bundle(exports)
    step = lambda now, given: rollout.back("tiny", now, [1, 2])  # noqa: E731
    deploy.take(exports, "tiny", step, None, print)
    written = (exports / "serving" / "models.config").stat().st_mtime
    with pytest.raises(UserError, match=r"has not loaded tiny 1 yet would refuse .* again in 20 s"):
        deploy.take(exports, "tiny", step, None, print, clock=lambda: written + 10)
    deploy.take(exports, "tiny", step, None, print, clock=lambda: written + 30)
    assert served(exports) == LOADED


def test_a_version_that_is_not_whole_is_never_asked_for(exports, capsys):
    deploy.bundle(exports)
    assert run("rollout", "tiny", "--version", "7", "--exports", exports) == 2
    assert "tiny has no version 7; there are: 1" in capsys.readouterr().err
    publish(exports, "tiny", 2)
    assert run("rollout", "tiny", "--exports", exports) == 0
    (exports / "saved_model" / "tiny" / "1" / "saved_model.pb").unlink()
    assert run("rollout", "tiny", "--exports", exports) == 2
    assert "has no complete version 1; put it back first" in capsys.readouterr().err
    assert served(exports) == LOADED


def test_mistakes_are_one_line(exports, tmp_path, capsys):
    deploy.bundle(exports)
    for args, message in [
        (("rollout", "tinny", "--exports", exports), "unknown model in models.config 'tinny'; did you mean 'tiny'?"),
        (("rollback", "tiny", "--exports", tmp_path / "no"), "there is no"),
        (("bundle", tmp_path / "no"), "holds no published model"),
        (("bundle", exports, "--models-at", "models"), "the server needs an absolute path"),
        (("rollout", "tiny", "--exports", exports, "--url", "x"), "is no address of a server"),
    ]:
        assert run(*args) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err


def test_a_file_that_was_changed_by_hand(exports):
    deploy.bundle(exports)
    path = exports / "serving" / "models.config"
    whole = config.read(path)
    entry = config.entry(whole, "tiny")
    entry.version_labels["old"] = 1
    config.write(path, whole)
    publish(exports, "tiny", 2)
    config.set_served(entry, PROMOTED)
    config.write(path, whole)
    with pytest.raises(UserError, match="old of tiny means version 1; move that label"):
        deploy.take(exports, "tiny", lambda now, given: rollout.finish("tiny", now), None, print)
    entry.model_version_policy.latest.num_versions = 2
    config.write(path, whole)
    with pytest.raises(UserError, match="needs `specific` versions"):
        deploy.take(exports, "tiny", lambda now, given: rollout.finish("tiny", now), None, print)
    path.write_text("model_config_list { confg {} }")
    with pytest.raises(UserError, match="no field named"):
        deploy.take(exports, "tiny", lambda now, given: rollout.finish("tiny", now), None, print)


def test_a_write_that_fails_leaves_the_old_file(exports, monkeypatch):
    deploy.bundle(exports)
    before = sorted(os.listdir(exports / "serving")), (exports / "serving" / "models.config").read_text()

    def full(handle):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    publish(exports, "tiny", 2)
    with pytest.raises(OSError, match="disk full"):
        deploy.take(exports, "tiny", lambda now, given: rollout.forward("tiny", now, [1, 2], None), None, print)
    assert before == (sorted(os.listdir(exports / "serving")), (exports / "serving" / "models.config").read_text())


# -- with a server -------------------------------------------------------------------------------------


class Polling:
    """A connection to a server that reads models.config when somebody waits, and refuses what the real one refuses."""

    url = "grpc://there:1"

    def __init__(self, exports, broken=()):
        self.exports, self.broken = exports, broken
        self.holds = set(served(exports).versions)
        self.labels = {"stable": served(exports).stable, "canary": served(exports).canary}
        self.time, self.waits = 0.0, 0

    def sleep(self, seconds):
        self.time += seconds
        self.waits += 1
        if self.waits % 3 == 0:
            now = served(self.exports)
            assert {now.stable, now.canary} <= self.holds, "a label for a version that is not loaded"
            self.labels = {"stable": now.stable, "canary": now.canary}
            self.holds = set(now.versions) - set(self.broken)

    def status(self, model):
        ended = [client.State(number, "END", "no such op") for number in self.broken if self.waits > 3]
        return [client.State(number, "AVAILABLE", "") for number in self.holds] + ended

    def metadata(self, model, *, label):
        return client.Metadata(self.labels[label], {})

    def server(self, timeout=60.0):
        return Server(self, timeout, lambda: self.time, self.sleep)


def test_with_a_server_a_rollout_goes_on_to_its_label(exports):
    deploy.bundle(exports)
    publish(exports, "tiny", 2)
    polling, said = Polling(exports), []
    deploy.take(
        exports, "tiny", lambda now, given: rollout.forward("tiny", now, [1, 2], None), polling.server(), said.append
    )
    assert served(exports) == CANARY and polling.labels == {"stable": 1, "canary": 2}
    assert said[-1] == "Next: frostline rollout tiny --promote" and "At its next poll" not in "".join(said)
    deploy.take(exports, "tiny", lambda now, given: rollout.promote("tiny", now), polling.server(), said.append)
    deploy.take(exports, "tiny", lambda now, given: rollout.finish("tiny", now), polling.server(), said.append)
    deploy.take(exports, "tiny", lambda now, given: rollout.back("tiny", now, [1, 2]), polling.server(), said.append)
    assert served(exports) == LOADED and polling.labels == {"stable": 1, "canary": 1}


class Prompt(Polling):
    """A server that reads models.config whenever it is asked."""

    def status(self, model):
        self.waits = 2
        self.sleep(0.0)
        return super().status(model)


def test_what_is_said_to_type_next_works_as_printed(exports, monkeypatch, capsys):
    deploy.bundle(exports)
    publish(exports, "tiny", 2)
    polling, states = Prompt(exports), []
    monkeypatch.setattr(client, "connect", lambda url: contextlib.nullcontext(polling))
    line = f"frostline rollout tiny --exports {exports} --url http://there:1"
    while line:
        assert run(*shlex.split(line.partition(", or ")[0])[1:]) == 0
        states.append(served(exports))
        line = capsys.readouterr().out.partition("Next: ")[2]
    assert states == [CANARY, PROMOTED, TWO]
    assert rollout.flags(Path("my exports"), None) == " --exports 'my exports'"
    assert rollout.flags(Path("exports"), None) == ""


def test_a_version_that_cannot_be_loaded_gets_no_label(exports):
    deploy.bundle(exports)
    publish(exports, "tiny", 2)
    polling = Polling(exports, broken=[2])
    with pytest.raises(UserError, match=r"tiny 2 could not be loaded: no such op; type: frostline rollback tiny .*url"):
        deploy.take(
            exports, "tiny", lambda now, given: rollout.forward("tiny", now, [1, 2], None), polling.server(), print
        )
    assert served(exports) == LOADED and polling.labels == {"stable": 1, "canary": 1}


class Mended(Polling):
    """A server that failed to load version 2 before, and is not aware yet that it is to try again."""

    def status(self, model):
        old = [client.State(2, "END", "no such op")] if 2 not in self.holds else []
        return [client.State(number, "AVAILABLE", "") for number in self.holds] + old


def test_an_old_failure_is_not_that_of_a_new_rollout(exports):
    deploy.bundle(exports)
    publish(exports, "tiny", 2)
    step = lambda now, given: rollout.forward("tiny", now, [1, 2], None)  # noqa: E731
    deploy.take(exports, "tiny", step, Mended(exports).server(), print)
    assert served(exports) == CANARY
    deploy.take(exports, "tiny", lambda now, given: rollout.back("tiny", now, [1, 2]), None, print)
    deploy.take(exports, "tiny", lambda now, given: rollout.back("tiny", now, [1, 2]), None, print)
    stubborn = Mended(exports)
    stubborn.sleep = lambda seconds: setattr(stubborn, "time", stubborn.time + seconds)
    with pytest.raises(UserError, match=r"tiny 2 is END, since no such op, after 1 s"):
        deploy.take(exports, "tiny", step, stubborn.server(timeout=1.0), print)


class Meanwhile(Polling):
    """A server beside which somebody rolls another model out while we wait for it to load version 1."""

    def __init__(self, exports, model):
        super().__init__(exports)
        self.holds, self.model = set(), model

    def sleep(self, seconds):
        if self.holds:
            return super().sleep(seconds)
        published = deploy.versions(self.exports, self.model)
        step = lambda now, given: rollout.forward(self.model, now, published, None)  # noqa: E731
        deploy.take(self.exports, self.model, step, None, lambda line: None)
        self.holds = {1}


def test_what_others_wrote_while_a_rollout_waited_is_kept(exports):
    deploy.bundle(exports)
    for model, version in (("tiny", 2), ("pets.all", 13)):
        publish(exports, model, version)
    step = lambda now, given: rollout.forward("tiny", now, [1, 2], None)  # noqa: E731
    deploy.take(exports, "tiny", step, Meanwhile(exports, "pets.all").server(), print)
    assert served(exports) == CANARY and served(exports, "pets.all").versions == (12, 13)


def test_two_rollouts_of_one_model_do_not_mix(exports):
    deploy.bundle(exports)
    publish(exports, "tiny", 2)
    step = lambda now, given: rollout.forward("tiny", now, [1, 2], None)  # noqa: E731
    with pytest.raises(UserError, match="somebody else changed tiny meanwhile; it is versions 1, 2; stable is 1"):
        deploy.take(exports, "tiny", step, Meanwhile(exports, "tiny").server(), print)
    assert served(exports) == LOADED


def test_a_server_that_does_not_poll_is_not_waited_for_for_ever(exports):
    deploy.bundle(exports)
    publish(exports, "tiny", 2)
    polling = Polling(exports)
    step = lambda now, given: rollout.forward("tiny", now, [1, 2], None)  # noqa: E731
    with pytest.raises(UserError, match=r"tiny 2 is unknown after 1 s; does it poll .*_seconds\?$"):
        deploy.take(exports, "tiny", step, polling.server(timeout=1.0), print)


class Slow(Polling):
    """A server that tries to load version 2 for longer than one waits."""

    def status(self, model):
        return [client.State(1, "AVAILABLE", ""), client.State(2, "LOADING", "")]


def test_a_version_that_loads_for_ever_can_be_taken_back(exports):
    deploy.bundle(exports)
    publish(exports, "tiny", 2)
    step = lambda now, given: rollout.forward("tiny", now, [1, 2], None)  # noqa: E731
    typed = f"frostline rollback tiny --exports {exports} --url grpc://there:1"
    with pytest.raises(UserError, match=f"tiny 2 is LOADING after 1 s; does it poll .*, type: {typed}$"):
        deploy.take(exports, "tiny", step, Slow(exports).server(timeout=1.0), print)
