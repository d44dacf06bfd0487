import dataclasses
import json
import math

import numpy as np
import pytest

from frostline import cli, recommend, records
from frostline.errors import UserError
from frostline.recommend import Difference, Limits


def right(count, *, wrong=0, start=0):
    """Bool [count], all right but `wrong` of them from `start` on."""
    answers = np.ones(count, bool)
    answers[start : start + wrong] = False
    return answers


# -- the statistics, on samples one can do by hand -----------------------------------------------------


def test_bounds_take_students_quantile_for_seeds_and_the_normal_one_for_images():
    seeds = Difference(0.02, 0.01, 3, 0.01**2, 0.0)
    assert seeds.upper(0.95) == pytest.approx(0.02 + 2.91999 * 0.01, abs=1e-6)
    assert seeds.lower(0.95) == pytest.approx(0.02 - 2.91999 * 0.01, abs=1e-6)
    images = Difference(0.02, 0.01, 1, 0.0, 0.01**2)
    assert images.upper(0.95) == pytest.approx(0.02 + 1.644854 * 0.01, abs=1e-6)
    both = Difference(0.0, 0.05, 3, 0.03**2, 0.0)
    assert both.upper(0.95) == pytest.approx(math.hypot(2.91999 * 0.03, 1.644854 * 0.04), abs=1e-6)


def test_of_one_seed_the_usual_spread_of_the_others_stands_for_its_own():
    one = Difference(0.02, 0.01, 1, 0.0, 0.0, usual_variance=0.03**2, usual_freedom=2)
    assert one.upper(0.95) == pytest.approx(0.02 + math.hypot(2.91999 * 0.03, 1.644854 * 0.01), abs=1e-6)
    several = {"a": spread([0.8, 0.9, 0.85]), "b": spread([0.85, 0.8, 0.84], seed=1)}
    found = recommend.differences({**several, "one": {1: right(2000)}})
    ab, to_one = found["a", "b"], found["one", "a"]
    assert to_one.usual_variance == pytest.approx(3 * ab.usual_variance) and to_one.usual_variance > 0
    assert (ab.usual_freedom, to_one.usual_freedom) == (4, 2)  # of one difference of three seeds two are free
    assert to_one.mean == pytest.approx(1 - several["a"][1].mean())  # held against its own seed


def test_with_one_seed_the_error_is_that_of_the_images():
    found = recommend.differences({"a": {0: right(100)}, "b": {0: right(100, wrong=10)}})
    ab = found["a", "b"]
    assert ab.mean == pytest.approx(0.1) and found["b", "a"].mean == pytest.approx(-0.1)
    assert (ab.seeds, ab.seed_variance) == (1, 0.0)
    assert ab.fixed_variance == pytest.approx(0.1 * 0.9 / 99 + 1 / 100**2)
    assert ab.error**2 == pytest.approx(0.1 * 0.9 / 100 + 1 / 100**2, rel=0.1)


def test_the_error_of_seeds_is_not_too_small_for_their_few():
    found = recommend.differences({"a": {0: right(50), 1: right(50)}, "b": {0: right(50), 1: right(50, wrong=50)}})
    ab = found["a", "b"]  # 0 with one seed, 1 with the other: the variance of their mean is 0.5 / 2
    assert ab.mean == pytest.approx(0.5) and ab.seed_variance == pytest.approx(0.25)
    assert ab.error**2 == pytest.approx(0.25, rel=0.05)


def test_what_seeds_share_image_by_image_stays_however_many_there_are():
    same = {seed: right(100, wrong=10) for seed in range(2)}
    all_right = {seed: right(100) for seed in range(2)}
    shared = recommend.differences({"a": all_right, "b": same})["a", "b"]
    assert shared.seed_variance == 0 and shared.fixed_variance == pytest.approx(0.1 * 0.9 / 99 + 1 / 100**2)
    apart = {seed: right(100, wrong=10, start=10 * seed) for seed in range(2)}
    own = recommend.differences({"a": all_right, "b": apart})["a", "b"]
    assert own.fixed_variance == pytest.approx(1 / 100**2)


def test_networks_that_agree_on_all_images_are_not_equal_for_certain():
    same = {seed: right(100, wrong=5) for seed in range(3)}
    ab = recommend.differences({"a": same, "b": same})["a", "b"]
    assert (ab.mean, ab.error) == (0.0, pytest.approx(1 / 100))


def test_runs_without_two_seeds_in_common_are_paired_in_order():
    a = {0: right(60), 1: right(60, wrong=6)}
    b = {7: right(60, wrong=6), 8: right(60, wrong=12)}
    assert recommend.differences({"a": a, "b": b})["a", "b"].seeds == 2
    assert recommend.differences({"a": a, "b": {1: right(60)}})["a", "b"].seeds == 1


def test_more_seeds_shrink_their_part_alone():
    more = Difference(0.01, 0.05, 3, 0.03**2, 0.04**2).with_seeds(12)
    assert more.error**2 == pytest.approx(0.04**2 + 0.03**2 / 4)
    assert more.seed_variance == pytest.approx(0.03**2 / 4) and more.seeds == 12


def test_about_how_many_more_seeds_would_decide():
    # sqrt(3 / n) * 0.01 * t(n - 1) is 0.01005 for ten seeds and 0.0095 for eleven.
    verdict = recommend._verdict({"other": Difference(0.0, 0.01, 3, 0.01**2, 0.0)}, 0.01)
    assert (verdict.outcome, verdict.more_seeds, verdict.then) == ("undecided", 8, "accepted")
    lost = recommend._verdict({"other": Difference(0.1, 0.05, 3, 0.05**2, 0.0)}, 0.01)
    assert (lost.outcome, lost.then) == ("undecided", "rejected") and lost.more_seeds > 1
    images = recommend._verdict({"other": Difference(0.0, 0.02, 3, 0.0, 0.02**2)}, 0.01)
    assert (images.outcome, images.more_seeds, images.then) == ("undecided", None, None)
    one = recommend._verdict({"other": Difference(0.0, 0.01, 1, 0.0, 0.0)}, 0.01)
    assert (one.outcome, one.more_seeds) == ("undecided", None)


def test_a_rival_of_one_seed_rejects_nobody_and_no_seeds_of_the_others_decide():
    close = Difference(-0.02, 0.001, 3, 0.001**2, 0.0)
    one = Difference(0.3, 0.01, 1, 0.0, 0.01**2, 0.01**2, 4)
    verdict = recommend._verdict({"close": close, "one": one}, 0.01)
    assert (verdict.outcome, verdict.feared, verdict.short_of_seeds) == ("undecided", "one", ("one",))
    assert (verdict.lower, verdict.more_seeds) == (0.0, None)
    worse = dataclasses.replace(close, mean=0.02)
    lost = recommend._verdict({"worse": worse, "one": one}, 0.01)
    assert lost.outcome == "rejected" and lost.lower == recommend._verdict({"worse": worse}, 0.01).lower > 0.01
    held = recommend._verdict({"close": close, "one": dataclasses.replace(one, mean=-0.3)}, 0.01)
    assert (held.outcome, held.short_of_seeds) == ("accepted", ())
    images = Difference(0.0, 0.02, 3, 0.0, 0.02**2)  # which more seeds of no row would decide
    assert recommend._verdict({"images": images, "one": one}, 0.01).short_of_seeds == ()
    loose = Difference(0.0, 0.01, 3, 0.01**2, 0.0)  # which 8 more seeds would
    both = recommend._verdict({"loose": loose, "one": one}, 0.01)
    assert (both.outcome, both.more_seeds, both.short_of_seeds) == ("undecided", None, ("one",))


def spread(accuracies, count=2000, seed=0):
    rng = np.random.default_rng(seed)
    return {number: rng.random(count) < accuracy for number, accuracy in enumerate(accuracies)}


def test_a_clear_winner_is_found_and_a_clear_loser_rejected():
    found = recommend.judge(
        {"low": spread([0.3, 0.31, 0.29]), "high": spread([0.9, 0.91, 0.9]), "poor": spread([0.2, 0.2, 0.21])}, 0.01
    )
    assert {name: v.outcome for name, v in found.items()} == {"low": "rejected", "high": "accepted", "poor": "rejected"}
    assert found["high"].upper == 0.0 and found["low"].feared == "high"
    assert found["low"].lower < found["low"].loss < found["low"].upper


def test_what_is_nearly_as_good_is_accepted_and_the_best_of_the_sample_only_if_it_is_certain():
    base = {seed: right(5000, wrong=500 + 5 * seed) for seed in range(3)}
    close = {seed: right(5000, wrong=505 + 5 * seed) for seed in range(3)}
    assert {v.outcome for v in recommend.judge({"a": base, "b": close}, 0.01).values()} == {"accepted"}
    loose = {"a": spread([0.8, 0.9, 0.85], seed=1), "b": spread([0.85, 0.8, 0.84], seed=2)}
    assert {v.outcome for v in recommend.judge(loose, 0.01).values()} == {"undecided"}
    assert recommend.judge({"alone": base}, 0.01)["alone"].outcome == "accepted"


# -- the same configuration under five names -----------------------------------------------------------


def five_names(rng, luck, images=200, better=0.0):
    """Easy and hard images, and a seed's luck that all of its images share; `better` is for the first name alone."""
    ease = rng.normal(2.0, 1.5, images)

    def run(more):
        return rng.random(images) < 1 / (1 + np.exp(-ease - luck(rng) - more))

    return {name: {seed: run(better if name == "a" else 0.0) for seed in range(3)} for name in "abcde"}


def normal(rng):
    return rng.normal(0, 0.4)


def one_of_two(rng):
    """A training that ends in one of two ways."""
    return rng.choice([-3.0, 0.0])


def share_of_false_differences(of, monkeypatch, repetitions=200, luck=normal):
    monkeypatch.setattr(recommend, "REPLICATES", 400)
    rng = np.random.default_rng(5)
    return sum(
        any(v.lower > 0 for v in recommend.judge(of(five_names(rng, luck)), 0.01).values())
        for _ in range(repetitions)
    ) / repetitions  # fmt: skip


@pytest.mark.parametrize("luck", [normal, one_of_two])
def test_equal_configurations_are_told_apart_in_at_most_five_percent(luck, monkeypatch):
    assert share_of_false_differences(lambda study: study, monkeypatch, luck=luck) <= 0.05


def test_three_seeds_that_agree_by_luck_would_tell_equal_configurations_apart(monkeypatch):
    monkeypatch.setattr(recommend, "_with_usual_spread", lambda found, freedom: found)
    assert share_of_false_differences(lambda study: study, monkeypatch, luck=one_of_two) > 0.08


def test_a_clear_winner_is_found_in_nearly_every_study(monkeypatch):
    monkeypatch.setattr(recommend, "REPLICATES", 400)
    rng = np.random.default_rng(6)
    found = [recommend.judge(five_names(rng, lambda rng: rng.normal(0, 0.1), better=4.0), 0.02) for _ in range(60)]
    assert sum(v["a"].outcome == "accepted" for v in found) >= 57
    assert not any(v[name].outcome == "accepted" for v in found for name in "bcde")


def test_what_loses_the_margin_is_accepted_in_at_most_five_percent(monkeypatch):
    monkeypatch.setattr(recommend, "REPLICATES", 400)
    rng = np.random.default_rng(7)

    def study(images=400):
        base = rng.random((3, images)) < 0.9 + rng.normal(0, 0.01, (3, 1))
        worse = base & (rng.random((3, images)) > (0.05 + rng.normal(0, 0.01, (3, 1))) / 0.9)  # 0.05 less on average
        return {"best": dict(enumerate(base)), "worse": dict(enumerate(worse))}

    accepted = [recommend.judge(study(), 0.05)["worse"].outcome == "accepted" for _ in range(400)]
    assert np.mean(accepted) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_what_loses_the_margin_to_a_rival_of_one_seed_is_accepted_in_at_most_five_percent(monkeypatch):
    monkeypatch.setattr(recommend, "REPLICATES", 400)
    rng = np.random.default_rng(8)

    def runs(mean, count, images=400):
        return {seed: rng.random(images) < mean + rng.normal(0, 0.03) for seed in range(count)}

    def accepted(single, repetitions):  # two of several seeds: their one difference is all that tells of the spread
        studies = ({"s": runs(single, 1), "a": runs(0.75, 3), "b": runs(0.75, 3)} for _ in range(repetitions))
        return np.mean([recommend.judge(study, 0.1)["a"].outcome == "accepted" for study in studies])

    assert accepted(0.85, 200) <= 0.05
    assert accepted(0.45, 40) >= 0.3


def test_seeds_taken_for_images_would_tell_equal_configurations_apart(monkeypatch):
    def pooled(study):
        return {name: {0: np.concatenate(list(seeds.values()))} for name, seeds in study.items()}

    assert share_of_false_differences(pooled, monkeypatch, 60) > 0.15


@pytest.mark.slow
def test_real_runs_of_one_configuration_are_told_apart_in_at_most_five_percent(tmp_path):
    assert cli.main(["run", "digits_aa", "--no-export", "--results", str(tmp_path)]) == 0
    (advice,) = recommend.advise(tmp_path, Limits())
    assert "On accuracy none is preferred: no two of them are told apart." in advice["notes"]
    configurations = records.configurations(records.read(tmp_path))
    runs = [recommend._predictions(tmp_path, row["run"])[1] for c in configurations for row in c.finished]
    assert len(runs) == 15
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(200):  # the same runs, dealt out to the names and seeds anew
        dealt = rng.permutation(15).reshape(5, 3)
        names = {
            name: {seed: runs[i] for seed, i in enumerate(hand)} for name, hand in zip("abcde", dealt, strict=True)
        }
        told += any(verdict.lower > 0 for verdict in recommend.judge(names, 0.01).values())
    assert told <= 10


# -- a results folder ----------------------------------------------------------------------------------


def train(freeze, seed, top1, seconds=10.0, **more):
    data = {"dataset": "digits", "classes": more.pop("classes", [5, 6]), "scaling": "backbone", "train_images": ["all"]}
    return {
        "kind": "train", "study": "toy", "title": "A toy", "freeze": freeze, "variant": "", "model": f"toy.{freeze}",
        "configuration": f"c-{freeze}", "seed": seed, "run": f"{freeze}.s{seed}", "protocol": "clean", "limit": None,
        "epochs_cap": None, "precision_asked": "auto", "xla_asked": "auto", "engine_asked": "auto", "reported": None,
        "outcome": "ok", "reason": None, "engine": "plain", "precision": "float32", "xla": False, "device": "cpu",
        "trainable_params": 10, "total_params": 1000, "total_seconds": seconds, "time": f"t{seed}",
        "validation_top1": top1, "test_top1": top1 - 0.01, "machine": {"cpu": "a CPU"}, "stages": [{"frozen": []}],
        "config": {"data": data, "fingerprint": "f"},
    } | more  # fmt: skip


def infer(freeze, **more):
    return {
        "kind": "infer", "study": "toy", "freeze": freeze, "model": f"toy.{freeze}", "version": 1,
        "run": f"{freeze}.s0", "run_time": "t0", "runtime": "onnxruntime", "device": "cpu", "batch_size": 1,
        "images_per_second": 100.0, "latency_p50_seconds": 0.010, "latency_p99_seconds": 0.020, "outcome": "ok",
    } | more  # fmt: skip


def keep(folder, found, images=1000, own_keys=()):
    """A results folder with records, and predictions that get as many images right as the records say."""
    for record in found:
        folder.mkdir(exist_ok=True)
        records.append(folder, record)
        if record["kind"] == "train" and record["outcome"] == "ok":
            answers = right(images, wrong=round(images * (1 - record["validation_top1"])))
            labels = np.zeros(images, np.int32)
            chosen = np.where(answers, 0, 1)
            prefix = "other" if record["run"] in own_keys else "image"
            run = records.run_folder(folder, record["run"])
            run.mkdir(parents=True)
            np.savez(run / "predictions.npz", validation=np.eye(2)[chosen], validation_labels=labels,
                     validation_keys=np.array([f"{prefix}/{i}" for i in range(images)]))  # fmt: skip
    return folder


def three(freeze, top1, seconds, step=0.001, **more):
    return [train(freeze, seed, top1 + step * seed, seconds, **more) for seed in range(3)]


STUDY = [*three("output", 0.30, 5.0), *three("dense", 0.90, 8.0), *three("all", 0.902, 60.0)]


def verdicts(advice):
    return {entry["name"]: entry["verdict"] for entry in advice["configurations"]}


def test_the_cheapest_of_those_that_are_as_good_is_taken(tmp_path):
    (advice,) = recommend.advise(keep(tmp_path / "r", [*STUDY, infer("dense")]), Limits())
    assert advice["recommended"] == "dense" and verdicts(advice) == {
        "output": "rejected", "dense": "accepted", "all": "accepted",
    }  # fmt: skip
    assert advice["reason"] == "the cheapest to train (8.0 s) of 2 shown to lose at most 0.01"
    dense = advice["configurations"][1]
    assert dense["loss"] == pytest.approx(0.002) and 0.002 < dense["loss_upper"] <= 0.01 and dense["seeds"] == [0, 1, 2]
    assert (dense["best_latency_p50_seconds"], dense["test_top1"]) == (0.010, pytest.approx(0.891))
    (strict,) = recommend.advise(tmp_path / "r", Limits(margin=0.001))
    assert verdicts(strict)["dense"] == "undecided" and strict["recommended"] == "all"
    assert strict["reason"].endswith("; cheaper, and undecided: dense")


def test_limits_are_kept_and_what_is_outside_does_not_compete(tmp_path):
    folder = keep(tmp_path / "r", [*STUDY, infer("all"), infer("dense", latency_p99_seconds=0.2)])

    def reasons(**asked):
        (advice,) = recommend.advise(folder, Limits(**asked))
        told = {e["name"]: e["reason"] for e in advice["configurations"]}
        return advice["recommended"], told | {"": advice["reason"]}

    taken, told = reasons(max_train_seconds=6.0)
    assert taken == "output" and told["all"] == "60.0 s of training, 6 s are allowed"
    assert told["output"] == "there is no other" and told[""] == "the only one within the limits, held against no other"
    taken, told = reasons(min_accuracy=0.902)
    assert taken == "all" and told["dense"] == "validation top-1 0.9010 is below 0.902"
    taken, told = reasons(max_latency_p99=0.05)
    assert taken == "all" and told["dense"] == "p99 200.00 ms at best (onnxruntime @1), 50 ms are allowed"
    assert told["output"].startswith("no p99 of one image, which takes 662 answers, is")
    assert told["all"] == "there is no other; p99 20.00 ms (onnxruntime @1)"
    assert told[""].startswith("the only one shown to be within the limits, held against no other")
    taken, told = reasons(max_latency_p99=0.5, min_accuracy=0.5)
    assert taken == "dense" and told["dense"].endswith("is allowed; p99 200.00 ms (onnxruntime @1)")
    assert told[""].startswith("the cheapest to train (8.0 s) of 2 shown to lose at most 0.01")


def test_where_a_limit_leaves_none_that_is_said(tmp_path, capsys):
    folder = keep(tmp_path / "r", [*STUDY, infer("dense"), infer("all")])

    def headline(**asked):
        (advice,) = recommend.advise(folder, Limits(**asked))
        assert advice["recommended"] is None
        return advice["outcome"], advice["reason"]

    assert headline(max_train_seconds=1.0) == ("rejected", "none is within the limits")
    assert headline(max_latency_p99=0.001) == ("undecided", "none is shown to be within the limits")
    told = "none within the limits is shown to lose at most 0.0001 against the best"
    assert headline(min_accuracy=0.5, margin=0.0001) == ("undecided", told)
    assert cli.main(["recommend", str(folder), "--max-train-seconds", "1"]) == 0
    assert "**Rejected: none is within the limits.**" in capsys.readouterr().out


def test_what_is_to_be_measured_for_ten_minutes_is_one_scenario_on_one_runtime(tmp_path):
    measured = [infer("dense", latency_p99_seconds=None, runtime="openvino"), infer("all", valid=True)]
    (advice,) = recommend.advise(keep(tmp_path / "r", [*STUDY, *measured]), Limits(max_latency_p99=0.05))
    output, dense, _ = (entry["reason"] for entry in advice["configurations"])
    once = "type: frostline infer EXPORTS --scenario single_stream"
    assert dense.endswith(f"; {once} --runtime openvino --profile valid (ten minutes a cell)")
    assert output.endswith(f"; {once} (seconds a cell)")  # no runtime is known to be the fastest
    assert any(note.endswith(f"; {once} --runtime openvino --profile valid (ten minutes a cell).")
               for note in advice["notes"])  # fmt: skip


def test_a_cell_that_was_measured_for_ten_minutes_is_not_also_that_of_seconds(tmp_path):
    measured = [infer("dense", profile="quick", latency_p50_seconds=0.009),
                infer("dense", profile="valid", valid=True)]  # fmt: skip
    (advice,) = recommend.advise(keep(tmp_path / "r", [*STUDY, *measured]), Limits())
    assert advice["configurations"][1]["best_latency_p50_seconds"] == 0.010
    assert not any(note.startswith("Measured for seconds") for note in advice["notes"])


def test_the_p99_that_decides_is_doubted_where_it_has_to_be(tmp_path):
    measured = [infer("dense", valid=True, stable=True, latency_p99_seconds=0.03),
                infer("dense", runtime="openvino", latency_p50_seconds=0.011, stable=False),
                infer("all", valid=True, stable=True)]  # fmt: skip
    folder = keep(tmp_path / "r", [*STUDY, *measured])
    (advice,) = recommend.advise(folder, Limits(max_latency_p99=0.5))
    assert "Unstable (windows more than 10 % apart): the p99 of dense." in advice["notes"]
    assert any("sense: the p99 of dense; type: frostline infer" in note for note in advice["notes"])
    assert any("--runtime openvino --profile valid" in note for note in advice["notes"])
    (advice,) = recommend.advise(folder, Limits())
    assert not any("dense" in note for note in advice["notes"])


def test_tasks_never_compete_and_the_pretraining_is_not_one_to_choose(tmp_path):
    found = [*three("pretrain", 0.99, 3.0, classes=[0, 1]), *STUDY, *three("other", 0.2, 1.0, classes=[7, 8])]
    advice = recommend.advise(keep(tmp_path / "r", found), Limits())
    assert [(a["task"], a["recommended"]) for a in advice] == [
        ("digits; classes 5, 6", "dense"), ("digits; classes 7, 8", "other"),
    ]  # fmt: skip


def test_rows_validated_on_test_are_chosen_on_request_only(tmp_path):
    folder = keep(tmp_path / "r", [{**r, "protocol": "document"} for r in STUDY])
    with pytest.raises(UserError, match=r"validated on test .* give --validated-on-test"):
        recommend.advise(folder, Limits())
    (advice,) = recommend.advise(folder, Limits(), on_test=True)
    assert advice["recommended"] == "dense †"
    both = keep(tmp_path / "both", [*STUDY, *three("dagger", 0.99, 1.0, protocol="document")])
    (advice,) = recommend.advise(both, Limits())
    assert advice["notes"][-1].startswith("1 validated on test (†) are left out")


def test_one_seed_each_is_judged_by_images_alone_and_says_so(tmp_path):
    folder = keep(tmp_path / "r", [r for r in STUDY if r["seed"] == 0], images=10_000)
    (advice,) = recommend.advise(folder, Limits())
    assert advice["recommended"] == "dense" and "One seed each" in advice["notes"][0]


def test_one_seed_among_others_with_several_is_not_judged_but_held_against_them(tmp_path):
    folder = keep(tmp_path / "r", [*STUDY, train("single", 0, 0.99, 1.0)])
    (advice,) = recommend.advise(folder, Limits())
    assert verdicts(advice) == {"output": "rejected", "dense": "undecided", "all": "undecided", "single": "undecided"}
    first = "what has one seed may be better, so first type: frostline run STUDY --seeds 0,1,2 --only single"
    assert advice["recommended"] is None and advice["reason"].endswith(first)
    _, dense, _, single = advice["configurations"]
    assert (dense["short_of_seeds"], dense["more_seeds"], single["loss"]) == (["single"], None, None)
    assert dense["reason"].endswith("(single); more seeds of single have to tell first, one shows no spread")
    assert single["reason"].startswith("one seed, which says nothing of its spread")
    (worse,) = recommend.advise(keep(tmp_path / "worse", [*STUDY, train("single", 0, 0.8, 1.0)]), Limits())
    assert worse["recommended"] == "dense" and worse["reason"].endswith("cheaper, and undecided: single")


def test_a_cheaper_one_that_one_seed_keeps_undecided_is_said_beside_the_one_that_is_taken(tmp_path):
    found = [*three("cheap", 0.93, 8.0), *three("dear", 0.945, 90.0), train("single", 0, 0.955, 99.0)]
    (advice,) = recommend.advise(keep(tmp_path / "r", found, images=10_000), Limits(margin=0.02))
    assert advice["recommended"] == "dear"
    assert "cheaper, and undecided: cheap; what has one seed may be better, so first" in advice["reason"]
    assert advice["reason"].endswith("--seeds 0,1,2 --only single")


def test_what_has_nobody_with_several_seeds_beside_it_is_not_judged(tmp_path):
    folder = keep(tmp_path / "r", [*three("output", 0.3, 5.0), train("single", 0, 0.99, 9.0)])
    (advice,) = recommend.advise(folder, Limits())
    assert set(verdicts(advice).values()) == {"undecided"} and advice["recommended"] is None
    assert advice["configurations"][0]["reason"] == "no other has several seeds to be held against"
    assert advice["reason"].endswith("frostline run STUDY --seeds 0,1,2 --only single")


def test_equal_ones_are_preferred_on_cost_and_none_on_accuracy(tmp_path):
    folder = keep(tmp_path / "r", [*three("one", 0.9, 9.0), *three("two", 0.9, 8.0), *three("three", 0.9, 7.0)])
    (advice,) = recommend.advise(folder, Limits())
    assert advice["recommended"] == "three" and set(verdicts(advice).values()) == {"accepted"}
    assert advice["notes"] == ["On accuracy none is preferred: no two of them are told apart."]


def test_a_searchs_best_is_said_to_be_flattered_and_its_trials_do_not_compete(tmp_path):
    search = {"freeze": "head", "sampler": "random", "seed": 0, "trials": 4, "reported": None, "trial": 2, "values": {}}
    best = three("head_best", 0.95, 4.0, search={**search, "best": True})
    trial = train("head_trial_1", 0, 0.99, 1.0, search={**search, "best": False})
    (advice,) = recommend.advise(keep(tmp_path / "r", [*STUDY, *best, trial]), Limits())
    assert advice["recommended"] == "head_best" and "head_trial_1" not in verdicts(advice)
    assert any("head_best was chosen among 4 trials" in note for note in advice["notes"])


def test_seconds_of_different_machines_are_said_not_to_compare(tmp_path):
    found = [*STUDY, *three("elsewhere", 0.9, 1.0, machine={"cpu": "another CPU"})]
    (advice,) = recommend.advise(keep(tmp_path / "r", found), Limits())
    assert any("different machines" in note for note in advice["notes"])


def test_what_is_missing_or_broken_is_said_in_one_line(tmp_path):
    folder = keep(tmp_path / "r", STUDY)
    (folder / "runs/dense.s1/predictions.npz").unlink()
    (advice,) = recommend.advise(folder, Limits())
    assert advice["notes"][0] == "dense: seed 1 left no predictions and is not counted."
    (folder / "runs/dense.s2/predictions.npz").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"cannot read .*dense\.s2.*--fresh"):
        recommend.advise(folder, Limits())
    for seed in (0, 2):
        (folder / f"runs/dense.s{seed}/predictions.npz").unlink()
    with pytest.raises(UserError, match="no predictions of dense under"):
        recommend.advise(folder, Limits())
    other = keep(tmp_path / "other", STUDY, own_keys=("all.s1",))
    with pytest.raises(UserError, match=r"all\.s1 was validated on other images"):
        recommend.advise(other, Limits())
    failed = keep(tmp_path / "failed", [train("all", 0, 0.5, outcome="failed", reason="NotFinite")])
    with pytest.raises(UserError, match="holds no finished run"):
        recommend.advise(failed, Limits())


def judged(loss, error=0.0, images=1000):
    return {"validation_change": -loss, "validation_error": error, "validation_images": images}


def int8(freeze, p50, **more):
    return infer(freeze, variant="int8", latency_p50_seconds=p50, latency_p99_seconds=2 * p50, **more)


def fastest(folder, **asked):
    (advice,) = recommend.advise(folder, Limits(**asked))
    return advice, {e["name"]: e["best_latency_p50_seconds_of"] for e in advice["configurations"]}


def test_an_artifact_that_loses_more_than_the_margin_does_not_stand_for_its_row(tmp_path):
    measured = [infer("dense", valid=True), int8("dense", 0.001, **judged(0.05)), infer("all", valid=True),
                int8("all", 0.002, valid=True, **judged(0.0))]  # fmt: skip
    advice, of = fastest(keep(tmp_path / "r", [*STUDY, *measured]))
    assert of == {"output": None, "dense": "onnxruntime @1", "all": "onnxruntime int8 @1"}
    assert (
        "Faster, and not shown to lose at most 0.01 together with its row: onnxruntime int8 @1 of dense."
        in advice["notes"]
    )
    advice, of = fastest(tmp_path / "r", margin=0.1)
    assert of["dense"] == "onnxruntime int8 @1" and not any(note.startswith("Faster") for note in advice["notes"])


def test_what_configuration_and_artifact_lose_counts_together(tmp_path):
    folder = keep(tmp_path / "r", [*STUDY, infer("dense"), int8("dense", 0.001, **judged(0.007, images=10**6))])
    (dense,) = (e for e in recommend.advise(folder, Limits(margin=0.02))[0]["configurations"] if e["name"] == "dense")
    assert dense["loss_upper"] < 0.01 and dense["best_latency_p50_seconds"] == 0.001
    assert fastest(folder, margin=0.008)[1]["dense"] == "onnxruntime @1"  # either alone would be within it


def test_an_artifact_of_which_nothing_is_known_stands_for_no_row(tmp_path):
    assert fastest(keep(tmp_path / "r", [*STUDY, int8("dense", 0.001)]))[1]["dense"] is None


def test_a_latency_that_is_within_a_limit_is_that_of_an_artifact_within_the_margin(tmp_path):
    measured = [infer("dense", latency_p99_seconds=0.2), int8("dense", 0.001, **judged(0.2)), infer("all")]
    advice, _ = fastest(keep(tmp_path / "r", [*STUDY, *measured]), max_latency_p99=0.05)
    assert advice["recommended"] == "all" and verdicts(advice)["dense"] == "rejected"


def test_unstable_and_invalid_latencies_are_said(tmp_path):
    measured = [infer("dense", stable=False, valid=False), infer("all", stable=True, valid=True)]
    advice, of = fastest(keep(tmp_path / "r", [*STUDY, *measured]))
    assert of["dense"] == "onnxruntime @1 unstable"
    assert "Unstable (windows more than 10 % apart): the p50 of dense." in advice["notes"]
    assert any(n.startswith("Measured for seconds only, ") and ": the p50 of dense; " in n for n in advice["notes"])


def test_the_command_prints_its_reasons(tmp_path, capsys):
    folder = keep(tmp_path / "r", [*STUDY, int8("dense", 0.0031, **judged(0.0))])
    assert cli.main(["recommend", str(folder)]) == 0
    text = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "### toy: which one to take - digits; classes 5, 6" in text
    assert "**Take dense: the cheapest to train (8.0 s) of 2 shown to lose at most 0.01.**" in text
    dense = "| dense | accepted | 8.0 | 3.10 | onnxruntime int8 @1 | 0.9010 ± 0.0010 (3) | 0.0020 |"
    assert any(line.startswith(dense) for line in text)
    assert any(line.startswith("output: rejected, loses at least 0.5") for line in text)
    assert cli.main(["recommend", str(folder), "--margin", "0.5", "--format", "json"]) == 0
    (advice,) = json.loads(capsys.readouterr().out)
    assert (advice["study"], advice["margin"], advice["outcome"]) == ("toy", 0.5, "recommended")


@pytest.mark.parametrize(
    ("flags", "told"),
    [(["--margin", "2"], "fraction between 0 and 1"), (["--max-latency-p99", "-1"], "seconds above 0"),
     (["--min-accuracy", "good"], "fraction between"), (["--max-train-seconds", "nan"], "seconds above 0")],
)  # fmt: skip
def test_impossible_limits_are_refused(flags, told, tmp_path, capsys):
    assert cli.main(["recommend", str(tmp_path), *flags]) == 2
    assert told in capsys.readouterr().err


def test_a_folder_without_records_is_refused(tmp_path, capsys):
    assert cli.main(["recommend", str(tmp_path)]) == 2
    assert "holds no records.jsonl" in capsys.readouterr().err
