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

from frostline.serving import config, servables
from frostline.serving.config import Model
from frostline.serving.flags import Flags
from frostline.serving.servables import Servable
from frostline.serving.status import Refused, invalid, refused

Load = Callable[[str, int, Path], Servable]


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

    def __init__(self, load: Load, flags: Flags) -> None:
        self.models: dict[str, Model] = {}
        self.versions: dict[str, dict[int, Version]] = {}
        self._load = load
        self._flags = flags
        self._threads = ThreadPoolExecutor(flags.num_load_threads or 1, thread_name_prefix="load")
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._applying = asyncio.Lock()
        self._said: dict[str, str] = {}

    # -- what is wanted --------------------------------------------------------------------------------

    async def apply(self, asked: Mapping[str, Model]) -> None:
        """Serve these models and no others; returns once each new one answers. Raises Refused."""
        async with self._applying:
            available = {name: set(self._in_state(name, "AVAILABLE")) for name in self.versions}
            allow = self._flags.allow_version_labels_for_unavailable_models
            config.check_labels(asked, self.models, available, allow)
            new = asked.keys() - self.models.keys()
            self.models = dict(asked)
            self.aspire()
            while not all(self._in_state(name, "AVAILABLE") for name in new):
                failed = [name for name in new if self._failed(name)]
                if failed:
                    bad = [f"{{name: {n} version: {v}}}" for n in failed for v in self._in_state(n, "END")]
                    raise Refused("UNKNOWN", f"{len(failed)} model(s) did not become available: {{{', '.join(bad)}}}")
                await self._changed.wait()

    def aspire(self) -> None:
        """Compare the folders with what is loaded, and begin to load and to unload."""
        for name in {*self.models, *self.versions}:
            try:
                wanted = config.wanted(self.models[name]) if name in self.models else {}
            except Refused as error:
                self._say_once(name, error.message)
                continue
            if not wanted and name in self.models:
                path = self.models[name].base_path
                self._say_once(name, f"No versions of servable {name} found under base path {path}")
            found = self.versions.setdefault(name, {})
            for number, version in found.items():
                forgotten = version.state == "END" and not version.wanted
                version.wanted = number in wanted
                if version.wanted and forgotten:
                    found[number] = Version()
            for number, path in wanted.items():
                version = found.setdefault(number, Version())
                if version.state == "START":
                    version.state = "LOADING"
                    self._start(self._bring(name, number, path, version))
            self._drop(name)

    def _say_once(self, name: str, message: str) -> None:
        if self._said.get(name) != message:
            self._said[name] = message
            say(message)

    def _in_state(self, name: str, *states: str) -> list[int]:
        return [number for number, version in self.versions.get(name, {}).items() if version.state in states]

    def _failed(self, name: str) -> bool:
        wanted = [version for version in self.versions.get(name, {}).values() if version.wanted]
        return bool(wanted) and all(version.state == "END" for version in wanted)

    # -- coming and going ------------------------------------------------------------------------------

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bring(self, name: str, number: int, path: Path, version: Version) -> None:
        """Load a version, trying again for a while: its folder may still be being copied."""
        for attempt in range(1 + self._flags.max_num_load_retries):
            if attempt:
                await asyncio.sleep(self._flags.load_retry_interval_micros / 1e6)
            if not version.wanted:
                break
            loop = asyncio.get_running_loop()
            try:
                version.servable = await loop.run_in_executor(self._threads, self._load, name, number, path)
            except Exception as error:
                version.error = refused(error)
                say(f"loading servable: {{name: {name} version: {number}}} failed: {version.error}")
            else:
                version.error = None
                say(f"successfully loaded servable version {{name: {name} version: {number}}}")
                break
        version.state = "AVAILABLE" if version.servable else "END"
        self._drop(name)
        self._tell()

    def _drop(self, name: str) -> None:
        """Unload what is not wanted any more, but keep it while nothing that is wanted answers."""
        found = self.versions[name].values()
        wanted = [version for version in found if version.wanted]
        if not wanted or any(version.state == "AVAILABLE" for version in wanted):
            for version in found:
                if version.state == "AVAILABLE" and not version.wanted:
                    version.state = "UNLOADING"
                    self._start(self._unload(version))

    async def _unload(self, version: Version) -> None:
        while version.in_flight:
            version.idle.clear()
            await version.idle.wait()
        assert version.servable
        servable, version.servable = version.servable, None
        await asyncio.get_running_loop().run_in_executor(self._threads, servables.close, servable)
        version.state = "END"
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
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- what requests see -----------------------------------------------------------------------------

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
        number, asked = None, f"Latest({spec.name})"
        choice = spec.WhichOneof("version_choice")
        if choice == "version":
            number = spec.version.value
        elif choice == "version_label":
            labels = self.models[spec.name].labels if spec.name in self.models else {}
            if spec.version_label not in labels:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
            number = labels[spec.version_label]
        available = self._in_state(spec.name, "AVAILABLE")
        if number is not None:
            asked = f"Specific({spec.name}, {number})"
            available = [number] if number in available else []
        if not available:
            raise Refused("NOT_FOUND", f"Servable not found for request: {asked}")
        return self.versions[spec.name][max(available)]

    def states(self, spec: Any) -> dict[int, Version]:
        """The versions that a status request asks for, newest first; a label is ignored. Raises Refused."""
        found = self.versions.get(spec.name, {})
        if spec.WhichOneof("version_choice") == "version":
            number = spec.version.value
            if number not in found:
                raise Refused("NOT_FOUND", f"Could not find version {number} of model {spec.name}")
            return {number: found[number]}
        if not found:
            raise Refused("NOT_FOUND", f"Could not find any versions of model {spec.name}")
        return dict(sorted(found.items(), reverse=True))
