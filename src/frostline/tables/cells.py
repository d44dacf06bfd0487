"""How the cell of a row is written, and tables made of such columns."""

from collections.abc import Callable, Iterable
from typing import Any

from frostline.records import marks
from frostline.tables.text import Form, Row, tabulated

Column = tuple[str, Callable[[Row], str]]
ONCE = ("first_step_seconds", "features_seconds", "process_start_seconds")  # seeds may share what these tell


def grid(columns: Iterable[Column], table: list[Row], form: Form, keys: int = 1) -> str:
    """A table whose rows the first `keys` columns tell apart; a column that has nothing to say in any row, or no more
    than that others failed, is left out."""
    cells = {header: [show(row) for row in table] for header, show in columns}
    kept = {h: column for h, column in cells.items() if "-" not in column or set(column) - {"-", "failed"}}
    lines = [list(line) for line in zip(*kept.values(), strict=True)]
    right = [i for i, header in enumerate(kept) if i and header not in ("runtime", "scenario", "by", "from")]
    return tabulated(lines, list(kept), form, right, keys)


def mean(key: str, scale: float = 1.0, digits: int = 2) -> Callable[[Row], str]:
    """Writes a mean over seeds, with the deviation where there are several."""

    def show(row: Row) -> str:
        if row[key] is None:
            return row["outcome"] if row["outcome"] != "ok" else "-"
        text = f"{row[key] * scale:,.{digits}f}"
        spread = row.get(f"{key}_std")
        if spread == 0.0 and key in ONCE:
            return f"{text} (once)"
        return f"{text} ± {spread * scale:.{digits}f} ({len(row['seeds'])})" if spread is not None else text

    return show


def plain(key: str, scale: float = 1.0, digits: int = 2) -> Callable[[Row], str]:
    """Writes a number."""

    def show(row: Row) -> str:
        return "-" if row.get(key) is None else f"{row[key] * scale:,.{digits}f}"

    return show


def value(key: str) -> Callable[[Row], str]:
    """Writes what is there as it is, whole numbers in groups of three digits."""
    return lambda row: "-" if row[key] is None else f"{row[key]:,}" if isinstance(row[key], int) else str(row[key])


def label(row: Row) -> str:
    """A freeze configuration with its variant, a trial with its values."""
    search = row.get("search")
    values = [f"{key.replace('_', ' ')} {_drawn(value)}" for key, value in (search["values"] if search else {}).items()]
    told = ", ".join([row["variant"]] * bool(row["variant"]) + values)
    return f"{row['freeze']} ({told})" if told else row["freeze"]


def _drawn(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def name_of(row: Row) -> str:
    """The label of a row with its marks, which captions explain."""
    return label(row) + marks(row)


def measured_on(machine: Row, libraries: Iterable[str]) -> str:
    """CPU, cores, GPUs and the versions of some libraries that a record tells of."""
    versions = machine.get("versions", {})
    gpus = ", ".join(gpu["name"] for gpu in machine.get("gpus", [])) or "no GPU"
    made_of = ", ".join(f"{name} {versions[name]}" for name in libraries if name in versions)
    return f"{machine.get('cpu')}, {machine.get('cores')} cores, {gpus}; {made_of}"


def frontier(stage: Row) -> str:
    """The layers whose outputs cross the frontier, with the shape of those features of one image."""
    shapes = ["×".join(map(str, shape)) for shape in stage["feature_shapes"]]
    return ", ".join(f"{name} {shape}" for name, shape in zip(stage["frontier"], shapes, strict=True)) or "-"
