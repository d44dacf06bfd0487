"""Which versions of which models are in memory: found in folders, loaded before the old ones go, never taken away from
a request that runs on them."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frostline.serving import config
from frostline.serving.config import Model
from frostline.serving.flags import Flags
from frostline.serving.servables import Servable
from frostline.serving.status import Refused, invalid, refused


class Unavailable(Refused):
    """What is asked for is in force, but a new model of it has no version that loads."""


@dataclass
class Version:
    """A version that was asked for at some time; `state` is one of TensorFlow Serving's."""

    state: str = "START"
    wanted: bool = True
    error: Refused | None = None
    servable: Servable | None = None
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


def say(message: str) -> None:
    """A line for the person at the terminal."""
    print(f"frostline: {message}", file=sys.stderr, flush=True)


class Models:
    """The served models; made, used and closed in one event loop. `load` gives a version that is ready to answer."""

    def __init__(
        self, load: Callable[[str, int, Path], Servable], close: Callable[[Servable], None], flags: Flags
    ) -> None:
        self.models: dict[str, Model] = {}
        self.versions: dict[str, dict[int, Version]] = {}
        self._load, self._close, self._flags = load, close, flags
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._applying = asyncio.Lock()
        self._said: dict[str, str] = {}

    async def apply(self, asked: Mapping[str, Model]) -> None:
        """Serve these models and no others; returns once each new one answers. Raises Refused, Unavailable among it."""
        async with self._applying:
            available = {name: self._in_state(name, "AVAILABLE") for name in self.versions}
            allow = self._flags.allow_version_labels_for_unavailable_models
            config.check_labels(asked, self.models, available, allow)
            new, self.models = asked.keys() - self.models.keys(), dict(asked)
            self.aspire()
            while waiting := [name for name in new if not self._in_state(name, "AVAILABLE")]:
                for name in waiting:
                    wanted = [number for number, version in self.versions[name].items() if version.wanted]
                    if wanted and not set(wanted) - set(self._in_state(name, "END")):
                        failed = ", ".join(f"{{name: {name} version: {number}}}" for number in wanted)
                        raise Unavailable("UNKNOWN", f"model(s) did not become available: {{{failed}}}")
                await self._changed.wait()

    def aspire(self) -> None:
        """Compare the folders with what is loaded, and begin to load and to unload."""
        for name in {*self.models, *self.versions}:
            found = self.versions.setdefault(name, {})
            try:
                wanted = config.wanted(self.models[name]) if name in self.models else {}
                note = "" if wanted or name not in self.models else f"No versions of servable {name} found"
            except Refused as error:
                wanted, note = None, error.message
            if note and self._said.get(name) != note:
                say(note)
            self._said[name] = note
            if wanted is None:
                continue
            for number, version in found.items():
                if version.state == "END" and not version.wanted and number in wanted:
                    found[number] = Version()
                version.wanted = number in wanted
            for number, path in wanted.items():
                version = found.setdefault(number, Version())
                if version.state == "START":
                    version.state = "LOADING"
                    self._start(self._bring(name, number, path, version))
            self._drop(name)

    def _in_state(self, name: str, state: str) -> list[int]:
        return [number for number, version in self.versions.get(name, {}).items() if version.state == state]

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bring(self, name: str, number: int, path: Path, version: Version) -> None:
        """Load a version, trying again for a while: its folder may still be being copied."""
        loop, about = asyncio.get_running_loop(), f"servable version {{name: {name} version: {number}}}"
        for attempt in range(1 + self._flags.max_num_load_retries):
            if attempt:
                await asyncio.sleep(self._flags.load_retry_interval_micros / 1e6)
            if not version.wanted:
                break
            say(f"loading {about}")
            try:
                version.servable = await loop.run_in_executor(self._loader, self._load, name, number, path)
            except Exception as error:
                version.error = refused(error)
                say(f"loading {about} failed: {version.error}")
            else:
                version.error = None
                say(f"successfully loaded {about}")
                break
        version.state = "AVAILABLE" if version.servable else "END"
        self._drop(name)
        self._tell()

    def _drop(self, name: str) -> None:
        """Unload what is not wanted any more, but keep it while nothing that is wanted answers."""
        found = self.versions[name].values()
        if any(version.state == "AVAILABLE" for version in found if version.wanted) or not any(v.wanted for v in found):
            for version in found:
                if version.state == "AVAILABLE" and not version.wanted:
                    version.state = "UNLOADING"
                    self._start(self._unload(version))

    async def _unload(self, version: Version) -> None:
        while version.in_flight:
            version.idle.clear()
            await version.idle.wait()
        servable, version.servable = version.servable, None
        assert servable
        await asyncio.get_running_loop().run_in_executor(self._loader, self._close, servable)
        version.state = "END"
        if version.wanted:  # again, since a while: it is loaded anew
            version.wanted = False
            self.aspire()
        say(f"unloaded servable version {{name: {servable.name} version: {servable.version}}}")
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        """Stop loading; sessions go with the process."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loader.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def borrow(self, spec: Any) -> Iterator[Servable]:
        """The version that a ModelSpec means; it is not unloaded before it is given back. Raises Refused."""
        version = self._find(spec)
        assert version.servable
        version.in_flight += 1
        try:
            yield version.servable
        finally:
            version.in_flight -= 1
            if not version.in_flight:
                version.idle.set()

    def _find(self, spec: Any) -> Version:
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        available, asked = self._in_state(spec.name, "AVAILABLE"), f"Latest({spec.name})"
        number = spec.version.value if spec.HasField("version") else None
        if spec.WhichOneof("version_choice") == "version_label":
            number = self.models[spec.name].labels.get(spec.version_label) if spec.name in self.models else None
            if number is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        if number is not None:
            available, asked = [n for n in available if n == number], f"Specific({spec.name}, {number})"
        if not available:
            raise Refused("NOT_FOUND", f"Servable not found for request: {asked}")
        return self.versions[spec.name][max(available)]

    def states(self, spec: Any) -> dict[int, Version]:
        """The versions that a status request asks for, newest first; a label is ignored. Raises Refused."""
        found, which = self.versions.get(spec.name, {}), "any versions"
        if spec.HasField("version"):
            found = {number: version for number, version in found.items() if number == spec.version.value}
            which = f"version {spec.version.value}"
        if not found:
            raise Refused("NOT_FOUND", f"Could not find {which} of model {spec.name}")
        return dict(sorted(found.items(), reverse=True))
