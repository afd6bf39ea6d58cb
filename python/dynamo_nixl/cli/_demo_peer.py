"""The other process of the demo: it owns tensors, exposes them, and tells what became of them.

Runs until its standard input ends, so that it cannot outlive the demo. Its first line of output is a JSON object with
the port of its HTTP server, which is the demo's side channel.
"""

import asyncio
import json
import sys
from typing import Any

from aiohttp import web

from dynamo_nixl import Connector, Descriptor, OperationStatus, ReadableOperation, WritableOperation

from ._payload import Tensors, checksum, clear, describe


class Peer:
    """The tensors, one of each size and direction, and the operations that expose them."""

    def __init__(self) -> None:
        self._connector = Connector()
        self._tensors = Tensors()
        self._descriptors: dict[tuple[str, int], tuple[Descriptor, str]] = {}
        self._operations: dict[str, tuple[ReadableOperation | WritableOperation, Descriptor]] = {}

    async def start(self) -> None:
        """Start NIXL before the first request, whose time would otherwise include it."""
        await self._connector._create_connection()

    async def expose(self, request: web.Request) -> web.Response:
        """Expose a tensor of the wished size, for the demo to read or to write."""
        wish = await request.json()
        direction, size = wish["direction"], wish["size"]
        descriptor, description = self._descriptor(direction, size)
        operation: ReadableOperation | WritableOperation
        answer: dict[str, Any] = {"tensor": description, "library": self._tensors.library}
        if direction == "read":
            operation = await self._connector.create_readable(descriptor)
            answer["checksum"] = checksum(descriptor)
        else:
            clear(descriptor)
            operation = await self._connector.create_writable(descriptor)
        metadata = operation.metadata()
        self._operations[metadata.notification_key] = operation, descriptor
        answer["metadata"] = metadata.model_dump()
        return web.json_response(answer)

    async def finish(self, request: web.Request) -> web.Response:
        """Wait for the end of an exposure, and tell what the tensor holds now."""
        operation, descriptor = self._operations.pop((await request.json())["key"])
        with operation:
            await operation.wait_for_completion()
            status = operation.status
        return web.json_response(
            {"is_complete": status is OperationStatus.COMPLETE, "status": str(status), "checksum": checksum(descriptor)}
        )

    def _descriptor(self, direction: str, size: int) -> tuple[Descriptor, str]:
        if (direction, size) not in self._descriptors:
            tensor = self._tensors.random(size) if direction == "read" else self._tensors.zeros(size)
            self._descriptors[direction, size] = Descriptor(tensor), describe(tensor)
        return self._descriptors[direction, size]


async def serve() -> None:
    """Serve until standard input ends."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # The demo never writes: readable means closed.
    loop.add_reader(sys.stdin.fileno(), stop.set)

    peer = Peer()
    await peer.start()
    app = web.Application()
    app.add_routes([web.post("/expose", peer.expose), web.post("/finish", peer.finish)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        sys.stdout.write(json.dumps({"port": port}) + "\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
        await runner.cleanup()


if __name__ == "__main__":
    try:
        asyncio.run(serve())
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        # For the demo's user, who gets to see it: no traceback.
        sys.exit(str(error))
