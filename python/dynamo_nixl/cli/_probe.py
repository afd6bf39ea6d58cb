"""A process that opens a connector and tells how that went; a crash of NIXL is then only this process's."""

import asyncio
import json
import sys
import time

from dynamo_nixl import Connector, _library


async def probe() -> dict[str, object]:
    """Open a connector."""
    started = time.perf_counter()
    try:
        await Connector()._create_connection()
    except Exception as error:
        return {"error": str(error), "error_type": type(error).__name__}
    seconds = time.perf_counter() - started
    load = _library.loaded()
    assert load is not None  # a connector is open
    return {"seconds": seconds, "path": load.candidate.path, "origin": load.candidate.origin}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(probe())) + "\n")
