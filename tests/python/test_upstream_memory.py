"""Weaknesses of Dynamo's own module that concern memory and its registration, one test for each."""

from __future__ import annotations

import gc
import importlib

import numpy as np
import pytest
from dynamo_nixl import Descriptor, RdmaMetadata

from support import roles
from support.here import eventually, settle, stats, unsettled
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl

SIZE = 10_000
TURNS = 20


def test_a_reused_descriptor_in_a_with_loop(pair):
    """Binding `as` anew destroys the operation before, which takes the descriptor's registration along in upstream."""
    for turn in range(TURNS):
        metadata = pair.owner.call(next_exposure)
        assert pair.reader.call(read_as_before, metadata, turn)
    pair.owner.call(end_exposures)
    pair.reader.call(end_reads)


def test_one_descriptor_serves_operations_that_are_only_forgotten(pair):
    assert pair.owner.call(make_descriptor)
    for _ in range(TURNS):
        number, metadata = pair.owner.call(expose_again)
        assert pair.reader.call(roles.read, metadata, seed=9) == ("DONE", True)
        assert pair.owner.call(roles.wait, number) == "DONE"
    pair.owner.call(forget_all)


def test_two_operations_on_one_descriptor(pair):
    """The first that is disposed of takes its share of the registration away, and no more."""
    assert pair.owner.call(make_descriptor)
    exposed = [pair.owner.call(expose_again) for _ in range(5)]
    for number, metadata in exposed:
        assert pair.reader.call(roles.read, metadata, seed=9) == ("DONE", True)
        assert pair.owner.call(roles.wait, number) == "DONE"
        pair.owner.call(roles.dispose, number)
    pair.owner.call(forget_all)


def test_two_reads_into_one_descriptor(pair):
    exposed = [pair.owner.call(roles.expose_readable, [5 << 20], seed=seed) for seed in (1, 2)]
    assert pair.reader.call(read_into_one, [metadata for _, metadata in exposed]) == [1, 2]
    for number, _ in exposed:
        assert pair.owner.call(roles.wait, number) == "DONE"


@pytest.mark.parametrize("ending", ["with", "exit", "cancel", "drop", "fail"])
def test_no_operation_ends_a_registration_that_it_did_not_begin(pair, ending):
    number, metadata = pair.owner.call(roles.expose_readable, [SIZE], seed=2)
    assert pair.reader.call(end_on_a_registered_descriptor, metadata, ending)
    if ending == "fail":
        return
    assert pair.owner.call(roles.wait, number) == "DONE"
    pair.owner.call(roles.settled)
    assert pair.owner.call(end_on_a_registered_exposure, ending)


@pytest.mark.parametrize("kind", ["strided", "transposed", "read-only", "bytes"])
def test_nothing_is_received_into_a_copy_or_into_what_is_constant(pair, kind):
    """Upstream receives into a hidden copy of what is not contiguous, and overwrites `bytes`."""
    number, metadata = pair.owner.call(roles.expose_readable, [64], seed=2)
    assert pair.reader.call(refuse_destination, metadata, kind)
    # Nothing has been begun: the peer would know.
    assert pair.owner.call(roles.status, number) == "INIT"
    number, metadata = pair.owner.call(expose_any, kind)
    assert bytes(pair.reader.call(read_bytes, metadata)) == bytes(memoryview(unreceivable(kind)).tobytes())
    assert pair.owner.call(roles.wait, number) == "DONE"


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0), (1,)], ids=str)
def test_arrays_without_a_dimension_or_an_element(pair, shape, library):
    """Upstream looks at the first row of what it registers; torch has no address for what has no element."""
    for count in (1, 2):
        number, metadata = pair.owner.call(expose_shape, library, shape, count)
        assert pair.reader.call(read_shape, metadata, library, shape)
        assert pair.owner.call(roles.wait, number) == "DONE"


def test_an_exposed_bytearray_cannot_be_resized(pair):
    """Upstream would go on with the address that the bytes had before."""
    metadata = pair.owner.call(expose_bytearray)
    pair.owner.call(fail_to_resize)
    assert pair.reader.call(roles.read, metadata, seed=6) == ("DONE", True)
    pair.owner.call(resize_after_the_end)
    number, metadata = pair.owner.call(roles.expose_readable, [SIZE], seed=6)
    assert pair.reader.call(read_into_a_bytearray, metadata)
    assert pair.owner.call(roles.wait, number) == "DONE"


async def next_exposure(here):
    async def expose():
        array = pattern(SIZE)
        descriptor = Descriptor(array)
        for turn in range(TURNS):
            array[:] = pattern(SIZE, turn)
            with await here.connector.create_readable(descriptor) as operation:
                assert descriptor.is_registered
                yield operation.metadata().model_dump()
                await operation.wait_for_completion()

    if not hasattr(here, "exposing"):
        here.exposing = expose()
    return await anext(here.exposing)


async def end_exposures(here):
    with pytest.raises(StopAsyncIteration):
        await anext(here.exposing)
    del here.exposing


async def read_as_before(here, metadata, turn):
    if not hasattr(here, "destination"):
        here.array = blank(SIZE)
        here.destination = Descriptor(here.array)
    # `operation` outlives the call, as the loop's variable outlives its turn.
    with await here.connector.begin_read(RdmaMetadata.model_validate(metadata), here.destination) as here.operation:
        await here.operation.wait_for_completion()
    return is_pattern(here.array, turn)


async def end_reads(here):
    assert not here.destination.is_registered
    del here.operation, here.destination, here.array


async def make_descriptor(here):
    here.array = pattern(SIZE, 9)
    here.descriptor = Descriptor(here.array)
    return not here.descriptor.is_registered


async def expose_again(here):
    operation = await here.connector.create_readable(here.descriptor)
    assert here.descriptor.is_registered
    return here.keep((operation, [here.array])), operation.metadata().model_dump()


async def forget_all(here):
    here.kept.clear()
    assert not here.descriptor.is_registered
    del here.descriptor, here.array


async def read_into_one(here, exposed):
    array = blank(5 << 20)
    descriptor = Descriptor(array)
    seen = []
    # The second is begun while the first has the descriptor, and goes on after the first has given it back.
    first = await here.connector.begin_read(RdmaMetadata.model_validate(exposed[0]), descriptor)
    await first.wait_for_completion()
    seen += [seed for seed in (1, 2) if is_pattern(array, seed)]
    second = await here.connector.begin_read(RdmaMetadata.model_validate(exposed[1]), descriptor)
    first.__exit__(None, None, None)
    del first
    assert descriptor.is_registered
    await second.wait_for_completion()
    return seen + [seed for seed in (1, 2) if is_pattern(array, seed)]


async def registered(here, data):
    descriptor = Descriptor(data)
    descriptor.register_with_connector(await here.connector._create_connection())
    assert stats(here.connector)["regions"] == 1
    return descriptor


async def nothing_but_regions(connector):
    """Wait until the operations are over, lest one take the registration along a little later."""
    await eventually(lambda: set(unsettled(connector)) <= {"regions"})


async def end_by(operation, ending):
    if ending == "with":
        with operation:
            pass
    elif ending == "exit":
        operation.__exit__(None, None, None)
        operation.__exit__(None, None, None)
    elif ending == "cancel":
        operation.cancel()


async def end_on_a_registered_descriptor(here, metadata, ending):
    array = blank(SIZE)
    descriptor = await registered(here, array)
    remote = RdmaMetadata.model_validate(metadata)
    if ending == "fail":
        spoiled = remote.model_copy(update={"nixl_metadata": "b64:AAAA"})
        with pytest.raises(ValueError, match="metadata"):
            await here.connector.begin_read(spoiled, descriptor)
        arrived = True
    else:
        operation = await here.connector.begin_read(remote, descriptor)
        await operation.wait_for_completion()
        arrived = is_pattern(array, 2)
        await end_by(operation, ending)
        del operation
    gc.collect()
    await nothing_but_regions(here.connector)
    return arrived and descriptor.is_registered and stats(here.connector)["regions"] == 1


async def end_on_a_registered_exposure(here, ending):
    descriptor = await registered(here, pattern(SIZE))
    operation = await here.connector.create_readable(descriptor)
    await end_by(operation, ending)
    del operation
    gc.collect()
    await nothing_but_regions(here.connector)
    return descriptor.is_registered and stats(here.connector)["regions"] == 1


def unreceivable(kind):
    """64 bytes that cannot be received into."""
    values = pattern(64, 5)
    if kind == "strided":
        return np.repeat(values, 2)[::2]
    if kind == "transposed":
        return values.reshape(4, 16).T
    if kind == "read-only":
        values.flags.writeable = False
        return values
    return values.tobytes()


async def refuse_destination(here, metadata, kind):
    data = unreceivable(kind)
    descriptor = Descriptor(data)
    with pytest.raises(ValueError, match="cannot receive"):
        await here.connector.begin_read(RdmaMetadata.model_validate(metadata), descriptor)
    with pytest.raises(ValueError, match="cannot receive"):
        await here.connector.create_writable(descriptor)
    assert stats(here.connector)["regions"] == 0
    return memoryview(data).tobytes() == memoryview(unreceivable(kind)).tobytes()


async def expose_any(here, kind):
    operation = await here.connector.create_readable(Descriptor(unreceivable(kind)))
    return here.keep((operation, [])), operation.metadata().model_dump()


async def read_bytes(here, metadata):
    array = blank(metadata["descriptors"][0]["size"])
    with await here.connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(array)) as operation:
        await operation.wait_for_completion()
    return array.tobytes()


async def described(here, arrays):
    """Descriptors, each registered beforehand, as upstream cannot."""
    connection = await here.connector._create_connection()
    made = [Descriptor(array) for array in arrays]
    for descriptor in made:
        descriptor.register_with_connector(connection)
        assert descriptor.is_registered
    return made if len(made) > 1 else made[0]


async def expose_shape(here, library, shape, count):
    arrays = [importlib.import_module(library).full(shape, 7.5)] * count
    operation = await here.connector.create_readable(await described(here, arrays))
    return here.keep((operation, arrays)), operation.metadata().model_dump()


async def read_shape(here, metadata, library, shape):
    arrays = [importlib.import_module(library).full(shape, 0.0) for _ in metadata["descriptors"]]
    into = await described(here, arrays)
    with await here.connector.begin_read(RdmaMetadata.model_validate(metadata), into) as operation:
        await operation.wait_for_completion()
    return all((array == 7.5).all() for array in arrays)


async def expose_bytearray(here):
    here.data = bytearray(pattern(SIZE, 6))
    here.operation = await here.connector.create_readable(Descriptor(here.data))
    return here.operation.metadata().model_dump()


async def fail_to_resize(here):
    for resize in (lambda: here.data.append(1), here.data.clear, lambda: here.data.__delitem__(0)):
        with pytest.raises(BufferError):
            resize()


async def resize_after_the_end(here):
    await here.operation.wait_for_completion()
    del here.operation
    await settle(here.connector)
    await resizable(here.data)
    del here.data


async def read_into_a_bytearray(here, metadata):
    data = bytearray(SIZE)
    operation = await here.connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(data))
    with pytest.raises(BufferError):
        data.append(1)
    await operation.wait_for_completion()
    arrived = is_pattern(data, 6)
    del operation
    await resizable(data)
    return arrived


async def resizable(data):
    # A thread of NIXL's may be the one that lets go last; what it held is given back by the next that runs Python.
    def grows():
        try:
            data.append(1)
        except BufferError:
            return False
        return True

    await eventually(grows)
