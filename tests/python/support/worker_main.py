"""What runs in a worker: `python worker_main.py FD LOOP`. Speaks with `workers.Worker` over the socket FD."""

import asyncio
import ctypes
import importlib
import inspect
import pickle
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<Q")
PR_SET_PDEATHSIG = 1


async def main(connection: socket.socket) -> None:
    from support.here import Here

    reader, writer = await asyncio.open_connection(sock=connection)
    here = Here()
    tasks = set()
    while True:
        try:
            (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
            request = pickle.loads(await reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            break
        task = asyncio.create_task(answer(writer, here, *request))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    writer.close()


async def answer(
    writer: asyncio.StreamWriter, here: Any, number: int, module: str, name: str, args: Any, kwargs: Any
) -> None:
    function = None
    try:
        function = getattr(importlib.import_module(module), name)
        if inspect.iscoroutinefunction(function):
            result = True, await function(here, *args, **kwargs)
        else:
            result = True, await asyncio.to_thread(function, here, *args, **kwargs)
    except Exception:
        result = False, traceback.format_exc()
    message = pickle.dumps((number, *result))
    writer.write(HEADER.pack(len(message)) + message)
    # Drop what the frame holds before anybody acts on the answer.
    del function, result, args, kwargs


if __name__ == "__main__":
    # A worker that hangs must not outlive the tests.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    factory = None
    if sys.argv[2] == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(socket.socket(fileno=int(sys.argv[1]))))
