import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from frostline import children

TOY = """
import os, sys, time
from frostline import children

def work(job, emit):
    print("noise on standard output")
    emit("hello", number=job["number"])
    if job["do"] == "raise":
        raise ValueError("broken on purpose")
    if job["do"] == "kill":
        os.kill(os.getpid(), 9)
    if job["do"] == "hang":
        time.sleep(600)

children.serve(work)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(children.__file__).parents[1])]))
    return tmp_path


def run(folder, do, **kwargs):
    events = []
    children.run("toy", {"do": do, "number": 7}, log=folder / "log.txt", on_event=events.append, **kwargs)
    return events


def test_events_come_back_and_other_output_goes_to_the_log(toy):
    assert run(toy, "work") == [{"event": "hello", "number": 7}, {"event": "finished"}]
    assert "noise on standard output" in (toy / "log.txt").read_text()


def test_an_exception_is_a_death_with_its_last_line(toy):
    with pytest.raises(children.Died, match="exit status 1: ValueError: broken on purpose"):
        run(toy, "raise")


def test_a_kill_is_a_death_that_suggests_memory(toy):
    with pytest.raises(children.Died, match="want of memory"):
        run(toy, "kill")


def test_a_child_past_its_deadline_is_ended(toy):
    with pytest.raises(children.GivenUp):
        run(toy, "hang", deadline=lambda: time.monotonic() + 0.5)


def test_a_child_ends_when_its_parent_is_killed(toy):
    parent = f"""
    from pathlib import Path
    from frostline import children
    job = {{"do": "hang", "number": 1}}
    children.run("toy", job, log=Path({str(toy)!r}) / "log.txt", on_event=lambda e: print("up", flush=True))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    limit = time.monotonic() + 10
    while alive(child) and time.monotonic() < limit:
        os.sched_yield()
    assert not alive(child)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
