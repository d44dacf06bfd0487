"""The `frostline` command: flags in, one call, an exit status out."""

import argparse
import csv
import datetime
import difflib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from frostline import __version__, plots, serving
from frostline.children import Died
from frostline.errors import UserError, nothing_published
from frostline.tables import FORMATS

if TYPE_CHECKING:
    from frostline.deploy import Served, Step
    from frostline.features import Entry
    from frostline.predict import Answer

SERVER = "http://127.0.0.1:8501"
LISTS = ("studies", "datasets", "backbones", "heads", "runtimes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when all went well, 1 when a cell failed, 2 for a mistake of the user, 130 on Ctrl-C."""
    args = argparse.Namespace()
    try:
        commands = parser()
        args, rest = commands.parse_known_args(argv)
        if rest and args.command is not serve:
            commands.error(f"unrecognized arguments: {' '.join(rest)}")
        args.rest = rest  # TensorFlow Serving's own flags
        return args.command(args)
    except UserError as error:
        print(f"frostline: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Died as error:
        print(f"frostline: a process of ours did not end well: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("frostline: interrupted; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return vars(args).get("status", 0)


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are like all others: one line, and where to read on."""

    def parse_known_args(self, args=None, namespace=None):
        """What argparse does, but a command refuses a flag it does not know by the name of one that it does."""
        found, rest = super().parse_known_args(args, namespace)
        if rest and self.get_default("command") not in (None, serve):
            flags = re.findall(r"--[a-z-]+", self.format_usage())
            near = difflib.get_close_matches(rest[0].partition("=")[0], flags, n=1)
            self.error(f"unrecognized arguments: {' '.join(rest)}{f'; did you mean {near[0]}?' if near else ''}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; type: {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """All commands and flags; parsing raises UserError."""
    top = Parser(prog="frostline", description="How much of a network to freeze, and what it costs.")
    top.add_argument("--version", action="version", version=f"frostline {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _before_and_with_training(commands)
    _after_training(commands)
    _of_models(commands)
    _serving(commands)
    return top


def _before_and_with_training(commands: Any) -> None:
    sub = commands.add_parser("list", help="what there is: studies, datasets, backbones, heads, runtimes")
    sub.add_argument("what", nargs="?", choices=LISTS, metavar="|".join(LISTS))
    sub.add_argument("--format", choices=("table", "json"), default="table")
    sub.set_defaults(command=list_)

    sub = commands.add_parser("run", help="train, compare, export and measure a study")
    sub.add_argument("study", metavar="STUDY", help="a name under bench/studies, or the path of a .toml file")
    _places(sub, "results", "exports", "data")
    sub.add_argument("--only", action="append", default=[], metavar="NAME", help="this configuration alone; repeatable")
    sub.add_argument("--seeds", type=_seeds, metavar="0,1,2", help="instead of the study's")
    sub.add_argument("--epochs", type=_positive, metavar="N", help="at most N in every stage")
    sub.add_argument("--limit", type=_positive, metavar="N", help="N training images, at most N to validate and test")
    sub.add_argument("--weights", metavar="FILE|none|imagenet", help="in place of the study's source of weights")
    sub.add_argument("--precision", type=_words, default=(), metavar="P[,P]", help="auto, float32, mixed_bfloat16, ...")
    sub.add_argument("--xla", type=_words, default=(), metavar="auto|on|off[,...]", help="compile with XLA")
    sub.add_argument("--engine", type=_words, default=(), metavar="auto|cached|plain", help="features once, or not")
    sub.add_argument("--features-memory", type=_bytes, metavar="SIZE", help="such as 4GiB; default: a third of free")
    sub.add_argument("--fresh", action="store_true", help="do finished runs again")
    sub.add_argument("--dry-run", action="store_true", help="show rows, parameters, time and memory; train nothing")
    sub.add_argument("--no-export", action="store_true", help="publish no models")
    sub.add_argument("--no-infer", action="store_true", help="measure no runtimes")
    sub.set_defaults(command=run)

    sub = commands.add_parser("layers", help="every layer of a study's configurations: frozen or not, and the frontier")
    sub.add_argument("study", metavar="STUDY", help="a name under bench/studies, or the path of a .toml file")
    _places(sub, "data")
    sub.add_argument("--only", action="append", default=[], metavar="NAME", help="this configuration alone; repeatable")
    sub.add_argument("--weights", metavar="FILE|none|imagenet", help="in place of the study's source of weights")
    sub.add_argument("--all", action="store_true", help="a line for each layer, not for each run of equal ones")
    sub.add_argument("--format", choices=("table", "json"), default="table")
    sub.set_defaults(command=layers)


def _after_training(commands: Any) -> None:
    sub = commands.add_parser("table", help="comparison tables of finished runs")
    sub.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="results folders")
    sub.add_argument("--format", choices=FORMATS, help="default: plain in a terminal, else github")
    sub.set_defaults(command=table)

    sub = commands.add_parser("recommend", help="the cheapest configuration that is shown to be as good as the best")
    sub.add_argument("results", type=Path, metavar="RESULTS", help="a results folder")
    sub.add_argument("--margin", type=_fraction, default=0.01, metavar="F", help="accuracy it may lose; default: 0.01")
    sub.add_argument("--max-latency-p99", type=_seconds, metavar="S", help="of one image, on its fastest runtime")
    sub.add_argument("--min-accuracy", type=_fraction, metavar="F", help="mean top-1 on validation")
    sub.add_argument("--max-train-seconds", type=_seconds, metavar="S", help="mean total seconds of training")
    sub.add_argument("--validated-on-test", action="store_true", help="choose among rows marked † too")
    sub.add_argument("--format", choices=("table", "json"), default="table")
    sub.set_defaults(command=recommend)

    sub = commands.add_parser("plot", help="curves of finished runs over epochs and training images")
    sub.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="results folders")
    sub.add_argument("--out", type=Path, metavar="DIR", help="default: plots in the first results folder")
    sub.add_argument("--only", action="append", default=[], metavar="NAME", help="this configuration alone; repeatable")
    sub.add_argument("--format", choices=plots.FORMATS, help="default: both")
    sub.set_defaults(command=plot)

    sub = commands.add_parser("features", help="the stored features of frozen networks")
    verbs = sub.add_subparsers(required=True, metavar="list|clear")
    sub = verbs.add_parser("list", help="what is stored, last used first")
    sub.add_argument("--format", choices=("table", "json"), default="table")
    sub.set_defaults(command=features_list)
    sub = verbs.add_parser("clear", help="remove features that no command is using")
    sub.add_argument("keys", nargs="*", metavar="KEY", help="the first digits of a key, 6 or more; all without one")
    sub.set_defaults(command=features_clear)


def _of_models(commands: Any) -> None:
    sub = commands.add_parser("export", help="publish the models of a results folder")
    sub.add_argument("results", type=Path, metavar="RESULTS")
    _places(sub, "exports", "data")
    sub.add_argument("--only", action="append", default=[], metavar="NAME", help="a configuration; repeatable")
    told = "of the ONNX file: float32, int8, float16 (for a GPU); repeatable; default: float32 and int8"
    sub.add_argument("--variant", action="append", default=[], metavar="NAME", help=told)
    sub.set_defaults(command=export)

    sub = commands.add_parser("check", help="whether published models are whole, and load in TensorFlow Serving")
    sub.add_argument("exports", type=Path, metavar="EXPORTS")
    sub.add_argument("--format", choices=("table", "json"), default="table")
    sub.set_defaults(command=check)

    sub = commands.add_parser("infer", help="measure published models on the runtimes")
    sub.add_argument("exports", type=Path, metavar="EXPORTS")
    _places(sub, "results", "data")
    sub.add_argument("--runtime", action="append", default=[], metavar="NAME", help="this runtime alone; repeatable")
    sub.add_argument("--scenario", action="append", default=[], metavar="NAME", help="single_stream, offline, server")
    sub.add_argument("--profile", default="quick", metavar="quick|valid", help="seconds a cell, or ten minutes")
    sub.add_argument(
        "--batch-size", action="append", default=[], type=_positive, metavar="N", help="of offline; repeatable"
    )
    sub.add_argument("--threads", type=_positive, metavar="N", help="of one call; default: as many as cores")
    sub.add_argument("--latency-bound", type=_seconds, metavar="S", help="of p99 in server; default: 10 × the single")
    sub.add_argument("--fresh", action="store_true", help="measure again what is measured")
    sub.set_defaults(command=infer)


def _serving(commands: Any) -> None:
    sub = commands.add_parser(
        "serve",
        help="answer requests as TensorFlow Serving does",
        epilog="All other flags are those of TensorFlow Serving, as in --port=8500 --rest_api_port=8501.",
        allow_abbrev=False,
    )
    sub.add_argument("exports", nargs="?", type=Path, metavar="EXPORTS", help="default: exports")
    sub.add_argument("--backend", choices=tuple(serving.BACKENDS), default="auto")
    sub.add_argument("--host", default="127.0.0.1", help="the address to answer on; default: this machine alone")
    sub.set_defaults(command=serve)

    sub = commands.add_parser("predict", help="send images to a running server")
    sub.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, or folders with images")
    sub.add_argument("--model", required=True, metavar="NAME", help="as the server calls it: STUDY.CONFIGURATION")
    sub.add_argument("--url", default=SERVER, help=f"grpc://HOST:PORT or http://HOST:PORT; default: {SERVER}")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--version", type=_positive, metavar="N", help="default: the newest that is served")
    which.add_argument("--label", metavar="L", help="stable or canary, or another that the server has")
    sub.add_argument(
        "--as", dest="form", choices=("bytes", "pixels"), default="bytes", help="pixels: decoded and resized here"
    )
    sub.add_argument("--top", type=_positive, default=1, metavar="K", help="the K best classes; default: 1")
    sub.add_argument("--timeout", type=_seconds, default=10.0, metavar="S", help="for each answer; default: 10")
    sub.add_argument("--format", choices=("table", "json", "csv"), default="table")
    sub.set_defaults(command=predict)

    sub = commands.add_parser("bundle", help="write what TensorFlow Serving needs into EXPORTS/serving")
    sub.add_argument("exports", type=Path, metavar="EXPORTS")
    _places(sub, "results")
    sub.add_argument("--models-at", metavar="DIR", help="where the server sees EXPORTS/saved_model; first: /models")
    sub.set_defaults(command=bundle)

    sub = commands.add_parser("rollout", help="a new version for a server that polls models.config, step by step")
    step = sub.add_mutually_exclusive_group()
    step.add_argument("--version", type=_positive, metavar="N", help="load it, call it canary; default: the newest")
    step.add_argument("--promote", action="store_true", help="call stable what is canary")
    step.add_argument("--finish", action="store_true", help="unload the old version")
    _moves(sub, rollout)

    sub = commands.add_parser("rollback", help="take the last step of a rollout back")
    _moves(sub, rollback)


def _moves(sub: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int]) -> None:
    sub.add_argument("model", metavar="MODEL")
    _places(sub, "exports")
    sub.add_argument("--url", help="of the server, to see each step done: grpc://HOST:PORT or http://HOST:PORT")
    sub.add_argument("--timeout", type=_seconds, default=300.0, metavar="S", help="for each step; default: 300")
    sub.set_defaults(command=command)


def _places(sub: argparse.ArgumentParser, *which: str) -> None:
    if "results" in which:
        sub.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    if "exports" in which:
        sub.add_argument("--exports", type=Path, default=Path("exports"), metavar="DIR", help="default: exports")
    if "data" in which:
        sub.add_argument("--data-dir", type=Path, metavar="DIR", help="where datasets are looked for first")


# -- the commands --------------------------------------------------------------------------------------


def list_(args: argparse.Namespace) -> int:
    """Print what there is, all of it or one kind; nothing heavy is imported."""
    what = [args.what] if args.what else list(LISTS)
    found = {name: _entries(name) for name in what}
    if args.format == "json":
        print(json.dumps(found[args.what] if args.what else found, indent=2))
        return 0
    from tabulate import tabulate

    for name, entries in found.items():
        print(tabulate([[e["name"], e["summary"]] for e in entries], headers=[name, ""], tablefmt="simple"), end="\n\n")
    return 0


def _entries(what: str) -> list[dict[str, str]]:
    from frostline import backbones, datasets, heads, runtimes, studies

    tables: dict[str, Callable[[], dict[str, str]]] = {
        "studies": lambda: {name: studies.load(name).title for name in studies.names()},
        "datasets": lambda: (
            {name: entry.summary for name, entry in datasets.DATASETS.items()}
            | {f"{studies.TFDS}NAME": "an image classification set of TensorFlow Datasets (the extra `tfds`)"}
        ),
        "backbones": lambda: (
            {name: entry.summary for name, entry in backbones.BACKBONES.items()}
            | {"file:NAME.keras": "your own network, below its classifier or [backbone] cut"}
        ),
        "heads": lambda: (
            {name: heads.describe(head) for name, head in heads.HEADS.items()}
            | {"inherit": "the head of the pre-training, with its weights"}
        ),
        "runtimes": lambda: {name: entry.summary for name, entry in runtimes.RUNTIMES.items()},
    }
    return [{"name": name, "summary": summary} for name, summary in tables[what]().items()]


def run(args: argparse.Namespace) -> int:
    """Run a study and print its tables."""
    from frostline import deploy, harness, records, tables
    from frostline.plan import Options

    options = Options(
        only=tuple(args.only),
        seeds=args.seeds,
        epochs=args.epochs,
        limit=args.limit,
        weights=args.weights,
        precision=args.precision,
        xla=args.xla,
        engine=args.engine,
    )
    places = harness.Places(args.results, args.exports, args.data_dir, args.features_memory)
    if args.dry_run:
        print(tables.plan(harness.dry_run(args.study, options, places, fresh=args.fresh), _width()))
        return 0
    infer = not (args.no_infer or args.no_export)
    good, asked = harness.run_study(
        args.study, options, places, fresh=args.fresh, export=not args.no_export, infer=infer
    )
    args.status = 0 if good else 1  # also where nobody reads on
    name = Path(args.study).stem
    found = [r for r in records.read(args.results) if r["study"] == name]
    print(tables.render(found, _terminal_format(), asked, width=_width()))
    if deploy.published(args.exports) and not args.no_export:
        _renew_bundle(args.exports, args.results)
    return args.status


def layers(args: argparse.Namespace) -> int:
    """Print what each stage of a study's configurations trains, layer by layer."""
    from frostline import harness, tables
    from frostline.plan import Options

    unused = Path(os.devnull)  # nothing is kept
    options = Options(only=tuple(args.only), weights=args.weights, limit=1)  # no pixel matters
    found = harness.layers(args.study, options, harness.Places(unused, unused, args.data_dir))
    if args.format == "json":
        keys = ("freeze", "stages")
        print(json.dumps([{key: entry[key] for key in keys} for entry in found], indent=2))
    else:
        print(tables.layers(found, each=args.all, width=_width()))
    problems = [stage["problem"] for entry in found for stage in entry["stages"] if stage["problem"]]
    for problem in problems:
        print(f"frostline: {problem}", file=sys.stderr)
    return 2 if problems else 0


def table(args: argparse.Namespace) -> int:
    """Print the tables of one or several results folders."""
    from frostline import tables

    print(tables.render(_records(args.results), args.format or _terminal_format(), width=_width()))
    return 0


def recommend(args: argparse.Namespace) -> int:
    """Print which configuration to take, and why."""
    from frostline import recommend

    _records([args.results])
    limits = recommend.Limits(args.margin, args.max_latency_p99, args.min_accuracy, args.max_train_seconds)
    advice = recommend.advise(args.results, limits, on_test=args.validated_on_test)
    print(recommend.render(advice, "json" if args.format == "json" else _terminal_format(), _width()))
    return 0


def plot(args: argparse.Namespace) -> int:
    """Draw the runs of one or several results folders, and print the files that were written."""
    formats = (args.format,) if args.format else plots.FORMATS
    for path in plots.draw(_records(args.results), args.out or args.results[0] / "plots", args.only, formats):
        print(path)
    return 0


def _records(folders: list[Path]) -> list[dict[str, Any]]:
    from frostline import records

    for folder in folders:
        if not (folder / records.FILE).is_file():
            raise UserError(f"{folder} holds no {records.FILE}; give a results folder, such as results")
    return [r for folder in folders for r in records.read(folder)]


def export(args: argparse.Namespace) -> int:
    """Publish the models of a results folder that are not published yet."""
    from frostline import deploy, exporting, harness, records
    from frostline.errors import lookup, nearest

    for name in args.variant:
        lookup(dict.fromkeys(exporting.VARIANTS), name, "variant")
    places = harness.Places(args.results, args.exports, args.data_dir)
    configurations = records.configurations(records.read(args.results))
    known = sorted({c.freeze for c in configurations})
    if not known:
        raise UserError(f"{args.results} holds no finished run; type: frostline run STUDY --results {args.results}")
    for name in args.only:
        if name not in known:
            raise UserError(f"--only {name}: no such configuration in {args.results}; {nearest(name, known)}")
    asked = args.only or {c.freeze for c in configurations if not c.trial}
    chosen = {c.rows[-1]["configuration"] for c in configurations if c.freeze in asked}
    with records.lock(args.results):
        good = harness.export_models(chosen, places, args.variant)
    args.status = 0 if good else 1
    if deploy.published(args.exports):
        print(_renew_bundle(args.exports, args.results))
    return args.status


def check(args: argparse.Namespace) -> int:
    """Print, for each published version, `ok` or what is wrong."""
    from frostline.exporting import checking

    found = checking.check(args.exports)
    args.status = 1 if any(entry["wrong"] for entry in found) else 0
    if args.format == "json":
        print(json.dumps(found, indent=2))
    else:
        for entry in found:
            print(f"{entry['model']} {entry['version']}: {'; '.join(entry['wrong']) or 'ok'}")
    return args.status


def infer(args: argparse.Namespace) -> int:
    """Measure published models and print their tables."""
    from frostline import exporting, harness, matrix, records, tables

    manifests = exporting.manifests(args.exports)
    if not manifests:
        raise nothing_published(args.exports)
    places = harness.Places(args.results, args.exports, args.data_dir)
    asked = matrix.Asked(
        runtimes=tuple(args.runtime),
        scenarios=tuple(args.scenario),
        batch_sizes=tuple(args.batch_size),
        profile=args.profile,
        threads=args.threads or 0,
        latency_bound=args.latency_bound,
    )
    with records.lock(args.results):
        good = harness.infer_models(None, places, asked, fresh=args.fresh)
    args.status = 0 if good else 1
    names = {m["name"] for m in manifests}
    shown = [r for r in records.read(args.results) if r.get("model") in names]
    print(tables.render(shown, _terminal_format(), kinds=("infer",), width=_width()))
    return args.status


def serve(args: argparse.Namespace) -> int:
    """Answer requests until Ctrl-C."""
    return serving.serve(args.exports, args.backend, args.host, args.rest)


def features_list(args: argparse.Namespace) -> int:
    """Print the stored features, the room they take and the room they may take."""
    from frostline import features

    stored = features.entries()
    if args.format == "json":
        print(json.dumps([_facts(entry) for entry in stored], indent=2))
        return 0
    from tabulate import tabulate

    if stored:
        headers = ("key", "study", "backbone", "frontier", "images", "MiB", "pass s", "last used")
        print(tabulate(map(_row, stored), headers, tablefmt="simple", disable_numparse=True), end="\n\n")
    total = features.size(sum(entry.nbytes for entry in stored))
    print(f"{len(stored)} stored, {total} of at most {features.size(features.limit())}, in {features.folder()}")
    return 0


def _facts(entry: "Entry") -> dict[str, Any]:
    known = {name: entry.about.get(name) for name in ("study", "backbone", "boundary", "images", "seconds")}
    used = datetime.datetime.fromtimestamp(entry.used).astimezone().isoformat(timespec="seconds")
    return {"key": entry.key, **known, "bytes": entry.nbytes, "used": used}


def _row(entry: "Entry") -> list[str | None]:
    facts = _facts(entry)
    boundary = facts["boundary"]
    cut = ", ".join(boundary) if isinstance(boundary, list) else boundary
    seconds = None if facts["seconds"] is None else f"{facts['seconds']:.1f}"
    mib = f"{entry.nbytes / 2**20:.1f}"
    used = facts["used"][:16].replace("T", " ")
    return [entry.key[:12], facts["study"], facts["backbone"], cut, facts["images"], mib, seconds, used]


def features_clear(args: argparse.Namespace) -> int:
    """Remove stored features, and say what was left."""
    from frostline import features

    done = features.clear(features.matching(args.keys) if args.keys else None)
    left = f"; {done.left} in use, left as they are" if done.left else ""
    print(f"{done.count} removed, {features.size(done.nbytes)} freed{left}")
    return 0


def predict(args: argparse.Namespace) -> int:
    """Print the classes that a server finds in images; 1 where some were not answered."""
    from frostline import client
    from frostline.predict import Asked, images
    from frostline.predict import predict as ask

    asked = Asked(args.model, args.version, args.label, args.form, args.top)
    paths = images(args.images)
    if args.url.startswith("grpc:") or args.form == "pixels":
        _quiet_tensorflow()
    answers: list[Answer] = []
    try:
        with client.connect(args.url, timeout=args.timeout) as connection:
            for answer in ask(connection, asked, paths):
                answers.append(answer)  # one by one: an error leaves those before it
    finally:
        if answers:
            _print_answers(answers, args.format)
    return 1 if any(answer.trouble for answer in answers) else 0


def _print_answers(answers: "list[Answer]", form: str) -> None:
    if form == "json":
        print(json.dumps([_answer(answer) for answer in answers], indent=2, ensure_ascii=False))
    else:
        _print_rows([(str(a.path), n, f"{score:.4f}") for a in answers for n, score in a.best], form)
    for answer in answers:
        if answer.trouble:
            print(f"frostline: {answer.path}: {answer.trouble}", file=sys.stderr)


def _quiet_tensorflow() -> None:
    """Import it, for gRPC's stubs and for decoding, without its talk and without a GPU that the server may need."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # some of the talk comes before any level is heard
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _answer(answer: "Answer") -> dict[str, Any]:
    if answer.trouble:
        return {"file": str(answer.path), "error": answer.trouble}
    return {"file": str(answer.path), "classes": [{"class": name, "score": score} for name, score in answer.best]}


def _print_rows(rows: list[tuple[str, str, str]], form: str) -> None:
    headers = ("file", "class", "score")
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([headers, *rows])
        return
    from tabulate import tabulate

    print(tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=("left", "left", "right")))


def bundle(args: argparse.Namespace) -> int:
    """Write the deployment bundle of an exports folder."""
    print(_renew_bundle(args.exports, args.results, args.models_at))
    return 0


def _renew_bundle(exports: Path, results: Path, models_at: str | None = None) -> Path:
    from frostline import deploy, records

    folder, told = deploy.bundle(exports, records.read(results), models_at=models_at)
    for line in told:
        print(line, file=sys.stderr)
    return folder


def rollout(args: argparse.Namespace) -> int:
    """Write the next step of a rollout into models.config."""
    from frostline import deploy

    def step(now: "Served", given: str) -> "Step":
        if args.promote:
            return deploy.promote(args.model, now, given)
        if args.finish:
            return deploy.finish(args.model, now, given)
        return deploy.forward(args.model, now, deploy.versions(args.exports, args.model), args.version, given)

    return _take(args, step)


def rollback(args: argparse.Namespace) -> int:
    """Write one step back into models.config."""
    from frostline import deploy

    return _take(
        args,
        lambda now, given: deploy.back(args.model, now, deploy.versions(args.exports, args.model), given),
    )


def _take(args: argparse.Namespace, step: Callable[["Served", str], "Step"]) -> int:
    from frostline import client, deploy

    if args.url:
        if args.url.startswith("grpc:"):
            _quiet_tensorflow()
        with client.connect(args.url) as connection:
            deploy.take(args.exports, args.model, step, deploy.Server(connection, args.timeout), print)
    else:
        deploy.take(args.exports, args.model, step, None, print)
    try:
        deploy.describe(args.exports)
    except UserError as error:  # the step is done
        print(f"frostline: the bundle's README is not renewed: {error}", file=sys.stderr)
    return 0


def _terminal_format() -> str:
    return "plain" if sys.stdout.isatty() else "github"


def _width() -> int | None:
    """How many characters wide tables may be: what the terminal has, and anything where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


# -- values of flags -----------------------------------------------------------------------------------


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction between 0 and 1, such as 0.01")
    return value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _bytes(text: str) -> int:
    number, unit = text.rstrip("KMGTiB"), text.lstrip("0123456789.")
    units = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 500MiB or 4GiB") from None


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(p.strip().isdecimal() for p in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different whole numbers, such as 0,1,2")
    return tuple(int(p) for p in parts)


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


if __name__ == "__main__":
    sys.exit(main())
