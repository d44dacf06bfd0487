"""Facts about the machine and the software that a result depends on."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    "frostline",
    "tensorflow",
    "keras",
    "numpy",
    "onnx",
    "tf2onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "mlcommons-loadgen",
)
ROOT = Path("/")  # of the files in which Linux tells of memory


def facts() -> dict[str, Any]:
    """CPU, memory, accelerators, library versions and the commit of the source tree."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's marketing name, or its architecture where none is given."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Physical memory in bytes, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def available_memory_bytes() -> int | None:
    """Memory that can be had now without swapping, in a container within its limit; None where the system does not
    tell (it is Linux that does)."""
    try:
        for line in (ROOT / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return max(0, min([int(line.split()[1]) * 1024, *_left_by_cgroups()]))
    except OSError:
        pass
    return None


def _left_by_cgroups() -> Iterator[int]:
    """Bytes that each control group of this process leaves it, of version 2 and 1; none where no limit is set.

    Inactive page cache does not count as used, as in `docker stats`: the kernel gives it back.
    """
    for line in _read(ROOT / "proc/self/cgroup").splitlines():
        number, controllers, place = line.split(":", 2)
        if number == "0":
            base, most, used, cache = "", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, most, used, cache = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        top = ROOT / "sys/fs/cgroup" / base
        inside = top / place.strip("/")
        for folder in {top, inside, *(p for p in inside.parents if p.is_relative_to(top))}:
            limit, use = _read(folder / most).strip(), _read(folder / used).strip()
            if limit.isdecimal() and use.isdecimal():  # "max" is no limit
                stat = dict(fields.split(maxsplit=1) for fields in _read(folder / "memory.stat").splitlines())
                yield int(limit) - int(use) + int(stat.get(cache, 0))


def _read(path: Path) -> str:
    """A text file, empty where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of each NVIDIA GPU, as nvidia-smi says; empty without one."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(("name", "driver", "memory"), row, strict=True)) for row in rows]


def gpu_memory_bytes(process: int) -> int | None:
    """Memory that a process holds on the GPUs, as nvidia-smi says; None where it does not know the process."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = [line.split(",") for line in done.stdout.splitlines()]
    own = [
        int(row[1]) for row in rows if len(row) == 2 and row[0].strip() == str(process) and row[1].strip().isdecimal()
    ]
    return sum(own) * 2**20 if own else None


def versions() -> dict[str, str]:
    """Installed versions of the libraries that results depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the source tree this package runs from, `+` when it has changes; None outside a checkout."""
    here = Path(__file__).resolve().parent
    tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", "machine.py"]
    describe = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        for command in (tracked, describe):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return None
    except OSError:
        return None
    return done.stdout.strip() or None


def cache() -> Path:
    """Where downloads, decoded images and features are kept: FROSTLINE_CACHE, else XDG_CACHE_HOME/frostline."""
    if own := os.environ.get("FROSTLINE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "frostline"


def reset_peak_memory() -> None:
    """Set the peak of this process's resident memory to what it holds now, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def cpu_seconds(process: int) -> float | None:
    """Seconds that the cores have spent on another process; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory_bytes(process: int | None = None) -> int | None:
    """Largest resident memory of a process (None: of this one) since `reset_peak_memory`, or since its start."""
    try:
        for line in Path(f"/proc/{process or 'self'}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if process:
        return None
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
