"""The examples of Dynamo's documentation, word for word but for the name of the module."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import dynamo_nixl
import numpy as np
import pytest

from support import roles

if TYPE_CHECKING:
    import asyncio

    import torch

SHAPE = (640, 257)


class Sender:
    """A worker of the example in `readable_operation.md`."""

    def __init__(self, connector: dynamo_nixl.Connector, sent: asyncio.Future[str]) -> None:
        self.connector = connector
        self.sent = sent

    async def notify_remote_data(self, metadata: dynamo_nixl.RdmaMetadata) -> None:
        self.sent.set_result(metadata.model_dump_json())

    # Source: docs "dynamo.nixl_connect.ReadableOperation", section "Example Usage".
    # SPDX-FileCopyrightText: Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES. All rights reserved.
    # SPDX-License-Identifier: Apache-2.0
    # fmt: off
    async def send_data(
      self,
      local_tensor: torch.Tensor
    ) -> None:
      descriptor = dynamo_nixl.Descriptor(local_tensor)

      with await self.connector.create_readable(descriptor) as read_op:
        op_metadata = read_op.metadata()

        # Send the metadata to the remote worker via sideband communication.
        await self.notify_remote_data(op_metadata)
        # Wait for the remote worker to complete its read operation of local_tensor.
        # AKA send data to remote worker.
        await read_op.wait_for_completion()
    # fmt: on


class Receiver:
    """A worker of the example in `read_operation.md`."""

    def __init__(self, connector: dynamo_nixl.Connector) -> None:
        self.connector = connector

    # Source: docs "dynamo.nixl_connect.ReadOperation", section "Example Usage".
    # SPDX-FileCopyrightText: Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES. All rights reserved.
    # SPDX-License-Identifier: Apache-2.0
    # fmt: off
    async def read_from_remote(
      self,
      remote_metadata: dynamo_nixl.RdmaMetadata,
      local_tensor: torch.Tensor
    ) -> None:
      descriptor = dynamo_nixl.Descriptor(local_tensor)

      with await self.connector.begin_read(remote_metadata, descriptor) as read_op:
        # Wait for the operation to complete writing data from the remote worker to local_tensor.
        await read_op.wait_for_completion()
    # fmt: on


LIBRARIES = ["torch", "numpy"]
"""The examples have torch's tensors; NumPy's arrays serve as well where there is no torch."""


@pytest.mark.nixl
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_examples(pair, library):
    for turn in range(3):
        sending = pair.owner.start(send, library, turn)
        text = pair.owner.call(sent_metadata)
        assert set(json.loads(text)) == {"descriptors", "nixl_metadata", "notification_key", "operation_kind"}
        assert pair.reader.call(receive, library, turn, text)
        sending.result()
    pair.owner.call(roles.settled)


def tensor(library, turn):
    array = np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE) * (turn + 1)
    if library == "numpy":
        return array
    import torch

    return torch.from_numpy(array)


async def send(here, library, turn):
    import asyncio

    here.sent = asyncio.get_running_loop().create_future()
    await Sender(here.connector, here.sent).send_data(tensor(library, turn))


async def sent_metadata(here):
    return await here.sent


async def receive(here, library, turn, text):
    expected = tensor(library, turn)
    local = expected * 0
    assert type(local).__module__ == library
    metadata = dynamo_nixl.RdmaMetadata.model_validate_json(text)
    await Receiver(here.connector).read_from_remote(metadata, local)
    return bool((local == expected).all())
