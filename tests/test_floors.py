"""Who may import whom: a module sees lower floors only, and the light ones load nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import frostline

FLOORS = {
    0: {"errors", "timing", "machine", "progress", "children", "batching"},
    1: {"studies", "pytorch", "graphs", "im2col", "tfds", "device", "client", "protos"},
    2: {"records", "whole", "plan", "layers", "lite0", "own", "serving"},
    3: {"tables", "plots", "choice", "datasets", "backbones", "heads", "freezing", "features", "augment"},
    4: {"predict", "recommend", "models", "frontier", "cached", "runtimes", "search"},
    5: {"training", "exporting", "inference", "deploy"},
    6: {"prefix", "matrix"},
    7: {"costs", "trunk"},
    8: {"harness", "jobs", "measuring"},
    9: {"cli"},
}
# plan needs studies alone; choice needs plan; search needs plan, heads and backbones;
# freezing marks the BatchNormalization of layers.
SOURCE = Path(frostline.__file__).parent
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
LIGHT = sorted(FLOORS[0] | FLOORS[1] | {"records", "serving", "whole", "recommend", "plan", "tables", "plots", "choice",
                                       "datasets", "backbones", "heads", "freezing", "features", "runtimes", "search",
                                       "cli"})  # fmt: skip


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        top = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if top != "__init__":
            yield path, top


def imported(path):
    """Top-level modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "frostline":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("frostline."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("frostline."))


def test_every_module_has_a_floor():
    assert {top for _, top in modules()} == set(FLOOR_OF)


@pytest.mark.parametrize(("path", "top"), list(modules()), ids=lambda value: getattr(value, "stem", ""))
def test_a_module_imports_from_lower_floors_only(path, top):
    for name in imported(path):
        if name in ("__version__", top):
            continue
        assert FLOOR_OF[name] < FLOOR_OF[top], f"{top} imports {name}"


def test_light_modules_load_nothing_heavy():
    code = f"""
import importlib, sys
for name in {LIGHT}:
    importlib.import_module("frostline." + name)
print(sorted({{"tensorflow", "keras", "numpy", "matplotlib", "plotly"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
