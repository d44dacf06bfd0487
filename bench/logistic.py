"""A linear probe beside scikit-learn's logistic regression on the same features.

    frostline run cats_and_dogs_efficientnet_lite0 --only linear_probe --data-dir DIR
    python bench/logistic.py results cats_and_dogs_efficientnet_lite0 linear_probe --data-dir DIR

The features are those that the runs were trained on; the regression is fitted to the training images alone, with
scikit-learn's defaults, after each feature is divided by its largest value.
"""

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from sklearn.linear_model import LogisticRegression
from tabulate import tabulate

from frostline import datasets, features, plan, records
from frostline.plan import Run


def score(run: Run, key: str, data_dir: Path | None) -> dict[str, float]:
    """Validation and test accuracy of a logistic regression on the features stored under `key`."""
    dataset = datasets.load(run.data, data_dir=data_dir, limit=run.limit)
    with features.load(key, memory_bytes=2**40) as found:
        arrays = {name: found.arrays[name][0] for name in ("train", "validation", "test")}
        scale = arrays["train"].max(axis=0).clip(min=1e-6)
        model = LogisticRegression(max_iter=2000).fit(arrays["train"] / scale, dataset.train.labels)
        labels = {"validation": dataset.validation.labels, "test": dataset.test.labels}
        return {name: float(model.score(arrays[name] / scale, truth)) for name, truth in labels.items()}


def newest(results: Path, study: str, freeze: str) -> list[dict[str, Any]]:
    """The finished runs of the newest configuration of that name."""
    found = [c for c in records.configurations(records.read(results)) if (c.study, c.freeze) == (study, freeze)]
    rows = found[-1].finished if found else []
    if not rows or not rows[0].get("features"):
        raise SystemExit(f"{results} holds no finished run of {study} {freeze} on features")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("study")
    parser.add_argument("freeze")
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    rows = newest(args.results, args.study, args.freeze)
    own = score(plan.restore(Run, rows[0]["config"]), rows[0]["features"][0]["key"], args.data_dir)
    table = [
        [f"{args.freeze} ({len(rows)} seeds)", *(f"{statistics.mean(r[f'{s}_top1'] for r in rows):.4f}" for s in own)],
        ["logistic regression", *(f"{value:.4f}" for value in own.values())],
    ]
    headers = ["", "validation top-1", "test top-1"]
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True, colalign=["left", "right", "right"]))


if __name__ == "__main__":
    main()
