"""UCX aborts an owner now and then whose active side is killed over TCP, and nothing can be done about it here."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec

from support.flight import TCP
from support.workers import WorkerDiedError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")

TEXTS = ("unexpected error: Endpoint timeout", "stubs.c:107  Assertion `0' failed")
"""A reply that is queued when its endpoint fails is tried once more, and UCX calls fatal what comes of that."""
TURNS = 3


def again_where_ucx_aborts(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test anew whose worker has died of that; of anything else it fails at once."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(TURNS):
            try:
                return test(*args, **kwargs)
            except WorkerDiedError as death:
                is_over_tcp = kwargs.get("transport", TCP) in (TCP, "tcp")
                if not (is_over_tcp and any(text in str(death) for text in TEXTS)):
                    raise
                death.worker.wait_for_death()
                if (wire := kwargs.get("wire")) is not None:
                    wire.mend()
        raise AssertionError("UCX has aborted the owner each time")

    return run
