import re

import pytest

from frostline import cli, plots, records
from frostline.errors import UserError

MACHINE = {"cpu": "a CPU"}


def epochs(*losses, stage=1, top1=0.5):
    """A history of one stage."""
    return [
        {"stage": stage, "epoch": epoch, "loss": loss, "top1": top1, "validation_loss": 2 * loss,
         "validation_top1": top1 + 0.1, "learning_rate": 0.1, "seconds": 1.0}
        for epoch, loss in enumerate(losses, 1)
    ]  # fmt: skip


def train(freeze, seed=0, history=None, size="all", **more):
    images = 1000 if size == "all" else size
    return {
        "kind": "train", "study": "toy", "title": "A toy", "freeze": freeze, "variant": "", "seed": seed,
        "configuration": f"c-{freeze}-{size}", "run": f"{freeze}.s{seed}", "protocol": "clean", "limit": None,
        "epochs_cap": None, "reported": None, "outcome": "ok", "reason": None, "time": f"t{seed}", "frontier": None,
        "train_images": images, "validation_top1": 0.5, "test_top1": 0.6, "machine": MACHINE,
        "config": {"data": {"train_images": [size]}},
        "history": epochs(1.0, 0.5) if history is None else history,
    } | more  # fmt: skip


def failed(freeze, seed=0, **more):
    row = train(freeze, seed, outcome="failed", reason="NotFinite: the loss became nan", **more)
    return {key: value for key, value in row.items() if key not in ("history", "train_images", "test_top1")}


def of(found, *only):
    return {picture.name: picture for own in plots.pictures(found, only).values() for picture in own}


def test_a_line_is_the_mean_over_seeds_with_their_deviation():
    picture = of([train("head", 0, epochs(1.0, 0.5)), train("head", 1, epochs(3.0, 0.7)), train("all")])["toy"]
    assert [panel.title for panel in picture.panels] == [
        "train loss", "validation loss", "train top-1", "validation top-1",
    ]  # fmt: skip
    head, everything = picture.panels[0].lines
    assert [p[:2] for p in head.points] == [(1, 2.0), (2, pytest.approx(0.6))]
    assert head.points[0][2] == pytest.approx(2**0.5)
    assert [std for *_, std in everything.points] == [None, None]
    assert (head.name, everything.name) == ("head (2)", "all (1)")
    assert [line.points[0][1] for line in picture.panels[1].lines] == [4.0, 2.0]
    assert picture.panels[3].lines[0].points[0][1] == pytest.approx(0.6)
    assert picture.panels[0].log and picture.panels[0].bounds == picture.panels[1].bounds
    assert not picture.panels[2].log


def test_two_identities_are_never_mixed_and_older_ones_are_counted():
    old = train("head", 0, epochs(9.0, 9.0), configuration="old", time="t")
    picture = of([old, train("head", 0), train("head", 1)])["toy"]
    assert picture.panels[0].lines[0].points[0][1] == 1.0
    assert "1 older configurations under these names are not shown." in picture.caption


def test_stages_follow_each_other_and_begin_at_the_same_epoch_for_all_seeds():
    long, short = epochs(4.0, 3.0, 2.0), epochs(4.0, 3.0)
    one = train("two", 0, long + epochs(1.0, stage=2))
    picture = of([one, train("two", 1, short + epochs(3.0, stage=2)), train("one", 0, epochs(1.0))])["toy"]
    line = picture.panels[0].lines[0]
    assert [p[:2] for p in line.points] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 2.0)]
    assert line.points[2][2] is None, "one seed alone has no deviation"
    assert picture.stages == [(3.5, line.look.colour)]
    assert "the mean is that of the seeds still training" in picture.caption


def test_a_place_where_several_configurations_begin_a_stage_is_grey():
    two = epochs(1.0) + epochs(1.0, stage=2)
    assert of([train("a", 0, two), train("b", 0, two)])["toy"].stages == [(1.5, plots.GREY)]
    assert "a stage begins" not in of([train("a")])["toy"].caption


def test_failed_runs_are_left_out_and_said():
    picture = of([train("head", 0), failed("head", 1), failed("broken")])["toy"]
    assert [line.name for line in picture.panels[0].lines] == ["head (1)"]
    assert "Failed and left out: head, seed 1: NotFinite: the loss became nan." in picture.caption
    assert "Failed and left out: broken, seed 0" in picture.caption


def test_what_a_document_reports_are_dots_at_equal_epochs():
    reported = {"top1": 0.9, "history": {"validation_top1": [0.3, 0.2, 0.9]}}
    picture = of([train("head", reported=reported, protocol="document")])["toy"]
    assert picture.panels[3].lines[0].reported == [(1, 0.3), (2, 0.2), (3, 0.9)]
    assert picture.panels[3].bounds == (pytest.approx(0.18), pytest.approx(0.92))
    assert picture.panels[0].lines[0].reported == [] and picture.panels[3].lines[0].name == "head † (1)"
    assert "Large dots" in picture.caption and "† validated on test" in picture.caption
    clean = of([train("head", reported=reported)])["toy"]
    assert clean.panels[3].lines[0].reported == picture.panels[3].lines[0].reported and "†" not in clean.caption
    without = of([train("head")])["toy"]
    assert "Large dots" not in without.caption and not any(panel.lines[0].reported for panel in without.panels)


def test_a_pretraining_is_another_task_and_has_a_picture_of_its_own():
    found = of([train("pretrain", 0, epochs(7.0)), train("head")])
    assert list(found) == ["toy", "toy.pretrain"]
    assert [line.name for line in found["toy"].panels[0].lines] == ["head (1)"]
    assert found["toy.pretrain"].panels[0].lines[0].points == [(1, 7.0, None)]


def test_the_images_of_a_quick_try_are_no_number_of_images_to_compare():
    found = of([train("head"), train("all"), train("few", limit=100, train_images=90)])
    assert set(found) == {"toy"} and "Of several numbers" not in found["toy"].caption
    sizes = [train("head", size=size, variant=f"{size}_images") for size in (10, "all")]
    quick = train("head", limit=5, train_images=5, configuration="quick", variant="5_images")
    found = of([*sizes, quick | {"config": {"data": {"train_images": [5]}}}])
    assert found["toy.train_images"].ticks == [10, 1000]
    assert [p[0] for p in found["toy.train_images"].panels[0].lines[0].points] == [10, 1000]


def test_several_numbers_of_training_images_are_a_curve_of_accuracy():
    found = of([
        train(name, seed, size=size, variant=f"{size}_images-plain", test_top1=0.1 * len(str(size)) + 0.1 * seed,
              history=epochs(1.0 if size == "all" else 9.0))
        for name in ("head", "all") for size in (10, 100, "all") for seed in (0, 1)
    ])  # fmt: skip
    picture = found["toy.train_images"]
    validation, test = picture.panels
    assert (validation.title, test.title) == ("validation top-1", "test top-1")
    assert picture.ticks == [10, 100, 1000] and picture.x == "training images"
    head = test.lines[0]
    assert head.name == "head (plain) (2)"
    assert [p[:2] for p in head.points] == [(10, pytest.approx(0.25)), (100, pytest.approx(0.35)),
                                            (1000, pytest.approx(0.35))]  # fmt: skip
    assert head.points[0][2] == pytest.approx(0.1 / 2**0.5)
    largest = [line.points[0][1] for line in found["toy"].panels[0].lines]
    assert largest == [1.0, 1.0], "the largest number alone is drawn over epochs"
    assert "the largest is drawn" in found["toy"].caption
    assert "toy.train_images" not in of([train("head"), train("all")])


def test_a_configuration_looks_the_same_in_all_panels_and_whatever_else_is_drawn():
    found = [train(f"c{i}", size=size, variant=f"{size}_images") for i in range(35) for size in (10, 20)]
    every, some = of(found), of(found, "c8", "c30")
    looks = {line.name: line.look for line in every["toy"].panels[0].lines}
    assert len({(look.colour, look.dash, look.marker) for look in looks.values()}) == 35
    for picture in (*every.values(), *some.values()):
        for panel in picture.panels:
            assert all(line.look == looks[line.name] for line in panel.lines)
    assert [line.name for line in some["toy"].panels[0].lines] == ["c8 (1)", "c30 (1)"]


def test_marks_and_quick_tries_are_explained():
    caption = of([train("head", frontier="inference_prefix", limit=9, epochs_cap=2)])["toy"].caption
    assert "‡ inference_prefix" in caption and "A quick try: --epochs 2 --limit 9." in caption
    assert "no band" in caption and "sample deviation" not in caption


def test_what_is_not_measured_or_not_positive_is_no_reason_to_stop(tmp_path):
    history = [{**entry, "validation_loss": None, "validation_top1": None, "loss": 0.0} for entry in epochs(1.0, 1.0)]
    found = [train("head", 0, history), train("head", 1, history)]
    assert of(found)["toy"].panels[1].lines == []
    assert len(plots.draw(found, tmp_path)) == 2


def test_logarithmic_ticks_stay_few():
    assert plots._ticks((0.7, 4.0)) == pytest.approx([0.8, 1, 1.5, 2, 3, 4])
    assert plots._ticks((0.03, 4.0)) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2])
    assert plots._ticks((0.5e-6, 20.0)) == pytest.approx([10.0**n for n in range(-6, 2)])


@pytest.fixture
def many():
    """20 configurations with long names, two stages, two seeds, one failure, and dots."""
    name = "everything_above_the_third_block_with_batch_norm"
    two = epochs(3.0, 1.0) + epochs(0.4, 0.01, stage=2)
    reported = {"history": {"loss": [2.0, 1.0]}}
    runs = [
        train(f"{name}_{i}", seed, two, reported=reported, protocol="document") for i in range(20) for seed in (0, 1)
    ]
    return [*runs, failed("broken"), train("pretrain")]


def test_pictures_are_files(many, tmp_path):
    written = plots.draw(many, tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["toy.png", "toy.pretrain.png", "toy.html"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[:2])


def test_the_page_needs_no_network_and_tells_every_line_once(many, tmp_path):
    (path,) = plots.draw(many, tmp_path, formats=("html",))
    text = path.read_text()
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", text)
    assert text.count("plotly.js v") == 1, "the library is there once for all pictures"
    assert "<title>toy: A toy</title>" in text and "Failed and left out: broken" in text
    figure = plots._figure(of(many)["toy"])
    in_legend = [trace.name for trace in figure.data if trace.showlegend]
    assert len(in_legend) == len(set(in_legend)) == 20
    assert sum(trace.fill == "toself" for trace in figure.data) == 80
    assert sum(trace.mode == "markers" for trace in figure.data) == 20


def test_a_title_is_text_and_no_markup(tmp_path):
    (path,) = plots.draw([train("head", title="<b>cats</b> & dogs")], tmp_path, formats=("html",))
    assert "<title>toy: &lt;b&gt;cats&lt;/b&gt; &amp; dogs</title>" in path.read_text()


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"--only haed: .*did you mean 'head'"):
        plots.pictures([train("head")], ["haed"])
    for found in ([], [failed("head")]):
        with pytest.raises(UserError, match="hold no finished run to draw; type: frostline run"):
            plots.pictures(found)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*plots: .*; choose --out DIR"):
        plots.draw([train("head")], tmp_path / "file" / "plots", formats=("html",))


@pytest.mark.parametrize(("form", "module"), [("png", "matplotlib"), ("html", "plotly")])
def test_a_missing_extra_is_named_before_anything_is_written(form, module, tmp_path, monkeypatch):
    def gone(name, *args):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("importlib.import_module", gone)
    with pytest.raises(UserError, match=rf"{module} is not installed; type: pip install 'frostline\[plot\]'"):
        plots.draw([train("head")], tmp_path / "out", formats=(form,))
    assert not (tmp_path / "out").exists()


def test_the_command_draws_into_the_first_folder_and_prints_what_it_wrote(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        records.append(tmp_path / name, train(name, study=name))
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert cli.main(["plot", *folders, "--format", "png"]) == 0
    written = [str(tmp_path / "a" / "plots" / f"{name}.png") for name in ("a", "b")]
    assert capsys.readouterr().out.split() == written
    assert cli.main(["plot", *folders, "--only", "b", "--out", str(tmp_path / "c"), "--format", "html"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "c" / "b.html")]
    assert cli.main(["plot", str(tmp_path)]) == 2
    assert "holds no records.jsonl" in capsys.readouterr().err


def test_with_one_epoch_dots_stand_beside_each_other_and_tell_the_epoch_they_are_of():
    rows = [train(name, seed, epochs(1.0)) for name in ("head", "all", "scratch") for seed in (0, 1)]
    (panel, *_) = of(rows)["toy"].panels
    moved = plots.apart(panel)
    assert list(moved.values()) == pytest.approx([-0.8 / 3, 0, 0.8 / 3])
    trace = plots._trace(panel.lines[0], "epoch", True, moved["head (2)"])
    assert trace.x == pytest.approx([1 - 0.8 / 3]) and tuple(trace.customdata[0]) == (1, " ± 0.0000")
    (longer, *_) = of([*rows, train("more", 0, epochs(1.0, 0.5))])["toy"].panels
    assert set(plots.apart(longer).values()) == {0.0}
