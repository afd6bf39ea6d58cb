"""Waiting in asyncio for what the native side reports.

Each event loop that waits gets one `Hub`: an eventfd that the native side signals when operations have arrived
somewhere, and that the loop watches like any socket. Nothing here polls or sleeps.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar
from weakref import WeakKeyDictionary

from . import _core

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")

_hubs: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _core.Hub]] = WeakKeyDictionary()
_hubs_lock: Final = threading.Lock()


async def wait(operation: _core.Operation, phase: int) -> None:
    """Return once `operation` has reached `phase` or has ended without reaching it.

    Any number of tasks, in any number of loops, may wait for one operation. Cancelling a wait leaves the operation as
    it is.

    Raises
    ------
    RuntimeError
        If the running loop cannot watch file descriptors.
    """
    loop = asyncio.get_running_loop()
    hub = _hub_of(loop)
    future = loop.create_future()
    ticket = hub.watch(operation, phase, future)
    if ticket is None:
        return
    try:
        await future
    except BaseException:
        # Cancelled, or the coroutine was closed: nobody will look at this future again.
        hub.forget(ticket)
        raise


async def run_off_loop(function: Callable[[], _Result]) -> _Result:
    """Run something slow that happens seldom, without blocking the running loop.

    Cancelling the wait does not stop `function`; its result is dropped then.
    """
    # A thread of its own and not the loop's executor: that one may be full of the user's work, and stays for ever.
    # Not a daemon: the end of the interpreter must not come upon a library that is just being loaded.
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def finish(result: _Result) -> None:
        if not future.done():
            future.set_result(result)

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        # RuntimeError: the loop was closed meanwhile, and with it went whoever waited.
        with suppress(RuntimeError):
            try:
                result = function()
            except BaseException as error:
                loop.call_soon_threadsafe(fail, error)
            else:
                loop.call_soon_threadsafe(finish, result)

    threading.Thread(target=run, name="dynamo-nixl-setup").start()
    return await future


def _hub_of(loop: asyncio.AbstractEventLoop) -> _core.Hub:
    with _hubs_lock:
        hub = _hubs.get(loop)
        if hub is not None:
            return hub
        # A hub with futures that were never resolved would keep its closed loop alive.
        for other in [other for other in _hubs if other.is_closed()]:
            del _hubs[other]
        hub = _core.Hub()
        try:
            loop.add_reader(hub.fileno(), hub.drain)
        except NotImplementedError:
            raise RuntimeError(
                f"waiting needs an event loop that can watch file descriptors (add_reader): {type(loop).__name__}"
            ) from None
        _hubs[loop] = hub
        return hub
