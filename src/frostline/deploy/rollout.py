"""A new version for a running server, step by step, each of which it accepts and each of which can be taken back.

TensorFlow Serving refuses a configuration that moves a label to a version it has not loaded, and then loads nothing of
it. So a version is loaded in one step and labelled in the next:

    frostline rollout MODEL              load the new version beside the old one
    frostline rollout MODEL              30 s later: `canary` means the new one
    frostline rollout MODEL --promote    `stable` means it, too; the old one stays loaded
    frostline rollout MODEL --finish     the old one is unloaded; a newer one is not: that is a step back
    frostline rollback MODEL             one step back, whichever was the last

With the address of the server the first two are one command, and none says that it is done before the server is.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from frostline.client import Connection, ServingError
from frostline.deploy import config
from frostline.deploy.config import CANARY, STABLE, Served
from frostline.errors import UserError

EXPORTS = Path("exports")  # what the commands mean without --exports
POLL_SECONDS = 1.0
# Without the server's word, a version counts as loaded when models.config has not changed for so long.
SETTLED_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A server to wait for, at most `timeout` seconds for each step."""

    connection: Connection
    timeout: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Step:
    """What models.config says next, what the server then does, and what to type after that.

    `hasty` where it must have read the step before: it would refuse this one, and go on refusing.
    """

    state: Served
    told: str
    then: str
    hasty: bool = False


# -- the steps ---------------------------------------------------------------------------------------------


def flags(exports: Path, url: str | None) -> str:
    """What a command that is to be typed next needs after MODEL, to mean the same files and the same server."""
    given = ["--exports", str(exports)] if exports != EXPORTS else []
    return "".join(f" {shlex.quote(word)}" for word in (*given, *(["--url", url] if url else [])))


def forward(model: str, now: Served, published: Collection[int], version: int | None, given: str = "") -> Step:
    """Load a version, or make it canary where it is loaded; raises UserError where another is on its way.

    Here and below, `given` are the `flags` that the commands in messages have.
    """
    command = f"frostline rollout {model}{given}"
    undo = f"frostline rollback {model}{given}"
    waiting = [number for number in now.versions if number not in (now.stable, now.canary)]
    if version is None:
        newer = [number for number in (*waiting, now.canary) if number > now.stable]
        version = newer[0] if newer else max(published, default=now.stable)
    if version not in published:
        raise UserError(f"{model} has no version {version}; there are: {', '.join(map(str, sorted(published)))}")
    if version == now.canary != now.stable:
        raise UserError(f"{model} {version} is canary already; type: {command} --promote, or {undo}")
    if version == now.stable:
        raise UserError(f"{model} {version} is stable already; publish another version, or give --version")
    if now.canary != now.stable:
        raise UserError(f"{model} {now.canary} is canary; type first: {command} --promote, or {undo}")
    if version in now.versions:
        return Step(
            replace(now, canary=version),
            f"answers the label canary with version {version}, and stable with {now.stable} as before",
            f"{command} --promote",
            hasty=True,
        )
    if waiting:
        typed = _unload(model, now, given)
        raise UserError(f"{model} {max(waiting)} is loaded and has no label; type first: {typed}")
    return Step(
        replace(now, versions=tuple(sorted((*now.versions, version)))),
        f"loads version {version} beside {now.stable}; the higher of them answers who names no label or version",
        f"once it is loaded, {command} --version {version}",
    )


def promote(model: str, now: Served, given: str = "") -> Step:
    """Let `stable` mean what `canary` means; raises UserError where they mean the same."""
    if now.canary == now.stable:
        raise UserError(f"{model} has no canary to promote: {now}; type: frostline rollout {model}{given}")
    state = replace(now, stable=now.canary)
    told = f"answers stable and canary with version {now.canary}; version {now.stable} stays loaded"
    undo = f", or frostline rollback {model}{given}" if now.canary > now.stable else ""
    return Step(state, told, _unload(model, state, given) + undo)


def finish(model: str, now: Served, given: str = "") -> Step:
    """Unload older versions; raises UserError where a rollout is half done or nothing is left over."""
    if now.canary != now.stable:
        typed = f"frostline rollout {model}{given} --promote, or frostline rollback {model}{given}"
        raise UserError(f"{model} {now.canary} is canary; type first: {typed}")
    rest = [str(number) for number in now.versions if number != now.stable]
    if not rest:
        raise UserError(f"nothing to finish for {model}: {now}")
    if newer := [number for number in now.versions if number > now.stable]:
        typed = f"frostline rollout {model}{given} to call it canary, or frostline rollback {model}{given} to unload it"
        raise UserError(f"{model} {max(newer)} has no label, and --finish would unload it; type: {typed}")
    return Step(replace(now, versions=(now.stable,)), f"unloads version {', '.join(rest)}", "")


def back(model: str, now: Served, published: Collection[int], given: str = "") -> Step:
    """One step back; raises UserError where there is no older version."""
    command = f"frostline rollback {model}{given}"
    newer = [number for number in now.versions if number > now.stable]
    if now.canary != now.stable:
        told = f"answers canary with version {now.stable} again; version {now.canary} stays loaded"
        state = replace(now, canary=now.stable)
        return Step(state, told, _unload(model, state, given))
    if newer:
        return Step(
            replace(now, versions=tuple(number for number in now.versions if number not in newer)),
            f"unloads version {', '.join(map(str, newer))}",
            "",
        )
    older = max((number for number in {*now.versions, *published} if number < now.stable), default=None)
    if older is None:
        raise UserError(f"{model} has nothing before version {now.stable} to go back to")
    if older in now.versions:
        told = f"answers stable and canary with version {older} again; version {now.stable} stays loaded"
        state = replace(now, stable=older, canary=older)
        return Step(state, told, _unload(model, state, given), hasty=True)
    return Step(
        replace(now, versions=(older, *now.versions)),
        f"loads version {older} again beside {now.stable}",
        f"once it is loaded, {command}",
    )


def _unload(model: str, now: Served, given: str) -> str:
    """The command that unloads what has no label: a newer version is taken back, an older one finished with."""
    if max(now.versions) > now.stable:
        return f"frostline rollback {model}{given}"
    return f"frostline rollout {model}{given} --finish"


# -- doing them --------------------------------------------------------------------------------------------


def versions(exports: Path, model: str) -> list[int]:
    """The versions of a model's SavedModel that are complete, ascending."""
    folders = (exports / "saved_model" / model).glob("*")
    parts = ("saved_model.pb", "manifest.json")
    return sorted(int(f.name) for f in folders if f.name.isdecimal() and all((f / part).is_file() for part in parts))


def take(
    exports: Path,
    model: str,
    next_step: Callable[[Served, str], Step],
    server: Server | None,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.time,
) -> None:
    """Write one step into models.config; where a server can be waited for, go on from a load to the label.

    `next_step` is one of the above, given what is served and the `flags` of the command. Raises UserError where a step
    makes no sense, and where the server does not follow within its time.
    """
    path = exports / "serving" / config.FILE
    given = flags(exports, server.connection.url if server else None)
    grew = True
    while grew:
        whole = config.read(path)
        entry = config.entry(whole, model)
        now = config.served(entry)
        step = next_step(now, given)
        _check(exports, model, step.state)
        if server:  # it refuses labels of versions that it does not hold
            _wait(server, model, {step.state.stable, step.state.canary}, {}, given, set())
            whole = config.read(path)  # others may have written it while we waited
            entry = config.entry(whole, model)
            if config.served(entry) != now:
                raise UserError(f"{path}: somebody else changed {model} meanwhile; it is {config.served(entry)}")
        elif step.hasty and (rest := SETTLED_SECONDS - (clock() - path.stat().st_mtime)) > 0:
            raise UserError(
                f"{path} has just been written, and a server that has not loaded {model} {step.state.canary} yet would "
                f"refuse the label for good; give --url, to wait for it, or type it again in {rest:.0f} s"
            )
        config.set_served(entry, step.state)
        tried = _failed(server.connection, model) if server else set()  # before this step
        config.write(path, whole)
        say(f"{path}: {model} {step.state}")
        if server:
            _wait(server, model, set(step.state.versions), _labels(step.state), given, tried)
        grew = bool(server) and len(step.state.versions) > len(now.versions)
        say(f"The server {step.told}." if server else f"At its next poll the server {step.told}.")
    if step.then:
        say(f"Next: {step.then}")


def _check(exports: Path, model: str, state: Served) -> None:
    """Every version that the server is told to hold must be there: it would wait for a missing one for ever."""
    missing = sorted(set(state.versions) - set(versions(exports, model)))
    if missing:
        raise UserError(f"{exports / 'saved_model' / model} has no complete version {missing[0]}; put it back first")


def _labels(state: Served) -> dict[str, int]:
    return {STABLE: state.stable, CANARY: state.canary}


def _failed(connection: Connection, model: str) -> set[int]:
    """Versions that the server could not load when it tried last."""
    return {one.version for one in connection.status(model) if one.state == "END" and one.error}


def _wait(server: Server, model: str, loaded: set[int], labels: dict[str, int], given: str, tried: set[int]) -> None:
    """Until the server holds these versions and answers to these labels; raises UserError after its time.

    The failures of versions `tried` before are old ones until the server is seen to try them again.
    """
    deadline = server.clock() + server.timeout
    while trouble := _trouble(server.connection, model, loaded, labels, given, tried):
        if server.clock() > deadline:
            undo = f"; if it cannot load it, type: frostline rollback {model}{given}" if " LOADING" in trouble else ""
            raise UserError(
                f"{server.connection.url}: {trouble} after {server.timeout:g} s; does it poll this models.config, "
                f"with --model_config_file_poll_wait_seconds?{undo}"
            )
        server.sleep(POLL_SECONDS)


def _trouble(
    connection: Connection, model: str, loaded: set[int], labels: dict[str, int], given: str, tried: set[int]
) -> str | None:
    """What is not yet as it shall be; raises UserError where a version cannot be loaded."""
    states = {one.version: one for one in connection.status(model)}
    tried.intersection_update(version for version, one in states.items() if one.state == "END")
    for version in sorted(loaded):
        state = states.get(version)
        if state and state.state == "END" and state.error and version not in tried:
            undo = f"frostline rollback {model}{given}"
            raise UserError(f"{model} {version} could not be loaded: {state.error}; type: {undo}")
        if not state or state.state != "AVAILABLE":
            failed = f", since {state.error}," if state and state.error else ""  # when it was tried before
            return f"{model} {version} is {state.state if state else 'unknown'}{failed}"
    for label, version in labels.items():
        try:
            found = connection.metadata(model, label=label).version
        except ServingError as error:
            if error.code != "NOT_FOUND":
                raise
            return f"{model} has no label {label}"
        if found != version:
            return f"{label} of {model} is still version {found}"
    return None
