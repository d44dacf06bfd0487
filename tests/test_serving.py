"""A running embedded server, asked by plain HTTP, by gRPC and by clients that nobody here wrote."""

import json
import sys
import urllib.error
import urllib.request

import pytest

from frostline import serving
from frostline.errors import UserError


def save_line(folder, slope, offset):
    """A SavedModel: y = slope * x + offset for a vector x, the model of TensorFlow Serving's documentation."""
    import tensorflow as tf

    class Line(tf.Module):
        def __init__(self):
            super().__init__()
            self.slope, self.offset = tf.Variable(slope), tf.Variable(offset)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def answer(self, x):
            return {"y": self.slope * x + self.offset}

    model = Line()
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.answer})


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    save_line(folder / "saved_model" / "half_plus_two" / "1", 0.5, 2.0)
    return folder


@pytest.fixture(scope="module")
def server(exports):
    with serving.running(exports, ["half_plus_two"], backend="embedded") as running:
        yield running


def ask(server, path, body=None, headers=()):
    """Status and JSON of a GET, or of a POST where there is a body."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.rest + path, data, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_running_serves_and_ends(exports):
    with serving.running(exports, ["half_plus_two"], backend="embedded") as running:
        assert (running.backend, running.rest[:17]) == ("embedded", "http://127.0.0.1:")
        found = ask(running, "/v1/models/half_plus_two:predict", {"instances": [1.0, 2.0, 5.0]})
        assert found == (200, {"predictions": [2.5, 3.0, 4.5]})
    with pytest.raises(OSError, match="refused"):
        ask(running, "/v1/models/half_plus_two")


def test_an_unknown_model_is_told_with_those_that_there_are(exports, tmp_path):
    with pytest.raises(UserError, match=r"unknown published model 'half'; .*half_plus_two"), serving.running(
        exports, ["half"]
    ):
        pass
    with pytest.raises(UserError, match="holds no published model; type: frostline run"), serving.running(tmp_path, []):
        pass


def test_a_server_that_cannot_start_says_why(exports):
    from frostline.children import Died

    with pytest.raises(Died, match="unknown flag --prot"), serving.running(
        exports, [], backend="embedded", flags=["--prot=1"]
    ):
        pass


def test_the_parent_needs_no_tensorflow(exports):
    import subprocess

    code = "import sys; from frostline import serving; print([m for m in sys.modules if m == 'tensorflow'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
