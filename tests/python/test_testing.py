"""Faults for users' tests: each one makes the outcome come about that is documented, and recovery works."""

from __future__ import annotations

import asyncio
import time

import pytest
from dynamo_nixl import Connector, NixlConnectError, RdmaMetadata
from dynamo_nixl.testing import Faults

from support import roles, scripts
from support.here import eventually
from support.memory import blank
from support.scripts import Ended

MIB = 1 << 20
BIG = 16 * MIB
"""Four pieces."""


class Faulty:
    """One of a pair's workers, whose connector is a new one with faults."""

    def __init__(self, worker, **settings):
        self.worker = worker
        self.name = worker.call(begin, settings)

    def add(self, fault, *args, **options):
        return self.worker.call(add, fault, args, options)

    def injected(self, fault):
        return self.worker.call(injected)[fault]

    def clear(self):
        self.worker.call(clear)


@pytest.fixture
def faulty(pair):
    """`faulty(worker, **settings)`: gives a worker of the pair a connector with faults; they are cleared in the end."""
    made = []

    def make(worker, **settings):
        made.append(Faulty(worker, **settings))
        return made[-1]

    yield make
    for each in made:
        each.clear()


@pytest.mark.nixl
def test_a_stalled_piece(pair, faulty):
    reader = faulty(pair.reader, stall_timeout=2.0)
    fault = reader.add("stall")
    number, metadata = pair.owner.call(roles.expose_readable, [BIG])
    begun = pair.reader.call(roles.begin_read, metadata)
    assert pair.reader.call(struck, fault) == 1
    assert pair.reader.call(roles.fail_to_wait, begun) == ("TransferTimeoutError", "ERR")
    assert not pair.reader.call(is_quiesced, begun)
    assert pair.owner.call(roles.fail_to_wait, number) == ("TransferError", "ERR")
    # Others are not held up by it.
    works(pair)
    pair.reader.call(release, fault)
    pair.reader.call(wait_quiesced, begun)
    pair.reader.call(forget, begun)
    assert reader.injected("stall") == 1
    works(pair)


@pytest.mark.nixl
def test_a_stall_that_ends_by_itself(pair, faulty):
    reader = faulty(pair.reader)
    reader.add("stall", 0.5, at=2)
    assert works(pair) >= 0.5
    assert works(pair) < 30


@pytest.mark.nixl
def test_slow_pieces(pair, faulty):
    reader = faulty(pair.reader)
    reader.add("slow", 0.3)
    assert works(pair) >= 0.3
    reader.clear()
    reader.add("slow", 1000)
    number, metadata = pair.owner.call(roles.expose_readable, [BIG])
    begun = pair.reader.call(begin_read_within, metadata, 0.5)
    assert pair.reader.call(roles.fail_to_wait, begun) == ("TransferTimeoutError", "ERR")
    assert pair.owner.call(roles.fail_to_wait, number) == ("TransferError", "ERR")
    reader.clear()
    pair.reader.call(wait_quiesced, begun)
    works(pair)


@pytest.mark.nixl
@pytest.mark.parametrize("after_moving", [False, True])
def test_a_failed_piece(pair, faulty, after_moving):
    reader = faulty(pair.reader)
    reader.add("fail", at=3, after_moving=after_moving)
    number, metadata = pair.owner.call(roles.expose_readable, [BIG])
    begun = pair.reader.call(roles.begin_read, metadata)
    assert pair.reader.call(roles.fail_to_wait, begun) == ("TransferError", "ERR")
    assert pair.reader.call(error_of, begun) == ("NIXL_CAPI_ERROR_BACKEND", True)
    pair.reader.call(wait_quiesced, begun)
    assert pair.owner.call(roles.fail_to_wait, number) == ("TransferError", "ERR")
    assert reader.injected("fail") == 1
    works(pair)


@pytest.mark.nixl
def test_a_failed_write(pair, faulty):
    writer = faulty(pair.reader)
    writer.add("fail")
    number, metadata = pair.owner.call(roles.expose_writable, [BIG])
    assert pair.reader.call(fail_to_write, metadata) == "TransferError"
    assert pair.owner.call(roles.fail_to_wait, number) == ("TransferError", "ERR")
    assert pair.owner.call(is_blank, number)


@pytest.mark.nixl
def test_a_lost_completion(pair, faulty):
    owner = faulty(pair.owner)
    owner.add("drop", "any", count=None)
    number, metadata = pair.owner.call(roles.expose_readable, [BIG])
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    pair.owner.call(renew, number, 0.5)
    assert pair.owner.call(roles.fail_to_wait, number) == ("LeaseExpiredError", "ERR")
    assert owner.injected("drop") >= 1
    owner.clear()
    works(pair)


@pytest.mark.nixl
def test_a_late_completion(pair, faulty):
    owner = faulty(pair.owner)
    fault = owner.add("delay")
    number, metadata = pair.owner.call(roles.expose_readable, [BIG])
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(struck, fault) == 1
    assert pair.owner.call(roles.status, number) == "INIT"
    pair.owner.call(release, fault)
    assert pair.owner.call(roles.wait, number) == "DONE"
    owner.add("delay", 0.5)
    assert works(pair) >= 0.5


@pytest.mark.nixl
def test_a_completion_that_comes_twice(pair, faulty):
    owner = faulty(pair.owner)
    owner.add("duplicate", count=None)
    works(pair)
    works(pair)
    assert owner.injected("duplicate") == 2
    assert pair.owner.call(counted, "notifications_unknown", 2)
    assert pair.owner.call(counted, "notifications_matched", 2)


@pytest.mark.nixl
def test_stale_metadata(pair, faulty):
    reader = faulty(pair.reader)
    reader.add("stale")
    number, metadata = pair.owner.call(roles.expose_readable, [BIG])
    begun = pair.reader.call(roles.begin_read, metadata)
    assert pair.reader.call(roles.fail_to_wait, begun) == ("StaleMetadataError", "ERR")
    # The owner heard nothing: it is still there to be read.
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"
    reader.add("stale")
    number, metadata = pair.owner.call(roles.expose_writable, [BIG])
    assert pair.reader.call(fail_to_write, metadata) == "StaleMetadataError"
    assert pair.owner.call(is_blank, number)
    assert pair.reader.call(roles.write, metadata) == "DONE"
    assert pair.owner.call(roles.wait, number) == "DONE"
    assert reader.injected("stale") == 2


@pytest.mark.nixl
@pytest.mark.parametrize(("is_dead", "error"), [(False, "TransferError"), (True, "PeerLostError")])
def test_a_lost_peer(pair, faulty, is_dead, error):
    reader, owner = faulty(pair.reader), faulty(pair.owner)
    works(pair)
    reader.add("lose", owner.name, is_dead=is_dead)
    for _ in range(2):
        number, metadata = pair.owner.call(roles.expose_readable, [BIG])
        assert pair.reader.call(fail_to_read, metadata) == error
        assert pair.owner.call(roles.status, number) == "INIT"
        pair.owner.call(forget, number)
    assert reader.injected("lost") >= 2
    reader.clear()
    works(pair)
    # Another one is not lost.
    reader.add("lose", "another")
    works(pair)


@pytest.mark.nixl
def test_an_owner_that_hears_nothing(pair, faulty):
    reader, owner = faulty(pair.reader), faulty(pair.owner)
    owner.add("lose", reader.name)
    number, metadata = pair.owner.call(roles.expose_readable, [BIG])
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    pair.owner.call(renew, number, 0.5)
    assert pair.owner.call(roles.fail_to_wait, number) == ("LeaseExpiredError", "ERR")
    owner.clear()
    works(pair)


@pytest.mark.nixl
def test_the_seed_decides(pair, faulty):
    def outcomes(seed):
        reader = faulty(pair.reader, seed=seed)
        reader.add("fail", count=None, probability=0.5)
        exposed = [pair.owner.call(roles.expose_readable, [4096]) for _ in range(12)]
        ended = [pair.reader.call(try_to_read, metadata) for _, metadata in exposed]
        for number, _ in exposed:
            pair.owner.call(forget, number)
        return ended

    first = outcomes(1)
    assert set(first) == {"DONE", "TransferError"}
    assert outcomes(1) == first
    assert outcomes(2) != first


@pytest.mark.nixl
async def test_they_are_attached_before_a_connector_is_used():
    connector, faults = Connector(), Faults()
    assert faults.attach(connector) is connector
    with pytest.raises(RuntimeError, match="once"):
        Faults().attach(connector)
    assert faults.attach(Connector()) != connector
    async with Connector() as used:
        await used.warmup()
        with pytest.raises(RuntimeError, match="before"):
            faults.attach(used)
    with pytest.raises(TypeError, match="Connector"):
        faults.attach("connector")


def test_a_connector_may_be_a_subclass():
    class Worker(Connector):
        pass

    assert isinstance(Faults().attach(Worker("w")), Worker)


def test_faults_are_counted_and_shown():
    faults = Faults(seed=-1)
    assert faults.injected == dict.fromkeys(["drop", "delay", "duplicate", "stall", "slow", "fail", "stale", "lost"], 0)
    with faults.stall(peer="other") as stall:
        assert repr(stall) == "Fault(stall, injected=0)"
        stall.release()
    stall.clear()
    faults.release()
    assert repr(faults) == "Faults(injected={})"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"at": 0}, ValueError),
        ({"at": 1.5}, TypeError),
        ({"count": 0}, ValueError),
        ({"count": "all"}, TypeError),
        ({"probability": 1.5}, ValueError),
        ({"probability": float("nan")}, ValueError),
        ({"probability": "half"}, TypeError),
        ({"peer": b"worker"}, TypeError),
        ({"seconds": -1}, ValueError),
        ({"seconds": "soon"}, TypeError),
    ],
)
def test_arguments_are_checked(options, error):
    with pytest.raises(error, match=next(iter(options))):
        Faults().stall(**options)


def test_a_kind_and_a_seed_are_checked():
    with pytest.raises(ValueError, match="kind"):
        Faults().drop("hello")
    with pytest.raises(TypeError, match="seed"):
        Faults("seed")


def test_the_package_does_not_import_it_nor_it_pytest(tmp_path):
    source = """
        import sys
        import dynamo_nixl
        assert "dynamo_nixl.testing" not in sys.modules
        import dynamo_nixl.testing
        assert not {"pytest", "_pytest", "numpy", "pydantic"} & set(sys.modules)
        dynamo_nixl.testing.Faults().attach(dynamo_nixl.Connector())
    """
    assert scripts.run(source, tmp_path) == Ended(0, "", "")


def test_the_fixture(pytester):
    pytester.makeconftest("pytest_plugins = ['dynamo_nixl.testing.plugin']")
    pytester.makepyfile("""
        kept = []

        def test_one(nixl_faults):
            assert nixl_faults.injected["lost"] == 0
            kept.append(nixl_faults)

        def test_two(nixl_faults):
            assert nixl_faults not in kept
    """)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)


def works(pair):
    """Read once, with success on both sides. Returns how long that took."""
    start = time.monotonic()
    number, metadata = pair.owner.call(roles.expose_readable, [BIG], seed=4)
    assert pair.reader.call(roles.read, metadata, seed=4) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"
    pair.owner.call(forget, number)
    return time.monotonic() - start


async def begin(here, settings):
    here.kept.clear()
    here.faults = Faults(settings.pop("seed", 0))
    here.connector = here.faults.attach(Connector(**settings))
    return here.connector.name


async def add(here, fault, args, options):
    return here.keep(getattr(here.faults, fault)(*args, **options))


async def injected(here):
    return here.faults.injected


async def clear(here):
    here.faults.clear()


async def release(here, fault):
    here.kept[fault].release()


async def struck(here, fault):
    await here.kept[fault].struck()
    return here.kept[fault].injected


async def forget(here, number):
    del here.kept[number]


async def renew(here, number, lease):
    here.kept[number][0].renew(lease)


async def is_quiesced(here, number):
    return here.kept[number][0].is_quiesced


async def wait_quiesced(here, number):
    await asyncio.wait_for(here.kept[number][0].wait_quiesced(), 60)
    return here.kept[number][0].is_quiesced


async def error_of(here, number):
    error = here.kept[number][0].error
    return error.status, error.bytes_done < BIG


async def begin_read_within(here, metadata, timeout):
    arrays = [blank(BIG)]
    operation = await here.connector.begin_read(
        RdmaMetadata.model_validate(metadata), roles.descriptors(arrays), timeout=timeout
    )
    return here.keep((operation, arrays))


async def try_to_read(here, metadata):
    try:
        return (await roles.read(here, metadata))[0]
    except NixlConnectError as error:
        return type(error).__name__


async def fail_to_read(here, metadata):
    outcome = await try_to_read(here, metadata)
    assert outcome != "DONE"
    return outcome


async def fail_to_write(here, metadata):
    with pytest.raises(NixlConnectError) as caught:
        await roles.write(here, metadata, seed=9)
    return type(caught.value).__name__


async def is_blank(here, number):
    _, arrays = here.kept[number]
    return bool((arrays[0] == 0xEE).all())


async def counted(here, name, count):
    await eventually(lambda: here.connector._shared_connection._native.stats()[name] == count)
    return True
