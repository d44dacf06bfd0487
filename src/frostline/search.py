"""The trials of a search as freeze configurations: drawn by Optuna, replayed from what is finished."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frostline import backbones, heads
from frostline.errors import UserError
from frostline.plan import Run
from frostline.studies import Drawn, Freeze, Head, HeadLayer, Parameter, Search, Study, Value, best_name, trial_name

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

DRAWS = 100  # of a trial, before one that stands there already is taken: all values may have been drawn
STARTUP = 5  # trials of TPE that are random draws, and so known before any result
OF_HEAD = ("units", "dropout", "l2")
Outcome = tuple[float, ...]  # validation top-1 and minus the loss, the greater the better; empty: failed
Values = tuple[tuple[str, Value], ...]


def expand(study: Study, ended: Mapping[str, Outcome]) -> Study:
    """A resolved study with the trials of its searches that are known, and the best where all of them have ended.

    `ended` are the outcomes of trials by name. Raises UserError where there is nothing to vary.
    """
    drawn = [freeze for search in study.search for freeze in _configurations(study, search, ended)]
    return dataclasses.replace(study, freeze=(*study.freeze, *drawn))


def outcomes(planned: Sequence[Run], known: Mapping[str, dict[str, Any]]) -> dict[str, Outcome]:
    """How the trials among planned runs ended, by name, from the records of some identities."""
    return {run.freeze.name: _outcome(known[run.identity]) for run in planned if run.trial and run.identity in known}


def origin(run: Run, planned: Sequence[Run]) -> Run | None:
    """The trial that was this very training: the best is trained again with its other seeds only."""
    drawn = run.freeze.drawn
    if drawn is None or not drawn.best:
        return None
    name = trial_name(drawn.search, drawn.trial)
    return next((r for r in planned if (r.freeze.name, r.seed) == (name, run.seed)), None)


def optimizers(freeze: Freeze) -> set[str]:
    """Optimizers that the search of a configuration may choose."""
    space = freeze.drawn.search.space if freeze.drawn else ()
    return {str(choice) for p in space if p.name == "optimizer" for choice in p.choices or ()}


def draw(search: Search, told: Sequence[Outcome | None]) -> list[Values]:
    """The values of the trials that are known: all of a random search; with TPE those up to the first that is open.

    `told` has the outcome of each trial, None where it has not ended.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if search.sampler == "tpe":
        sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=STARTUP)
    else:
        sampler = optuna.samplers.RandomSampler(seed=search.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space = {parameter.name: _distribution(parameter) for parameter in search.space}
    found: list[Values] = []
    for number, outcome in enumerate(told):
        if search.sampler == "tpe" and number >= STARTUP and None in told[:number]:
            break
        trial = _new(study, space, found)
        found.append(tuple(trial.params.items()))
        if outcome:
            study.tell(trial, outcome[0])
        elif outcome is not None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return found


def _new(study: "optuna.Study", space: dict[str, "BaseDistribution"], found: Sequence[Values]) -> "optuna.Trial":
    """A trial with values that no earlier one has, while such are drawn: the same training again would tell nothing."""
    import optuna

    trial = study.ask(space)
    for _ in range(DRAWS):
        if tuple(trial.params.items()) not in found:
            break
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        trial = study.ask(space)
    return trial


def _distribution(parameter: Parameter) -> "BaseDistribution":
    from optuna import distributions

    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.choices is not None:
        return distributions.CategoricalDistribution(parameter.choices)
    assert low is not None and high is not None
    if parameter.name in ("units", "batch_size"):
        return distributions.IntDistribution(int(low), int(high), parameter.log, int(step or 1))
    return distributions.FloatDistribution(low, high, parameter.log, step)


def _configurations(study: Study, search: Search, ended: Mapping[str, Outcome]) -> list[Freeze]:
    (base,) = (freeze for freeze in study.freeze if freeze.name == search.freeze)
    first = {name: getattr(base, name)[:1] for name in ("precision", "xla", "engine")}
    if base.head == "inherit" and study.pretrain:
        first["head"] = study.pretrain.freeze.head
    varied = dataclasses.replace(base, **first)
    told = [ended.get(trial_name(search, number)) for number in range(1, search.trials + 1)]
    drawn = [Drawn(search, varied, number, values) for number, values in enumerate(draw(search, told), 1)]
    scores = [outcome for outcome in told if outcome is not None]
    if len(scores) == search.trials and any(scores):
        drawn.append(dataclasses.replace(drawn[scores.index(max(scores))], best=True))
    return [_vary(base, one, study.backbone.name) for one in drawn]


def _vary(base: Freeze, drawn: Drawn, backbone: str) -> Freeze:
    """The varied configuration with the values of a trial in its place."""
    of_head: dict[str, Any] = {name: value for name, value in drawn.values if name in OF_HEAD}
    of_stage: dict[str, Any] = {name: value for name, value in drawn.values if name not in OF_HEAD}
    if "learning_rate" in of_stage and len(base.stages) > 1:
        raise UserError(f"[search] learning_rate: {base.name!r} has {len(base.stages)} stages; search one of one stage")
    if of_head and base.head == "inherit":
        raise UserError(f"[search] {next(iter(of_head))}: {base.name!r} inherits its head; give it a head of its own")
    head = base.head
    if of_head:
        head = _with_values(heads.resolve(head, backbones.get(backbone).head), of_head, base.name)
    return dataclasses.replace(
        base,
        name=best_name(drawn.search) if drawn.best else trial_name(drawn.search, drawn.trial),
        stages=tuple(dataclasses.replace(stage, **of_stage) for stage in base.stages),
        head=head,
        seeds=base.seeds if drawn.best else (base.seeds or ())[:1],
        precision=drawn.varied.precision,
        xla=drawn.varied.xla,
        engine=drawn.varied.engine,
        reported=None,
        drawn=drawn,
    )


def _with_values(head: Head, values: Mapping[str, Any], name: str) -> Head:
    """A head with other units in its first dense layer, another rate in its dropout layers, another L2."""
    kinds = [layer.kind for layer in head.layers]
    layers = list(head.layers)
    for value, kind in (("units", "dense"), ("dropout", "dropout")):
        if value in values and kind not in kinds:
            raise UserError(f"[search] {value}: the head of {name!r} has no {kind} layer; add one to its layers")
    if "units" in values:
        layers[kinds.index("dense")] = HeadLayer("dense", values["units"])
    if "dropout" in values:
        layers = [HeadLayer("dropout", values["dropout"]) if x.kind == "dropout" else x for x in layers]
    return dataclasses.replace(head, layers=tuple(layers), l2=values.get("l2", head.l2))


def _outcome(record: Mapping[str, Any]) -> Outcome:
    if record["outcome"] != "ok":
        return ()
    loss = record["validation_loss"]
    return record["validation_top1"], -math.inf if loss is None else -loss
