import io
import json
import os

import numpy as np
import pytest
import serving_fake
from PIL import Image

from frostline import cli, client, predict


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """The command sets variables for TensorFlow; other tests shall not see them."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.fixture
def place():
    model = serving_fake.Model()
    server, url = serving_fake.rest_server(model)
    server.model, server.url = model, url
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def pictures(tmp_path):
    """A folder with two images of 4x4 pixels, black and white, and one that is none."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "black.png")
    Image.new("RGB", (4, 4), "white").save(folder / "more" / "white.png")
    (folder / "more" / "notes.txt").write_text("no image")
    return folder


def run(place, *args):
    return cli.main(["predict", "--url", place.url, "--model", "tiny", *map(str, args)])


def test_folders_and_files_as_a_table(place, pictures, capsys):
    assert run(place, pictures, "--as", "pixels", "--top", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "class", "score"]
    assert [line.split()[-2:] for line in lines[2:]] == [
        ["b", "0.0000"], ["ä", "-1.0000"], ["ä", "255.0000"], ["b", "-256.0000"]
    ]  # fmt: skip
    assert place.model.asked == [(2, "serving_default", 2)]


def test_pixels_are_decoded_and_resized_as_for_training(place, pictures):
    from frostline import datasets

    place.model.size = 3
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / "noise.png")
    with client.connect(place.url) as connection:
        (answer,) = predict.predict(connection, predict.Asked("tiny", form="pixels"), [pictures / "noise.png"])
    expected = datasets.decode_one(pictures / "noise.png", 3)
    assert answer.best[0][1] == pytest.approx(expected.mean())


def test_bytes_are_sent_as_they_are(place, pictures, capsys):
    assert run(place, pictures / "black.png", "--label", "stable", "--format", "json") == 0
    size = (pictures / "black.png").stat().st_size
    assert json.loads(capsys.readouterr().out) == [
        {"file": str(pictures / "black.png"), "classes": [{"class": "ä", "score": float(size)}]}
    ]
    assert place.model.asked == [(1, "serving_bytes", 1)]


def test_csv(place, pictures, capsys):
    assert run(place, pictures / "black.png", "--format", "csv") == 0
    assert capsys.readouterr().out.startswith(f"file,class,score\n{pictures / 'black.png'},ä,")


def test_one_bad_image_spoils_no_other(place, tmp_path, capsys):
    files = [tmp_path / f"{i:02}.jpg" for i in range(40)]
    for i, file in enumerate(files):
        file.write_bytes((b"bad" if i in (3, 35) else b"") + b"x" * i)
    gone = tmp_path / "gone.jpg"
    gone.symlink_to(tmp_path / "nothing")
    assert run(place, tmp_path, "--format", "json") == 1
    told = capsys.readouterr()
    answers = json.loads(told.out)
    assert len(answers) == 41
    assert [entry["file"] for entry in answers if "error" in entry] == [
        str(files[0]), str(files[3]), str(files[35]), str(gone)
    ]  # fmt: skip
    assert all(entry["classes"][0]["score"] == i for i, entry in enumerate(answers) if "classes" in entry)
    assert f"{files[0]}: empty" in told.err and f"{gone}: No such file" in told.err
    assert f"{files[35]}: Unknown image file format." in told.err
    assert max(count for _, _, count in place.model.asked) <= 32


def test_a_missing_file_among_others_is_named(place, pictures, tmp_path, capsys):
    assert run(place, tmp_path / "nothere.jpg", pictures / "black.png", "--format", "csv") == 1
    told = capsys.readouterr()
    assert f"{pictures / 'black.png'},ä," in told.out
    assert told.err == f"frostline: {tmp_path / 'nothere.jpg'}: No such file or directory\n"


def test_a_damaged_image_as_pixels(place, pictures, capsys):
    whole = (pictures / "black.png").read_bytes()
    (pictures / "black.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (4, 4), "red").quantize(4).save(pictures / "palette.bmp")
    assert run(place, pictures, "--as", "pixels") == 1
    told = capsys.readouterr()
    assert "black.png: corrupt, truncated or no image" in told.err and "palette.bmp: a BMP with a palette" in told.err
    assert "white.png" in told.out


def test_a_palette_is_found_before_bytes_are_sent(place, tmp_path, capsys):
    Image.new("RGB", (4, 4), "red").quantize(4).save(tmp_path / "palette.bmp")
    assert run(place, tmp_path / "palette.bmp") == 1
    assert "a BMP with a palette; save it as PNG" in capsys.readouterr().err and place.model.asked == []


def test_a_bomb_is_no_image(place, tmp_path, capsys):
    whole = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(whole, "BMP")
    side = (60_000).to_bytes(4, "little")
    (tmp_path / "bomb.bmp").write_bytes(whole.getvalue()[:18] + side + side + whole.getvalue()[26:])
    assert run(place, tmp_path / "bomb.bmp") == 1
    assert "corrupt, truncated or no image" in capsys.readouterr().err and place.model.asked == []


def test_a_model_that_names_no_classes():
    found = {"probabilities": np.array([[0.1, 0.7, 0.2]], np.float32)}
    (best,) = predict._best(found, predict.Asked("m", top=2))
    assert [name for name, _ in best] == ["1", "2"] and best[0][1] == pytest.approx(0.7)


def test_mistakes(place, pictures, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    place.model.single = True
    for args, message in [
        ((pictures, "--top", "3"), "gives score, and neither top_k_classes nor probabilities"),
        ((empty,), f"{empty} holds no image"),
        ((tmp_path / "nothing",), f"{tmp_path / 'nothing'} does not exist"),
        ((pictures, "--model", "huge"), "serves no model 'huge'"),
        ((pictures, "--version", "7"), "has no version 7; there are: 3 LOADING, 2 AVAILABLE, 1 AVAILABLE"),
        ((pictures, "--url", "ftp://x"), "is no address of a server"),
    ]:
        assert run(place, *args) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    place.model.single = False
    assert run(place, pictures, "--top", "3") == 2
    assert "--top 3: tiny names its best 2" in capsys.readouterr().err


def test_a_request_that_another_one_spoiled_is_asked_again(place, pictures, capsys):
    place.model.failures = ["INVALID_ARGUMENT"]
    assert run(place, pictures / "black.png") == 0
    assert len(place.model.asked) == 2 and "black.png" in capsys.readouterr().out


def test_what_takes_too_long_is_asked_again_in_halves(place, tmp_path, capsys):
    files = [tmp_path / f"{i:02}.jpg" for i in range(40)]
    for i, file in enumerate(files):
        file.write_bytes(b"x" * (i + 1))
    place.model.failures = ["DEADLINE_EXCEEDED"] * 2
    assert run(place, tmp_path, "--format", "json") == 0
    assert [entry["classes"][0]["score"] for entry in json.loads(capsys.readouterr().out)] == [*range(1, 41)]
    assert [count for _, _, count in place.model.asked] == [32, 16, 8, 8, 16, 8]


def test_what_was_answered_before_the_server_fell_silent_is_printed(place, tmp_path, capsys):
    for i in range(33):
        (tmp_path / f"{i:02}.jpg").write_bytes(b"x")
    (tmp_path / "00.jpg").write_bytes(b"")
    place.model.failures = ["", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"]
    assert run(place, tmp_path, "--format", "csv") == 2
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 32 and "31.jpg" in told.out and "32.jpg" not in told.out
    assert "00.jpg: empty" in told.err and told.err.endswith("as the test wants it; give a longer --timeout\n")


def test_a_server_that_has_gone_ends_it(place, pictures, capsys):
    place.model.failures = ["INVALID_ARGUMENT", "NOT_FOUND"]
    assert run(place, pictures / "black.png") == 2
    assert "tiny has no version that answers" in capsys.readouterr().err


def test_the_words_of_a_server_are_one_line():
    error = client.ServingError("INVALID_ARGUMENT", "http://a: Graph error:\n\nbad JPEG.\n\t [[{{node map/x}}]]")
    assert predict._reason(error, "http://a") == "Graph error: bad JPEG."


@pytest.mark.parametrize("flags", [("--timeout", "0"), ("--timeout", "x"), ("--version", "1", "--label", "a")])
def test_flags_that_mean_nothing(place, pictures, flags, capsys):
    assert run(place, pictures, *flags) == 2
    assert flags[0] in capsys.readouterr().err
