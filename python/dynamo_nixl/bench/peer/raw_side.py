"""Both sides on `nixl_agent`, polled without a pause: what NIXL's own Python bindings can do at best.

Memory is registered and metadata loaded beforehand, so a transfer is two descriptor lists, one request and the polls to
its end. Agents are made with NIXL's defaults but without the progress thread, which would spin beside the polls.
"""

from __future__ import annotations

import base64
import os
import time
import uuid
import zlib
from importlib import import_module
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from .arena import OWNERS, READERS, Arena, check, mark
from .case import Case

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

    from .channel import Channel


def _bindings() -> ModuleType:
    """Import NIXL's Python API, whichever wheel it comes in. The one for CUDA 12 works without torch."""
    for name in ("nixl_cu12._api", "nixl_cu13._api"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError("neither nixl-cu12 nor nixl-cu13 is installed here")


def _agent(role: str) -> Any:
    module = _bindings()
    return module.nixl_agent(f"raw-{role}-{os.getpid()}", module.nixl_agent_config(enable_prog_thread=False))


def _register(agent: Any, array: np.ndarray) -> None:
    agent.register_memory([(array.ctypes.data, array.nbytes, 0, "")], "DRAM")


def own(_implementation: str, reader: Channel) -> None:
    """Serve what the reader asks for, until it asks for nothing more."""
    agent = _agent("owner")
    arena = Arena(OWNERS)
    registered = set()
    while (request := reader.receive()) is not None:
        count = request.pop("count")
        case = Case(**request)
        metadata = None
        if case.shape not in registered:
            _register(agent, arena.block(case))
            registered.add(case.shape)
            metadata = base64.b64encode(agent.get_agent_metadata()).decode()
        exposures = [
            (str(uuid.uuid4()), [(each.ctypes.data, each.nbytes, 0) for each in arena.take(case)]) for _ in range(count)
        ]
        reader.send({"agent": metadata, "exposures": exposures})
        stamps = _poll(agent, {key.encode() for key, _ in exposures}, reader)
        reader.receive()
        reader.send([stamps[key.encode()] for key, _ in exposures] if case.tasks == 1 else [])


def _poll(agent: Any, expected: set[bytes], reader: Channel) -> dict[bytes, int]:
    """Poll until all have come, and on until the reader is done too: its last flush may need this side."""
    stamps: dict[bytes, int] = {}
    while len(stamps) < len(expected) or not reader.has_message():
        for keys in agent.get_new_notifs().values():
            now = monotonic_ns()
            stamps.update((key, now) for key in keys if key in expected)
    return stamps


class Reader:
    """The reader's agent. As many requests as there are tasks are under way together."""

    def __init__(self, _implementation: str) -> None:
        self._agent = _agent("reader")
        self._arena = Arena(READERS)
        self._registered: set[tuple[int, int, bool]] = set()
        self._peer = ""

    def read(self, case: Case, owner: Channel) -> tuple[list[int], list[int]]:
        """Carry one batch out."""
        block = self._arena.block(case)
        if case.shape not in self._registered:
            _register(self._agent, block)
            self._registered.add(case.shape)
        places = [self._arena.take(case) for _ in range(case.tasks)]
        for place in places:
            mark(place)
        waiting = self._take_in(owner.receive())
        begun, ended = [], []
        flights: list[tuple[Any, int, list[np.ndarray]]] = []
        while waiting or flights:
            while waiting and places:
                if case.gap_us and case.tasks == 1:
                    time.sleep(case.gap_us / 1e6)
                place = places.pop()
                begin = monotonic_ns()
                flights.append((self._post(place, *waiting.pop(0)), begin, place))
            for flight in list(flights):
                handle, begin, place = flight
                status = self._agent.check_xfer_state(handle)
                if status == "PROC":
                    continue
                end = monotonic_ns()
                if status != "DONE":
                    raise RuntimeError(f"a transfer ended badly: {status}")
                self._agent.release_xfer_handle(handle)
                check(place)
                begun.append(begin)
                ended.append(end)
                places.append(place)
                flights.remove(flight)
        return begun, ended

    def _take_in(self, batch: Any) -> list[Any]:
        """Load what an owner has sent, of this kind or upstream's, and give the keys and ranges of its exposures."""
        if isinstance(batch, dict):
            if batch["agent"] is not None:
                self._load(base64.b64decode(batch["agent"]))
            return list(batch["exposures"])
        exposures = []
        for metadata in batch:
            text = metadata["nixl_metadata"].removeprefix("b64:")
            self._load(zlib.decompress(base64.b64decode(text)))
            ranges = [(each["ptr"], each["size"], 0) for each in metadata["descriptors"]]
            exposures.append((metadata["notification_key"], ranges))
        return exposures

    def _load(self, metadata: bytes) -> None:
        name = self._agent.add_remote_agent(metadata)
        self._peer = name.decode() if isinstance(name, bytes) else name

    def _post(self, place: list[np.ndarray], key: str, remote: list[list[int]]) -> Any:
        agent = self._agent
        here = agent.get_xfer_descs([(each.ctypes.data, each.nbytes, 0) for each in place], "DRAM")
        there = agent.get_xfer_descs([tuple(each) for each in remote], "DRAM")
        handle = agent.initialize_xfer("READ", here, there, self._peer, key.encode())
        if agent.transfer(handle) == "ERR":
            raise RuntimeError("a transfer could not be posted")
        return handle
