"""Trains one group of runs; each ends as one record."""

import contextlib
import csv
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frostline import (
    augment,
    choice,
    datasets,
    device,
    features,
    machine,
    models,
    plan,
    records,
    training,
)
from frostline.errors import UserError
from frostline.jobs import common, sharing, store
from frostline.jobs.common import Emit
from frostline.plan import Run


def run_here(job: dict[str, Any], emit: Emit) -> None:
    """Train the runs of one group; each ends as one record, whatever happens to it."""
    results = Path(job["results"])
    device.configure(job["precision"])
    marked = job["since"]
    with contextlib.ExitStack() as opened:
        shelf = store.Shelf(opened, features.memory_budget(job["features_memory"]))
        shelf.new |= set(job["computed"])
        if store.lie_apart(job):
            shelf.new |= store.compute_all(job, emit)
        left = list(zip(common.runs(job), job["settings"], strict=True))
        companies = sharing.companies(left)
        while left:
            run, setting = left.pop(0)
            emit("run", run=run.id)
            try:
                with _output_to(records.run_folder(results, run.id) / "log.txt"):
                    record = train(run, setting, job, shelf, companies[run.id], emit)
            except UserError:
                raise
            except Exception as error:
                record = {
                    **plan.heading(run),
                    **_asked(job, setting),
                    "outcome": "failed",
                    "reason": common.reason(error),
                }
            now = time.time()
            record |= {"process_start_seconds": job["process_start_seconds"], "marginal_seconds": now - marked}
            record |= {"time": records.now(), "machine": machine.facts()}
            records.append(results, record)
            emit("done", run=run.id, text=_summary(record))
            marked = now
            shelf.drop_trunks({other.id for other, _ in left})


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what the process prints, and the traceback of what goes wrong, to a file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = [os.dup(1), os.dup(2)]
    with path.open("a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            yield
        except UserError:
            raise
        except Exception:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            for stream, handle in zip((1, 2), saved, strict=True):
                os.dup2(handle, stream)
                os.close(handle)


def _asked(job: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """What is in effect for a run that failed before it could say."""
    engines = [engine["name"] for engine in setting["engines"]]
    return {
        "precision": job["precision"],
        "xla": setting["xla"] == "on",
        "engine": choice.engine(engines),
        "device": device.kind(),
    }


def train(
    run: Run, setting: dict[str, Any], job: dict[str, Any], shelf: store.Shelf, company: Sequence[Run], emit: Emit
) -> dict[str, Any]:
    """Train one run and return its record; what it leaves in the run folder is written before."""
    results = Path(job["results"])
    whole = common.load(plan.whole(run.data), common.data_dir(job), run.limit)
    rows, dataset = datasets.part(whole, run.data)
    machine.reset_peak_memory()
    device.reset_peak_memory()
    started = time.perf_counter()

    device.seed_everything(run.seed)
    network = common.build(run, dataset)
    reset = (models.reset_names(network, stage.reset) for stage in run.freeze.stages)
    fresh = [models.layer_weights(network, names) for names in reset]
    kept_fresh = common.start_weights(network, run, results)
    used = store.Used()
    trained = training.train(
        network,
        run.freeze.stages,
        dataset.train,
        dataset.validation,
        seed=run.seed,
        split_seed=run.data.split_seed,
        xla=setting["xla"] == "on",
        fresh=fresh,
        engines=[training.Engine(**engine) for engine in setting["engines"]],
        source=lambda cut: store.of_rows(store.features_of(network, cut, run, whole, shelf, used, emit), rows),
        view_source=lambda cut, views: store.of_views(network, cut, run, views, shelf, used, emit),
        sharing=lambda cut, arrays, number: (
            sharing.shared(network, cut, run, company, arrays, dataset.train, setting["xla"] == "on", shelf, used)
            if number == 1
            else None
        ),
        report=lambda **epoch: emit("epoch", text=_epoch_line(epoch)),
    )
    answers = _evaluate(network, dataset, trained)
    pass_seconds = _pass_seconds(used)
    alone = time.perf_counter() - started - used.waited_seconds + used.load_seconds + pass_seconds
    alone += trained.spared_seconds

    peaks = {"peak_memory_bytes": machine.peak_memory_bytes(), "device_peak_memory_bytes": device.peak_memory_bytes()}
    folder = records.run_folder(results, run.id)
    _keep(folder, network, dataset, answers["validation"][0], answers["test"][0], trained.history)
    epoch_seconds = trained.epoch_seconds
    return {
        **plan.heading(run),
        "outcome": "ok",
        "reason": None,
        **_of_training(trained),
        **_of_features(used),
        **_of_augmentation(run, trained),
        **_of_answers(dataset, answers),
        **peaks,
        "kept_fresh": kept_fresh,
        "estimate": setting["estimate"],
        "total_seconds": alone,
        "images_per_second": len(dataset.train.labels) / epoch_seconds if epoch_seconds else None,
    }


def _of_training(trained: training.Trained) -> dict[str, Any]:
    """What a record says of masks, proofs, engines, times and epochs."""
    engines = ["cached" if cut else "plain" for cut in trained.cuts]
    frontiers = {cut.mode for cut in trained.cuts if cut}
    return {
        "engine": choice.engine(engines),
        **trained.effective,
        "trainable_params": trained.masks[-1].trainable_params,
        "total_params": trained.masks[-1].total_params,
        "stages": _stages(trained, engines),
        "batch_norm": [mask.batch_norm for mask in trained.masks],
        "frontier": ", ".join(sorted(frontiers)) or None,
        "first_step_seconds": trained.first_step_seconds,
        "step_seconds": trained.step_seconds,
        "epoch_seconds": trained.epoch_seconds,
        "train_running_top1": trained.history[-1]["top1"],
        "restored_epochs": trained.restored_epochs,
        "history": trained.history,
    }


def _pass_seconds(used: store.Used) -> float:
    """Seconds of the passes that a run needs: frontiers of one pass are computed with the highest of them."""
    passes: dict[str, float] = {}
    for facts in used.facts.values():
        passes[facts["pass"]] = max(facts["seconds"], passes.get(facts["pass"], 0.0))
    return sum(passes.values())


def _of_features(used: store.Used) -> dict[str, Any]:
    """What a record says of the features a run trained on; all null where it used none."""
    taken = list(used.facts.values())
    return {
        "features_seconds": _pass_seconds(used) if taken else None,
        "features_reused": used.reused if taken else None,
        "features_difference": used.difference,
        "features_bytes": sum(facts["bytes"] for facts in taken) if taken else None,
        "features": taken,
        "trunk": used.trunk,
    }


def _of_augmentation(run: Run, trained: training.Trained) -> dict[str, Any]:
    """What a record says of views of training images; all null where the images themselves were shown."""
    told = dict.fromkeys(augment.describe(stage) for stage in run.freeze.stages if stage.augment)
    counts = [stage.augment_views for stage in run.freeze.stages if stage.augment_views]
    return {
        "augment": "; ".join(map(str, told)) or None,
        "augment_views": max(counts, default=None),
        "augment_seconds": trained.augment_seconds,
    }


def _of_answers(dataset: datasets.Dataset, answers: dict[str, tuple[Any, float, float]]) -> dict[str, Any]:
    """What a record says of the splits and how well the run does on each."""
    return {
        "train_images": len(dataset.train.labels),
        "validation_images": len(dataset.validation.labels),
        "test_images": len(dataset.test.labels),
        "class_names": list(dataset.class_names),
        **{f"{name}_top1": answer[1] for name, answer in answers.items()},
        **{f"{name}_loss": answer[2] for name, answer in answers.items()},
    }


def _stages(trained: training.Trained, engines: Sequence[str]) -> list[dict[str, Any]]:
    """What each stage trained, with the proof, and where its frontier lay."""
    return [
        {**plan.plain(mask), "proof": proof, "engine": engine, "frontier": list(cut.boundary) if cut else []}
        for mask, proof, engine, cut in zip(trained.masks, trained.proofs, engines, trained.cuts, strict=True)
    ]


def _evaluate(
    network: models.Network, dataset: datasets.Dataset, trained: training.Trained
) -> dict[str, tuple[Any, float, float]]:
    """Probabilities, top-1 and loss of every split; one that is another is answered once."""
    answers: dict[str, tuple[Any, float, float]] = {}
    for name, split in (("train", dataset.train), ("validation", dataset.validation), ("test", dataset.test)):
        if name == "test" and dataset.test is dataset.validation:
            answers[name] = answers["validation"]
        elif trained.features:
            answers[name] = training.evaluate(network, split, trained.suffix, trained.features[name])
        else:
            answers[name] = training.evaluate(network, split)
    return answers


def _keep(
    folder: Path,
    network: models.Network,
    dataset: datasets.Dataset,
    validation: Any,
    test: Any,
    history: list[dict[str, Any]],
) -> None:
    """Write the run's weights, probabilities and history, each whole or not at all."""
    weights, predictions, epochs = folder / "partial.weights.h5", folder / "partial.npz", folder / "partial.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        network.model.optimizer = None  # whose variables would be saved too
        network.model.save_weights(weights)
        np.savez_compressed(
            predictions,
            validation=validation,
            validation_labels=dataset.validation.labels,
            validation_keys=np.array(dataset.validation.keys),
            test=test,
            test_labels=dataset.test.labels,
            test_keys=np.array(dataset.test.keys),
        )
        _write_history(epochs, history)
        os.replace(predictions, folder / "predictions.npz")
        os.replace(epochs, folder / "history.csv")
        os.replace(weights, folder / "weights.weights.h5")
    except (OSError, RuntimeError) as error:  # h5py has both for a disk that is full
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise UserError(f"cannot write to {folder}: {reason}; free some space") from error
    finally:
        for partial in (weights, predictions, epochs):
            partial.unlink(missing_ok=True)


def _write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """One line per epoch of every stage; what was not measured is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records.finite(history))


def _epoch_line(epoch: dict[str, Any]) -> str:
    top1 = epoch["validation_top1"]
    measured = "" if top1 is None else f", validation top-1 {top1:.3f}"
    return f"stage {epoch['stage']}/{epoch['stages']}, epoch {epoch['epoch']}/{epoch['epochs']}{measured}"


def _summary(record: dict[str, Any]) -> str:
    if record["outcome"] != "ok":
        return f"failed: {record['reason']}"
    return (
        f"{record['total_seconds']:.1f} s, validation top-1 {record['validation_top1']:.3f}, "
        f"{record['trainable_params']:,} of {record['total_params']:,} parameters trained"
    )
