"""Fixtures: workers, and the transports they use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from support import roles, upstream
from support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRANSPORTS: dict[str, dict[str, str]] = {"default": {}, "tcp": {"UCX_TLS": "tcp"}}
"""The environments that choose UCX's transports. All processes of a test get the same one."""

SHORT_GRACE = {"DYNAMO_NIXL_GRACE": "0.2"}
"""Memory of an exposure that was given up is let go soon, so that a test can wait for it."""


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment for a transport; each test runs once with each."""
    return TRANSPORTS[request.param]


def _spawner(folder: Any, workers: list[Worker]) -> Callable[..., Worker]:
    def spawn(environment: dict[str, str] | None = None, **options: Any) -> Worker:
        worker = Worker(folder, f"worker-{len(workers)}", SHORT_GRACE | (environment or {}), **options)
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


@pytest.fixture(scope="session")
def needs_upstream() -> None:
    """Skips where `make peers` has not been run; not in CI, see `plugins.skips`."""
    if not upstream.is_installed():
        pytest.skip("upstream is not installed: make peers")


@pytest.fixture
def spawn_upstream(spawn: Callable[..., Worker], needs_upstream: None) -> Callable[..., Worker]:
    """`spawn_upstream(environment)`: starts a worker that runs upstream's classes, with its first connector made."""
    return _spawner_of_upstream(spawn)


def _spawner_of_upstream(spawn: Callable[..., Worker]) -> Callable[..., Worker]:
    def spawn_upstream(environment: dict[str, str] | None = None) -> Worker:
        worker = spawn((environment or {}) | upstream.ENVIRONMENT, python=upstream.PYTHON)
        worker.call(upstream.start, limit=upstream.PATIENCE)
        return worker

    return spawn_upstream


@dataclass
class Mixed:
    """A worker with this package and one with upstream's."""

    ours: Worker
    theirs: Worker


@pytest.fixture(scope="module")
def _mixed_pair(
    tmp_path_factory: pytest.TempPathFactory, needs_upstream: None
) -> Iterator[Callable[[dict[str, str]], Mixed]]:
    # One pair at a time: upstream's agents spin on a core of their own for as long as they live.
    workers: list[Worker] = []
    current: dict[tuple[tuple[str, str], ...], Mixed] = {}

    def pair(environment: dict[str, str]) -> Mixed:
        key = tuple(environment.items())
        if key not in current or not all(worker.is_alive for worker in workers):
            current.clear()
            ended, workers[:] = list(workers), []
            _finish(ended)
            spawn = _spawner(tmp_path_factory.mktemp("mixed"), workers)
            current[key] = Mixed(spawn(environment), _spawner_of_upstream(spawn)(environment))
        return current[key]

    yield pair
    _finish(workers)


@pytest.fixture
def mixed(_mixed_pair: Callable[[dict[str, str]], Mixed], transport: dict[str, str]) -> Iterator[Mixed]:
    """One worker of each kind, as `pair`. Upstream's import makes the first test of a module slow."""
    found = _mixed_pair(transport)
    before = found.ours.errors, found.theirs.errors
    yield found
    found.theirs.call(upstream.settled)
    found.ours.call(roles.settled)
    assert (found.ours.errors, found.theirs.errors) == before
