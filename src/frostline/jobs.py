"""What the children do: each job is one fresh interpreter, started by the harness with `python -m frostline.jobs`."""

import contextlib
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # a GPU's memory is taken as it is needed, and its peak tells
os.environ["KERAS_BACKEND"] = "tensorflow"  # before anything imports Keras; a person's own choice is for their own code

from frostline import (
    backbones,
    children,
    datasets,
    device,
    exporting,
    freezing,
    frontier,
    inference,
    machine,
    models,
    plan,
    records,
    runtimes,
    training,
)
from frostline.errors import UserError
from frostline.plan import Run

Emit = Callable[..., None]
PARITY_IMAGES = 32


def work(job: dict[str, Any], emit: Emit) -> None:
    """Do one job; a mistake of the user becomes an event, everything else that is wrong ends the child."""
    import tensorflow  # noqa: F401  loading it is part of the start, not of what is timed

    job["process_start_seconds"] = time.time() - job["spawned"]
    emit("ready")
    try:
        JOBS[job["action"]](job, emit)
    except UserError as error:
        emit("user_error", message=str(error))


def _runs(job: dict[str, Any]) -> list[Run]:
    return [plan.restore(Run, run) for run in job["runs"]]


def _data_dir(job: dict[str, Any]) -> Path | None:
    return Path(job["data_dir"]) if job["data_dir"] else None


# -- one group of runs ---------------------------------------------------------------------------------


def run_here(job: dict[str, Any], emit: Emit) -> None:
    """Train the runs of one group; each ends as one record, whatever happens to it."""
    results = Path(job["results"])
    device.configure(job["precision"])
    for run in _runs(job):
        try:
            record = train(run, job, emit)
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()
            effective = {
                "precision": job["precision"],
                "xla": job["xla"] == "on",
                "engine": "plain",
                "device": device.kind(),
            }
            record = {**plan.heading(run), **effective, "outcome": "failed", "reason": _reason(error)}
        record["process_start_seconds"] = job["process_start_seconds"]
        record["marginal_seconds"] = time.time() - job["spawned"]
        record |= {"time": records.now(), "machine": machine.facts()}
        records.append(results, record)
        emit("done", text=_summary(record))


def train(run: Run, job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Train one run and return its record; what it leaves in the run folder is written before."""
    results = Path(job["results"])
    dataset = datasets.load(run.data, data_dir=_data_dir(job), limit=run.limit)
    machine.reset_peak_memory()
    device.reset_peak_memory()
    started = time.perf_counter()

    device.seed_everything(run.seed)
    network = build(run, dataset)
    kept_fresh = start_weights(network, run, results)
    trained = training.train(
        network,
        run.freeze.stages,
        dataset.train,
        dataset.validation,
        seed=run.seed,
        xla=job["xla"] == "on",
        report=lambda **epoch: emit("epoch", text=_epoch_line(epoch)),
    )
    _, train_top1, train_loss = training.evaluate(network, dataset.train)
    validation = training.evaluate(network, dataset.validation)
    same = dataset.test is dataset.validation
    test = validation if same else training.evaluate(network, dataset.test)
    total_seconds = time.perf_counter() - started

    peaks = {"peak_memory_bytes": machine.peak_memory_bytes(), "device_peak_memory_bytes": device.peak_memory_bytes()}
    _keep(records.run_folder(results, run.id), network, dataset, validation[0], test[0])
    epoch_seconds = trained.epoch_seconds
    return {
        **plan.heading(run),
        "outcome": "ok",
        "reason": None,
        "engine": "plain",
        **trained.effective,
        "trainable_params": trained.masks[-1].trainable_params,
        "total_params": trained.masks[-1].total_params,
        "stages": [{**plan.plain(m), "proof": p} for m, p in zip(trained.masks, trained.proofs, strict=True)],
        "batch_norm": [mask.batch_norm for mask in trained.masks],
        "kept_fresh": kept_fresh,
        "first_step_seconds": trained.first_step_seconds,
        "step_seconds": trained.step_seconds,
        "epoch_seconds": epoch_seconds,
        "features_seconds": None,
        "total_seconds": total_seconds,
        "images_per_second": len(dataset.train.labels) / epoch_seconds if epoch_seconds else None,
        **peaks,
        "train_images": len(dataset.train.labels),
        "validation_images": len(dataset.validation.labels),
        "test_images": len(dataset.test.labels),
        "class_names": list(dataset.class_names),
        "train_top1": train_top1,
        "train_loss": train_loss,
        "train_running_top1": trained.history[-1]["top1"],
        "validation_top1": validation[1],
        "validation_loss": validation[2],
        "test_top1": test[1],
        "test_loss": test[2],
        "restored_epochs": trained.restored_epochs,
        "history": trained.history,
    }


def build(run: Run, dataset: datasets.Dataset) -> models.Network:
    """The network of a run, for the images and classes of its data."""
    size, classes = dataset.train.images.shape[1], len(dataset.class_names)
    return models.build(run.backbone, run.freeze.head, run.data.scaling, size, classes)


def start_weights(network: models.Network, run: Run, results: Path) -> list[str]:
    """Give the network the weights its configuration starts from; returns the layers that keep their fresh ones."""
    fresh = models.reset_names(network, run.freeze.reset)
    weights = run.freeze.weights
    if weights == plan.PRETRAIN:
        assert run.pretrain_run
        weights = str(records.weights_file(results, run.pretrain_run))
    if weights not in (None, "none"):
        models.load_weights(network, Path(weights), head=run.inherit_head, skip=fresh)
    return sorted(fresh)


def _keep(folder: Path, network: models.Network, dataset: datasets.Dataset, validation: Any, test: Any) -> None:
    """Write the run's weights and probabilities, each whole or not at all."""
    weights, predictions = folder / "partial.weights.h5", folder / "partial.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
        os.replace(predictions, folder / "predictions.npz")
        os.replace(weights, folder / "weights.weights.h5")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; free some space") from error
    finally:
        for partial in (weights, predictions):
            partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """Why a run failed, in one line."""
    import tensorflow as tf

    first = str(error).strip().split("\n")[0]
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        return f"out of memory: {first}"
    return f"{type(error).__name__}: {first}"


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


# -- before a study ------------------------------------------------------------------------------------


def preflight(job: dict[str, Any], emit: Emit) -> None:
    """Load the data, build every configuration, resolve every rule; with `estimate` time a few float32 steps too."""
    device.configure("float32")
    found = []
    base = machine.peak_memory_bytes() or 0
    for run in _runs(job):
        emit("checking", freeze=run.freeze.name)
        dataset = datasets.load(run.data, data_dir=_data_dir(job), limit=run.limit)
        device.seed_everything(run.seed)
        network = build(run, dataset)
        check_weights(run, network)
        masks, cuts, steps = [], [], []
        for stage in run.freeze.stages:
            training.optimizer(stage.optimizer, stage.learning_rate)
            masks.append(freezing.apply(network.model, network.groups, stage))
            cuts.append(frontier.split(network.model))
            if job["estimate"]:
                steps.append(training.time_steps(network, stage, xla=False))
        images = len(dataset.train.labels)
        found.append(
            {
                "freeze": run.freeze.name,
                "variant": run.variant,
                "stages": [
                    {**plan.plain(mask), "frontier": list(cut.boundary), "feature_shapes": list(cut.feature_shapes)}
                    for mask, cut in zip(masks, cuts, strict=True)
                ],
                "classes": len(dataset.class_names),
                "size": dataset.train.images.shape[1],
                "units": network.model.output_shape[-1],
                "images": images,
                "seconds": _estimated_seconds(run, images, steps) if steps else None,
                "memory_bytes": base + dataset.train.images.nbytes + _estimated_memory(network, masks, run),
            }
        )
    units = {entry["freeze"]: entry["units"] for entry in found}
    for run in _runs(job):
        if run.inherit_head and run.pretrain_run and units[run.freeze.name] != units[plan.PRETRAIN]:
            raise UserError(
                f'{run.freeze.name}: head = "inherit" takes over an output layer of {units[plan.PRETRAIN]} units, '
                f"and this task needs {units[run.freeze.name]}; choose a head of its own"
            )
    emit("checked", device=device.kind(), mixed=device.mixed_precision(), configurations=found)


def check_weights(run: Run, network: models.Network) -> None:
    """Refuse weights that do not exist or do not fit, before any run starts; raises UserError."""
    weights = run.freeze.weights
    backbones.check_weights(run.backbone.name, weights)
    if weights not in (None, "none", "imagenet", plan.PRETRAIN):
        models.load_weights(network, Path(weights), head=run.inherit_head, skip=set())


def _estimated_seconds(run: Run, images: int, steps: list[training.StepTimes]) -> float:
    """What a run will take, from measured float32 steps."""
    return sum(
        times.first_step_seconds + stage.epochs * times.step_seconds * images / stage.batch_size
        for stage, times in zip(run.freeze.stages, steps, strict=True)
    )


def _estimated_memory(network: models.Network, masks: list[freezing.Mask], run: Run) -> int:
    """Bytes of weights, gradients, two optimizer slots, and the activations of one batch kept for the backward pass."""
    trained = max(mask.trainable_params for mask in masks)
    batch = max(stage.batch_size for stage in run.freeze.stages)
    activations = sum(int(np.prod(layer.output.shape[1:])) for layer in network.model.layers)
    return 4 * (masks[0].total_params + 3 * trained + 2 * batch * activations)


def steps(job: dict[str, Any], emit: Emit) -> None:
    """Time a few steps of each configuration under one precision and XLA setting."""
    device.configure(job["precision"])
    for run in _runs(job):
        epochs = sum(stage.epochs for stage in run.freeze.stages)
        first, step = 0.0, 0.0
        device.seed_everything(run.seed)
        shape = job["shapes"][run.freeze.name]
        network = models.build(run.backbone, run.freeze.head, run.data.scaling, shape["size"], shape["classes"])
        for stage in run.freeze.stages:
            freezing.apply(network.model, network.groups, stage)
            times = training.time_steps(network, stage, xla=job["xla"] == "on")
            first += times.first_step_seconds
            step += times.step_seconds * stage.epochs / epochs
        emit("cell", first_step_seconds=first, step_seconds=step)


# -- after a study -------------------------------------------------------------------------------------


def export(job: dict[str, Any], emit: Emit) -> None:
    """Publish chosen runs; what fails becomes a record and an event, and the others go on."""
    results, exports = Path(job["results"]), Path(job["exports"])
    device.configure("float32")
    for entry in job["chosen"]:
        record = entry["record"]
        run = plan.restore(Run, record["config"])
        emit("exporting", model=run.model)
        outcome = {"kind": "export", "model": run.model, "run": run.id, "study": run.study, "freeze": run.freeze.name}
        try:
            published = _publish(run, record, entry["seeds"], results, exports, _data_dir(job))
            outcome |= {"outcome": "ok", "reason": None, "version": published.version, "size_bytes": published.sizes}
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()
            outcome |= {"outcome": "failed", "reason": _reason(error), "version": None}
            emit("not_exported", model=run.model, reason=outcome["reason"])
        records.append(results, {**outcome, "time": records.now()})


def _publish(
    run: Run, record: dict[str, Any], seeds: list[int], results: Path, exports: Path, data_dir: Path | None
) -> exporting.Published:
    dataset = datasets.load(run.data, data_dir=data_dir, limit=run.limit)
    device.seed_everything(run.seed)
    network = build(run, dataset)
    models.load_weights(network, records.weights_file(results, run.id), head=True, skip=set())
    facts = {
        "study": run.study,
        "freeze": run.freeze.name,
        "variant": run.variant,
        "seed": run.seed,
        "chosen": f"the median of {len(seeds)} seeds by validation top-1",
        "run": run.id,
        "run_time": record["time"],
        "fingerprint": run.fingerprint,
        "data": plan.plain(run.data),
        "limit": run.limit,
        "epochs_cap": run.epochs,
        "trained": {k: record[k] for k in ("validation_top1", "test_top1", "test_loss", "precision", "xla")},
    }
    return exporting.publish(
        models.standard(network.model),
        name=run.model,
        activation=network.head.activation,
        class_names=dataset.class_names,
        images=dataset.test.images[:PARITY_IMAGES],
        facts=facts,
        exports=exports,
    )


def infer(job: dict[str, Any], emit: Emit) -> None:
    """Measure models on one runtime and device; of models with equal graphs one is timed, the others share figures."""
    results, exports = Path(job["results"]), Path(job["exports"])
    device.configure("float32")
    runtime, on = job["runtime"], job["device"]
    timed: dict[str, list[dict[str, Any]]] = {}
    for manifest in job["manifests"]:
        emit("measuring", model=manifest["name"])
        data = plan.restore(datasets.Data, manifest["data"])
        test = datasets.load(data, data_dir=_data_dir(job), limit=manifest["limit"]).test
        folder = exports / manifest["kind"] / manifest["name"] / str(manifest["version"])
        shared = timed.get(manifest["graph"])
        if shared is None:
            rows = []
            without = on == "gpu" and runtimes.RUNTIMES[runtime].hold is not None
            for host_copies in (True, False)[: 1 + without]:
                rows += inference.measure(
                    manifest,
                    folder,
                    runtime,
                    on,
                    batch_sizes=job["batch_sizes"],
                    images=test.images,
                    labels=test.labels,
                    host_copies=host_copies,
                )
            if all(row["outcome"] == "ok" for row in rows):
                timed[manifest["graph"]] = rows
        else:
            own = inference.accuracy(manifest, folder, runtime, on, images=test.images, labels=test.labels)
            rows = [inference.share(row, own) for row in shared]
        for row in rows:
            records.append(results, {**row, "time": records.now(), "machine": machine.facts()})


JOBS = {"train": run_here, "preflight": preflight, "steps": steps, "export": export, "infer": infer}

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        children.serve(work)
