"""What a worker does that has both packages: upstream's environment, with ours on its path. No pytest there."""

from __future__ import annotations

import inspect
import re

from support.memory import blank, is_pattern, pattern


async def read_into_upstreams(here, metadata, seed):
    import dynamo_nixl

    theirs = here.upstream
    arrays = [blank(4096), blank(300)]
    targets = [theirs.Descriptor((array, "cpu")) for array in arrays]
    remote = theirs.RdmaMetadata.model_validate(metadata)
    async with dynamo_nixl.Connector() as connector:
        constant = [theirs.Descriptor(bytes(4096)), targets[1]]
        try:
            await connector.begin_read(remote, constant)
        except ValueError as error:
            assert "read-only" in str(error), error
        else:
            raise AssertionError("bytes were accepted as a destination")
        with await connector.begin_read(remote, targets) as operation:
            await operation.wait_for_completion()
            assert [each.size for each in operation.results()] == [4096, 300]
    return all(is_pattern(array, seed + index) for index, array in enumerate(arrays))


async def write_from_upstreams(here, metadata, seed):
    import dynamo_nixl

    source = pattern(4096, seed)
    # An address says nothing of what is behind it.
    descriptor = here.upstream.Descriptor((source.ctypes.data, 4096, "cpu", source))
    async with dynamo_nixl.Connector() as connector:
        operation = await connector.begin_write(descriptor, here.upstream.RdmaMetadata.model_validate(metadata))
        await operation.wait_for_completion()
        return str(operation.status)


async def stated(here):
    """What upstream's descriptors say of themselves beside what is made of them, and why one is refused."""
    from dynamo_nixl import Connection, Connector, ReadableOperation, WritableOperation
    from dynamo_nixl._pairing import local_descriptors_of

    make = here.upstream.Descriptor
    array = pattern(4096, 1)
    constant = pattern(64, 2)
    constant.flags.writeable = False
    shortened = make((array, "cpu"))
    shortened._data_size = 100
    given = [
        make((array, "cpu")),
        make((array, "cuda:1")),
        make((array, "gpu")),
        make((array.ctypes.data, 4096, "cpu", array[:10])),
        make((array.ctypes.data + 5, 50, "cpu", array)),
        make((array.ctypes.data, 4096, "xpu:3")),
        make((array.ctypes.data, 4096, "cpu", array[::2][7:])),
        make(bytearray(30)),
        make(b"constant"),
        shortened,
    ]
    made = local_descriptors_of(given)
    assert all(ours._data_ref is theirs._data_ref for ours, theirs in zip(made, given, strict=True))
    alike = [(str(theirs), str(ours)) for theirs, ours in zip(given, made, strict=True)]

    connector = Connector()
    connection = Connection(connector, 1)
    refusals = []
    for operation, descriptor in (
        (WritableOperation, make((constant, "cpu"))),
        (WritableOperation, make(b"constant")),
        (ReadableOperation, make((array.reshape(64, 64)[:, ::2], "cpu"))),
        (ReadableOperation, make((array[::-1], "cuda:0"))),
    ):
        try:
            operation(connection, descriptor)
        except ValueError as error:
            refusals.append(str(error))
    # Sent it may be, and a resize would leave the peer with an address where nothing is.
    resizable = bytearray(30)
    (kept,) = local_descriptors_of([make(resizable)])
    try:
        resizable.extend(bytes(30))
    except BufferError:
        kept = None
    return alike, refusals, kept is None


async def read_over_an_owner(here, metadata, seed):
    """Into all of an array of which the descriptor keeps a part."""
    import dynamo_nixl

    target = blank(4096)
    descriptor = here.upstream.Descriptor((target.ctypes.data, 4096, "cpu", target[:10]))
    async with dynamo_nixl.Connector() as connector:
        operation = await connector.begin_read(here.upstream.RdmaMetadata.model_validate(metadata), descriptor)
        await operation.wait_for_completion()
    return is_pattern(target, seed)


def classes_of_operations(here):
    """Of both packages: what is abstract, what is a base of what, and what the wait of old is called with."""
    import dynamo_nixl

    kinds = ["AbstractOperation"]
    for sort, operations in (("Active", ("Read", "Write")), ("Passive", ("Readable", "Writable"))):
        kinds += [f"{each}Operation" for each in (sort, *operations)]
    described = []
    for package in (dynamo_nixl, here.upstream):
        found = [getattr(package, name) for name in kinds]
        described.append(
            [
                (
                    kind.__name__,
                    inspect.isabstract(kind),
                    [base.__name__ for base in kind.__mro__ if base in found],
                    [
                        (each.name, each.default)
                        for each in inspect.signature(kind._wait_for_completion_).parameters.values()
                    ]
                    if kind is not found[0]
                    else None,
                    inspect.iscoroutinefunction(kind.wait_for_completion),
                )
                for kind in found
            ]
        )
    return described


async def shown(here, exposed):
    """How either package shows operations; what differs by nature is made equal."""
    import dynamo_nixl

    texts = []
    for package, metadata in zip((dynamo_nixl, here.upstream), exposed, strict=True):
        connector = package.Connector()
        local = [bytearray(each["size"]) for each in metadata["descriptors"]]
        described = [package.Descriptor(each) for each in local]
        made = [
            await connector.create_readable(described[0]),
            await connector.create_readable(described[:1]),
            await connector.create_writable(described),
            await connector.begin_read(package.RdmaMetadata.model_validate(metadata), described),
        ]
        await made[-1].wait_for_completion()
        texts.append([without_the_particular(repr(each)) for each in made])
        for each in made:
            each.__exit__(None, None, None)
    return texts


def without_the_particular(text):
    text = re.sub(r"0x[0-9a-f]+", "0x", text)
    return re.sub(r"(notification_key|remote)='[^']*'", r"\1=''", text)
