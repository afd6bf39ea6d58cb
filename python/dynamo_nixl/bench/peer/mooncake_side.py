"""Both sides on Mooncake's transfer engine over TCP, its blocking calls: the only ones its Python package has.

Memory is registered beforehand. The owner is not told of a transfer's end. Blocks are one batched call.
"""

from __future__ import annotations

import ctypes
import socket
import sysconfig
import time
from importlib import import_module
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from .arena import OWNERS, READERS, Arena, check, mark
from .case import Case

if TYPE_CHECKING:
    from .channel import Channel

HOST = "127.0.0.1"


def _engine() -> Any:
    # It wants CUDA's runtime, also where there is no GPU, and does not look where pip puts that.
    for runtime in Path(sysconfig.get_path("purelib")).glob("nvidia/cuda_runtime/lib/libcudart.so.*"):
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    engine = import_module("mooncake.engine").TransferEngine()
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    if engine.initialize(f"{HOST}:{port}", "P2PHANDSHAKE", "tcp", "") != 0:
        raise RuntimeError("Mooncake's transfer engine did not start")
    return engine


class _Memory:
    """An arena whose blocks are registered when they are first used."""

    def __init__(self, engine: Any, fill: int) -> None:
        self._engine = engine
        self._arena = Arena(fill)
        self._registered: set[int] = set()

    def take(self, case: Case) -> list[Any]:
        block = self._arena.block(case)
        if block.ctypes.data not in self._registered:
            if self._engine.register_memory(block.ctypes.data, block.nbytes) != 0:
                raise RuntimeError("Mooncake did not register the memory")
            self._registered.add(block.ctypes.data)
        return self._arena.take(case)


def own(_implementation: str, reader: Channel) -> None:
    """Expose what the reader asks for, until it asks for nothing more."""
    engine = _engine()
    memory = _Memory(engine, OWNERS)
    address = f"{HOST}:{engine.get_rpc_port()}"
    while (request := reader.receive()) is not None:
        count = request.pop("count")
        case = Case(**request)
        exposures = [[each.ctypes.data for each in memory.take(case)] for _ in range(count)]
        reader.send({"address": address, "exposures": exposures})
        reader.receive()
        reader.send([])


class Reader:
    """The reader's engine. Its calls block, so tasks take turns."""

    def __init__(self, _implementation: str) -> None:
        self._engine = _engine()
        self._memory = _Memory(self._engine, READERS)

    def read(self, case: Case, owner: Channel) -> tuple[list[int], list[int]]:
        """Carry one batch out."""
        place = self._memory.take(case)
        mark(place)
        batch = owner.receive()
        begun, ended = [], []
        here = [each.ctypes.data for each in place]
        sizes = [each.nbytes for each in place]
        for there in batch["exposures"]:
            if case.gap_us:
                time.sleep(case.gap_us / 1e6)
            begun.append(monotonic_ns())
            if len(here) == 1:
                code = self._engine.transfer_sync_read(batch["address"], here[0], there[0], sizes[0])
            else:
                code = self._engine.batch_transfer_sync_read(batch["address"], here, there, sizes)
            ended.append(monotonic_ns())
            if code != 0:
                raise RuntimeError(f"a transfer ended badly: {code}")
        check(place)
        return begun, ended
