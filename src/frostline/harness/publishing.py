"""Publishes what was trained."""

from collections.abc import Collection

from frostline import children, exporting, records
from frostline.harness import base
from frostline.harness.base import Event, Places
from frostline.progress import Progress


def export_models(configurations: Collection[str], places: Places, variants: Collection[str] = ()) -> bool:
    """Publish the representative run of each configuration that is not published yet; True when all went well.

    One that is published without some of the `variants` of its ONNX file is published again, with them. A quick try
    (`--limit`, `--epochs`) is not published over a model that was trained in full, one of `--limit` without int8
    unless that is asked for.
    """
    chosen: list[Event] = []
    for configuration in records.configurations(records.read(places.results), configurations):
        record = configuration.representative
        published = exporting.current(places.exports, record["model"]) if record else None
        same = bool(record and published and _same_run(published, record))
        known = published.get("variants", {}) if same and published else {}
        if record is None or (same and set(variants) <= set(known)):
            continue
        if published and _quick(record) and not _quick(published):
            base.say(
                f"{record['model']}: a quick try is not published over version {published['version']}; give --exports"
            )
            continue
        default = exporting.VARIANTS[:1] if record["limit"] else exporting.DEFAULT_VARIANTS
        wanted = {"float32", *variants, *known} if variants else default
        seeds = [row["seed"] for row in configuration.finished]
        chosen.append({"record": record, "seeds": seeds, "variants": [v for v in exporting.VARIANTS if v in wanted]})
    if not chosen:
        return True
    with records.lock(places.exports, "exports"):
        return _publish(chosen, places)


def _publish(chosen: list[Event], places: Places) -> bool:
    """Export runs in a child, and in another one what is left when it dies; True when all went well."""
    failures: list[str] = []
    started: list[Event] = []
    with Progress(len(chosen), "models", left=False) as progress:

        def on_event(event: Event) -> None:
            if event["event"] == "exporting":
                started.append(chosen[len(started)]["record"])
                progress.show(f"exporting {event['model']}", advance=1)
            elif event["event"] == "not_exported":
                failures.append(event["model"])
                progress.say(f"{event['model']} is not published: {event['reason']}")
            elif event["event"] == "variant_refused":
                progress.say(f"{event['model']}: ONNX {event['variant']} is not published: {event['reason']}")

        while len(started) < len(chosen):
            before = len(started)
            progress.show(f"{base.STARTING} to export")
            try:
                base.spawn({"action": "export", "chosen": chosen[before:]}, places, "logs/export.txt", on_event)
                break
            except children.Died as error:
                if len(started) == before:
                    raise
                told = {key: started[-1][key] for key in ("model", "run", "study", "freeze")} | {"version": None}
                told |= {"kind": "export", "outcome": "failed", "reason": str(error), "time": records.now()}
                records.append(places.results, told)
                on_event({"event": "not_exported", **told})
    return not failures


def _same_run(a: Event, b: Event) -> bool:
    """Whether a manifest or inference record and a training record are of one and the same training."""
    return (a["run"], a["run_time"]) == (b["run"], b.get("run_time", b["time"]))


def _quick(record: Event) -> bool:
    return bool(record["limit"] or record["epochs_cap"])
