"""What is run in a thread of its own: its errors, as those who wait for it get them. No NIXL."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import weakref

import pytest
from dynamo_nixl import _loop

from support.loops import in_threads


class Held:
    """Something big that a failing function has in its frame."""


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("run", [_loop.run_off_loop, _loop.run_off_loop_once])
@pytest.mark.usefixtures("no_collector")
async def test_a_failure_leaves_no_cycle(run):
    alive = []

    def fail():
        held = Held()
        alive.append(weakref.ref(held))
        raise ValueError("failed")

    async def see_it_fail():
        try:
            await run(fail)
        except ValueError as error:
            assert str(error) == "failed"

    await see_it_fail()
    # The thread that ran it and the callbacks that told of it let go in their own time.
    for _ in range(1000):
        if alive[0]() is None:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("left to the garbage collector")


def test_each_who_waits_gets_an_error_of_its_own():
    everybody = threading.Barrier(3)

    def fail():
        everybody.wait()
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise ImportError("failed", name="what", path="where") from error

    async def wait():
        waiting = asyncio.create_task(_loop.run_off_loop_once(fail))
        await asyncio.sleep(0)
        await asyncio.to_thread(everybody.wait)
        with pytest.raises(ImportError) as caught:
            await waiting
        return caught.value

    errors = in_threads(2, lambda _: asyncio.run(wait()))
    assert errors[0] is not errors[1]
    for error in errors:
        assert (str(error), error.name, error.path, repr(error.__cause__)) == (
            "failed",
            "what",
            "where",
            "KeyError('cause')",
        )
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        # Where it came from, and who waited, each once.
        assert [frames.count(name) for name in ("wait", "run_off_loop_once", "fail")] == [1, 1, 1]


async def test_an_error_that_cannot_be_copied():
    class PeculiarError(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def fail():
        raise PeculiarError(1, 2)

    with pytest.raises(PeculiarError, match="1 and 2"):
        await _loop.run_off_loop_once(fail)
