import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import serving_fake

from frostline import client
from frostline.client import ServingError, over_grpc, over_rest
from frostline.client.messages import Which
from frostline.errors import UserError

PIXELS = np.stack([np.full((2, 2, 3), shade, np.uint8) for shade in (0, 7, 200)])
WAYS = ("gRPC", "REST")


class Place:
    """A fake server, its model, and what a client of it waited."""

    def __init__(self, way):
        self.model = serving_fake.Model()
        self.server, self.url = (serving_fake.grpc_server if way == "gRPC" else serving_fake.rest_server)(self.model)
        self.way = way
        self.waits = []

    def connect(self, **given):
        return client.connect(self.url, **{"sleep": self.waits.append, "timeout": 30.0, **given})

    def stop(self):
        if self.way == "gRPC":
            self.server.stop(None).wait()
        else:
            self.server.shutdown()
            self.server.server_close()


@pytest.fixture(params=WAYS)
def place(request):
    found = Place(request.param)
    yield found
    found.stop()


@pytest.fixture
def rest():
    found = Place("REST")
    yield found
    found.stop()


# -- what is answered ----------------------------------------------------------------------------------


def test_pixels_and_bytes(place):
    with place.connect() as connection:
        found = connection.predict("tiny", PIXELS)
        assert found["score"].dtype == np.float32 and found["score"].tolist() == [0.0, 7.0, 200.0]
        assert found["top_k_classes"].tolist() == [["b", "ä"], ["b", "ä"], ["ä", "b"]]
        assert found["version"].tolist() == [2, 2, 2]
        assert connection.predict("tiny", [b"abc", b"\xff" * 11])["score"].tolist() == [3.0, 11.0]
    assert place.model.asked == [(2, "serving_default", 3), (2, "serving_bytes", 2)]


def test_a_version_or_a_label(place):
    with place.connect() as connection:
        assert connection.predict("tiny", PIXELS, version=1)["version"].tolist() == [1, 1, 1]
        assert connection.predict("tiny", PIXELS, label="stable")["version"].tolist() == [1, 1, 1]
        assert connection.metadata("tiny", label="stable").version == 1


def test_metadata_and_status(place):
    with place.connect() as connection:
        found = connection.metadata("tiny")
        assert found.version == 2 and list(found.signatures) == ["serving_bytes", "serving_default"]
        (images,) = found.signatures["serving_default"].inputs.items()
        assert images == ("images", client.messages.Tensor("uint8", (None, 2, 2, 3)))
        assert found.signatures["serving_bytes"].inputs["image_bytes"].dtype == "string"
        assert found.signatures["serving_bytes"].outputs["score"] == client.messages.Tensor("float32", (None,))
        states = [(one.version, one.state) for one in connection.status("tiny")]
        assert states == [(3, "LOADING"), (2, "AVAILABLE"), (1, "AVAILABLE")]


def test_a_single_output_has_its_name(place):
    place.model.single = True
    with place.connect() as connection, place.connect() as another:
        request = connection.prepare("tiny", PIXELS)
        for one in (connection, another):
            assert {name: array.tolist() for name, array in one.send(request).items()} == {"score": [0, 7, 200]}


def test_a_prepared_request_is_sent_without_another_question(place):
    with place.connect() as connection:
        request = connection.prepare("tiny", PIXELS)
        assert place.model.asked == [] and len(request.payload) > 36
        first, second = connection.send(request), connection.send(request)
    assert first.keys() == second.keys() and len(place.model.asked) == 2


def test_a_newer_version_may_take_another_size(place):
    with place.connect() as connection:
        connection.predict("tiny", PIXELS)
        place.model.size = 1
        assert connection.predict("tiny", PIXELS[:, :1, :1])["score"].tolist() == [0.0, 7.0, 200.0]


def test_typed_fields_and_content_are_read_alike():
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    response = predict_pb2.PredictResponse()
    typed = response.outputs["typed"]
    typed.dtype, typed.float_val[:] = 1, [0.5, 2.0]
    typed.tensor_shape.dim.add(size=2)
    content = np.arange(4, dtype=np.float32).reshape(2, 2)
    response.outputs["content"].CopyFrom(tf.make_tensor_proto(content))
    assert response.outputs["content"].tensor_content
    response.outputs["raw"].CopyFrom(tf.make_tensor_proto([b"\xff\xfe"]))
    found = over_grpc.answer(response)
    assert found["typed"].tolist() == [0.5, 2.0] and found["content"].tolist() == content.tolist()
    assert found["raw"].tolist() == [b"\xff\xfe"]


def test_bytes_and_whole_numbers_in_rest():
    found = over_rest.answer({"predictions": [{"a_bytes": {"b64": "AQI="}, "n": 1, "x": 1.0}]})
    assert found["a_bytes"].tolist() == [b"\x01\x02"]
    assert (found["n"].dtype, found["x"].dtype) == (np.int64, np.float32)


def test_rest_requests_in_row_form():
    asked = over_rest.request(Which("a b", label="x/y"), "serving_bytes", [b"\x01\x02"])
    assert asked.path == "/v1/models/a%20b/labels/x%2Fy:predict"
    assert asked.payload == b'{"signature_name":"serving_bytes","instances":[{"b64":"AQI="}]}'


# -- what goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"images": PIXELS, "signature": "serving_bites"},
         "no signature 'serving_bites'; did you mean 'serving_bytes'"),
        ({"images": PIXELS[:, :1]},
         r"takes images uint8 \[N,2,2,3\] at 'serving_default', and was given uint8 \[3,1,2,3\]"),
        ({"images": PIXELS.astype(np.float32)}, r"was given float32 \[3,2,2,3\]"),
        ({"images": PIXELS, "signature": "serving_bytes"}, r"takes image_bytes string \[N\]"),
        ({"images": PIXELS[:0]}, r"was given uint8 \[0,2,2,3\]"),
        ({"images": []}, r"was given string \[0\]"),
        ({"images": PIXELS, "version": 7}, r"tiny has no version 7; there are: 3 LOADING, 2 AVAILABLE, 1 AVAILABLE"),
        ({"images": PIXELS, "label": "canary"},
         r"tiny has no label 'canary'; its versions: 3 LOADING, .*; labels come from a models.config"),
        ({"model": "huge", "images": PIXELS},
         r"://127.0.0.1:\d+ serves no model 'huge'; the names are the folders .*or those in its models.config"),
        ({"model": "huge", "images": PIXELS, "label": "canary"}, r"serves no model 'huge'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(place, asked, message):
    with place.connect() as connection, pytest.raises(ServingError, match=message):
        connection.predict(**{"model": "tiny", **asked})
    assert place.model.asked == [] and place.waits == []


def test_an_overloaded_server_is_asked_again(place):
    place.model.failures = ["UNAVAILABLE", "UNAVAILABLE"]
    with place.connect() as connection:
        assert connection.predict("tiny", PIXELS)["score"].tolist() == [0.0, 7.0, 200.0]
    assert place.waits == [0.1, 0.2]


def test_patience_ends(place):
    place.model.failures = ["UNAVAILABLE"] * 5
    with place.connect(retries=2) as connection, pytest.raises(ServingError, match="as the test wants it") as caught:
        connection.predict("tiny", PIXELS)
    assert caught.value.code == "UNAVAILABLE" and place.waits == [0.1, 0.2] and len(place.model.asked) == 3


def test_other_refusals_are_not_tried_again(place):
    place.model.failures = ["INVALID_ARGUMENT"]
    with place.connect() as connection, pytest.raises(ServingError, match="as the test wants it") as caught:
        connection.predict("tiny", PIXELS)
    assert caught.value.code == "INVALID_ARGUMENT" and place.waits == []


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_no_server(scheme):
    waits = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{unused.getsockname()[1]}"
        connection = client.connect(url, sleep=waits.append)
        with connection, pytest.raises(ServingError, match=r"no answer.*is the server up, and is this its") as caught:
            connection.status("tiny")
    assert caught.value.code == "UNAVAILABLE" and waits == [0.1, 0.2, 0.4]


def test_an_answer_that_breaks_off_is_asked_for_again():
    waits, asked = [], []

    def half(listening):
        for _ in range(2):
            connection, _ = listening.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=half, args=(listening,))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        connection = client.connect(url, retries=1, sleep=waits.append)
        with connection, pytest.raises(ServingError, match=r"no answer.*is the server up") as caught:
            connection.status("tiny")
        thread.join()
    assert (caught.value.code, len(asked), waits) == ("UNAVAILABLE", 2, [0.1])


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_keeps_silent(scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = client.connect(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2, retries=0)
        with connection, pytest.raises(ServingError, match="no answer") as caught:
            connection.status("tiny")
    assert caught.value.code in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
    if scheme == "http":
        assert "no answer within 0.2 s" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "own"),
    [("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("10.0.0.1:1", False), ("there:1", False)],
)
def test_no_proxy_is_asked_for_ones_own_machine(address, own, monkeypatch):
    import grpc

    given, insecure_channel = {}, grpc.insecure_channel
    monkeypatch.setattr(grpc, "insecure_channel", lambda to, options: given.update(options) or insecure_channel(to))
    with client.connect(f"grpc://{address}"):
        assert given.get("grpc.enable_http_proxy", 1) == (0 if own else 1)


def test_the_wrong_port():
    grpc_place, rest_place = Place("gRPC"), Place("REST")
    try:
        port = grpc_place.url.rpartition(":")[2]
        there = client.connect(f"http://127.0.0.1:{port}", retries=0)
        with there, pytest.raises(ServingError, match=r"is it the gRPC port|is this its REST port"):
            there.status("tiny")
        there = client.connect(f"grpc://127.0.0.1:{rest_place.url.rpartition(':')[2]}", retries=0)
        with there, pytest.raises(ServingError, match="is this its gRPC port"):
            there.status("tiny")
    finally:
        grpc_place.stop()
        rest_place.stop()


@pytest.mark.parametrize(
    "url", ["", "localhost:8500", "ftp://a:1", "grpc://localhost", "grpc://a:1/x", "http://", "http://a:b"]
)
def test_addresses_that_are_none(url):
    with pytest.raises(UserError, match=r"is no address of a server|could not be cast"):
        client.connect(url)


def test_one_connection_is_kept(rest):
    with rest.connect() as connection:
        for _ in range(3):
            connection.predict("tiny", PIXELS)
    assert rest.server.connections == 1


def test_a_connection_that_was_closed_meanwhile_is_opened_again(rest):
    rest.server.hang_up = True
    with rest.connect(retries=0) as connection:
        for _ in range(3):
            connection.predict("tiny", PIXELS)
    assert rest.server.connections == 4 and rest.waits == []


def test_an_answer_that_is_no_json(rest):
    rest.server.garbage = b"<html>"
    with rest.connect() as connection, pytest.raises(ServingError, match="HTTP 200, '<html>'"):
        connection.status("tiny")


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'{"predictions": []}', b'{"model_version_status": [{}]}'])
def test_json_that_no_model_server_says(rest, answer):
    with rest.connect() as connection:
        request = connection.prepare("tiny", PIXELS)
        rest.server.garbage = answer
        for call in (lambda: connection.send(request), lambda: connection.metadata("tiny")):
            with pytest.raises(ServingError, match="the answer is not that of a TensorFlow Serving"):
                call()
    rest.server.garbage = b'{"model_version_status": [{}]}'
    with rest.connect() as connection, pytest.raises(ServingError, match="the answer is not that of"):
        connection.status("tiny")


def test_rest_needs_no_tensorflow(rest):
    code = f"""
import sys
from frostline import client
with client.connect({rest.url!r}) as connection:
    connection.predict("tiny", [b"abc"])
print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
