"""Faults, as the author of a test sees them: for type checkers only, never run."""

from __future__ import annotations

from typing import Literal

from dynamo_nixl import Connector
from dynamo_nixl.testing import Fault, Faults, Notifications
from dynamo_nixl.testing.plugin import nixl_faults as nixl_faults


class Client(Connector):
    async def fetch(self) -> bytes:
        return b""


KINDS: list[Notifications] = ["completion", "message", "any"]


async def test_recovery(nixl_faults: Faults) -> None:
    client: Client = nixl_faults.attach(Client("reader", stall_timeout=2.0))
    kind: Literal["any"] = "any"
    faults: list[Fault] = [nixl_faults.drop(kind, at=2), nixl_faults.delay(0.5, "message"), nixl_faults.duplicate()]
    with nixl_faults.stall(count=None, probability=0.5) as stall, nixl_faults.slow(0.1):
        await client.fetch()
        await stall.struck()
        stall.release()
    faults += [
        nixl_faults.fail(after_moving=True),
        nixl_faults.stale(peer="owner"),
        nixl_faults.lose("owner", is_dead=True),
    ]
    for fault in faults:
        fault.clear()
    assert nixl_faults.injected["drop"] + faults[0].injected == 2
