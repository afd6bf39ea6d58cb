"""Waiting in asyncio for what the native side reports.

Each event loop that waits gets one `Hub`: an eventfd that the native side signals when operations have arrived
somewhere, and that the loop watches like any socket. Nothing here polls or sleeps.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from . import _core

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")

_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, _core.Hub] = WeakKeyDictionary()
_hubs_lock = threading.Lock()

_running: dict[Callable[[], None], Future[BaseException | None]] = {}
_running_lock = threading.RLock()


def _forget_parent() -> None:
    """In a forked child: these hubs' eventfds are its parent's, too, and these futures' threads do not exist."""
    global _hubs, _hubs_lock, _running, _running_lock
    _hubs, _hubs_lock = WeakKeyDictionary(), threading.Lock()
    _running, _running_lock = {}, threading.RLock()


os.register_at_fork(after_in_child=_forget_parent)


async def wait(operation: _core.Operation, phase: int, timeout: float | None = None) -> None:
    """Return once `operation` has reached `phase` or has ended without reaching it.

    Any number of tasks, in any number of loops, may wait for one operation. Cancelling a wait leaves the operation as
    it is.

    Raises
    ------
    RuntimeError
        If the running loop cannot watch file descriptors.
    TimeoutError
        If `timeout`, in seconds, passed first.
    """
    loop = asyncio.get_running_loop()
    hub = _hub_of(loop)
    future = loop.create_future()
    ticket = hub.watch(operation, phase, future)
    if ticket is None:
        return
    try:
        if timeout is None:
            await future
            return
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            # The loop may have been busy past both, the end and the timer.
            if hub.forget(ticket):
                return
            raise TimeoutError(f"no end within {timeout:g} s; the operation goes on") from None
    except BaseException:
        # Cancelled, or the coroutine was closed: nobody will look at this future again.
        hub.forget(ticket)
        raise


def attend() -> None:
    """Have the running loop look after what is given up natively, also if nobody awaits an operation on it."""
    _hub_of(asyncio.get_running_loop())


async def run_off_loop(function: Callable[[], _Result]) -> _Result:
    """Run something slow that happens seldom, without blocking the running loop.

    Cancelling the wait does not stop `function`; its result is dropped then.
    """
    return await asyncio.wrap_future(_start(function))


async def run_off_loop_once(function: Callable[[], None]) -> None:
    """As `run_off_loop`, together with everyone who asks for the same function while it runs, in any loop."""
    with _running_lock:
        running = _running.get(function)
        if running is None:
            running = _running[function] = _start(lambda: _failure_of(function))
            # Not when a wait ends: they may all be cancelled, and nobody is to get a result from long ago.
            running.add_done_callback(lambda _: _running.pop(function, None))
    failure = await asyncio.wrap_future(running)
    if failure is not None:
        raise _copy_of(failure)


def _failure_of(function: Callable[[], None]) -> BaseException | None:
    try:
        function()
    except BaseException as error:
        return error
    return None


def _copy_of(error: BaseException) -> BaseException:
    """One for each who waits: an exception's traceback grows wherever it is raised, here in several threads at once."""
    from copy import copy

    try:
        copied = copy(error)
    except Exception:
        # Its constructor takes something else than its arguments.
        return error
    copied.__context__, copied.__cause__ = error.__context__, error.__cause__
    copied.__suppress_context__ = error.__suppress_context__
    return copied.with_traceback(error.__traceback__)


def _start(function: Callable[[], _Result]) -> Future[_Result]:
    # A thread of its own and not the loop's executor: that one may be full of the user's work, and stays for ever.
    # Not a daemon: the end of the interpreter must not come upon a library that is just being loaded.
    future: Future[_Result] = Future()
    future.set_running_or_notify_cancel()

    threading.Thread(target=_run, args=(function, future), name="dynamo-nixl-setup").start()
    return future


def _run(function: Callable[[], _Result], future: Future[_Result]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
    finally:
        # The future has the error, whose traceback has the frames down to this one: all that is in them would be left
        # to the cyclic garbage collector.
        del future


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
