"""From a study and the flags to its runs, each with the identity under which it is kept."""

import dataclasses
import hashlib
import itertools
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from frostline.errors import UserError, nearest
from frostline.studies import (
    ENGINES,
    FILE,
    PRECISIONS,
    RUN_KEYS,
    XLA,
    Backbone,
    Data,
    Drawn,
    Freeze,
    Head,
    Study,
    Task,
    best_name,
    search_names,
    trial_name,
)

PRETRAIN = "pretrain"
OWN = "file"  # the weights that a backbone brings along which is a file
WEIGHTS = ("none", "imagenet", OWN, PRETRAIN)  # what is no weights file's path
ELSEWHERE = ("reported", "seeds", "weights", "drawn", "scaling", "cut")  # no identity, or part of it in another place


@dataclass(frozen=True)
class Options:
    """The flags that choose runs (`only`, `seeds`) and those that change them; the latter are part of an identity."""

    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None
    limit: int | None = None
    weights: str | None = None
    precision: tuple[str, ...] = ()
    xla: tuple[str, ...] = ()
    engine: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One freeze configuration with one seed, one precision and one XLA setting, as asked.

    `freeze.weights` is `none`, `imagenet`, `file` (the backbone's own), a path, or `pretrain`: then `pretrain_run` made
    them. `inherit_head`: the head's weights come from there too. `configuration` is the identity without the seed: only
    runs that share it are averaged. `network` is the backbone's name, or a hash of the file that it is.
    """

    id: str
    identity: str
    configuration: str
    study: str
    title: str
    backbone: Backbone
    data: Data
    freeze: Freeze
    inherit_head: bool
    variant: str
    seed: int
    limit: int | None
    epochs: int | None
    fingerprint: str
    pretrain_run: str | None = None
    place: tuple[int, ...] = ()
    network: str = ""

    @property
    def model(self) -> str:
        """The name under which it is exported: study, freeze configuration and, where several, its variant."""
        return ".".join(part for part in (self.study, self.freeze.name, self.variant) if part)

    @property
    def precision(self) -> str:
        """Precision as asked."""
        return self.freeze.precision[0]

    @property
    def xla(self) -> str:
        """XLA as asked."""
        return self.freeze.xla[0]

    @property
    def engine(self) -> str:
        """Engine as asked."""
        return self.freeze.engine[0]

    @property
    def origin(self) -> tuple[Any, ...]:
        """Equal for runs whose frozen layers have the same weights and see the same pixels: where they come from and,
        if random, the seed; and the scaling."""
        random = self.freeze.weights == "none" or self.freeze.reset or any(s.reset for s in self.freeze.stages)
        return (self.freeze.weights, self.pretrain_run, self.seed if random else None, self.data.scaling)

    @property
    def trial(self) -> bool:
        """Whether it is a trial of a search: shown in the tables, not published."""
        return self.freeze.drawn is not None and not self.freeze.drawn.best


def resolve(study: Study, options: Options) -> Study:
    """The study with the flags applied and the source of every configuration's weights settled; raises UserError."""
    known = [PRETRAIN] if study.pretrain and not options.weights else []
    known += [*(f.name for f in study.freeze), *(name for search in study.search for name in search_names(search))]
    for name in options.only:
        if name not in known:
            raise UserError(f"--only {name}: {study.name} has no such configuration; {nearest(name, known)}")
    for flag, choices in (("precision", PRECISIONS), ("xla", XLA), ("engine", ENGINES)):
        for value in getattr(options, flag):
            if value not in choices:
                raise UserError(f"--{flag} {value}: {nearest(value, choices)}")
    freeze = tuple(_apply(_source(f, study, options), options) for f in study.freeze)
    pretrain = study.pretrain
    if pretrain:
        source = _apply(pretrain.freeze, options)
        stages = tuple(dataclasses.replace(stage, frontier="exact") for stage in source.stages)
        source = dataclasses.replace(
            source, precision=source.precision[:1], xla=source.xla[:1], engine=("plain",), stages=stages
        )
        data = dataclasses.replace(pretrain.data, train_images=_within(pretrain.data.train_images, options.limit))
        pretrain = Task(data, source)
    freeze = tuple(dataclasses.replace(f, seeds=options.seeds or f.seeds or study.seeds) for f in freeze)
    seeds = tuple(dict.fromkeys(seed for f in freeze for seed in f.seeds or ()))
    data = dataclasses.replace(study.data, train_images=_within(study.data.train_images, options.limit))
    return dataclasses.replace(study, data=data, freeze=freeze, pretrain=pretrain, seeds=seeds)


def overridden(study: Study, options: Options) -> list[str]:
    """For each flag that stands in place of what rows of a study ask for: which rows, and what they ask for."""
    lines = []
    for flag in RUN_KEYS:
        given = getattr(options, flag)
        rows = [
            f"{f.name} ({', '.join(getattr(f, flag))})"
            for f in study.freeze
            if given and getattr(f, flag) not in (("auto",), given) and _asked(f, options.only)
        ]
        if rows:
            lines.append(f"--{flag} {','.join(given)} stands in place of what the study asks for: {', '.join(rows)}")
    return lines


def _within(sizes: tuple[int | str, ...], limit: int | None) -> tuple[int | str, ...]:
    """Numbers of training images of which a limit leaves some; from there on they are all that it leaves."""
    cut = ("all" if limit and isinstance(size, int) and size >= limit else size for size in sizes)
    return tuple(dict.fromkeys(cut))


def _source(freeze: Freeze, study: Study, options: Options) -> Freeze:
    if freeze.weights:
        weights = freeze.weights
    elif options.weights:
        weights = options.weights
    elif study.pretrain:
        weights = PRETRAIN
    elif study.backbone.weights:
        weights = study.backbone.weights
    elif study.backbone.name.startswith(FILE):
        weights = OWN
    else:
        raise UserError(
            f"{study.name}: nothing says where the weights of {freeze.name!r} come from; add a [pretrain], or "
            'weights = "imagenet", "none" or a file to [backbone]'
        )
    if weights == PRETRAIN and not study.pretrain:
        raise UserError(
            f'{study.name}: {freeze.name!r} has weights = "{PRETRAIN}", and there is no [pretrain]; add one'
        )
    return dataclasses.replace(freeze, weights=weights)


def _apply(freeze: Freeze, options: Options) -> Freeze:
    cap = options.epochs
    stages = (dataclasses.replace(stage, epochs=min(stage.epochs, cap or stage.epochs)) for stage in freeze.stages)
    return dataclasses.replace(
        freeze,
        stages=tuple(stages),
        precision=options.precision or freeze.precision,
        xla=options.xla or freeze.xla,
        engine=options.engine or freeze.engine,
    )


def runs(study: Study, options: Options, fingerprint: Callable[[Data], str], digest: Callable[[str], str]) -> list[Run]:
    """All runs of a resolved study, in the order they are executed: for each seed the pre-training, then the rest.

    `fingerprint` hashes the data a run uses, `digest` the weights file it starts from and the file its backbone is.
    """
    prints = {data: fingerprint(data) for data in _datas(study)}
    planned = []
    for seed in study.seeds:
        source = None
        wanted = [f for f in study.freeze if seed in (f.seeds or study.seeds) and _asked(f, options.only)]
        if study.pretrain and (PRETRAIN in options.only or any(f.weights == PRETRAIN for f in wanted)):
            source = _run(study, study.pretrain.data, study.pretrain.freeze, seed, options, prints, digest)
            planned.append(source)
        for freeze in wanted:
            start = source if freeze.weights == PRETRAIN else None
            number = study.freeze.index(freeze)
            for variant, (data, one, name) in enumerate(_variants(study.data, freeze)):
                run = _run(study, data, one, seed, options, prints, digest, name, start)
                planned.append(dataclasses.replace(run, place=(number, variant)))
    return planned


def _asked(freeze: Freeze, only: Collection[str]) -> bool:
    """Whether --only names a configuration, what it is a variation of, or one that needs it."""
    names = {freeze.name}
    if drawn := freeze.drawn:
        search = drawn.search
        names |= {search.freeze, best_name(search)}
        if search.sampler == "tpe" and not drawn.best:
            names |= {trial_name(search, number) for number in range(drawn.trial, search.trials + 1)}
    return not only or bool(names & set(only))


def _variants(data: Data, freeze: Freeze) -> list[tuple[Data, Freeze, str]]:
    """One configuration for each combination of the settings asked for, and a name where there are several."""
    variants = []
    for images, precision, xla, engine in itertools.product(
        data.train_images, freeze.precision, freeze.xla, freeze.engine
    ):
        parts = [f"{images}_images"] if len(data.train_images) > 1 else []
        parts += [precision, f"xla_{xla}"] if len(freeze.precision) * len(freeze.xla) > 1 else []
        parts += [engine] if len(freeze.engine) > 1 else []
        one = dataclasses.replace(freeze, precision=(precision,), xla=(xla,), engine=(engine,))
        own = dataclasses.replace(data, train_images=(images,), scaling=freeze.scaling or data.scaling)
        variants.append((own, one, "-".join(parts)))
    return variants


def _datas(study: Study) -> set[Data]:
    return {whole(study.data), *([whole(study.pretrain.data)] if study.pretrain else [])}


def whole(data: Data) -> Data:
    """The data of which a run may use a part, before the network scales it."""
    return dataclasses.replace(data, train_images=("all",), scaling="backbone")


def _run(
    study: Study,
    data: Data,
    freeze: Freeze,
    seed: int,
    options: Options,
    prints: Mapping[Data, str],
    digest: Callable[[str], str],
    variant: str = "",
    source: Run | None = None,
) -> Run:
    inherit = freeze.head == "inherit"
    backbone = dataclasses.replace(study.backbone, cut=freeze.cut or study.backbone.cut)
    if freeze.name == PRETRAIN:
        backbone = dataclasses.replace(backbone, cut=None)
    elif backbone.cut and inherit:
        raise UserError(
            f'{freeze.name}: head = "inherit" keeps a head that stands on the whole {backbone.name}, and cut = '
            f"{backbone.cut!r} drops a part of it; choose a head of its own"
        )
    head = _inherited(study) if inherit else freeze.head
    freeze = dataclasses.replace(freeze, head=head)
    weights = freeze.weights or "none"
    network = _content(backbone.name, digest)
    asked = {
        "study": study.name,
        "backbone": network,
        **{key: value for key, value in plain(backbone).items() if key in ("cut", "l2") and value},
        "data": plain(data),
        "freeze": _of_freeze(freeze),
        "inherit_head": inherit,
        "weights": weights if weights in WEIGHTS else _of_file(weights, digest),
        "pretrain": source and source.configuration,
        "limit": options.limit,
        "epochs": options.epochs,
        "fingerprint": prints[whole(data)],
    }
    configuration = _hash(asked)
    identity = _hash({"configuration": configuration, "seed": seed})
    run_id = ".".join(p for p in (study.name, freeze.name, variant, f"s{seed}", identity[:10]) if p)
    return Run(
        id=run_id,
        identity=identity,
        configuration=configuration,
        study=study.name,
        title=study.title,
        backbone=backbone,
        data=data,
        freeze=freeze,
        inherit_head=inherit and weights != "none",
        variant=variant,
        seed=seed,
        limit=options.limit,
        epochs=options.epochs,
        fingerprint=prints[whole(data)],
        pretrain_run=source.id if source else None,
        network=network,
    )


def _of_freeze(freeze: Freeze) -> dict[str, Any]:
    """What of a configuration is part of an identity; a stage that resets nothing is as if there were no such key."""
    asked = {k: v for k, v in plain(freeze).items() if k not in ELSEWHERE}
    stages = [{k: v for k, v in stage.items() if k != "reset" or v} for stage in asked["stages"]]
    return asked | {"stages": stages}


def _of_file(weights: str, digest: Callable[[str], str]) -> str:
    try:
        return digest(weights)
    except UserError as error:
        raise UserError(f"{error}; weights that are no file: {nearest(weights, WEIGHTS)}") from error


def _content(name: str, digest: Callable[[str], str]) -> str:
    """The name of a backbone, or what stands for one that is a file, whatever it is called."""
    return FILE + digest(name.removeprefix(FILE)) if name.startswith(FILE) else name


def _inherited(study: Study) -> Head | str | None:
    return study.pretrain.freeze.head if study.pretrain else None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def heading(run: Run) -> dict[str, Any]:
    """What every record of a run begins with: who it is, and what was asked."""
    drawn = run.freeze.drawn
    return {
        "kind": "train",
        "run": run.id,
        "identity": run.identity,
        "configuration": run.configuration,
        "study": run.study,
        "title": run.title,
        "freeze": run.freeze.name,
        "variant": run.variant,
        "model": run.model,
        "seed": run.seed,
        "place": list(run.place),
        "protocol": run.data.protocol,
        "limit": run.limit,
        "epochs_cap": run.epochs,
        "precision_asked": run.precision,
        "xla_asked": run.xla,
        "engine_asked": run.engine,
        "reported": run.freeze.reported,
        "search": drawn and _of_search(drawn),
        "config": plain(run),
    }


def _of_search(drawn: Drawn) -> dict[str, Any]:
    search = plain(drawn.search)
    told = {key: search[key] for key in ("freeze", "sampler", "seed", "trials", "reported")}
    return {**told, "trial": drawn.trial, "best": drawn.best, "values": dict(drawn.values)}


# -- to JSON and back --------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A dataclass as dicts and lists, for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def restore(kind: Any, value: Any) -> Any:
    """The value of type `kind` that `plain` was given."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{name: restore(hints[name], item) for name, item in value.items()})
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None or isinstance(value, (str, int, float)):
            return value
        wanted = tuple if isinstance(value, list) else object
        fitting = [a for a in arguments if (typing.get_origin(a) is tuple) == (wanted is tuple)]
        return restore(next(a for a in fitting if a not in (str, int, float, type(None))), value)
    if origin is tuple:
        return tuple(restore(arguments[0], item) for item in value)
    return value
