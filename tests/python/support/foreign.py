"""A peer that is not ours: NIXL's own Python agent, configured and used as upstream's nixl_connect does.

What upstream sends and how it decodes is re-told here; the samples in tests/fixtures/wire show the same.
"""

from __future__ import annotations

import base64
import threading
import time
import uuid
import zlib
from typing import Any

import numpy as np
from nixl_cu12._api import nixl_agent, nixl_agent_config

from support.memory import blank, is_pattern, pattern
from support.workers import BINDINGS

ENVIRONMENT = BINDINGS
PATIENCE = 60.0


class Foreign:
    """An agent with registered memory and the transfers it has begun."""

    def __init__(self, name: str, *, progress_thread: bool = True, engine_config: str | None = None) -> None:
        config = nixl_agent_config(enable_prog_thread=progress_thread, backends=[] if engine_config else ["UCX"])
        self.agent = nixl_agent(name, config)
        if engine_config:
            self.agent.create_backend("UCX", {"engine_config": engine_config})
        self.arrays: list[np.ndarray] = []
        self.registrations: list[Any] = []

    def register(self, array: np.ndarray) -> np.ndarray:
        """Register an array for the agent's whole life."""
        self.arrays.append(array)
        self.registrations.append(self.agent.register_memory([(array.ctypes.data, array.nbytes, 0, "")], "DRAM"))
        return array

    def metadata(self, arrays: list[np.ndarray], kind: int, key: str | None, *, in_hex: bool) -> dict[str, Any]:
        """What upstream's passive operation sends: the full metadata of the agent."""
        blob = self.agent.get_agent_metadata()
        return {
            "descriptors": [{"device": "cpu", "ptr": array.ctypes.data, "size": array.nbytes} for array in arrays],
            "nixl_metadata": zlib.compress(blob).hex() if in_hex else encode(blob),
            "notification_key": key or str(uuid.uuid4()),
            "operation_kind": kind,
        }

    def notifications(self) -> list[bytes]:
        """Take what has arrived since the last call."""
        return [message for messages in self.agent.get_new_notifs().values() for message in messages]

    def begin(self, direction: str, arrays: list[np.ndarray], metadata: dict[str, Any]) -> Any:
        """Post a transfer as upstream's active operation does."""
        peer = self.agent.add_remote_agent(decode(metadata["nixl_metadata"]))
        mine = self.agent.get_xfer_descs([(array.ctypes.data, array.nbytes, 0) for array in arrays], "DRAM")
        theirs = self.agent.get_xfer_descs([(each["ptr"], each["size"], 0) for each in metadata["descriptors"]], "DRAM")
        key = metadata["notification_key"].encode()
        handle = self.agent.initialize_xfer(direction, mine, theirs, peer, key)
        self.agent.transfer(handle, key)
        return handle

    def finish(self, handle: Any, patience: float = PATIENCE) -> str:
        """Poll a transfer to its end. Returns NIXL's last word on it."""
        deadline = time.monotonic() + patience
        while (state := self.agent.check_xfer_state(handle)) == "PROC" and time.monotonic() < deadline:
            time.sleep(0.0005)
        return str(state)


def encode(blob: bytes) -> str:
    """Upstream's default encoding."""
    return "b64:" + base64.b64encode(zlib.compress(blob, level=6)).decode()


def decode(text: str) -> bytes:
    """Upstream's decoder, both forms."""
    packed = base64.b64decode(text.removeprefix("b64:")) if text.startswith("b64:") else bytes.fromhex(text)
    return zlib.decompress(packed)


# What tests have a worker do with such an agent. Plain functions: they block, as upstream's calls do.


def start(here: Any, *, suffix: str = "1", **options: Any) -> str:
    """Make the agent."""
    here.foreign = Foreign(f"foreign-{uuid.uuid4().hex}-{suffix}", **options)
    return str(here.foreign.agent.name)


def expose_readable(
    here: Any, *sizes: int, seed: int = 0, key: str | None = None, in_hex: bool = False
) -> dict[str, Any]:
    """Register patterns and describe them."""
    arrays = [here.foreign.register(pattern(size, seed + index)) for index, size in enumerate(sizes)]
    return here.foreign.metadata(arrays, 1, key, in_hex=in_hex)


def expose_writable(here: Any, *sizes: int, in_hex: bool = False) -> dict[str, Any]:
    """Register blank memory and describe it."""
    return here.foreign.metadata([here.foreign.register(blank(size)) for size in sizes], 2, None, in_hex=in_hex)


def expose_zeros(here: Any, kind: str, size: int) -> dict[str, Any]:
    """Describe memory for a peer to read or write that costs no RAM before it is written to."""
    array = here.foreign.register(np.zeros(size, dtype=np.uint8))
    return here.foreign.metadata([array], 1 if kind == "read" else 2, None, in_hex=False)


def holds_pattern(here: Any, seed: int = 0, count: int = 1) -> bool:
    """Whether the patterns have arrived in so many of the arrays that were registered last."""
    return all(is_pattern(array, seed + index) for index, array in enumerate(here.foreign.arrays[-count:]))


def receive(here: Any, count: int) -> list[bytes]:
    """Wait for so many notifications, and return them with whatever comes along."""
    messages: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    while len(messages) < count and time.monotonic() < deadline:
        messages += here.foreign.notifications()
        time.sleep(0.0005)
    return messages


def receive_nothing_more(here: Any) -> list[bytes]:
    """Whatever arrives, given a moment, after the sender is gone."""
    messages = here.foreign.notifications()
    time.sleep(0.1)
    return messages + here.foreign.notifications()


def read(here: Any, metadata: dict[str, Any], seed: int = 0) -> tuple[str, bool]:
    """Read all that is exposed. Returns NIXL's last word, and whether the patterns arrived."""
    arrays = [here.foreign.register(blank(each["size"])) for each in metadata["descriptors"]]
    state = here.foreign.finish(here.foreign.begin("READ", arrays, metadata))
    return state, all(is_pattern(array, seed + index) for index, array in enumerate(arrays))


def write(here: Any, metadata: dict[str, Any], seed: int = 0) -> str:
    """Write patterns to all that is exposed. Returns NIXL's last word."""
    sizes = [each["size"] for each in metadata["descriptors"]]
    arrays = [here.foreign.register(pattern(size, seed + index)) for index, size in enumerate(sizes)]
    return here.foreign.finish(here.foreign.begin("WRITE", arrays, metadata))


def begin_in_parts(here: Any, kind: str, metadata: dict[str, Any], parts: int = 64) -> None:
    """Have a thread move zeros, or into them, part by part, and send the key with the last; return after the first.

    In one, the kernel would copy all of it before NIXL comes back.
    """
    (whole,) = metadata["descriptors"]
    size = whole["size"] // parts
    array = here.foreign.register(np.zeros(whole["size"], dtype=np.uint8))
    has_begun = threading.Event()
    here.states = []

    def move() -> None:
        for part in range(parts):
            theirs = {**whole, "ptr": whole["ptr"] + part * size, "size": size}
            key = metadata["notification_key"] if part == parts - 1 else ""
            said = metadata | {"descriptors": [theirs], "notification_key": key}
            handle = here.foreign.begin(kind.upper(), [array[part * size : (part + 1) * size]], said)
            here.states.append(here.foreign.finish(handle))
            has_begun.set()

    here.moving = threading.Thread(target=move)
    here.moving.start()
    assert has_begun.wait(PATIENCE)


def end_of_parts(here: Any) -> list[str]:
    """Wait for that thread. Returns NIXL's last word on each part."""
    here.moving.join()
    return list(here.states)


def try_to_read(here: Any, metadata: dict[str, Any], patience: float) -> str:
    """Read with little patience. A failure is "ERR", whatever NIXL calls it."""
    array = here.foreign.register(blank(metadata["descriptors"][0]["size"]))
    try:
        return here.foreign.finish(here.foreign.begin("READ", [array], metadata), patience)
    except Exception:
        return "ERR"


def notify(here: Any, nixl_metadata: str, messages: list[bytes]) -> None:
    """Send notifications without a transfer."""
    peer = here.foreign.agent.add_remote_agent(decode(nixl_metadata))
    for message in messages:
        here.foreign.agent.send_notif(peer, message)


def blob_of_one_region(here: Any, size: int) -> str:
    """Upstream's `nixl_metadata` of an agent with one region."""
    return str(expose_readable(here, size)["nixl_metadata"])
