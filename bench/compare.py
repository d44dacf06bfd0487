"""`make bench-compare`: run the benchmarks, compare with the last saved run, fail on a regression beyond the noise.

The noise of a benchmark is what the two runs themselves showed: a median counts as slower when the distance between the
medians is larger than both interquartile ranges together, so that the bulks of the two samples lie apart. What seems
slower is run once more in a process of its own, because a neighbour on the machine passes and a regression stays; it
fails when it is slower again. A run in which something seemed slower is put aside: it is no measure for the next one.
Only runs of one kind of machine and one Python are compared: pytest-benchmark keeps them in a folder each. The first
run has nothing to be compared with and is saved.

    python bench/compare.py [arguments for pytest, such as bench/bench_training.py or -k step]
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

STORAGE = Path(".benchmarks")
Runs = dict[str, dict[str, Any]]


def main(arguments: list[str]) -> int:
    """0 when nothing is slower, 1 when something is, else what pytest said."""
    before = saved(STORAGE)
    if failed := measure(arguments):
        return failed
    newest = saved(STORAGE)
    if len(newest) == len(before):
        print("no benchmark ran, and nothing was saved")
        return 1
    path = newest[-1]
    earlier = [other for other in before if other.parent == path.parent]
    if not earlier:
        print(f"{path} is saved; there is no earlier run on this machine to compare with")
        return 0
    old, new = newest_of(earlier), read(path)
    suspects = slower(old, new)
    if suspects:
        print(f"{len(suspects)} seem slower and are run once more")
        aside = STORAGE / "aside" / path.parent.name
        aside.mkdir(parents=True, exist_ok=True)
        path.rename(aside / path.name)
        if failed := measure(suspects, save=STORAGE / "again"):
            return failed
        again = read(saved(STORAGE / "again")[-1])
        suspects = slower(old, {name: faster(new[name], again[name]) for name in suspects})
    print(f"against the last saved figures, up to {earlier[-1]}")
    print(table(old, new, suspects))
    return 1 if suspects else 0


def measure(arguments: list[str], save: Path = STORAGE) -> int:
    """Run benchmarks in a process of their own and save their figures."""
    flags = ["--benchmark-only", "--benchmark-autosave", f"--benchmark-storage={save}"]
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *flags, *arguments], check=False).returncode


def saved(storage: Path) -> list[Path]:
    """The saved runs, oldest first: their names begin with a number."""
    return sorted(storage.glob("*/[0-9]*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))


def read(path: Path) -> Runs:
    """The benchmarks of a saved run by their names."""
    return {one["fullname"]: one for one in json.loads(path.read_text())["benchmarks"]}


def newest_of(paths: list[Path]) -> Runs:
    """Each benchmark as it was saved last: a run of a part of them leaves the others as they were."""
    found: Runs = {}
    for path in paths:
        found |= read(path)
    return found


def slower(old: Runs, new: Runs) -> list[str]:
    """The benchmarks of both runs whose median went up by more than both interquartile ranges."""
    return [name for name in new if name in old and change(old[name], new[name]) > noise(old[name], new[name])]


def change(old: dict[str, Any], new: dict[str, Any]) -> float:
    """How many seconds the median went up."""
    return new["stats"]["median"] - old["stats"]["median"]


def noise(old: dict[str, Any], new: dict[str, Any]) -> float:
    """The seconds by which two medians may differ."""
    return old["stats"]["iqr"] + new["stats"]["iqr"]


def faster(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of two runs of a benchmark the one with the smaller median."""
    return min(one, other, key=lambda run: run["stats"]["median"])


def table(old: Runs, new: Runs, regressions: list[str]) -> str:
    """One line for each benchmark of the new run, and what the old one had besides."""
    lines = [f"{'before ms':>11} {'now ms':>11} {'noise ms':>11}  benchmark"]
    for name, one in new.items():
        now = f"{one['stats']['median'] * 1e3:11.3f}"
        if name not in old:
            lines.append(f"{'-':>11} {now} {'-':>11}  {name}: new")
            continue
        told = ": SLOWER" if name in regressions else ": faster" if name in slower(new, old) else ""
        if old[name]["extra_info"].get("versions") != one["extra_info"].get("versions"):
            told += " (other versions)"
        was, may = old[name]["stats"]["median"] * 1e3, noise(old[name], one) * 1e3
        lines.append(f"{was:11.3f} {now} {may:11.3f}  {name}{told}")
    lines += [f"{'':>35}  {name}: not run" for name in old if name not in new]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
