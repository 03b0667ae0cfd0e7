"""What every benchmark writes beside its numbers: hardware, versions, command; and how its pictures look."""

import argparse
import csv
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# Okabe and Ito's palette, which people with any colour vision can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#8c8c8c"
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")


def add_common_arguments(parser: argparse.ArgumentParser, presets: Sequence[str]) -> None:
    """Arguments that the benchmarks share."""
    parser.add_argument("--preset", choices=presets, help="default: gpu where there is one, else cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the picture")


def default_preset() -> str:
    """`gpu` where one is visible, else `cpu`."""
    return "gpu" if gpus() and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else "cpu"


def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each NVIDIA GPU, asked without starting CUDA in this process."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(("name", "memory", "driver"), row, strict=True)) for row in rows if len(row) == 3]


def hardware() -> dict[str, Any]:
    """CPU model, cores, RAM in GiB, GPUs."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^(?:model name|Hardware|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "cpu": model.group(1) if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus(),
    }


def environment(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Hardware, versions, and the command that runs this again, wherever it writes."""
    arguments = list(arguments)
    if "--output" in arguments:
        at = arguments.index("--output")
        del arguments[at : at + 2]
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    command = f"python -m {module} {shlex.join(arguments)}".strip()
    return {"command": command, "hardware": hardware(), "versions": versions}


def slug(device: str) -> str:
    """A device's name as part of a file name.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write_json(report: dict[str, Any], folder: Path, name: str) -> Path:
    """Write a report as `name.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {path}")
    return path


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people: the first column to the left, numbers to the right."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    print(f"\n{title}")
    for row in cells:
        aligned = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *aligned[1:]]))
    sys.stdout.flush()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextmanager
def picture(
    folder: Path, name: str, environment: dict[str, Any], rows: int, columns: int, size: tuple[float, float]
) -> Iterator[Any]:
    """Axes [rows][columns] in one style; on leaving, a footer says what was measured where, and `name.png` is written.

    Args:
        folder: where the picture goes.
        name: of the file, without ending.
        environment: result of `environment`.
        rows, columns: of axes.
        size: width and height of each in inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "font.size": 9,
             "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False, "axes.axisbelow": True}  # fmt: skip
    with plt.rc_context(style):
        width, height = size[0] * columns, size[1] * rows + 0.5
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
        figure.set_layout_engine("constrained", rect=(0, 0.45 / height, 1, 1 - 0.45 / height))
        yield axes
        figure.text(0.01, 0.06 / height, footer(environment), fontsize=6, color="#555555", va="bottom")
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=130)
        plt.close(figure)
    print(f"wrote {folder / name}.png")


def footer(environment: dict[str, Any]) -> str:
    """Hardware, versions and command in two lines."""
    machine = environment["hardware"]
    names = [gpu["name"] for gpu in machine["gpus"]]
    gpu = f"{len(names)} x {names[0]}, " if names else ""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    first = f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']} GiB RAM"
    return f"{first}; {versions}\n{environment['command']}"
