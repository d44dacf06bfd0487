"""Study files: TOML in, frozen dataclasses out. The form is checked here, names are checked by the harness."""

import dataclasses
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frostline.errors import UserError, nearest

PROTOCOLS = ("clean", "document")
POOLINGS = ("average", "max", "flatten")
ACTIVATIONS = ("softmax", "sigmoid", "logit")
SCALINGS = ("backbone", "none", "unit", "symmetric")
BATCH_NORMS = ("keras", "inference")
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
XLA = ("auto", "on", "off")
ENGINES = ("auto", "cached", "plain")
FRONTIERS = ("exact", "inference_prefix")
RUN_KEYS = ("precision", "xla", "engine")
OF_A_DATASET = ("path", "splits", "classes")  # keys of [data] that mean nothing for another dataset
FILE = "file:"  # what the name of a backbone begins with that is a Keras file
TFDS = "tfds:"  # what the name of a dataset begins with that is one of TensorFlow Datasets
REPORTED = ("trainable_params", "total_params", "top1", "train_top1", "validation_top1", "loss", "minutes")
HISTORY = ("loss", "top1", "validation_loss", "validation_top1")
HEAD_LAYERS = ("dense", "conv", "block", "dropout", "batch_norm")
FLIPS = ("horizontal", "vertical", "both")
FILLS = ("nearest", "reflect", "wrap", "constant")
SAMPLERS = ("random", "tpe")
Value = int | float | str


@dataclass(frozen=True)
class Splits:
    """Which images of a set of TensorFlow Datasets are train, test and, where it says so, validation: `train[:40%]`."""

    train: str = "train"
    test: str = "test"
    validation: str | None = None


@dataclass(frozen=True)
class Data:
    """The task: which images, which classes, and how they are split."""

    dataset: str
    path: str | None = None
    splits: Splits | None = None
    image_size: int | None = None
    classes: tuple[int | str, ...] | None = None
    protocol: str = "clean"
    validation: float = 0.1
    split_seed: int = 0
    scaling: str = "backbone"
    train_images: tuple[int | str, ...] = ("all",)


@dataclass(frozen=True)
class Backbone:
    """The network without its classifier; `weights` is None where a pre-training, or the file it is, supplies them.

    What lies above the layer `cut` is dropped, but in the pre-training; `l2` is the penalty on the kernels that train.
    """

    name: str
    weights: str | None = None
    cut: str | None = None
    l2: float = 0.0


@dataclass(frozen=True)
class HeadLayer:
    """One layer of a head: its kind and its units, filters or rate; a block is residual and ends in max-pooling."""

    kind: str
    size: float


@dataclass(frozen=True)
class Head:
    """The classifier: pooling, layers, then an output layer that is always there.

    `label_smoothing` is the share of each label that the loss spreads evenly over all classes.
    """

    pooling: str = "average"
    layers: tuple[HeadLayer, ...] = ()
    l2: float = 0.0
    activation: str = "softmax"
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Augment:
    """How far the views of a training image go, in Keras's measures, applied in this order; 0 and None leave it out.

    `rotation` is a fraction of a full turn, `fill` is what Keras puts where a moved image leaves its frame.
    """

    flip: str | None = None
    rotation: float = 0.0
    translation: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    fill: str = "nearest"


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the validation loss has not improved for `patience` epochs."""

    patience: int
    restore_best: bool = True


@dataclass(frozen=True)
class ReduceOnPlateau:
    """Multiply the learning rate by `factor` after `patience` epochs without a better validation loss."""

    factor: float
    patience: int
    min_learning_rate: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One call of training with one freeze mask, before which the layers of `reset` get their first weights again."""

    train: tuple[str, ...] = ("all",)
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    batch_size: int = 32
    epochs: int = 10
    batch_norm: str = "keras"
    frontier: str = "exact"
    early_stopping: EarlyStopping | None = None
    reduce_on_plateau: ReduceOnPlateau | None = None
    augment: Augment | None = None
    augment_views: int | None = None
    reset: tuple[str, ...] = ()


@dataclass(frozen=True)
class Freeze:
    """One freeze configuration: which layers train, in which stages, behind which head.

    Its `scaling` and `cut`, where given, stand in place of those of the study's data and backbone.
    """

    name: str
    stages: tuple[Stage, ...]
    head: Head | str | None = None
    scaling: str | None = None
    cut: str | None = None
    seeds: tuple[int, ...] | None = None
    weights: str | None = None
    reset: tuple[str, ...] = ()
    precision: tuple[str, ...] = ("auto",)
    xla: tuple[str, ...] = ("auto",)
    engine: tuple[str, ...] = ("auto",)
    reported: dict[str, Any] | None = field(default=None, hash=False)
    drawn: "Drawn | None" = None


@dataclass(frozen=True)
class Parameter:
    """What a search varies: between two numbers, both included, by `step` or by magnitude; or among choices."""

    name: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    choices: tuple[Value, ...] | None = None


@dataclass(frozen=True)
class Search:
    """Trials of one freeze configuration with other values; the best on validation is trained with all seeds."""

    freeze: str
    trials: int
    sampler: str = "random"
    seed: int = 0
    space: tuple[Parameter, ...] = ()
    reported: dict[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Drawn:
    """The values that a search put into `varied` for a trial; `best`: to train that trial's values again."""

    search: Search
    varied: Freeze
    trial: int
    values: tuple[tuple[str, Value], ...]
    best: bool = False


@dataclass(frozen=True)
class Task:
    """Data and the one configuration that is trained on it: what `[pretrain]` describes."""

    data: Data
    freeze: Freeze


@dataclass(frozen=True)
class Study:
    """A task, a backbone, and the freeze configurations to compare on it."""

    name: str
    title: str
    seeds: tuple[int, ...]
    data: Data
    backbone: Backbone
    freeze: tuple[Freeze, ...]
    pretrain: Task | None = None
    search: tuple[Search, ...] = ()


def trial_name(search: Search, number: int) -> str:
    """The freeze configuration that is a trial, counted from 1."""
    return f"{search.freeze}_trial_{number}"


def best_name(search: Search) -> str:
    """The freeze configuration that trains the best trial's values again."""
    return f"{search.freeze}_best"


def search_names(search: Search) -> list[str]:
    """All freeze configurations that a search makes."""
    return [*(trial_name(search, number) for number in range(1, search.trials + 1)), best_name(search)]


# -- finding and reading ---------------------------------------------------------------------------


def folder() -> Path:
    """`bench/studies` of the current folder, else of the checkout this package runs from."""
    local = Path("bench/studies")
    return local if local.is_dir() else Path(__file__).resolve().parents[2] / "bench" / "studies"


def names() -> list[str]:
    """The studies that can be run by name."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(name: str) -> Study:
    """Read a study by its name under `bench/studies` or by the path of a TOML file; raises UserError."""
    path = Path(name)
    if path.suffix != ".toml":
        path = folder() / f"{name}.toml"
        if not path.is_file():
            raise UserError(f"unknown study {name!r}, and no path of a .toml file; {nearest(name, names())}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no study file {path}; {nearest(path.stem, names())} (without .toml)") from None
    except OSError as error:
        raise UserError(f"cannot read the study {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the study {path} is no text in UTF-8") from error
    return parse(text, path.stem, where=str(path))


def parse(text: str, name: str, where: str = "study") -> Study:
    """A Study from TOML text; raises UserError that names the key, what was given and what is known."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not TOML: {error}") from error
    if bad := [c for c in name if not (c.isalnum() or c in "_-")]:
        raise UserError(f"{where}: the file's name becomes part of model names; {bad[0]!r} cannot stand in one")
    return _study(table, name, where)


# -- tables to dataclasses -------------------------------------------------------------------------

Reader = Callable[[Any, str], Any]


def _study(table: dict[str, Any], name: str, where: str) -> Study:
    known = ("title", "seeds", "data", "backbone", "pretrain", "head", "augment", "train", "freeze", "search")
    _only(table, known, where)
    for needed in ("data", "backbone", "freeze"):
        if needed not in table:
            raise UserError(f"{where}: [{needed}] is missing; a study needs [data], [backbone] and [[freeze]]")
    data = _data(table["data"], f"{where}: [data]")
    backbone = _backbone(table["backbone"], f"{where}: [backbone]")
    train = table.get("train", {})
    _is_table(train, f"{where}: [train]")
    _only(train, [*STAGE_KEYS, *RUN_KEYS], f"{where}: [train]")
    augment = _or_none(_augment)(table["augment"], f"{where}: [augment]") if "augment" in table else None
    own = {k: v for k, v in train.items() if k not in RUN_KEYS}
    base = _stage(own, f"{where}: [train]", Stage(augment=augment))
    inherited = {k: v for k, v in train.items() if k in RUN_KEYS}
    head = _head(table["head"], f"{where}: [head]") if "head" in table else None
    entries = _list(table["freeze"], f"{where}: [[freeze]]")
    freeze = tuple(_freeze(entry, where, base, head, inherited) for entry in entries)
    if twice := _twice([f.name for f in freeze]):
        raise UserError(f"{where}: two freeze configurations are called {twice!r}; give each its own name")
    seeds = _seeds(table.get("seeds", [0]), f"{where}: seeds")
    pretrain = _pretrain(table["pretrain"], where, table, base, inherited) if "pretrain" in table else None
    if any(f.head == "inherit" for f in freeze) and pretrain is None:
        raise UserError(f'{where}: head = "inherit" keeps the head of a [pretrain], and there is none')
    title = _text(table.get("title", name), f"{where}: title")
    search = _searches(table["search"], f"{where}: [search]", freeze, data) if "search" in table else ()
    return Study(name, title, seeds, data, backbone, freeze, pretrain, search)


def _pretrain(table: Any, where: str, study: dict[str, Any], base: Stage, inherited: dict[str, Any]) -> Task:
    where = f"{where}: [pretrain]"
    _is_table(table, where)
    own = {"reported", *RUN_KEYS}
    parts = {"own": own, "stage": set(STAGE_KEYS), "data": _fields(Data), "head": _fields(Head)}
    parts["augment"] = _fields(Augment)
    _only(table, [key for keys in parts.values() for key in sorted(keys)], where)
    pick = {part: {k: v for k, v in table.items() if k in keys} for part, keys in parts.items()}
    task = {key: value for key, value in study["data"].items() if key != "train_images"}
    if pick["data"].get("dataset", task.get("dataset")) != task.get("dataset"):
        task = {key: value for key, value in task.items() if key not in OF_A_DATASET}
    data = _data({**task, **pick["data"]}, where)
    if len(data.train_images) > 1:
        raise UserError(f"{where}: train_images = {list(data.train_images)}; a pre-training has one number")
    if pick["augment"]:
        shared = study.get("augment")
        pick["stage"]["augment"] = {**(shared if isinstance(shared, dict) else {}), **pick["augment"]}
    stage = _stage({**pick["stage"], "train": pick["stage"].get("train", ["all"])}, where, base)
    head = study.get("head")
    if pick["head"]:
        head = {**(head if isinstance(head, dict) else {}), **pick["head"]}
    reported = _reported(table["reported"], where) if "reported" in table else None
    run_keys = _run_keys({**inherited, **pick["own"]}, where)
    head = None if head is None else _head(head, where)
    freeze = Freeze("pretrain", (stage,), head, weights="none", reported=reported, **run_keys)
    return Task(data, freeze)


def _freeze(table: Any, where: str, base: Stage, head: Head | str | None, inherited: dict[str, Any]) -> Freeze:
    _is_table(table, f"{where}: [[freeze]]")
    if "name" not in table:
        raise UserError(f'{where}: a [[freeze]] has no name; add name = "..."')
    name = _text(table["name"], f"{where}: [[freeze]] name")
    where = f"{where}: [[freeze]] {name!r}"
    if name == "pretrain" or not all(c.isalnum() or c in "_-" for c in name):
        raise UserError(f"{where}: a name is made of letters, digits, _ and -, and is not 'pretrain'")
    own = ("name", "seeds", "stages", "head", "scaling", "cut", "weights", "reset", "reported", *RUN_KEYS)
    _only(table, [*own, *STAGE_KEYS], where)
    base = _stage({k: v for k, v in table.items() if k not in own}, where, base)
    entries = _list(table.get("stages", [{}]), f"{where}: stages")
    if not entries:
        raise UserError(f'{where}: stages is empty; give at least one, such as stages = [ {{ train = ["head/.*"] }} ]')
    stages = tuple(_stage(entry, f"{where}: stages[{i}]", base) for i, entry in enumerate(entries))
    return Freeze(
        name=name,
        stages=stages,
        head=_head(table["head"], f"{where}: head") if "head" in table else head,
        scaling=_one_of(SCALINGS)(table["scaling"], f"{where}: scaling") if "scaling" in table else None,
        cut=_text(table["cut"], f"{where}: cut") if "cut" in table else None,
        seeds=_seeds(table["seeds"], f"{where}: seeds") if "seeds" in table else None,
        weights=_text(table["weights"], f"{where}: weights") if "weights" in table else None,
        reset=_rules(table.get("reset", []), f"{where}: reset"),
        reported=_reported(table["reported"], where) if "reported" in table else None,
        **_run_keys({**inherited, **table}, where),
    )


def _searches(value: Any, where: str, freeze: tuple[Freeze, ...], data: Data) -> tuple[Search, ...]:
    names = [f.name for f in freeze]
    searches = tuple(_search(table, where, names) for table in (value if isinstance(value, list) else [value]))
    if twice := _twice([*names, *(name for search in searches for name in search_names(search))]):
        raise UserError(f"{where} makes a configuration {twice!r}, and there is another; vary or name another one")
    if len(data.train_images) > 1:
        raise UserError(f"{where}: which of several train_images would choose? Give train_images one number")
    return searches


def _search(table: Any, where: str, names: list[str]) -> Search:
    _is_table(table, where)
    space = {name: reader for name, reader in SEARCHED.items() if name in table}
    own: dict[str, Reader] = {
        "freeze": _one_of(tuple(names)),
        "trials": _whole,
        "sampler": _one_of(SAMPLERS),
        "seed": lambda value, at: _whole(value, at, least=0),
        "reported": lambda value, at: _reported(value, where),
    }
    _only(table, [*own, *SEARCHED], where)
    if not space:
        raise UserError(f"{where} varies nothing; give one or several of: {', '.join(SEARCHED)}")
    found = {key: value for key, value in table.items() if key in own}
    search = _fill(Search, {"freeze": names[0], **found}, where, own)
    parameters = tuple(_parameter(name, table[name], f"{where} {name}") for name in table if name in space)
    return dataclasses.replace(search, space=parameters)


def _parameter(name: str, value: Any, where: str) -> Parameter:
    read = SEARCHED[name]
    if isinstance(value, list):
        choices = tuple(read(choice, where) for choice in value)
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise UserError(f"{where} = {value!r}; give at least two different choices")
        return Parameter(name, choices=choices)
    if name == "optimizer" or not isinstance(value, dict):
        between = "" if name == "optimizer" else ", or { low = ..., high = ... } with step = ... or log = true"
        raise UserError(f"{where} = {value!r}; give a list of choices{between}")
    step = _whole if read is _whole else lambda number, at: _number(number, at, above=0)
    found = _fill(Parameter, value, where, {"low": read, "high": read, "step": step, "log": _boolean}, Parameter(name))
    _check_range(found, where)
    return found


def _check_range(found: Parameter, where: str) -> None:
    if found.low is None or found.high is None or found.low >= found.high:
        raise UserError(f"{where}: a range needs low and high, and low is the smaller one")
    if found.log and (found.step or not found.low):
        raise UserError(f"{where}: log = true goes without step, from a low above 0")
    steps = (found.high - found.low) / (found.step or 1)
    if found.step and abs(steps - round(steps)) > 1e-9:
        raise UserError(f"{where}: steps of {found.step} from {found.low} miss {found.high}; give another high or step")


def _twice(names: list[str]) -> str | None:
    """The first of the names that stands there twice."""
    return next((name for name in names if names.count(name) > 1), None)


def _run_keys(table: dict[str, Any], where: str) -> dict[str, Any]:
    known = {"precision": PRECISIONS, "xla": XLA, "engine": ENGINES}
    return {key: _choices(table.get(key, "auto"), choices, f"{where}: {key}") for key, choices in known.items()}


def _data(table: Any, where: str) -> Data:
    readers: dict[str, Reader] = {
        "dataset": _text,
        "path": _text,
        "splits": lambda value, at: _fill(Splits, value, at, dict.fromkeys(("train", "test", "validation"), _text)),
        "image_size": _whole,
        "classes": _classes,
        "protocol": _one_of(PROTOCOLS),
        "validation": _fraction,
        "split_seed": lambda value, at: _whole(value, at, least=0),
        "scaling": _one_of(SCALINGS),
        "train_images": _sizes,
    }
    return _fill(Data, table, where, readers)


def _backbone(table: Any, where: str) -> Backbone:
    readers: dict[str, Reader] = {
        "name": _text,
        "weights": _text,
        "cut": _text,
        "l2": lambda v, at: _number(v, at, least=0),
    }
    return _fill(Backbone, table, where, readers)


def _head(value: Any, where: str) -> Head | str:
    if isinstance(value, str):
        return value
    readers: dict[str, Reader] = {
        "pooling": _one_of(POOLINGS),
        "layers": _head_layers,
        "l2": lambda v, at: _number(v, at, least=0),
        "activation": _one_of(ACTIVATIONS),
        "label_smoothing": _share,
    }
    return _fill(Head, value, where, readers)


def _head_layers(value: Any, where: str) -> tuple[HeadLayer, ...]:
    layers = []
    for i, entry in enumerate(_list(value, where)):
        at = f"{where}[{i}]"
        if not isinstance(entry, dict) or len(entry) != 1:
            raise UserError(
                f"{at}: {entry!r} is not a layer; write one of {{ dense = 256 }}, {{ conv = 512 }}, "
                "{ block = 64 }, { dropout = 0.5 }, { batch_norm = true }"
            )
        _only(entry, HEAD_LAYERS, at)
        kind, size = next(iter(entry.items()))
        if kind == "batch_norm":
            if size is not True:
                raise UserError(f"{at}: batch_norm = {size!r}; write batch_norm = true, or leave the layer out")
            layers.append(HeadLayer(kind, 1))
        elif kind == "dropout":
            layers.append(HeadLayer(kind, _fraction(size, at)))
        else:
            layers.append(HeadLayer(kind, _whole(size, at)))
    return tuple(layers)


def _stage(table: Any, where: str, base: Stage) -> Stage:
    readers: dict[str, Reader] = {
        "train": _rules,
        "optimizer": _text,
        "learning_rate": lambda v, at: _number(v, at, above=0),
        "momentum": _share,
        "batch_size": _whole,
        "epochs": _whole,
        "batch_norm": _one_of(BATCH_NORMS),
        "frontier": _one_of(FRONTIERS),
        "early_stopping": _or_none(
            lambda v, at: _fill(EarlyStopping, v, at, {"patience": _whole, "restore_best": _boolean})
        ),
        "reduce_on_plateau": _or_none(
            lambda v, at: _fill(
                ReduceOnPlateau,
                v,
                at,
                {"factor": _fraction, "patience": _whole, "min_learning_rate": lambda x, a: _number(x, a, least=0)},
            )
        ),
        "augment": _or_none(_augment),
        "augment_views": _whole,
        "reset": _rules,
    }
    stage = _fill(Stage, table, where, readers, base)
    if stage.augment is None and stage.augment_views:
        if "augment_views" in table:
            raise UserError(f"{where}: augment_views = {stage.augment_views} needs an [augment] to draw views from")
        stage = dataclasses.replace(stage, augment_views=None)  # what was inherited goes with the augmentation
    return stage


def _or_none(read: Reader) -> Reader:
    """Takes "none" and false, too, for what a row or a stage would inherit and leaves out."""
    return lambda value, where: None if value is False or value == "none" else read(value, where)


def _augment(value: Any, where: str) -> Augment | None:
    if not isinstance(value, dict) or not set(value) - {"fill"}:
        raise UserError(f'{where} = {value!r}; write augment = {{ flip = "horizontal" }}, or augment = "none"')
    factors = ("rotation", "translation", "shear", "zoom", "brightness", "contrast")
    readers: dict[str, Reader] = {"flip": _one_of(FLIPS), **dict.fromkeys(factors, _share), "fill": _one_of(FILLS)}
    found = _fill(Augment, value, where, readers)
    return found if found.flip or any(getattr(found, factor) for factor in factors) else None


def _reported(value: Any, where: str) -> dict[str, Any]:
    _is_table(value, f"{where}: reported")
    where = f"{where}: reported"
    _only(value, [*REPORTED, "history"], where)
    numbers = {key: _number(number, f"{where}.{key}") for key, number in value.items() if key != "history"}
    return numbers | ({"history": _history(value["history"], f"{where}.history")} if "history" in value else {})


def _history(value: Any, where: str) -> dict[str, list[float]]:
    """What a document reports of its epochs, from the first on."""
    _is_table(value, where)
    _only(value, HISTORY, where)
    curves = {key: _list(numbers, f"{where}.{key}") for key, numbers in value.items()}
    if not all(curves.values()) or not curves:
        raise UserError(
            f"{where} = {value!r}; give a number for each epoch, such as {{ validation_top1 = [0.4, 0.5] }}"
        )
    return {key: [_number(n, f"{where}.{key}[{i}]") for i, n in enumerate(c)] for key, c in curves.items()}


# -- values ----------------------------------------------------------------------------------------


def _fill(cls: type, table: Any, where: str, readers: dict[str, Reader], base: Any = None) -> Any:
    _is_table(table, where)
    _only(table, readers, where)
    values = {key: readers[key](value, f"{where} {key}") for key, value in table.items()}
    if base is not None:
        return dataclasses.replace(base, **values)
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise UserError(f"{where}: {missing[0]} is missing; its keys are: {', '.join(readers)}")
    return cls(**values)


def _only(table: dict[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; {nearest(key, known)}")


def _fields(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def _is_table(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {value!r} is not a table of keys and values")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{where} = {value!r} is not a list; write [ ... ]")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{where} = {value!r} is not a text; write it in quotes")
    return value


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{where} = {value!r}; write true or false")
    return value


def _whole(value: Any, where: str, least: int = 1) -> int:
    if not _is_int(value) or value < least:
        raise UserError(f"{where} = {value!r}; give a whole number of at least {least}")
    return value


def _number(value: Any, where: str, least: float | None = None, above: float | None = None) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if not good or (least is not None and value < least) or (above is not None and value <= above):
        bound = f" of at least {least}" if least is not None else f" above {above}" if above is not None else ""
        raise UserError(f"{where} = {value!r}; give a number{bound}")
    return value


def _fraction(value: Any, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1:
        raise UserError(f"{where} = {value!r}; give a number between 0 and 1")
    return float(value)


def _share(value: Any, where: str) -> float:
    """A fraction, or 0 for none."""
    return 0.0 if value == 0 and not isinstance(value, bool) else _fraction(value, where)


def _one_of(choices: tuple[str, ...]) -> Reader:
    def read(value: Any, where: str) -> str:
        if value not in choices:
            raise UserError(f"{where} = {value!r}; {nearest(str(value), choices)}")
        return value

    return read


def _choices(value: Any, choices: tuple[str, ...], where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or len(set(map(str, values))) < len(values):
        raise UserError(f"{where} = {value!r}; give one or several different of: {', '.join(choices)}")
    return tuple(_one_of(choices)(v, where) for v in values)


def _sizes(value: Any, where: str) -> tuple[int | str, ...]:
    sizes = value if isinstance(value, list) else [value]
    good = all(size == "all" or (_is_int(size) and size > 0) for size in sizes)
    if not sizes or not good or len(set(sizes)) < len(sizes):
        raise UserError(f'{where} = {value!r}; give different numbers of images, or "all", such as [100, 1000, "all"]')
    return tuple(sizes)


def _rules(value: Any, where: str) -> tuple[str, ...]:
    rules = _list([value] if isinstance(value, str) else value, where)
    return tuple(_text(rule, where) for rule in rules)


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    seeds = tuple(_list(value, where))
    if not seeds or not all(_is_int(seed) and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{where} = {list(seeds)}; give different whole numbers from 0, such as [0, 1, 2]")
    return seeds


def _classes(value: Any, where: str) -> tuple[int | str, ...]:
    values = _list(value, where)
    if not values or not all(isinstance(v, str) or (_is_int(v) and v >= 0) for v in values):
        raise UserError(f"{where} = {value!r}; list class numbers from 0, or class names")
    if len(set(map(str, values))) < len(values):
        raise UserError(f"{where} = {value!r}; a class is listed twice")
    return tuple(values)


STAGE_KEYS = tuple(sorted(_fields(Stage) - {"reset"}))  # what rows hand to all their stages; theirs is for the first
SEARCHED: dict[str, Reader] = {
    "units": _whole,
    "dropout": _fraction,
    "l2": lambda value, where: _number(value, where, least=0),
    "learning_rate": lambda value, where: _number(value, where, above=0),
    "batch_size": _whole,
    "optimizer": _text,
}
