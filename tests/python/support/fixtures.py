"""Fixtures: workers, and the transports they use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from support import roles
from support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRANSPORTS: dict[str, dict[str, str]] = {"default": {}, "tcp": {"UCX_TLS": "tcp"}}
"""The environments that choose UCX's transports. All processes of a test get the same one."""


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment for a transport; each test runs once with each."""
    return TRANSPORTS[request.param]


def _spawner(folder: Any, workers: list[Worker]) -> Callable[..., Worker]:
    def spawn(environment: dict[str, str] | None = None, **options: Any) -> Worker:
        worker = Worker(folder, f"worker-{len(workers)}", environment or {}, **options)
        workers.append(worker)
        return worker

    return spawn


def _finish(workers: list[Worker]) -> None:
    # All of them, so that none outlives the test that one spoils.
    failures = []
    for worker in workers:
        try:
            worker.finish()
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, "\n".join(failures)


@pytest.fixture
def spawn(tmp_path: Any) -> Iterator[Callable[..., Worker]]:
    """`spawn(environment, **options)`: starts a `Worker`, which must end with code 0 and silence, unless killed."""
    workers: list[Worker] = []
    yield _spawner(tmp_path, workers)
    _finish(workers)


@dataclass
class Pair:
    """Two workers. Which one owns the memory is the test's choice; by name it is the first."""

    owner: Worker
    reader: Worker


@pytest.fixture(scope="module")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, str]], Pair]]:
    workers: list[Worker] = []
    spawn = _spawner(tmp_path_factory.mktemp("pairs"), workers)
    pairs: dict[tuple[tuple[str, str], ...], Pair] = {}

    def pair(environment: dict[str, str]) -> Pair:
        key = tuple(environment.items())
        found = pairs.get(key)
        if found is None or not (found.owner.is_alive and found.reader.is_alive):
            pairs[key] = Pair(spawn(environment), spawn(environment))
        return pairs[key]

    yield pair
    _finish(workers)


@pytest.fixture
def pair(_pairs: Callable[[dict[str, str]], Pair], transport: dict[str, str]) -> Iterator[Pair]:
    """Two workers with warm connectors, shared by the tests of a module; after each one they settle, silently."""
    found = _pairs(transport)
    before = found.owner.errors, found.reader.errors
    yield found
    for worker in (found.owner, found.reader):
        worker.call(roles.settled)
    assert (found.owner.errors, found.reader.errors) == before
