"""How what a person waits for grows with configurations, seeds and images, the notebook way and ours.

    python bench/cost_growth.py [--images 2500,10000]

Heads of several widths on a frozen VGG16 at 32×32, ten epochs each; every line starts from nothing. The two sides are
those of `bench/study_ratio.py`, whose clock this is: one notebook epoch is measured and multiplied.
"""

import argparse
import os
import tempfile
from pathlib import Path

from study_ratio import EPOCHS, VGG16, freezes, notebook, waited, write_data
from tabulate import tabulate

from frostline.harness import Places
from frostline.plan import Options

WIDTHS = (256, 64, 128, 512)
GRID = ((1, 1), (1, 3), (2, 1), (4, 1), (4, 3))  # configurations, seeds


def ours(data: Path, images: int, configurations: int, seeds: int, place: Path) -> float:
    """Seconds of `frostline run` with nothing found ready."""
    heads = (f'pooling = "flatten", layers = [{{ dense = {width} }}, {{ dropout = 0.5 }}]' for width in WIDTHS)
    rows = [f'name = "head_{i}"\nhead = {{ {head} }}' for i, head in enumerate(heads)]
    study = place / "growth.toml"
    fixed = {"precision": "mixed_bfloat16", "weights": data / "vgg16.weights.h5", "validation": round(1 / 11, 6)}
    study.write_text(VGG16.format(**fixed) + freezes(*rows[:configurations]))
    os.environ["FROSTLINE_CACHE"] = str(place / "cache")
    options = Options(seeds=tuple(range(seeds)), limit=images)
    return waited(study, options, Places(place / "results", place / "exports", data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="2500,10000")
    table = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for images in map(int, parser.parse_args().images.split(",")):
            data = root / f"data-{images}"
            data.mkdir()
            write_data(data, images)
            alone = notebook("notebook_vgg16.py 256", data, images)
            for configurations, seeds in GRID:
                place = root / f"{images}-{configurations}-{seeds}"
                place.mkdir()
                a, b = configurations * seeds * alone, ours(data, images, configurations, seeds, place)
                table.append([f"{images:,}", configurations, seeds, f"{a:,.0f}", f"{b:,.1f}", f"{a / b:.1f}"])
    headers = ["images", "configurations", "seeds", "notebook s", "ours s", "ratio"]
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True, colalign=["right"] * 6))
    print(f"\n{EPOCHS} epochs; the notebook's seconds are one measured epoch times epochs, configurations and seeds.")


if __name__ == "__main__":
    main()
