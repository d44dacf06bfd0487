"""Pictures of records: curves over epochs and over the number of training images, as PNG and as interactive HTML."""

import html
import itertools
import math
import statistics
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.errors import UserError, nearest, optional_import
from frostline.plan import PRETRAIN
from frostline.records import Configuration, configurations, explained, marks

FORMATS = ("png", "html")
# Okabe and Ito's colours for every kind of sight, without their yellow, which is pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))  # as Matplotlib and as plotly call them
MARKERS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"))
GREY = "#999999"
PAD = 0.12  # inches around what is drawn
WRAPPED = 48  # characters of a name in a legend
HISTORY = (("loss", "train loss"), ("validation_loss", "validation loss"), ("top1", "train top-1"),
           ("validation_top1", "validation top-1"))  # fmt: skip
BY_SIZE = (("validation_top1", "validation top-1"), ("test_top1", "test top-1"))

Row = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """How a configuration is drawn, wherever it is; `number` is its place among those of its study."""

    number: int

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]

    @property
    def dash(self) -> tuple[str, str]:
        return DASHES[self.number // len(COLOURS) % len(DASHES)]

    @property
    def marker(self) -> tuple[str, str]:
        return MARKERS[self.number // len(COLOURS) % len(MARKERS)]


@dataclass(frozen=True)
class Line:
    """One configuration in one panel.

    `points` are (x, mean over seeds, sample deviation or None below two), `reported` the document's (x, y).
    """

    name: str
    look: Look
    points: list[tuple[float, float, float | None]]
    reported: list[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One coordinate system; `bounds` are those of its y axis."""

    title: str
    lines: list[Line]
    bounds: tuple[float, float]
    log: bool = False


@dataclass(frozen=True)
class Picture:
    """Panels in rows of two that share their x axis, logarithmic where it has `ticks`.

    `stages` are (x, colour) where a stage begins.
    """

    name: str
    title: str
    x: str
    panels: list[Panel]
    caption: str
    stages: list[tuple[float, str]]
    ticks: list[int]


def draw(records: list[Row], out: Path, only: Collection[str] = (), formats: Collection[str] = FORMATS) -> list[Path]:
    """Draw every study of some records into files in `out`; returns their paths, raises UserError."""
    for module, needed in (("matplotlib", "png"), ("plotly", "html")):
        if needed in formats:
            optional_import(module, "plot")
    found = pictures(records, only)
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        if "png" in formats:
            written += [_png(picture, out / f"{picture.name}.png") for own in found.values() for picture in own]
        if "html" in formats:
            written += [_html(own, out / f"{study}.html") for study, own in found.items()]
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose --out DIR") from error
    return written


# -- what is drawn -------------------------------------------------------------------------------------


def pictures(records: list[Row], only: Collection[str] = ()) -> dict[str, list[Picture]]:
    """The pictures of each study that has a finished run; raises UserError where none has, or `only` is not there."""
    everything = configurations(records)
    known = list(dict.fromkeys(c.freeze for c in everything))
    for name in only:
        if name not in known:
            raise UserError(f"--only {name}: no such configuration in these results; {nearest(name, known)}")
    found = {}
    for study in dict.fromkeys(c.study for c in everything):
        own = [c for c in everything if c.study == study]
        if drawn := _of_study(study, own, only):
            found[study] = drawn
    if not found:
        raise UserError("these results hold no finished run to draw; type: frostline run STUDY --results DIR")
    return found


def _of_study(study: str, own: list[Configuration], only: Collection[str]) -> list[Picture]:
    """The task, its pre-training, which is another task, and where sizes differ accuracy over them."""
    looks = {key: Look(number) for number, key in enumerate(dict.fromkeys(map(_key, _tasks(own))))}
    chosen = [c for c in own if not only or c.freeze in only]
    series: dict[tuple[str, str], list[Configuration]] = {}
    for configuration in _tasks(chosen):
        if configuration.finished:
            series.setdefault(_key(configuration), []).append(configuration)
    every = [c for same in series.values() for c in same]
    tries = all(map(_quick, every))  # and nothing beside them, so they are compared
    sizes = sorted({_size(c) for c in every if tries or not _quick(c)})
    title = f"{study}: {own[-1].rows[-1]['title']}"
    largest = [(looks[key], max(same, key=lambda c: (not _quick(c), _size(c)))) for key, same in series.items()]
    notes = ["Of several numbers of training images the largest is drawn."] if len(sizes) > 1 else []
    drawn = [_over_epochs(study, title, largest, [*notes, *_notes(_tasks(chosen))])] if largest else []
    before = [c for c in chosen if c.freeze == PRETRAIN]
    if any(c.finished for c in before):
        done = [(Look(0), c) for c in before if c.finished]
        drawn.append(_over_epochs(f"{study}.{PRETRAIN}", f"{title} - the pre-training", done, _notes(before)))
    if len(sizes) > 1:
        by_key = [(looks[key], [c for c in same if tries or not _quick(c)]) for key, same in series.items()]
        by_key = [(look, same) for look, same in by_key if same]
        drawn.append(
            _over_sizes(f"{study}.train_images", f"{title} - by training images", by_key, sizes, _notes(_tasks(chosen)))
        )
    return drawn


def _tasks(own: Iterable[Configuration]) -> list[Configuration]:
    return [c for c in own if c.freeze != PRETRAIN]


def _key(configuration: Configuration) -> tuple[str, str]:
    """The configuration whatever its number of training images: its name, and its variant without that."""
    (asked,) = configuration.rows[-1]["config"]["data"]["train_images"]
    return configuration.freeze, configuration.variant.removeprefix(f"{asked}_images").removeprefix("-")


def _quick(configuration: Configuration) -> bool:
    """Whether it is a quick try, whose images are no number that a study asks for."""
    return bool(configuration.rows[-1].get("limit") or configuration.rows[-1].get("epochs_cap"))


def _size(configuration: Configuration) -> int:
    return configuration.finished[-1]["train_images"]


def _name(same: Sequence[Configuration]) -> str:
    """Name with the marks of the tables and the number of seeds."""
    freeze, variant = _key(same[-1])
    row = same[-1].finished[-1]
    counts = sorted({len(c.finished) for c in same})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return f"{freeze}{f' ({variant})' if variant else ''}{marks(row)} ({seeds})"


def _over_epochs(name: str, title: str, drawn: list[tuple[Look, Configuration]], notes: list[str]) -> Picture:
    """Loss and accuracy of train and validation over the epochs of all stages."""
    curves = {key: [_history(look, c, key) for look, c in drawn] for key, _ in HISTORY}
    losses = [line for key in ("loss", "validation_loss") for line in curves[key]]
    shares = [line for key in ("top1", "validation_top1") for line in curves[key]]
    panels = [
        Panel(heading, _shown(curves[key]), _log_bounds(losses), True)
        if "loss" in key
        else Panel(heading, _shown(curves[key]), _bounds(shares))
        for key, heading in HISTORY
    ]
    begun: dict[float, set[str]] = {}
    for look, configuration in drawn:
        for start in _starts(configuration.finished)[1:-1]:
            begun.setdefault(start + 0.5, set()).add(look.colour)
    stages = [(x, colours.pop() if len(colours) == 1 else GREY) for x, colours in sorted(begun.items())]
    told = ["Train figures are means over an epoch while it trained, validation figures were measured at its end."]
    if any(len({len(row["history"]) for row in c.finished}) > 1 for _, c in drawn):
        told.append("Where seeds stopped at different epochs, the mean is that of the seeds still training.")
    if stages:
        told.append("Vertical lines: a stage begins, in the colour of its configuration, grey where several do.")
    if any(line.reported for panel in panels for line in panel.lines):
        told.append("Large dots: what the document reports of its epochs.")
    return Picture(name, title, "epoch", panels, "\n".join([*told, *notes]), stages, [])


def _starts(rows: list[Row]) -> list[int]:
    """Epochs before each stage, and in all; a stage lasts as long as the longest of the seeds."""
    stages = max(entry["stage"] for row in rows for entry in row["history"])
    longest = [
        max(entry["epoch"] for row in rows for entry in row["history"] if entry["stage"] == stage)
        for stage in range(1, stages + 1)
    ]
    return [0, *itertools.accumulate(longest)]


def _history(look: Look, configuration: Configuration, key: str) -> Line:
    starts = _starts(configuration.finished)
    at: dict[float, list[float]] = {}
    for row in configuration.finished:
        for entry in row["history"]:
            if entry[key] is not None:
                at.setdefault(starts[entry["stage"] - 1] + entry["epoch"], []).append(entry[key])
    newest = configuration.rows[-1]
    dots = enumerate((newest["reported"] or {}).get("history", {}).get(key, []), 1)
    return Line(_name([configuration]), look, _points(at), [(float(x), y) for x, y in dots])


def _points(at: dict[float, list[float]]) -> list[tuple[float, float, float | None]]:
    return [(x, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else None) for x, v in sorted(at.items())]


def apart(panel: Panel) -> dict[str, float]:
    """How far each line's points are moved along x: not at all, but where all have the same one and may coincide."""
    if len({x for line in panel.lines for x, *_ in line.points}) != 1:
        return dict.fromkeys((line.name for line in panel.lines), 0.0)
    middle, step = (len(panel.lines) - 1) / 2, 0.8 / len(panel.lines)
    return {line.name: (number - middle) * step for number, line in enumerate(panel.lines)}


def _shown(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.points]


def _bounds(lines: list[Line]) -> tuple[float, float]:
    """The range of fractions that shows all means, bands and dots, with a margin."""
    edges = [y + sign * (std or 0.0) for line in lines for _, y, std in line.points for sign in (-1, 1)]
    edges += [y for line in lines for _, y in line.reported]
    return (max(min(edges), 0.0) - 0.02, min(max(edges), 1.0) + 0.02) if edges else (0.0, 1.0)


def _log_bounds(lines: list[Line]) -> tuple[float, float]:
    """The range of a logarithmic axis that shows all means and dots above 0."""
    shown = [y for line in lines for _, y, _ in line.points] + [y for line in lines for _, y in line.reported]
    positive = [y for y in shown if y > 0]
    return (min(positive) * 0.8, max(positive) * 1.25) if positive else (0.1, 1.0)


def _ticks(bounds: tuple[float, float]) -> list[float]:
    """Where a logarithmic axis has labels: at most ten, as fine as that allows, else powers of ten."""
    decades = range(math.floor(math.log10(bounds[0])), math.ceil(math.log10(bounds[1])))
    ticks: list[float] = []
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1,)):
        every = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in every if bounds[0] <= tick <= bounds[1]]
        if len(ticks) <= 10:
            break
    return ticks


def _over_sizes(
    name: str, title: str, drawn: list[tuple[Look, list[Configuration]]], sizes: list[int], notes: list[str]
) -> Picture:
    """Accuracy over the number of training images."""
    curves = {
        key: [
            Line(_name(same), look, _points({float(_size(c)): [row[key] for row in c.finished] for c in same}), [])
            for look, same in drawn
        ]
        for key, _ in BY_SIZE
    }
    bounds = _bounds([line for lines in curves.values() for line in lines])
    panels = [Panel(heading, curves[key], bounds) for key, heading in BY_SIZE]
    return Picture(name, title, "training images", panels, "\n".join(notes), [], sizes)


def _notes(shown: list[Configuration]) -> list[str]:
    """What a reader of a picture has to know of its runs."""
    done = [row for c in shown for row in c.finished]
    several = any(len(c.finished) > 1 for c in shown)
    lines = [
        "In brackets the number of seeds; " + ("mean, and band of ± the sample deviation." if several else "no band.")
    ]
    lines += explained(done)
    quick = {f"--limit {row['limit']}" for row in done if row["limit"]}
    quick |= {f"--epochs {row['epochs_cap']}" for row in done if row["epochs_cap"]}
    if quick:
        lines.append(f"A quick try: {' '.join(sorted(quick))}.")
    for c in shown:
        failed = [f"seed {row['seed']}: {row['reason']}" for row in c.rows if row["outcome"] != "ok"]
        if failed:
            called = f"{c.freeze} ({c.variant})" if c.variant else c.freeze
            lines.append(f"Failed and left out: {called}, {'; '.join(failed)}.")
    if others := sum(c.others for c in shown):
        lines.append(f"{others} older configurations under these names are not shown.")
    return lines


# -- Matplotlib ----------------------------------------------------------------------------------------


def _png(picture: Picture, path: Path) -> Path:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = len(picture.panels) // 2
    names = {line.name: line for panel in picture.panels for line in panel.lines}
    columns = math.ceil(len(names) / (22 * rows))
    width = 11 + columns * (0.6 + 0.075 * min(WRAPPED, max(map(len, names), default=0)))
    caption = "\n".join(textwrap.fill(line, int(width * 15)) for line in picture.caption.split("\n"))
    height = 1 + 3.8 * rows + 0.16 * caption.count("\n")
    figure = Figure(figsize=(width, height), dpi=120, layout=ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD))
    axes = figure.subplots(rows, 2, sharex=True, sharey="row", squeeze=False)
    for axis, panel in zip(axes.flat, picture.panels, strict=True):
        _axis(axis, panel, picture)
    for axis in axes[-1]:
        axis.set_xlabel(picture.x)
    entries = [_legend_entry(line) for line in names.values()]
    labels = [textwrap.fill(name, WRAPPED) for name in names]
    figure.legend(entries, labels, loc="outside right upper", ncols=columns, fontsize=8, frameon=False)
    figure.suptitle(picture.title)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8)
    figure.savefig(path)
    return path


def _axis(axis: Any, panel: Panel, picture: Picture) -> None:
    from matplotlib import ticker

    moved = apart(panel)
    axis.set_title(panel.title, fontsize=10)
    axis.grid(alpha=0.25)
    axis.set_ylim(panel.bounds)
    if panel.log:
        axis.set_yscale("log")
        axis.set_yticks(_ticks(panel.bounds), [f"{tick:g}" for tick in _ticks(panel.bounds)])
        axis.yaxis.set_minor_locator(ticker.NullLocator())
    if picture.ticks:
        axis.set_xscale("log")
        axis.set_xticks(picture.ticks, map(str, picture.ticks))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        if any(moved.values()):
            axis.set_xlim(0.5, 1.5)
    for x, colour in picture.stages:
        axis.axvline(x, color=colour, linewidth=1, alpha=0.6)
    for line in panel.lines:
        points = [(x + moved[line.name], y) for x, y, _ in line.points]
        axis.plot(*zip(*points, strict=True), **_stroke(line.look))
        band = list(_band(line, panel))
        if len(band) == 1:
            axis.vlines(points[0][0], *band[0][1:], color=line.look.colour, alpha=0.5)
        elif band:
            axis.fill_between(*zip(*band, strict=True), color=line.look.colour, alpha=0.12, linewidth=0)
        if line.reported:
            style = {"color": line.look.colour, "edgecolors": "black", "s": 45, "zorder": 3}
            axis.scatter(*zip(*line.reported, strict=True), marker=line.look.marker[0], **style)


def _stroke(look: Look) -> dict[str, Any]:
    return {
        "color": look.colour,
        "linestyle": look.dash[0],
        "marker": look.marker[0],
        "markersize": 3,
        "linewidth": 1.5,
    }


def _legend_entry(line: Line) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **_stroke(line.look))


def _band(line: Line, panel: Panel) -> Iterable[tuple[float, float, float]]:
    """(x, lower, upper) where there is a deviation; it ends with the axis, which may be logarithmic."""
    return ((x, max(y - std, panel.bounds[0]), y + std) for x, y, std in line.points if std is not None)


# -- plotly --------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font-family: sans-serif; margin: 1.5em; }} p {{ color: #444; font-size: 0.85em; }}</style></head>
<body>
{body}
</body></html>
"""


def _html(pictures: list[Picture], path: Path) -> Path:
    """One page that needs no network: the library is part of it."""
    parts = []
    for number, picture in enumerate(pictures):
        parts.append(f"<h2>{html.escape(picture.title)}</h2>")
        config = {"displaylogo": False, "responsive": True}
        parts.append(_figure(picture).to_html(full_html=False, include_plotlyjs=number == 0, config=config))
        parts += [f"<p>{html.escape(line)}</p>" for line in picture.caption.split("\n")]
    path.write_text(PAGE.format(title=html.escape(pictures[0].title), body="\n".join(parts)), encoding="utf-8")
    return path


def _figure(picture: Picture) -> Any:
    from plotly.subplots import make_subplots

    rows = len(picture.panels) // 2
    headings = [panel.title for panel in picture.panels]
    figure = make_subplots(rows, 2, shared_xaxes=True, shared_yaxes=True, subplot_titles=headings,
                           horizontal_spacing=0.04, vertical_spacing=0.1)  # fmt: skip
    told: set[str] = set()
    for number, panel in enumerate(picture.panels):
        place = {"row": number // 2 + 1, "col": number % 2 + 1}
        for line in panel.lines:
            moved = apart(panel)[line.name]
            figure.add_traces([_trace(line, picture.x, line.name not in told, moved), *_extras(line, panel)],
                              rows=place["row"], cols=place["col"])  # fmt: skip
            told.add(line.name)
        for x, colour in picture.stages:
            figure.add_vline(x, line={"color": colour, "width": 1}, opacity=0.6, **place)
        if panel.log:
            edges, ticks = [math.log10(bound) for bound in panel.bounds], _ticks(panel.bounds)
            labels = [f"{tick:g}" for tick in ticks]
            figure.update_yaxes(type="log", range=edges, tickvals=ticks, ticktext=labels, **place)
        else:
            figure.update_yaxes(range=panel.bounds, **place)
    if picture.ticks:
        figure.update_xaxes(type="log", tickvals=picture.ticks)
    elif max((x for panel in picture.panels for line in panel.lines for x, *_ in line.points), default=0) <= 20:
        figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text=picture.x, row=rows)
    figure.update_layout(template="plotly_white", height=160 + 330 * rows, margin={"t": 40}, hovermode="closest")
    return figure


def _trace(line: Line, x: str, first: bool, moved: float) -> Any:
    """The line of means, `moved` along x; a click on its one entry in the legend hides it in all panels."""
    from plotly import graph_objects

    told = [(x, "" if std is None else f" ± {std:.4f}") for x, _, std in line.points]
    return graph_objects.Scatter(
        x=[x + moved for x, *_ in line.points],
        y=[y for _, y, _ in line.points],
        customdata=told,
        name=line.name,
        legendgroup=line.name,
        showlegend=first,
        mode="lines+markers",
        line={"color": line.look.colour, "dash": line.look.dash[1]},
        marker={"symbol": line.look.marker[1], "size": 5},
        hovertemplate=f"{line.name}<br>{x} %{{customdata[0]}}: %{{y:.4f}}%{{customdata[1]}}<extra></extra>",
    )


def _extras(line: Line, panel: Panel) -> list[Any]:
    """The band of the deviation and the document's dots, where there are any."""
    from plotly import graph_objects

    shared = {"name": line.name, "legendgroup": line.name, "showlegend": False}
    found = []
    if band := list(_band(line, panel)):
        edge = [(x, upper) for x, _, upper in band] + [(x, lower) for x, lower, _ in reversed(band)]
        red, green, blue = (int(line.look.colour[i : i + 2], 16) for i in (1, 3, 5))
        shape = {"fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.12)", "mode": "none", "hoverinfo": "skip"}
        found.append(graph_objects.Scatter(x=[x for x, _ in edge], y=[y for _, y in edge], **shape, **shared))
    if line.reported:
        marker = {"color": line.look.colour, "symbol": line.look.marker[1], "size": 10,
                  "line": {"color": "black", "width": 1}}  # fmt: skip
        x, y = zip(*line.reported, strict=True)
        hover = f"{line.name}, reported<br>epoch %{{x}}: %{{y:.4f}}<extra></extra>"
        found.append(graph_objects.Scatter(x=x, y=y, mode="markers", marker=marker, hovertemplate=hover, **shared))
    return found
