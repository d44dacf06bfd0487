"""Flags and configuration files of TensorFlow Serving, and what is wrong with them."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from frostline import protos
from frostline.errors import UserError
from frostline.serving import backends, config, flags
from frostline.serving.status import Refused

MODELS = """
model_config_list {{
  config {{
    name: "a"
    base_path: "{base}"
    model_platform: "tensorflow"
    {more}
  }}
}}
"""


def models(base, more=""):
    return config.models(protos.parse(MODELS.format(base=base, more=more), protos.ModelServerConfig, "models.config"))


@pytest.fixture
def base(tmp_path):
    for name in ("1", "00000002", "10", ".tmp-3-ab", "three", "4x"):
        (tmp_path / name).mkdir()
    (tmp_path / "7").write_text("a file is no version")
    return tmp_path


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", {10}),
        ("model_version_policy { latest { num_versions: 2 } }", {2, 10}),
        ("model_version_policy { all {} }", {1, 2, 10}),
        ("model_version_policy { specific { versions: 1 versions: 5 } }", {1}),
    ],
)
def test_the_policy_chooses_among_the_folders_that_are_numbers(base, policy, versions):
    assert config.wanted(models(base, policy)["a"]).keys() == versions
    assert config.wanted(models(base, "model_version_policy { all {} }")["a"])[2] == base / "00000002"


def test_a_path_may_have_any_character(tmp_path):
    written = backends.models_config({'"é\\': tmp_path / "ä😀"})
    assert config.models(protos.parse(written, protos.ModelServerConfig, "models.config")) == {
        '"é\\': config.Model('"é\\', tmp_path / "ä😀")
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODELS.format(base="rel", more=""), r"absolute path or URI; got base_path\(\)=rel"),
        ('model_config_list { config { name: "a" base_path: "/a" } }', 'model_platform must be "tensorflow", not ""'),
        (
            'model_config_list { config { name: "a" base_path: "/a" model_platform: "pytorch" } }',
            'must be "tensorflow", not "pytorch"',
        ),
        (MODELS.format(base="/a", more='} config { name: "a"'), "Illegal to list model a multiple times"),
    ],
)
def test_a_wrong_models_config_is_refused_in_the_words_of_the_real_server(text, message):
    with pytest.raises(Refused, match=message):
        config.models(protos.parse(text, protos.ModelServerConfig, "models.config"))


def test_a_missing_base_path_is_named(tmp_path):
    with pytest.raises(Refused, match="Could not find base path"):
        config.wanted(models(tmp_path / "none")["a"])


def test_a_folder_that_may_not_be_looked_into_is_told(base, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(Refused, match=r"for servable m with error .* Permission denied"):
        config.wanted(config.Model("m", base))


def test_labels_need_an_available_version_unless_they_are_new_and_allowed(base):
    old = models(base, 'version_labels { key: "stable" value: 1 }')
    new = models(base, 'version_labels { key: "stable" value: 2 }')
    config.check_labels(old, {}, {"a": {1}}, False)
    config.check_labels(old, {}, {}, True)
    with pytest.raises(Refused, match="label to version 1 of model a, which is not currently available"):
        config.check_labels(old, {}, {}, False)
    with pytest.raises(Refused, match="label to version 2"):
        config.check_labels(new, old, {"a": {1}}, True)  # a label in use moves to loaded versions only


def test_batching_parameters_are_those_of_the_real_server():
    text = """
        max_batch_size { value: 32 } batch_timeout_micros { value: 1000 } max_enqueued_batches { value: 4 }
        num_batch_threads { value: 2 } allowed_batch_sizes: 8 allowed_batch_sizes: 32
        pad_variable_length_inputs: true enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 16 } thread_pool_name { value: "p" }
    """
    found = protos.parse(text, protos.BatchingParameters, "batching.config")
    assert (found.max_batch_size.value, list(found.allowed_batch_sizes)) == (32, [8, 32])
    # The numbers of the fields, as the wire has them.
    assert {f.name: f.number for f in found.DESCRIPTOR.fields} == {
        "max_batch_size": 1, "batch_timeout_micros": 2, "max_enqueued_batches": 3, "num_batch_threads": 4,
        "thread_pool_name": 5, "allowed_batch_sizes": 6, "pad_variable_length_inputs": 7,
        "enable_large_batch_splitting": 8, "max_execution_batch_size": 9,
    }  # fmt: skip
    assert text_format.Parse(text_format.MessageToString(found), protos.BatchingParameters()) == found
    monitoring = 'prometheus_config { enable: true path: "/metrics" }'
    assert protos.parse(monitoring, protos.MonitoringConfig, "m").prometheus_config.path == "/metrics"


def test_a_typo_and_a_missing_file_are_told(tmp_path):
    (tmp_path / "batching.config").write_text("max_bath_size { value: 32 }")
    with pytest.raises(UserError, match=r'batching.config: 1:1 : .*no field named "max_bath_size"'):
        protos.read(tmp_path / "batching.config", protos.BatchingParameters)
    with pytest.raises(UserError, match="cannot be read"):
        protos.read(Path(tmp_path / "none"), protos.BatchingParameters)


def test_flags_are_read_as_tensorflow_serving_reads_them():
    read = flags.parse(["--model_config_file=/m", "--port=9", "--enable_batching", "--enable_model_warmup=false"])
    assert (read.port, read.rest_api_port, read.enable_batching, read.enable_model_warmup) == (9, 0, True, False)
    assert read.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--prot=9"], "--prot is no flag that the embedded server has; did you mean 'port'"),
        (["--port", "9"], "--port: TensorFlow Serving's flags are written --name=value"),
        (["--port=x"], "--port=x: expected a whole number"),
        (["--enable_batching=maybe"], "expected true or false"),
        (["--ssl_config_file=x"], "--ssl_config_file is no flag that the embedded server has"),
        (["--model_config_file=m", "--batching_parameters_file=b"], "without --enable_batching"),
        (["--port=1"], "give --model_config_file=FILE"),
    ],
)
def test_wrong_flags_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        flags.parse(given)
