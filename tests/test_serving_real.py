"""The real TensorFlow Serving over the same models, where it is."""

import pytest
from google.protobuf import text_format
from test_serving import IMAGES, LINE, ask, b64, exports  # noqa: F401  a fixture

from frostline import protos, serving
from frostline.errors import UserError
from frostline.serving import backends, docker

from serving_models import encoded  # isort: skip


@pytest.mark.parametrize("backend", ["binary", "docker"])
def test_the_real_server_answers_as_the_embedded_one(exports, backend):  # noqa: F811
    try:
        backends.choose(backend)
    except UserError as error:
        pytest.skip(str(error))
    bodies = [
        (f"{LINE}:predict", {"instances": [1.0, 2.0, 5.0]}),
        (f"{LINE}:predict", {"instances": ["a"]}),
        (f"{LINE}:predict", {"signature_name": "none", "instances": [1.0]}),
        (f"{LINE}/versions/9:predict", {"instances": [1.0]}),
        (f"{LINE}/labels/none:predict", {"instances": [1.0]}),
        (f"{IMAGES}:predict", {"signature_name": "serving_bytes", "instances": [b64(encoded("lime"))]}),
        (LINE, None),
        (f"{LINE}/versions/9", None),
        (f"{IMAGES}/metadata", None),
    ]
    answers = {}
    for name in (backend, "embedded"):
        with serving.running(exports, [], backend=name) as server:
            assert server.backend == name
            answers[name] = [ask(server, path, body) for path, body in bodies]
    for (path, body), real, ours in zip(bodies, answers[backend], answers["embedded"], strict=True):
        assert ours == real, (path, body)


@pytest.fixture
def machine(monkeypatch):
    """A machine with the programs that a test puts into the set."""
    there = set()
    monkeypatch.setattr(backends.shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    return there


def test_the_backend_is_the_first_that_is_there(machine, monkeypatch):
    assert backends.choose("auto") == "embedded"
    for name in ("binary", "docker"):
        with pytest.raises(UserError, match=f"--backend {name}: .* give --backend embedded"):
            backends.choose(name)
    monkeypatch.setattr(docker, "image", lambda: "tensorflow/serving:2.21.0")
    assert backends.choose("auto") == "docker"
    machine.add(backends.BINARY)
    assert (backends.choose("auto"), backends.choose("embedded")) == ("binary", "embedded")
    with pytest.raises(UserError, match="unknown backend 'dcker'; did you mean 'docker'"):
        backends.choose("dcker")


@pytest.mark.parametrize(("gpu", "visible"), [(False, "-1"), (True, "0")])
def test_a_server_without_gpu_is_shown_none(gpu, visible, monkeypatch, tmp_path):
    (tmp_path / "saved_model" / "line" / "1").mkdir(parents=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    def started(line, **options):
        raise InterruptedError(options["env"]["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr(backends.subprocess, "Popen", started)
    with (
        pytest.raises(InterruptedError, match=f"^{visible}$"),
        serving.running(tmp_path, ["line"], backend="embedded", gpu=gpu),
    ):
        pass


def test_command_line_of_the_binary(tmp_path):
    flags = [f"--model_config_file={tmp_path}/c/models.config", "--enable_batching"]
    line = backends.command("binary", flags, "127.0.0.1", 1, 2, [])
    assert line == ["tensorflow_model_server", *flags, "--port=1", "--rest_api_port=2"]


def test_a_container_sees_all_that_the_flags_name_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setattr(docker, "image", lambda: "tensorflow/serving:2.21.0")
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / name for name in ("b", "c", "m", "é", "x")]
    for folder in folders:
        folder.mkdir()
    config = protos.ModelServerConfig()
    for base in (tmp_path / "é", tmp_path / "gone", "gs://bucket/m"):
        config.model_config_list.config.add(name="n", base_path=str(base))
    single = f"model_config_list {{ config {{ base_path:'{tmp_path / 'x'}' }} }}"
    (tmp_path / "c" / "models.config").write_text(f"{text_format.MessageToString(config)}{single}")
    flags = ["--model_config_file=c/models.config", "--batching_parameters_file=b/batching.config", "--enable_batching"]
    line = backends.command("docker", flags, "127.0.0.1", 1, 2, [tmp_path / "m"])
    ports = ["--publish=127.0.0.1:1:8500", "--publish=127.0.0.1:2:8501"]
    volumes = [f"--volume={folder}:{folder}:ro" for folder in sorted(folders)]
    absolute = [f"--model_config_file={tmp_path}/c/models.config",
                f"--batching_parameters_file={tmp_path}/b/batching.config", "--enable_batching"]  # fmt: skip
    assert line == ["docker", "run", "--rm", "--init", *ports, *volumes, "tensorflow/serving:2.21.0", *absolute]
    line = backends.command("docker", ["--model_base_path=m"], "127.0.0.1", 1, 2, [])
    assert line[6:] == [volumes[2], "tensorflow/serving:2.21.0", f"--model_base_path={tmp_path}/m"]
    line = backends.command("docker", ["--model_base_path=gs://bucket/m"], "::1", 1, 2, [])
    assert line[4:6] == ["--publish=[::1]:1:8500", "--publish=[::1]:2:8501"]
    assert line[6:] == ["tensorflow/serving:2.21.0", "--model_base_path=gs://bucket/m"]


def test_ports_are_taken_from_the_flags():
    assert backends.split(["--enable_batching"]) == (["--enable_batching"], 8500, 8501)
    assert backends.split(["--port=1", "--rest_api_port=2"]) == ([], 1, 2)
    with pytest.raises(UserError, match="--port=x: a port is a number, as in --port=8500"):
        backends.split(["--port=x"])
