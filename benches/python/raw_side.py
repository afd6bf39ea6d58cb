"""Both sides on `nixl_agent`, polled without a pause: what NIXL's own Python bindings can do at best.

Memory is registered and metadata loaded beforehand, so a transfer is two descriptor lists, one request and the polls to
its end. Agents are made with NIXL's defaults but without the progress thread, which would spin beside the polls.
"""

from __future__ import annotations

import base64
import os
import time
import uuid
from importlib import import_module
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from arena import OWNERS, READERS, Arena, check, mark

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from channel import Channel
    from plan import Case


def bindings() -> ModuleType:
    """Import NIXL's Python API, whichever wheel it comes in. The one for CUDA 12 works without torch."""
    for name in ("nixl_cu12._api", "nixl_cu13._api"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError("neither nixl-cu12 nor nixl-cu13 is installed here")


def _agent(module: ModuleType, role: str) -> Any:
    return module.nixl_agent(f"raw-{role}-{os.getpid()}", module.nixl_agent_config(enable_prog_thread=False))


def _register(agent: Any, array: np.ndarray) -> None:
    agent.register_memory([(array.ctypes.data, array.nbytes, 0, "")], "DRAM")


def own(module: ModuleType, reader: Channel) -> None:
    """Serve what the reader asks for, until it asks for nothing more."""
    agent = _agent(module, "owner")
    arena = Arena(OWNERS)
    registered = set()
    while (request := reader.receive()) is not None:
        size = request["size"]
        metadata = None
        if size not in registered:
            _register(agent, arena.block(size))
            registered.add(size)
            metadata = base64.b64encode(agent.get_agent_metadata()).decode()
        exposures = [(str(uuid.uuid4()), arena.take(size).ctypes.data) for _ in range(request["count"])]
        reader.send({"agent": metadata, "exposures": exposures})
        stamps = _poll(agent, {key.encode() for key, _ in exposures}, reader)
        reader.receive()
        reader.send([stamps[key.encode()] for key, _ in exposures])


def _poll(agent: Any, expected: set[bytes], reader: Channel) -> dict[bytes, int]:
    """Poll until all have come, and on until the reader is done too: its last flush may need this side."""
    stamps: dict[bytes, int] = {}
    while len(stamps) < len(expected) or not reader.has_message():
        for keys in agent.get_new_notifs().values():
            now = monotonic_ns()
            stamps.update((key, now) for key in keys if key in expected)
    return stamps


def read(module: ModuleType, case: Case, owner: Channel, state: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Carry one batch of a case out. Returns when each transfer began and when its last poll returned."""
    if "agent" not in state:
        state["agent"] = _agent(module, "reader")
        state["arena"] = Arena(READERS)
        state["registered"] = set()
    agent = state["agent"]
    block = state["arena"].block(case.size)
    if case.size not in state["registered"]:
        _register(agent, block)
        state["registered"].add(case.size)
    destination = block[: case.size]
    mark(destination)
    batch = owner.receive()
    if batch["agent"] is not None:
        name = agent.add_remote_agent(base64.b64decode(batch["agent"]))
        state["peer"] = name.decode() if isinstance(name, bytes) else name
    begun, ended = [], []
    for key, address in batch["exposures"]:
        if case.gap_ms:
            time.sleep(case.gap_ms / 1000)
        begin = monotonic_ns()
        local = agent.get_xfer_descs([(destination.ctypes.data, case.size, 0)], "DRAM")
        remote = agent.get_xfer_descs([(address, case.size, 0)], "DRAM")
        handle = agent.initialize_xfer("READ", local, remote, state["peer"], key.encode())
        status = agent.transfer(handle)
        while status == "PROC":
            status = agent.check_xfer_state(handle)
        end = monotonic_ns()
        if status != "DONE":
            raise RuntimeError(f"a transfer ended badly: {status}")
        agent.release_xfer_handle(handle)
        begun.append(begin)
        ended.append(end)
    check(destination)
    return begun, ended
