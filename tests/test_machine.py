import json
import os
import subprocess
from pathlib import Path

import pytest

from frostline import machine


def test_facts_are_json_and_name_the_libraries():
    facts = json.loads(json.dumps(machine.facts()))
    assert facts["cores"] >= 1 and facts["cpu"]
    assert {"tensorflow", "keras"} <= facts["versions"].keys()


def test_peak_memory_grows_with_what_is_held():
    machine.reset_peak_memory()
    before = machine.peak_memory_bytes()
    held = bytearray(b"x") * (64 << 20)
    assert machine.peak_memory_bytes() - before > 32 << 20
    assert len(held)


def test_gpus_are_read_from_what_nvidia_smi_prints(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA H100, 550.1, 81559 MiB'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(fake))
    assert machine.gpus() == [{"name": "NVIDIA H100", "driver": "550.1", "memory": "81559 MiB"}]


def test_available_memory_is_a_part_of_all_memory():
    assert 0 < machine.available_memory_bytes() < machine.memory_bytes()


MEMINFO, MIB = "MemTotal: 9216 kB\nMemAvailable: 8192 kB\n", 2**20
V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/memory/"


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/\n", {V2 + "memory.max": 5 * MIB, V2 + "memory.current": 2 * MIB}, 3 * MIB),
        (
            "0::/\n",
            {V2 + "memory.max": 5 * MIB, V2 + "memory.current": 4 * MIB, V2 + "memory.stat": "anon 7\ninactive_file 9"},
            MIB + 9,
        ),
        (
            "0::/a/b\n",
            {V2 + "a/memory.max": 5 * MIB, V2 + "a/memory.current": MIB, V2 + "a/b/memory.max": "max"},
            4 * MIB,
        ),
        ("0::/\n", {V2 + "memory.max": MIB, V2 + "memory.current": 2 * MIB}, 0),
        ("0::/\n", {V2 + "memory.max": "max\n", V2 + "memory.current": MIB}, 8 * MIB),
        ("0::/\n", {V2 + "memory.max": 99 * MIB, V2 + "memory.current": MIB}, 8 * MIB),
        (
            "5:cpu,cpuacct:/x\n4:memory:/host/x\n0::/\n",  # of a container: its own group is at the top
            {V1 + "memory.limit_in_bytes": 5 * MIB, V1 + "memory.usage_in_bytes": 3 * MIB},
            2 * MIB,
        ),
        (
            "4:cpu,memory:/x\n",
            {
                V1 + "memory.limit_in_bytes": 2**63 - 4096,
                V1 + "memory.usage_in_bytes": MIB,
                V1 + "x/memory.limit_in_bytes": 6 * MIB,
                V1 + "x/memory.usage_in_bytes": MIB,
                V1 + "x/memory.stat": "inactive_file 1\ntotal_inactive_file 5",
            },
            5 * MIB + 5,
        ),
        ("4:cpu:/x\n", {V1 + "memory.limit_in_bytes": MIB, V1 + "memory.usage_in_bytes": 0}, 8 * MIB),
        ("", {}, 8 * MIB),
    ],
)
def test_a_container_has_what_its_limit_leaves(groups, files, left, tmp_path, monkeypatch):
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(str(text))
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.available_memory_bytes() == left
    (tmp_path / "proc/meminfo").unlink()
    assert machine.available_memory_bytes() is None


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.setenv("FROSTLINE_CACHE", "/own")
    assert machine.cache() == Path("/own")
    monkeypatch.delenv("FROSTLINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert machine.cache() == Path("/somewhere/frostline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert machine.cache() == Path.home() / ".cache" / "frostline"


def test_another_process_can_be_asked_for_its_memory_and_its_seconds():
    assert machine.peak_memory_bytes(os.getpid()) > 1 << 20 and machine.cpu_seconds(os.getpid()) > 0
    gone = 2**22 + 1  # above the largest number that Linux gives
    assert machine.peak_memory_bytes(gone) is None and machine.cpu_seconds(gone) is None


def test_memory_on_a_gpu_is_that_of_the_process(monkeypatch):
    told = "7, 100\n8, 50\n7, 20\n9, [N/A]\n"
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess([], 0, told))
    assert machine.gpu_memory_bytes(7) == 120 << 20
    assert machine.gpu_memory_bytes(9) is None and machine.gpu_memory_bytes(1) is None
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.gpu_memory_bytes(7) is None
