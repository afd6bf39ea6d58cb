"""What a worker writes against upstream, with the import changed: for type checkers only, never run.

Beside upstream's own calls it holds what upstream's types allow and a stricter reading of ours might not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Optional

import dynamo_nixl as nixl_connect
from pydantic import BaseModel


class Request(BaseModel):
    request_id: str
    serialized: Optional[nixl_connect.RdmaMetadata] = None
    either: nixl_connect.RdmaMetadata | str = ""


class PersistentConnector(nixl_connect.Connector):
    """Keeps one connection of its own making."""

    def __init__(self, worker_id: str | None = None) -> None:
        super().__init__(worker_id)
        self._persistent: nixl_connect.Connection | None = None

    async def _create_connection(self) -> nixl_connect.Connection:
        if self._persistent is None:
            self._persistent = nixl_connect.Connection(self, 1)
            await self._persistent.initialize()
        return self._persistent


class Sender:
    def __init__(self) -> None:
        self._connector = PersistentConnector()

    async def send(self, tensor: object) -> tuple[dict[str, Any], Coroutine[Any, Any, None]]:
        descriptor = nixl_connect.Descriptor(tensor)
        readable: nixl_connect.ReadableOperation = await self._connector.create_readable(descriptor)
        return readable.metadata().model_dump(), readable.wait_for_completion()

    async def send_all(self, tensors: Sequence[object]) -> AsyncIterator[str]:
        descriptors = [nixl_connect.Descriptor(tensor) for tensor in tensors]
        with await self._connector.create_readable(descriptors) as readable:
            yield readable.metadata(hex_encode=True).model_dump_json()
            await readable.wait_for_completion()

    async def receive(self, tensor: object) -> nixl_connect.OperationStatus:
        with await self._connector.create_writable(nixl_connect.Descriptor(tensor)) as writable:
            request = Request(request_id="1", serialized=writable.metadata())
            print(request.model_dump_json())
            await asyncio.wait_for(writable.wait_for_completion(), 60)
            return writable.status


class Receiver:
    def __init__(self, connector: nixl_connect.Connector, pool: list[nixl_connect.Descriptor]) -> None:
        self._connector = connector
        self._pool = pool

    async def register(self) -> None:
        connection = await self._connector._create_connection()  # pyright: ignore[reportPrivateUsage]
        for descriptor in self._pool:
            descriptor.register_with_connector(connection)

    async def fetch(self, message: str) -> list[nixl_connect.Descriptor]:
        metadata = nixl_connect.RdmaMetadata.model_validate_json(message)
        if metadata.operation_kind != nixl_connect.OperationKind.READ.value:
            raise ValueError("not to be read")
        remote = metadata.to_descriptors()
        sizes = [each.size for each in remote] if isinstance(remote, list) else [remote.size]
        local = self._pool[: len(sizes)]
        for descriptor, size in zip(local, sizes, strict=True):
            descriptor._data_size = size  # pyright: ignore[reportPrivateUsage]
        operation: nixl_connect.ReadOperation = await self._connector.begin_read(metadata, local)
        with operation:
            await operation.wait_for_completion()
            if operation.status is nixl_connect.OperationStatus.ERRORED:
                raise RuntimeError(f"{operation.remote.name} failed")
        return operation.results()

    async def push(self, metadata: nixl_connect.RdmaMetadata) -> None:
        descriptor = nixl_connect.Descriptor((4096, 16, nixl_connect.Device("cuda:0")))
        operation = await self._connector.begin_write(descriptor, metadata)
        operation.cancel()
        operation.__exit__(None, None, None)

    def by_hand(self, text: str, ptr: int, size: int) -> nixl_connect.RdmaMetadata:
        return nixl_connect.RdmaMetadata(
            descriptors=[nixl_connect.SerializedDescriptor(device="cpu", ptr=ptr, size=size)],
            nixl_metadata=text,
            notification_key="key",
            operation_kind=int(nixl_connect.OperationKind.READ),
        )


def direct(
    connection: nixl_connect.Connection, metadata: nixl_connect.RdmaMetadata, local: list[nixl_connect.Descriptor]
) -> list[nixl_connect.AbstractOperation]:
    blob: bytes = nixl_connect.Remote.decode_metadata(metadata.nixl_metadata)
    with nixl_connect.Remote(connection, blob) as remote:
        print(remote.name, connection.metadata, connection.release_remote_ref(remote.name))
    active: nixl_connect.ActiveOperation = nixl_connect.ReadOperation(connection, metadata, local)
    passive: nixl_connect.PassiveOperation = nixl_connect.WritableOperation(connection, local)
    return [
        active,
        passive,
        nixl_connect.ReadableOperation(connection, local),
        nixl_connect.WriteOperation(connection, local, metadata),
    ]


async def main() -> None:
    async with nixl_connect.Connector("worker") as connector:
        await connector.initialize()
        await connector.warmup()
        name: str = connector.name
        print(name, connector.hostname, connector.is_cuda_available, nixl_connect.DeviceKind.CUDA.nixl_mem_type)
        receiver = Receiver(connector, nixl_connect.Descriptor.from_tensors({"weight": b"bytes"}))
        try:
            await receiver.fetch("{}")
        except nixl_connect.TransferError as error:
            failure: RuntimeError = error
            raise failure from None
