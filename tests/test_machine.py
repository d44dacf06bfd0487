import json
import os
from pathlib import Path

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
