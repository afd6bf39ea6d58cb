"""Fixtures: wires between network namespaces, workers at their ends, and workers out of each other's sight.

Tests that use them are not marked `nixl`, which may never skip in CI: whether namespaces can be made is the machine's
choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support import namespaces
from support.outages import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from contextlib import AbstractContextManager

    from support.namespaces import Wire
    from support.workers import Worker

WIRES = ["veth", "relayed"]
WAYS = ["read", "write"]


def each_wire(*short: str) -> pytest.MarkDecorator:
    """Both kinds of wire, of which `make test` takes some."""
    return pytest.mark.parametrize("wire", [case(each, short=each in short) for each in WIRES], indirect=True)


def each_way(*short: tuple[str, str]) -> pytest.MarkDecorator:
    """Both kinds of wire and both ways to move bytes over them, of which `make test` takes some."""
    cases = [case(wire, way, short=(wire, way) in short) for wire in WIRES for way in WAYS]
    return pytest.mark.parametrize(("wire", "way"), cases, indirect=["wire"])


def case(*values: str, short: bool) -> Any:
    """One case, which `make test` takes or not."""
    return pytest.param(*values, marks=() if short else pytest.mark.long, id="-".join(values))


def _strung(make: Callable[[], AbstractContextManager[Wire]]) -> Iterator[Wire]:
    """A wire of one kind, and a way to start workers at its ends."""
    try:
        with make() as wire:
            yield wire
    except namespaces.UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def veth() -> Iterator[Wire]:
    yield from _strung(namespaces.veth_pair)


@pytest.fixture
def relayed() -> Iterator[Wire]:
    yield from _strung(namespaces.relayed)


@pytest.fixture
def wire(request: pytest.FixtureRequest) -> Wire:
    """Either kind: the cut of a veth pair is known to the stack, the other one to nobody."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def at_ends(spawn: Callable[..., Worker]) -> Callable[..., list[Worker]]:
    """`at_ends(wire, settings)`: an owner at the end that is set down, and an active side at the other."""

    def start(wire: Wire, settings: Mapping[str, str], *, foreign_pids: Collection[str] = ()) -> list[Worker]:
        workers = [
            spawn(
                namespaces.TCP | settings,
                prefix=wire.at(end, own_pids=name in foreign_pids),
                loses_peers=True,
            )
            for end, name in enumerate(("owner", "active"))
        ]
        connect(*workers)
        return workers

    return start


@pytest.fixture
def apart(spawn: Callable[..., Worker]) -> Callable[..., list[Worker]]:
    """`apart(settings)`: an owner and an active side that share everything but their pids, over TCP."""

    def start(settings: Mapping[str, str]) -> list[Worker]:
        try:
            prefix = namespaces.own_pids()
        except namespaces.UnavailableError as reason:
            pytest.skip(str(reason))
        environment = {"UCX_TLS": "tcp"} | settings
        workers = [spawn(environment, prefix=prefix, loses_peers=True) for _ in range(2)]
        connect(*workers)
        return workers

    return start
