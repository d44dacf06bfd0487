"""After a study: what was trained is published."""

import traceback
from pathlib import Path
from typing import Any

from frostline import datasets, device, exporting, models, plan, records
from frostline.errors import UserError
from frostline.jobs import common
from frostline.jobs.common import Emit
from frostline.plan import Run

PARITY_IMAGES = 32


def export(job: dict[str, Any], emit: Emit) -> None:
    """Publish chosen runs; what fails becomes a record and an event, and the others go on."""
    results = Path(job["results"])
    device.configure("float32")
    runs = [plan.restore(Run, entry["record"]["config"]) for entry in job["chosen"]]
    for run in {(plan.whole(run.data), run.fingerprint): run for run in runs}.values():
        datasets.check_unchanged(run.data, run.fingerprint, run.model, data_dir=common.data_dir(job))
    for run, entry in zip(runs, job["chosen"], strict=True):
        emit("exporting", model=run.model)
        outcome = {"kind": "export", "model": run.model, "run": run.id, "study": run.study, "freeze": run.freeze.name}
        try:
            published = _publish(run, entry, job)
            outcome |= {"outcome": "ok", "reason": None, "version": published.version, "size_bytes": published.sizes}
            outcome |= {"variants": published.variants, "accuracy": published.accuracy}
            for name, about in published.variants.items():
                if about["outcome"] != "ok":
                    emit("variant_refused", model=run.model, variant=name, reason=about["reason"])
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()
            outcome |= {"outcome": "failed", "reason": common.reason(error), "version": None}
            emit("not_exported", model=run.model, reason=outcome["reason"])
        records.append(results, {**outcome, "time": records.now()})


def _publish(run: Run, entry: dict[str, Any], job: dict[str, Any]) -> exporting.Published:
    record = entry["record"]
    _, dataset = datasets.part(common.load(plan.whole(run.data), common.data_dir(job), run.limit), run.data)
    device.seed_everything(run.seed)
    network = common.build(run, dataset)
    models.load_weights(network, records.weights_file(Path(job["results"]), run.id), head=True, skip=set())
    facts = {
        "study": run.study,
        "freeze": run.freeze.name,
        "variant": run.variant,
        "seed": run.seed,
        "chosen": f"the median of {len(entry['seeds'])} seeds by validation top-1",
        "run": run.id,
        "run_time": record["time"],
        "fingerprint": run.fingerprint,
        "data": plan.plain(run.data),
        "scaling": models.scaling(run.backbone.name, run.data.scaling),
        "limit": run.limit,
        "epochs_cap": run.epochs,
        "record": {key: value for key, value in record.items() if key != "history"},
        "trained": {k: record[k] for k in ("validation_top1", "test_top1", "test_loss", "precision", "xla")},
    }
    return exporting.publish(
        models.standard(network.model),
        name=run.model,
        activation=network.head.activation,
        class_names=dataset.class_names,
        images=dataset.test.images[:PARITY_IMAGES],
        facts=facts,
        exports=Path(job["exports"]),
        data=dataset,
        onnx_variants=entry["variants"],
    )
