"""Which configuration to take: the cheapest that is shown to lose next to nothing on the validation images.

What is resampled, and why not a percentile: a configuration's accuracy varies with the seed it trained with and with
the images it was validated on, and every seed met the same images. So seeds and images are drawn independently of each
other (the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1(2), which does not understate the variance),
the same ones for both sides of a difference. Of S seeds S - 1 are drawn, else their part comes out (S - 1)/S times too
small (McCarthy and Snowden 1985; Rao and Wu 1988). With three seeds no percentile of any bootstrap is a 95 % bound: the
largest of three differences lies below the truth once in eight. So the bound is the mean plus quantile times bootstrap
standard error (Efron and Tibshirani 1993, chapter 12), Student's quantile for the part of the seeds and the normal one
for that of the images, joined as in Howe 1974 (JASA 69, 789). Half an image is counted each way (Agresti and Min 2005):
networks that agree on all images are not equal for certain.

Three seeds may agree by luck, and where trainings end in one of two ways they often do: Student's quantile would then
tell equal configurations apart in up to a fifth of the studies, not in 5 %. So a difference is called only where it
also exceeds what the usual spread of the study's pairs would explain, their median; that the others' spread tells of a
pair's is an idea of Tusher et al. 2001 (PNAS 98, 5116) and Smyth 2004. Asking for both cannot raise the error.
An acceptance has no such guard: it errs in 5 % where luck is about normal, and more often where two rows alone are
compared and trainings end in one of two ways.

A configuration of one seed among others with several is not judged, but it may be the best: an acceptance must hold
against it, too, and the study's usual spread stands for the one it does not show. Nobody is rejected because of it.
"""

import bisect
import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline import records, tables, whole
from frostline.errors import UserError
from frostline.tables import text

CONFIDENCE = 0.95
REPLICATES = 2000
MOST_SEEDS = 1000  # beyond which it is the images that do not decide

Row = dict[str, Any]
Correct = Mapping[str, Mapping[int, Any]]  # configuration -> seed -> bool [N], which images it gets right


@dataclass(frozen=True)
class Difference:
    """How many more of the images one configuration gets right than another, as a fraction.

    `error` is the standard error of `mean` over `seeds` in common; of its square `seed_variance` is what the seeds'
    spread shows, and `fixed_variance` what would stay with any number of seeds, because the images stay.
    `usual_variance` is what the seeds' part is among the pairs of the study, known with so many degrees of freedom: of
    one seed it is all that is known, and 0 where no configuration has more.
    """

    mean: float
    error: float
    seeds: int
    seed_variance: float
    fixed_variance: float
    usual_variance: float = 0.0
    usual_freedom: float = 1.0

    def upper(self, confidence: float) -> float:
        """The one-sided bound that the true difference exceeds with a chance of 1 - `confidence`."""
        if self.seeds == 1:
            return self.mean + self._reach(confidence, self.usual_variance, self.usual_freedom)
        return self.mean + self._reach(confidence, self.seed_variance, self.seeds - 1)

    def lower(self, confidence: float) -> float:
        """The one-sided bound that the true difference falls below with a chance of 1 - `confidence`."""
        own = self._reach(confidence, self.seed_variance, self.seeds - 1)
        return self.mean - max(own, self._reach(confidence, self.usual_variance, self.usual_freedom))

    def plus(self, loss: float, variance: float) -> "Difference":
        """The same where the second one loses so much more, which the images show up to a variance."""
        error, fixed = math.sqrt(self.error**2 + variance), self.fixed_variance + variance
        return dataclasses.replace(self, mean=self.mean + loss, error=error, fixed_variance=fixed)

    def with_seeds(self, seeds: int) -> "Difference":
        """What is expected of another number of seeds: their part of the variance shrinks by their number."""
        scale = self.seeds / seeds
        variance = self.fixed_variance + scale * max(0.0, self.error**2 - self.fixed_variance)
        own, usual = scale * self.seed_variance, scale * self.usual_variance
        freedom = self.usual_freedom * (seeds - 1) / max(1, self.seeds - 1)
        return Difference(self.mean, math.sqrt(variance), seeds, own, self.fixed_variance, usual, freedom)

    def _reach(self, confidence: float, variance: float, freedom: float) -> float:
        """How far a bound lies from the mean where the seeds' part of the variance has so many degrees of freedom."""
        from scipy import special

        images = special.ndtri(confidence) ** 2 * max(0.0, self.error**2 - self.seed_variance)
        return math.sqrt(images + (special.stdtrit(freedom, confidence) ** 2 * variance if variance else 0.0))


def differences(correct: Correct) -> dict[tuple[str, str], Difference]:
    """The difference (a's accuracy minus b's) of every ordered pair (a, b).

    Runs are paired by their seed, or, without two seeds in common, in order: they are then independent. One seed is
    paired with its own where the other has it. It says nothing of the spread between seeds: then the images alone are
    resampled.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    drawn = _over_images(correct, rng) if len(correct) > 1 else {}
    found = {}
    for a, b in itertools.combinations(correct, 2):
        common = [(seed, seed) for seed in correct[a] if seed in correct[b]]
        in_order = list(zip(correct[a], correct[b], strict=False))
        paired = common if len(common) >= min(2, len(in_order)) else in_order
        pairs = np.stack([np.asarray(correct[a][s], float) - np.asarray(correct[b][t], float) for s, t in paired])
        replicates = np.stack([drawn[a, s] - drawn[b, t] for s, t in paired])
        one = _difference(pairs, replicates, rng)
        found[a, b], found[b, a] = one, dataclasses.replace(one, mean=-one.mean)
    return _with_usual_spread(found, [len(own) - 1 for own in correct.values()])


def _with_usual_spread(
    found: dict[tuple[str, str], Difference], freedoms: Sequence[int]
) -> dict[tuple[str, str], Difference]:
    """Differences that know the median, over all pairs, of the variance between seeds, corrected for its bias.

    `freedoms` has those of each configuration. Of one seed, whose bound has nothing else to rest on, only those count
    that differences have: (K - 1)(S - 1) of K configurations with S seeds.
    """
    from scipy import special

    several = [d for d in found.values() if d.seeds > 1]
    if not several:
        return found
    # The median of a chi-square with f degrees of freedom is 2 * gammaincinv(f / 2, 1 / 2).
    halves = [(d, (d.seeds - 1) / 2) for d in several]
    usual = statistics.median(d.seeds * d.seed_variance * half / special.gammaincinv(half, 0.5) for d, half in halves)
    every = sum(freedoms)
    freedom = {pair: every if d.seeds > 1 else every - max(freedoms) for pair, d in found.items()}
    return {
        pair: dataclasses.replace(d, usual_variance=usual / d.seeds, usual_freedom=freedom[pair])
        for pair, d in found.items()
    }


def _over_images(correct: Correct, rng: Any) -> dict[tuple[str, int], Any]:
    """Accuracies [REPLICATES] of every configuration and seed, on the same images drawn with replacement."""
    import numpy as np

    keys = [(name, seed) for name, own in correct.items() for seed in own]
    table = np.stack([np.asarray(correct[name][seed], np.float32) for name, seed in keys], axis=1)
    count = len(table)
    chunks = []
    for _ in range(0, REPLICATES, 100):  # the counts of all replicates at once may not fit in memory
        rows = rng.integers(count, size=(100, count)) + count * np.arange(100)[:, None]
        counts = np.bincount(rows.ravel(), minlength=100 * count).reshape(100, count)
        chunks.append(counts.astype(np.float32) @ table / count)
    return dict(zip(keys, np.concatenate(chunks).T.astype(float), strict=True))


def _difference(pairs: Any, replicates: Any, rng: Any) -> Difference:
    """From differences per image [seeds, N] and means over drawn images [seeds, REPLICATES]."""
    seeds, count = pairs.shape
    if seeds > 1:
        picks = rng.integers(seeds, size=(seeds - 1, replicates.shape[1]))
        drawn = replicates[picks, range(replicates.shape[1])].mean(axis=0)
        seed_variance = pairs.mean(axis=1).var(ddof=1) / seeds
        # What two seeds share image by image: S times the variance of the images' means is S B + E, a seed's own B + E.
        shared = (seeds * pairs.mean(axis=0).var(ddof=1) - pairs.var(axis=1, ddof=1).mean()) / (seeds - 1)
    else:
        drawn, seed_variance, shared = replicates[0], 0.0, pairs[0].var(ddof=1)
    half = 1 / count**2  # half an image each way
    error = math.sqrt(max(drawn.var(ddof=1), seed_variance) + half)
    fixed = max(0.0, shared) / count + half
    return Difference(float(pairs.mean()), error, seeds, float(seed_variance), float(fixed))


# -- what follows from the differences -----------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """`accepted`, `rejected` or `undecided`, and what it rests on.

    `loss` is what a configuration loses against the best of the sample, `upper` the bound that is held against the
    margin, which comes from `feared`, and `lower` what it loses for certain. About `more_seeds` more would make an
    undecided one `then`; None where no number of seeds would, or one seed cannot tell. `short_of_seeds` are rivals of
    one seed that alone keep it from being accepted, now or `then`: more seeds of them have to tell first. `against` has
    the differences of the others to it. Where nothing was compared, `feared` is None.
    """

    outcome: str
    loss: float
    upper: float
    lower: float
    feared: str | None
    more_seeds: int | None = None
    then: str | None = None
    short_of_seeds: tuple[str, ...] = ()
    against: Mapping[str, Difference] = dataclasses.field(default_factory=dict)

    def bears(self, loss: tuple[float, float] | None, margin: float) -> bool:
        """Whether a configuration together with what an artifact of it loses is within the margin.

        The loss comes with its variance; None where nothing tells it.
        """
        against = self.against.values() or (Difference(0.0, 0.0, 1, 0.0, 0.0),)
        return loss is not None and all(d.plus(*loss).upper(CONFIDENCE) <= margin for d in against)


def judge(correct: Correct, margin: float) -> dict[str, Verdict]:
    """Which configurations lose at most `margin` against the best of them, whichever that is.

    The best of a sample is flattered by its luck, so none is taken for the best: a configuration is accepted when the
    bound of its loss against *each* of the others is within the margin (an intersection-union test, Berger 1982, which
    needs no correction), and rejected when it is certain, over all pairs at once (Bonferroni), that it loses more.
    One seed among others with several is not judged, nor are several seeds beside single ones only.
    """
    found = differences(correct)
    single = tuple(name for name, own in correct.items() if len(own) == 1)
    unjudged = Verdict("undecided", 0.0, 0.0, 0.0, None)
    if len(correct) - len(single) == 1 < len(correct):
        beside = dataclasses.replace(unjudged, short_of_seeds=single)
        return {name: unjudged if name in single else beside for name in correct}
    judged = correct.keys() - single or correct
    losses = {name: {a: d for (a, b), d in found.items() if b == name} for name in correct}
    return {name: _verdict(losses[name], margin) if name in judged else unjudged for name in correct}


def _verdict(losses: Mapping[str, Difference], margin: float) -> Verdict:
    """From the differences of all others to one configuration; those of one seed tell only what may be lost."""
    if not losses:
        return Verdict("accepted", 0.0, 0.0, 0.0, None)
    several = {name: d for name, d in losses.items() if d.seeds > 1} or losses
    short = tuple(name for name, d in losses.items() if name not in several and d.upper(CONFIDENCE) > margin)
    every = 1 - (1 - CONFIDENCE) / (len(several) * (len(several) + 1))

    def outcome(more: int) -> str:
        expected = [d.with_seeds(d.seeds + more) for d in several.values()]
        if max(d.upper(CONFIDENCE) for d in expected) <= margin:
            return "accepted"
        return "rejected" if max(d.lower(every) for d in expected) > margin else "undecided"

    feared = max(losses, key=lambda name: losses[name].upper(CONFIDENCE))
    loss = max(0.0, *(d.mean for d in losses.values()))
    upper = min(1.0, max(0.0, losses[feared].upper(CONFIDENCE)))
    lower = max(0.0, *(d.lower(every) for d in several.values()))
    told = Verdict(outcome(0), loss, upper, lower, feared, against=losses)
    if told.outcome == "undecided" and min(d.seeds for d in several.values()) > 1:
        more = 1 + bisect.bisect_left(range(1, MOST_SEEDS + 1), True, key=lambda n: outcome(n) != "undecided")
        told = dataclasses.replace(told, more_seeds=more, then=outcome(more)) if more <= MOST_SEEDS else told
    if short and "accepted" in (told.outcome, told.then):
        return dataclasses.replace(told, outcome="undecided", more_seeds=None, then=None, short_of_seeds=short)
    return told


# -- the recommendation --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What a person allows: a loss of accuracy as a fraction, and seconds."""

    margin: float = 0.01
    max_latency_p99: float | None = None
    min_accuracy: float | None = None
    max_train_seconds: float | None = None


def advise(results: Path, limits: Limits, *, on_test: bool = False) -> list[Row]:
    """One recommendation for each task of a results folder, with a verdict and a reason for each configuration.

    `on_test` takes in rows that were validated on the test set. Raises UserError where there is nothing to choose from.
    """
    found = records.read(results)
    configurations = records.configurations(found)
    every = tables.rows(found)
    rows, infer = ([row for row in every if row["kind"] == kind] for kind in ("train", "infer"))
    paired = [(row, c) for row, c in zip(rows, configurations, strict=True) if row["freeze"] != "pretrain"]
    chosen = [(row, c) for row, c in paired if whole.competes(row, on_test=on_test)]
    left_out = [row for row, _ in paired if whole.competes(row, on_test=True) and not whole.competes(row)]
    if not chosen and left_out:
        raise UserError(
            f"all configurations in {results} were validated on test (†), on which nothing should be chosen; "
            "give --validated-on-test to choose all the same"
        )
    if not chosen:
        raise UserError(f"{results} holds no finished run; type: frostline run STUDY --results {results}")
    same: dict[str, list[tuple[Row, records.Configuration]]] = {}
    for row, configuration in chosen:
        same.setdefault(row["task"], []).append((row, configuration))
    advice = [_of_task(results, own, infer, limits) for own in same.values()]
    if left_out and not on_test:
        advice[-1]["notes"].append(f"{len(left_out)} validated on test (†) are left out; --validated-on-test has them.")
    return advice


def _of_task(results: Path, own: list[tuple[Row, records.Configuration]], infer: list[Row], limits: Limits) -> Row:
    alone = Verdict("accepted", 0.0, 0.0, 0.0, None)
    rows = {_called(row): row | _fastest(row, infer, alone, limits.margin) for row, _ in own}
    correct, notes = _read(results, {_called(row): configuration.finished for row, configuration in own})
    told = {name: _outside(row, limits) for name, row in rows.items()}
    within = {name: kept for name, kept in correct.items() if not told[name]}
    if len(within) > 1 and max(map(len, within.values())) == 1:
        notes.append(
            "One seed each: the images alone were resampled, so this holds for these very trainings and says nothing "
            "of other seeds; frostline run STUDY --seeds 0,1,2 would."
        )
    verdicts = judge(within, limits.margin)
    images = len(next(iter(next(iter(correct.values())).values())))
    for name, verdict in verdicts.items():
        if verdict.outcome == "accepted":
            rows[name] |= _fastest(rows[name], infer, verdict, limits.margin)
            told[name] = _outside(rows[name], limits)
    entries = [_entry(name, row, told[name], verdicts.get(name), images, limits) for name, row in rows.items()]
    notes += _notes(entries, [row for row, _ in own]) + _of_artifacts(rows, limits)
    newest = own[0][1].rows[-1]
    known = {"study": newest["study"], "title": newest["title"], "task": whole.described(newest)}
    return {**known, "margin": limits.margin, "validation_images": images, **_choice(entries, limits.margin),
            "notes": notes, "configurations": entries}  # fmt: skip


def _fastest(row: Row, infer: list[Row], verdict: Verdict, margin: float) -> Row:
    """The best figures of a row's artifacts with which it stays within the margin; `artifact` and `artifact_p99` are
    those with the least p50 and p99, and `faster` is the fastest of those that are left out."""
    told: Row = {}
    for measure in whole.MEASURED_ON:
        measured = whole.artifacts(row, infer, measure)
        fit = next((one for one in measured if verdict.bears(whole.lost(row, one), margin)), None)
        told |= {f"best_{measure}": fit and fit[measure], f"best_{measure}_of": fit and whole.where(fit)}
        if measure == "latency_p50_seconds":
            told |= {"artifact": fit, "faster": measured[0] if measured and measured[0] is not fit else None}
        if measure == "latency_p99_seconds":
            told["artifact_p99"] = fit
    return told


def _called(row: Row) -> str:
    return row["freeze"] + (f" ({row['variant']})" if row["variant"] else "") + records.marks(row)


def _read(results: Path, finished: Mapping[str, Sequence[Row]]) -> tuple[dict[str, dict[int, Any]], list[str]]:
    """Which validation images each configuration and seed gets right, and what is missing; raises UserError."""
    correct: dict[str, dict[int, Any]] = {}
    notes, keys = [], None
    for name, rows in finished.items():
        for record in rows:
            kept = _predictions(results, record["run"])
            if kept is None:
                notes.append(f"{name}: seed {record['seed']} left no predictions and is not counted.")
                continue
            keys = kept[0] if keys is None else keys
            if kept[0] != keys:
                raise UserError(f"{record['run']} was validated on other images; run its study again with --fresh")
            correct.setdefault(name, {})[record["seed"]] = kept[1]
    if missing := [name for name in finished if name not in correct]:
        raise UserError(
            f"no predictions of {', '.join(missing)} under {results / 'runs'}; run the study again with --fresh, or "
            "give the folder it was run in"
        )
    return correct, notes


def _predictions(results: Path, run: str) -> tuple[list[str], Any] | None:
    """The keys of a run's validation images and which of them it gets right; None where it left none."""
    again = "run its study again with --fresh"
    try:
        kept = records.predictions(results, run)
        if kept is None:
            return None
        right = kept["validation"].argmax(axis=1) == kept["validation_labels"]
        keys = kept["validation_keys"].tolist()
    except records.Damaged as error:
        raise UserError(f"{error}; {again}") from error
    except (KeyError, ValueError) as error:
        raise UserError(f"cannot read the predictions of {run}: {error}; {again}") from error
    if not len(keys) or right.shape != (len(keys),):
        raise UserError(f"the predictions of {run} are not one for each validation image; {again}")
    return keys, right


def _outside(row: Row, limits: Limits) -> tuple[str, str] | None:
    """A verdict and its reason, where a row is outside what a person allows."""
    if limits.min_accuracy is not None and row["validation_top1"] < limits.min_accuracy:
        return "rejected", f"validation top-1 {row['validation_top1']:.4f} is below {limits.min_accuracy:g}"
    if limits.max_train_seconds is not None and row["total_seconds"] > limits.max_train_seconds:
        return "rejected", f"{row['total_seconds']:.1f} s of training, {limits.max_train_seconds:g} s are allowed"
    if limits.max_latency_p99 is not None:
        latency = row["best_latency_p99_seconds"]
        if latency is None:
            told = "no p99 of one image, which takes 662 answers, is measured of an artifact within the margin"
            fastest = row["artifact"] or row["faster"]
            return "undecided", f"{told}; {_measure([fastest['runtime']] if fastest else [])}"
        if latency > limits.max_latency_p99:
            most = f"{limits.max_latency_p99 * 1e3:g} ms are allowed"
            return "rejected", f"p99 {latency * 1e3:.2f} ms at best ({row['best_latency_p99_seconds_of']}), {most}"
    return None


def _measure(runtimes: Iterable[str]) -> str:
    """What to type for valid latencies on some runtimes, or, without any, to learn which is the fastest."""
    only = "".join(f" --runtime {runtime}" for runtime in dict.fromkeys(runtimes))
    told = "type: frostline infer EXPORTS --scenario single_stream"
    return f"{told}{only} --profile valid (ten minutes a cell)" if only else f"{told} (seconds a cell)"


KEPT = ("freeze", "variant", "seeds", "trainable_params", "total_seconds", "validation_top1", "validation_top1_std",
        "test_top1", "test_top1_std", "best_images_per_second", "best_images_per_second_of", "best_latency_p50_seconds",
        "best_latency_p50_seconds_of", "best_latency_p99_seconds", "best_latency_p99_seconds_of")  # fmt: skip


def _entry(
    name: str, row: Row, told: tuple[str, str] | None, verdict: Verdict | None, images: int, limits: Limits
) -> Row:
    """What is said of a row; `within_limits` is None where nobody knows, and nothing else was looked at unless true."""
    figures: Row = dict.fromkeys(("loss", "loss_upper", "loss_lower", "more_seeds", "then"))
    figures |= {"short_of_seeds": [], "within_limits": True}
    if told:
        outcome, reason = told
        figures["within_limits"] = False if outcome == "rejected" else None
    else:
        assert verdict
        outcome, reason = verdict.outcome, _reason(verdict, len(row["seeds"]), images, limits.margin)
        if outcome == "accepted" and limits.max_latency_p99 is not None:
            reason += f"; p99 {row['best_latency_p99_seconds'] * 1e3:.2f} ms ({row['best_latency_p99_seconds_of']})"
        if verdict.feared:
            figures |= {"loss": verdict.loss, "loss_upper": verdict.upper, "loss_lower": verdict.lower}
        figures |= {"more_seeds": verdict.more_seeds, "then": verdict.then}
        figures["short_of_seeds"] = list(verdict.short_of_seeds)
    return {"name": name, "verdict": outcome, "reason": reason, **figures, **{key: row[key] for key in KEPT}}


def _reason(verdict: Verdict, seeds: int, images: int, margin: float) -> str:
    if not verdict.feared and verdict.short_of_seeds:
        return "no other has several seeds to be held against"
    if not verdict.feared:
        one = "one seed, which says nothing of its spread; give it the seeds of the others"
        return "there is no other" if verdict.outcome == "accepted" else one
    if verdict.outcome == "accepted":
        return f"loses at most {verdict.upper:.4f} ({verdict.feared}), and {margin:g} is allowed"
    if verdict.outcome == "rejected":
        return f"loses at least {verdict.lower:.4f}, and {margin:g} is allowed"
    text = f"may lose up to {verdict.upper:.4f} ({verdict.feared})"
    if verdict.short_of_seeds:
        return f"{text}; more seeds of {', '.join(verdict.short_of_seeds)} have to tell first, one shows no spread"
    if verdict.more_seeds:
        return f"{text}; {_more(verdict.more_seeds)} would decide"
    if seeds > 1:
        return f"{text}; more seeds alone would hardly decide, {images:,} validation images are too few"
    return f"{text} on {images:,} validation images, and one seed says nothing of their spread"


def _more(seeds: int) -> str:
    return f"about {seeds} more seed{'s' if seeds > 1 else ''}"


def _choice(entries: list[Row], margin: float) -> Row:
    """The cheapest accepted configuration, or why there is none."""
    accepted = sorted((e for e in entries if e["verdict"] == "accepted"), key=_cost)
    undecided = sorted((e for e in entries if e["verdict"] == "undecided"), key=_cost)
    if not any(e["within_limits"] for e in entries):
        known = all(e["within_limits"] is False for e in entries)
        reason = "none is within the limits" if known else "none is shown to be within the limits"
        outcome = "rejected" if known else "undecided"
        return {"outcome": outcome, "recommended": None, "more_seeds": None, "reason": reason}
    if not accepted:
        soon = min((e for e in undecided if e["then"] == "accepted"), key=lambda e: e["more_seeds"], default=None)
        limited = "" if all(e["within_limits"] for e in entries) else " within the limits"
        reason = f"none{limited} is shown to lose at most {margin:g} against the best"
        reason += f"; {_more(soon['more_seeds'])} would do for {soon['name']}" if soon else ""
        seeds = soon and soon["more_seeds"]
        reason += _first(undecided, entries)
        return {"outcome": "undecided", "recommended": None, "more_seeds": seeds, "reason": reason}
    taken = accepted[0]
    cheaper = [e for e in undecided if _cost(e) < _cost(taken)]
    reason = _taken(taken, len(accepted), entries, margin)
    reason += f"; cheaper, and undecided: {', '.join(e['name'] for e in cheaper)}" if cheaper else ""
    reason += _first(cheaper, entries)
    return {"outcome": "recommended", "recommended": taken["name"], "more_seeds": None, "reason": reason}


def _taken(taken: Row, accepted: int, entries: list[Row], margin: float) -> str:
    """Why one is taken, which where nothing was left to compare it with has nothing to do with accuracy."""
    if len(entries) == 1:
        return "there is no other"
    if taken["loss"] is None:
        shown = "shown to be " if any(e["within_limits"] is None for e in entries) else ""
        return f"the only one {shown}within the limits, held against no other"
    return f"the cheapest to train ({taken['total_seconds']:.1f} s) of {accepted} shown to lose at most {margin:g}"


def _first(undecided: list[Row], entries: list[Row]) -> str:
    """What to type for those of one seed that keep others undecided; nothing where there are none."""
    short = {name for e in undecided for name in e["short_of_seeds"]}
    only = dict.fromkeys(e["freeze"] for e in entries if e["name"] in short)
    seeds = sorted({seed for e in undecided if e["short_of_seeds"] for seed in e["seeds"]})
    told = f"frostline run STUDY --seeds {','.join(map(str, seeds))} --only {' --only '.join(only)}"
    return f"; what has one seed may be better, so first type: {told}" if only else ""


def _cost(entry: Row) -> tuple[float, float]:
    """What one pays: seconds of training in all, then the best latency."""
    latency = entry["best_latency_p50_seconds"]
    return entry["total_seconds"], math.inf if latency is None else latency


def _notes(entries: list[Row], rows: list[Row]) -> list[str]:
    notes = []
    compared = [e for e in entries if e["loss"] is not None]
    if len(compared) > 1 and not any(e["loss_lower"] for e in compared):
        notes.append("On accuracy none is preferred: no two of them are told apart.")
    for row in rows:
        if row["search"]:
            told = f"{row['search']['trials']} trials by these very images, and with its first seed"
            notes.append(f"{_called(row)} was chosen among {told}: that flatters it. Its total is without the others'.")
    if len({((row["machine"] or {}).get("cpu"), row["device"]) for row in rows}) > 1:
        notes.append("They trained on different machines: their seconds do not compare.")
    return notes


def _of_artifacts(rows: Mapping[str, Row], limits: Limits) -> list[str]:
    """Which artifacts are faster than the one that stands for their row, and which figures are not to be relied on."""
    faster = {name: whole.where(row["faster"]) for name, row in rows.items() if row["faster"]}
    left: dict[str, list[str]] = {}
    for name, where in faster.items():
        left.setdefault(where, []).append(name)
    notes = [
        f"Faster, and not shown to lose at most {limits.margin:g} together with its row: {where} of {', '.join(names)}."
        for where, names in left.items()
    ]
    figures = {"p50": "artifact"} | ({"p99": "artifact_p99"} if limits.max_latency_p99 is not None else {})
    taken = {figure: {name: row[key] for name, row in rows.items() if row[key]} for figure, key in figures.items()}

    def of(doubtful: Callable[[Row], bool]) -> str:
        doubted = {figure: [name for name, one in own.items() if doubtful(one)] for figure, own in taken.items()}
        return "; ".join(f"the {figure} of {', '.join(names)}" for figure, names in doubted.items() if names)

    if shaky := of(lambda one: one.get("stable") is False):
        notes.append(f"Unstable (windows more than 10 % apart): {shaky}.")
    if quick := of(lambda one: not one.get("valid")):
        runtimes = [one["runtime"] for own in taken.values() for one in own.values() if not one.get("valid")]
        notes.append(f"Measured for seconds only, not valid in MLPerf's sense: {quick}; {_measure(runtimes)}.")
    return notes


def render(advice: list[Row], form: str, width: int | None = None) -> str:
    """The recommendations as text, `github` or `plain` in a width, or as `json`."""
    if form == "json":
        return json.dumps(advice, indent=2, ensure_ascii=False)
    return "\n\n".join(_text(one, text.Form(form, width)) for one in advice)


def _text(one: Row, form: text.Form) -> str:
    def fine(value: float | None, scale: float = 1.0, digits: int = 4) -> str:
        return "-" if value is None else f"{value * scale:,.{digits}f}"

    def mean(entry: Row, key: str) -> str:
        spread = entry[f"{key}_std"]
        return fine(entry[key]) + (f" ± {spread:.4f} ({len(entry['seeds'])})" if spread is not None else "")

    lines = [
        [e["name"], e["verdict"], fine(e["total_seconds"], digits=1), fine(e["best_latency_p50_seconds"], 1e3, 2),
         e["best_latency_p50_seconds_of"] or "-", mean(e, "validation_top1"), fine(e["loss"]), fine(e["loss_upper"]),
         mean(e, "test_top1")]
        for e in one["configurations"]
    ]  # fmt: skip
    headers = ["freeze", "verdict", "total s", "p50 ms", "from", "validation top-1", "loses", "at most", "test top-1"]
    title = f"{one['study']}: which one to take" + (f" - {one['task']}" if one["task"] else "")
    answer = f"{'Take ' + one['recommended'] if one['recommended'] else one['outcome'].capitalize()}: {one['reason']}."
    marked = f"**{answer}**" if form.name == "github" else answer
    reasons = [f"{e['name']}: {e['verdict']}, {e['reason']}." for e in one["configurations"]]
    note = (
        f"On {one['validation_images']:,} validation images. loses: against the best of the sample; at most: the "
        "upper 95 % bound of the loss against any other, by a bootstrap over seeds and images. Test chose nothing. "
        "p50: of the fastest artifact with which its row stays within the margin; accuracies are of the trained models."
    )
    table = text.tabulated(lines, headers, form, right=(2, 3, *range(5, 9)))
    told = [text.paragraphs(part, form) for part in (marked, "\n".join(reasons), "\n".join([note, *one["notes"]]))]
    return "\n\n".join([text.titled(title, form, None), told[0], table, *told[1:]])
