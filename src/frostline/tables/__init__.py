"""Records to comparison tables: text for people, one flat list of objects for scripts."""

import json
from collections.abc import Collection

from frostline import whole
from frostline.tables import answering, training
from frostline.tables.cells import Column, grid, mean, name_of, plain, value
from frostline.tables.flat import rows
from frostline.tables.layer_list import layers
from frostline.tables.planned import plan
from frostline.tables.text import FORMATS, Form, Row, paragraphs, titled

__all__ = ["FORMATS", "layers", "plan", "render", "rows"]


def render(
    records: list[Row],
    name: str,
    wanted: Collection[str] | None = None,
    kinds: Collection[str] = ("train", "infer"),
    width: int | None = None,
) -> str:
    """The tables of some records in one of FORMATS; `wanted` and `kinds` restrict them.

    `width`: how many characters wide a plain table may be; wider ones are put below each other in parts.
    """
    form = Form(name, width)
    flat = [row for row in rows(records, wanted) if row["kind"] in kinds]
    if name == "json":
        return json.dumps(flat, indent=2, ensure_ascii=False)
    if name == "csv":
        return _csv(flat)
    parts = []
    for study in dict.fromkeys(row["study"] for row in flat):
        own = [row for row in flat if row["study"] == study]
        parts += training.tables([r for r in own if r["kind"] == "train"], form)
        infer = [r for r in own if r["kind"] == "infer"]
        parts += answering.tables(study, infer, form)
        parts += _whole_table(study, [r for r in own if r["kind"] == "train"], form)
    return "\n\n".join(parts) if parts else "no records"


def _whole_table(study: str, train: list[Row], form: Form) -> list[str]:
    """What each configuration costs to train and to ask, with the fronts marked."""
    if not any(row["outcome"] == "ok" for row in train):
        return []
    notes = [
        "On the front of time: no other row of its task is as good on validation in as little total time, and better "
        "in one of the two; of latency: the same with the best median of one image. "
        "These are means: frostline recommend says what they can bear. "
        f"Best figures are those of artifacts that lose at most {whole.MARGIN:g} of the run's validation top-1."
    ]
    if any(row["protocol"] == "document" for row in train):
        notes.append("Rows validated on test are on no front.")
    title = titled(f"{study}: the whole", form, None)
    return [title, grid(WHOLE, train, form), *(paragraphs(note, form) for note in notes)]


def _fronts(row: Row) -> str:
    on = [name for name, key in (("time", "pareto_train"), ("latency", "pareto_latency")) if row[key]]
    few = " (one seed)" if len(row["seeds"]) == 1 else ""
    return f"{', '.join(on)}{few}" if on else "-"


WHOLE: list[Column] = [
    ("freeze", name_of),
    ("trainable", value("trainable_params")),
    ("epoch s", mean("epoch_seconds", digits=3)),
    ("total s", mean("total_seconds", digits=1)),
    ("validation top-1", mean("validation_top1", digits=4)),
    ("test top-1", mean("test_top1", digits=4)),
    ("best images/s", plain("best_images_per_second", digits=0)),
    ("by", value("best_images_per_second_of")),
    ("best p50 ms", plain("best_latency_p50_seconds", 1e3)),
    ("from", value("best_latency_p50_seconds_of")),
    ("on the front of", _fronts),
]


def _csv(flat: list[Row]) -> str:
    """The rows as they are, numbers unrounded, one line each; what is itself a table is left to JSON."""
    import csv
    import io

    nested = {key for row in flat for key, value in row.items() if isinstance(value, (dict, list))} - {"seeds"}
    keys = [key for key in dict.fromkeys(key for row in flat for key in row) if key not in nested]
    out = io.StringIO()
    writer = csv.DictWriter(out, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({**row, "seeds": " ".join(map(str, row.get("seeds") or []))})
    return out.getvalue().rstrip("\n")
