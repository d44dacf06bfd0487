"""Fresh interpreters that do the heavy work, and the thread of events they send back."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Died(Exception):
    """A child ended without finishing its job."""


class GivenUp(Exception):
    """A child was ended because it passed its deadline."""


def run(
    module: str,
    job: dict[str, Any],
    *,
    log: Path,
    on_event: Callable[[Event], None],
    deadline: Callable[[], float | None] = lambda: None,
) -> None:
    """Run `python -P -m module` (the working folder hides no library) on a job and hand over its events as they come.

    The child gets the job as one line on its standard input, which stays open: its end tells the child that we are
    gone. What it prints besides events goes to `log`. `deadline` gives a time of `time.monotonic` or None, and is asked
    again after every event. Raises Died with the last lines of the log, or GivenUp. The child is never left running.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as log_file:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")},
            start_new_session=True,
        )
    try:
        finished = _talk(child, job, on_event, deadline)
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                _close(pipe)
    if child.returncode != 0 or not finished:
        raise Died(_cause(child.returncode, log))


def _talk(
    child: subprocess.Popen[bytes],
    job: dict[str, Any],
    on_event: Callable[[Event], None],
    deadline: Callable[[], float | None],
) -> bool:
    """Send the job, hand over events until the child closes its output; True when it said that it was done."""
    assert child.stdin and child.stdout
    try:
        child.stdin.write(json.dumps(job).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        return False
    lines: queue.Queue[bytes | None] = queue.Queue()
    output = child.stdout

    def pump() -> None:
        for line in output:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    finished = False
    while True:
        limit = deadline()
        try:
            line = lines.get(timeout=None if limit is None else max(0.0, limit - time.monotonic()))
        except queue.Empty:
            raise GivenUp from None
        if line is None:
            child.wait()
            return finished
        event = json.loads(line)
        finished = finished or event["event"] == "finished"
        on_event(event)


def _close(pipe: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def _cause(status: int, log: Path) -> str:
    if status == -9:
        return "killed by the system, most likely for want of memory"
    if status < 0:
        return f"ended by signal {-status}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"exit status {status}: {lines[-1] if lines else 'nothing in its log'}"


# -- the child's side ----------------------------------------------------------------------------------


def serve(work: Callable[[dict[str, Any], Callable[..., None]], None]) -> None:
    """Read the job, do `work(job, emit)`, and end the process, or earlier with the parent; events leave by the original
    standard output."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.buffer.readline() or b"null")
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def emit(event: str, **facts: Any) -> None:
        events.write(json.dumps({"event": event, **facts}) + "\n")
        events.flush()

    if job is not None:
        work(job, emit)
        emit("finished")
    events.close()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # TensorFlow takes a second to go, and has nothing left to do


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
