"""Metadata of a connector that was closed, where other connectors of its process have come into its place."""

from __future__ import annotations

import numpy as np
import pytest
from dynamo_nixl import Connector, Descriptor

from support import endings
from support.endings import KINDS

pytestmark = pytest.mark.nixl

MIB = 1 << 20
CANARY = 0x5A
SUCCESSORS = 3
"""Connectors that are made afterwards, one of which gets what the closed one gave back: its word, its keys."""
EXPOSURES = 4
"""Of each of them, so that one has the number of the old exposure, did connectors number theirs from one."""


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_moves_and_the_peer_is_told(spawn, transport, kind):
    owner, active = spawn(transport | {"DYNAMO_NIXL_GRACE": "0"}), spawn(transport)
    for _ in range(3):
        # The peer has the connection loaded, and keys for the memory.
        endings.serve(owner, active)
        number, metadata = owner.call(endings.expose, kind, MIB, seed=7)
        owner.call(close_and_go_on, number)
        error, _ = active.call(endings.attempt, metadata, seed=8)
        assert error is not None
        assert owner.call(is_untouched, number)
        owner.call(clean_up, number)
    endings.serve(owner, active)


async def close_and_go_on(here, number):
    """Close the connector, give its memory another use, and make others that expose as much as it did."""
    await endings.close(here)
    _, arrays = here.kept[number]
    arrays[0][:] = CANARY
    successors = [Connector() for _ in range(SUCCESSORS)]
    exposures = []
    for connector in successors:
        for _ in range(EXPOSURES):
            exposure = await connector.create_readable(Descriptor(np.zeros(MIB, dtype=np.uint8)))
            exposures.append((exposure, exposure.metadata()))
    here.kept["successors"] = successors, exposures


async def is_untouched(here, number):
    _, (array,) = here.kept[number]
    return bool(np.all(array == CANARY))


async def clean_up(here, number):
    del here.kept[number]
    successors, _ = here.kept.pop("successors")
    for connector in successors:
        await connector.aclose(deadline=5)
