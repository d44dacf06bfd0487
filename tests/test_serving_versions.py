"""Which versions are in memory: loaded before the old ones go, kept while requests run on them."""

import asyncio
import contextlib
import types

import pytest
from tensorflow_serving.apis.model_pb2 import ModelSpec

from frostline.serving import versions
from frostline.serving.config import Model
from frostline.serving.flags import Flags
from frostline.serving.status import Refused
from frostline.serving.versions import Models


class Shelf:
    """Versions that load when they may; what is loaded and closed is written down."""

    def __init__(self, bad=()):
        self.bad, self.closed = set(bad), []

    def load(self, name, version, path):
        if version in self.bad:
            raise Refused("NOT_FOUND", "half a version")
        return types.SimpleNamespace(name=name, version=version)

    def close(self, servable):
        self.closed.append(servable.version)


@pytest.fixture
def base(tmp_path):
    (tmp_path / "1").mkdir()
    return tmp_path


@contextlib.asynccontextmanager
async def models(shelf, **flags):
    made = Models(shelf.load, shelf.close, Flags(max_num_load_retries=0, **flags))
    try:
        yield made
    finally:
        await made.close()


def state(models, version):
    return models.versions["m"][version].state


async def settle(models):
    """Let everything that has begun come to its end."""
    while models._tasks:
        await asyncio.gather(*models._tasks)


def spec(version=None, label=None):
    made = ModelSpec(name="m")
    if version is not None:
        made.version.value = version
    if label is not None:
        made.version_label = label
    return made


def test_a_new_version_takes_over_and_the_old_one_waits_for_its_requests(base):
    async def scene():
        shelf = Shelf()
        async with models(shelf) as served:
            await served.apply({"m": Model("m", base)})
            with served.borrow(spec()) as old:
                assert old.version == 1
                (base / "2").mkdir()
                served.aspire()
                while state(served, 2) != "AVAILABLE":
                    await asyncio.sleep(0)
                assert (state(served, 1), shelf.closed) == ("UNLOADING", [])
                with served.borrow(spec()) as new:
                    assert new.version == 2
                with (
                    pytest.raises(Refused, match=r"Servable not found for request: Specific\(m, 1\)"),
                    served.borrow(spec(1)),
                ):
                    pass
            await settle(served)
            assert (state(served, 1), shelf.closed) == ("END", [1])

    asyncio.run(scene())


def test_a_version_that_is_wanted_again_while_it_unloads_comes_back(base):
    async def scene():
        shelf = Shelf()
        async with models(shelf) as served:
            await served.apply({"m": Model("m", base)})
            with served.borrow(spec()):
                (base / "2").mkdir()
                served.aspire()
                while state(served, 1) != "UNLOADING":
                    await asyncio.sleep(0)
                (base / "2").rmdir()
                served.aspire()
                assert state(served, 2) == "AVAILABLE"  # nothing else answers
            await settle(served)
            assert (state(served, 1), state(served, 2), shelf.closed) == ("AVAILABLE", "END", [1, 2])

    asyncio.run(scene())


def test_a_version_that_does_not_load_leaves_the_old_one_alone(base):
    async def scene():
        shelf = Shelf(bad=[2])
        async with models(shelf) as served:
            await served.apply({"m": Model("m", base)})
            (base / "2").mkdir()
            served.aspire()
            await settle(served)
            served.aspire()  # it is not tried again and again
            assert (state(served, 1), state(served, 2)) == ("AVAILABLE", "END")
            assert str(served.states(spec(2))[2].error) == "NOT_FOUND: half a version"
            with served.borrow(spec()) as found:
                assert found.version == 1
            (base / "3").mkdir()
            served.aspire()
            await settle(served)
            assert (state(served, 3), shelf.closed) == ("AVAILABLE", [1])

    asyncio.run(scene())


def test_a_folder_that_is_still_being_copied_is_tried_again(base, monkeypatch):
    async def scene():
        shelf = Shelf(bad=[1])
        waits = []
        real = asyncio.sleep

        async def sleep(seconds):
            waits.append(seconds)
            shelf.bad.clear()
            await real(0)

        monkeypatch.setattr(versions.asyncio, "sleep", sleep)
        made = Models(shelf.load, shelf.close, Flags())
        await made.apply({"m": Model("m", base)})
        assert (waits, state(made, 1)) == ([60.0], "AVAILABLE")
        await made.close()

    asyncio.run(scene())


def test_a_model_that_cannot_come_up_fails_the_configuration(base):
    async def scene():
        async with models(Shelf(bad=[1])) as served:
            with pytest.raises(Refused, match=r"model\(s\) did not become available: \{\{name: m version: 1\}\}"):
                await served.apply({"m": Model("m", base)})

    asyncio.run(scene())


def test_one_good_version_is_enough_for_a_model_to_come_up(base):
    async def scene():
        (base / "2").mkdir()
        async with models(Shelf(bad=[2])) as served:
            await served.apply({"m": Model("m", base, None)})  # all versions; the newest is tried first
            assert (state(served, 1), state(served, 2)) == ("AVAILABLE", "END")

    asyncio.run(scene())


def test_labels_move_to_loaded_versions_only(base):
    async def scene():
        (base / "2").mkdir()
        async with models(Shelf()) as served:
            with pytest.raises(Refused, match="label to version 1 of model m, which is not currently available"):
                await served.apply({"m": Model("m", base, None, (), {"stable": 1})})
            await served.apply({"m": Model("m", base, None)})
            await settle(served)
            await served.apply({"m": Model("m", base, None, (), {"stable": 1, "canary": 2})})
            for label, version in (("stable", 1), ("canary", 2)):
                with served.borrow(spec(label=label)) as found:
                    assert found.version == version
            with (
                pytest.raises(Refused, match="Unrecognized servable version label: old"),
                served.borrow(spec(label="old")),
            ):
                pass

    asyncio.run(scene())


def test_a_model_that_is_not_configured_any_more_goes(base):
    async def scene():
        shelf = Shelf()
        async with models(shelf) as served:
            await served.apply({"m": Model("m", base)})
            await served.apply({})
            await settle(served)
            assert (state(served, 1), shelf.closed) == ("END", [1])
            with pytest.raises(Refused, match="Latest"), served.borrow(spec()):
                pass
            await served.apply({"m": Model("m", base)})  # and may come back
            assert state(served, 1) == "AVAILABLE"

    asyncio.run(scene())


def test_a_base_path_that_is_gone_takes_nothing_away(base, capsys):
    async def scene():
        async with models(Shelf()) as served:
            await served.apply({"m": Model("m", base)})
            (base / "1").rename(base.parent / "away")
            base.rmdir()
            served.aspire()
            served.aspire()
            assert state(served, 1) == "AVAILABLE"

    asyncio.run(scene())
    assert capsys.readouterr().err.count("Could not find base path") == 1
