"""Expressions over the public names of a `nixl_connect`, and what comes of them. No NIXL.

Evaluated by the interpreters of both implementations, so that nothing but the standard library is imported here.
"""

from __future__ import annotations

import gc
import importlib
import logging
import sys
from typing import Any

NAMES = [
    *("Connector", "Descriptor", "Device", "DeviceKind", "OperationKind", "OperationStatus", "RdmaMetadata"),
    *("ReadOperation", "ReadableOperation", "SerializedDescriptor", "WritableOperation", "WriteOperation"),
]
DEVICES = [
    *(
        "cpu",
        "host",
        "cpu:5",
        "hosts",
        " CPU ",
        "cuda",
        "cuda:0",
        "cuda:1",
        "  CUDA:1 ",
        "cudaX",
        "cuda:2:7",
        "cuda:-1",
    ),
    *("cuda: 3", "cuda:+4", "cuda:1_0", "gpu", "gpu:1", "GPUfoo:4", "gpu:", "xpu", "xpu:3", "xpu3:4", "XPU:03"),
    *("", " ", "disk", "cuda:", "cuda:x", "xpu:1.5", "cuda:1 ", "ccpu", "cud", "c:0"),
]
KINDS = ["UNSPECIFIED", "HOST", "CUDA", "XPU"]
IN_DEVICE_FIELDS = [*map(repr, DEVICES), "None", "1", "b'cpu'", "['cpu']", "DeviceKind.HOST", "Device('cpu')"]
NUMBERS = [
    *(
        "1",
        "0",
        "-1",
        "2**53 + 1",
        "2**63 + 1",
        "2**64 + 1",
        "True",
        "False",
        "1.0",
        "1.5",
        "0.0",
        "'12'",
        "' 12 '",
        "'1_0'",
    ),
    *("'0'", "'x'", "''", "b'12'", "None", "[1]", "OperationKind.READ", "float('inf')"),
]
DESCRIPTOR = "SerializedDescriptor(device='cpu', ptr=4096, size=16)"
WIRE = (
    '{"descriptors":[{"device":"cuda:1","ptr":94121865935792,"size":1048576},{"device":"cpu","ptr":1,"size":0}],'
    '"nixl_metadata":"b64:eJw=","notification_key":"schlüssel","operation_kind":1}'
)
JSON = [
    WIRE,
    WIRE.replace('"operation_kind":1', '"operation_kind":"2"'),
    WIRE.replace('"operation_kind":1', '"operation_kind":3'),
    WIRE.replace('"operation_kind":1', '"operation_kind":0'),
    WIRE.replace('"operation_kind":1', '"operation_kind":1.5'),
    WIRE.replace('"operation_kind":1', '"operation_kind":null'),
    WIRE.replace('"operation_kind":1', '"operation_kind":1,"lease":5'),
    WIRE.replace('"size":0', '"size":0,"more":1'),
    WIRE.replace('"size":0', '"size":-1'),
    WIRE.replace('"ptr":1,', '"ptr":0,'),
    WIRE.replace('"ptr":1,', '"ptr":18446744073709551617,'),
    WIRE.replace('"ptr":1,', ""),
    WIRE.replace('"cpu"', '"gpu:0"'),
    WIRE.replace('"cpu"', '" CPU "'),
    WIRE.replace("schlüssel", ""),
    WIRE.replace('"schlüssel"', "null"),
    WIRE.replace('"b64:eJw="', "7"),
    WIRE.replace('"descriptors":[', '"descriptors":[null,'),
    "{}",
    "[]",
    "null",
    '"text"',
    "{",
    "",
]

EXPRESSIONS = [
    *(
        f"[{mapped} for each in {enumeration}]"
        for enumeration in ("DeviceKind", "OperationKind", "OperationStatus")
        for mapped in ("each.name", "each.value", "str(each)", "f'{each}'", "f'{each:>9}'", "repr(each)")
    ),
    *(
        f"{enumeration}({value})"
        for enumeration in ("DeviceKind", "OperationKind", "OperationStatus")
        for value in ("1", "6", "'1'", "None", "1.0", "-1")
    ),
    "[each.nixl_mem_type for each in DeviceKind]",
    "DeviceKind.HOST == 1 == OperationKind.READ",
    "sorted([OperationStatus.COMPLETE, OperationStatus.INITIALIZED])",
    *(f"(lambda it: (it.kind, it.id, str(it), repr(it)))(Device({device!r}))" for device in DEVICES),
    *(f"(lambda it: (it.kind, it.id, str(it), repr(it)))(Device((DeviceKind.{kind}, 7)))" for kind in KINDS),
    *(
        f"Device({value})"
        for value in (
            "None",
            "1",
            "['cpu']",
            "(2, 1)",
            "(DeviceKind.CUDA,)",
            "(DeviceKind.CUDA, '1')",
            "[DeviceKind.CUDA, 1]",
            "b'cpu'",
            "DeviceKind.CUDA",
            "()",
            "",
        )
    ),
    "repr(Device(metadata='cuda:1'))",
    "Device('cpu') == Device('cpu')",
    "len({Device('cpu'), Device('cpu')})",
    *(f"repr(SerializedDescriptor(device={value}, ptr=1))" for value in IN_DEVICE_FIELDS),
    *(f"repr(SerializedDescriptor(ptr={value}))" for value in NUMBERS),
    *(f"repr(SerializedDescriptor(size={value}))" for value in NUMBERS),
    *(
        f"SerializedDescriptor.model_validate({value}).model_dump()"
        for value in ("{}", "{'ptr': 1, 'x': 2}", "None", "[]", DESCRIPTOR)
    ),
    *(f"SerializedDescriptor(device={device!r}, ptr=4096, size=16).to_descriptor().__repr__()" for device in DEVICES),
    "repr(SerializedDescriptor())",
    "SerializedDescriptor('cpu')",
    f"hash({DESCRIPTOR}) == hash({DESCRIPTOR})",
    f"{DESCRIPTOR} == {DESCRIPTOR}",
    f"setattr({DESCRIPTOR}, 'size', 3)",
    f"setattr({DESCRIPTOR}, 'other', 3)",
    f"delattr({DESCRIPTOR}, 'size')",
    *(
        f"repr(RdmaMetadata(operation_kind={value}))"
        for value in (*NUMBERS, "2", "3", "4", "'2'", "OperationKind.WRITE", "OperationKind.UNSPECIFIED")
    ),
    *(
        f"repr(RdmaMetadata(descriptors={value}))"
        for value in (
            "None",
            "[]",
            "()",
            f"[{DESCRIPTOR}]",
            f"({DESCRIPTOR},)",
            DESCRIPTOR,
            "[{'ptr': 1}]",
            "[{'ptr': 0}]",
            "[1]",
            "{}",
        )
    ),
    *(
        f"repr(RdmaMetadata({field}={value}))"
        for field in ("nixl_metadata", "notification_key")
        for value in ("''", "'x'", "b'x'", "b'\\xff'", "1", "None", "['x']")
    ),
    "repr(RdmaMetadata())",
    "RdmaMetadata().model_dump()",
    "RdmaMetadata(other=1)",
    "hash(RdmaMetadata())",
    "setattr(RdmaMetadata(), 'operation_kind', 1)",
    "setattr(RdmaMetadata(), 'other', 1)",
    "RdmaMetadata() == RdmaMetadata()",
    "RdmaMetadata().descriptors is RdmaMetadata().descriptors",
    "RdmaMetadata().to_descriptors()",
    f"repr(RdmaMetadata(descriptors=[{DESCRIPTOR}]).to_descriptors())",
    f"repr(RdmaMetadata(descriptors=[{DESCRIPTOR}] * 2).to_descriptors())",
    *(f"RdmaMetadata.model_validate_json({text!r}).model_dump_json()" for text in JSON),
    *(f"list(RdmaMetadata.model_validate_json({text!r}).model_dump())" for text in JSON[:1]),
    *(f"RdmaMetadata.model_validate_json({text!r}, strict=True).model_dump_json()" for text in JSON),
    f"RdmaMetadata.model_validate_json({WIRE!r}).model_dump(mode='json')",
    f"RdmaMetadata.model_validate_json({WIRE!r}).model_copy(update={{'notification_key': 'k'}}).model_dump_json()",
    f"RdmaMetadata.model_validate_json({WIRE!r}).model_dump(exclude_defaults=True)",
    "bare(RdmaMetadata.model_json_schema())",
    "bare(RdmaMetadata.model_json_schema(mode='serialization'))",
    "bare(SerializedDescriptor.model_json_schema())",
    "(lambda it: RdmaMetadata.model_validate(it) is it)(RdmaMetadata())",
    *(
        f"repr(Descriptor({value}))"
        for value in (
            "(4096, 16)",
            "(4096, 16, 'cuda:1')",
            "(4096, 16, Device('xpu'))",
            "(4096, 16, 'cpu', None)",
            "(4096, 16, 'cpu', None, 5)",
            "None",
            "1",
            "'x'",
            "[]",
            "()",
            "(1,)",
            "(1, 2.0)",
            "(1, 2, 3)",
            "(1, 2, None)",
            "(1, 2, 'disk')",
            "('1', 2)",
            "[4096, 16]",
        )
    ),
    "(lambda it: (it.ptr, it.size, str(it.device), it.is_registered, it.metadata))(Descriptor((4096, 16, 'gpu:2')))",
    "Descriptor(data=(4096, 16)).metadata.to_descriptor().__str__()",
    f"repr(Descriptor.from_serialized({DESCRIPTOR}))",
    "Descriptor.from_serialized((4096, 16))",
    "(Descriptor(b'').size, Descriptor(b'abc').size, Descriptor(bytearray(7)).size, str(Descriptor(b'abc').device))",
    "Descriptor((4096, 16)) == Descriptor((4096, 16))",
    "(lambda it: (it.name, str(it), it == Connector('w'), it != Connector('v'), it == 'w'))(Connector('w'))",
    "repr(Connector('w')).split('hostname')[0]",
    *(f"Connector({value}).name" for value in ("''", "5", "b'w'", "['w']", "' '")),
    "(lambda name: (len(name), name.isalnum(), name.lower() == name))(Connector().name)",
    "hash(Connector('w'))",
    "Connector('w').hostname == __import__('socket').gethostname()",
    "[base.__name__ for base in ReadOperation.__mro__ if base.__name__.endswith('Operation')]",
    "[base.__name__ for base in WriteOperation.__mro__ if base.__name__.endswith('Operation')]",
    "[base.__name__ for base in ReadableOperation.__mro__ if base.__name__.endswith('Operation')]",
    "[base.__name__ for base in WritableOperation.__mro__ if base.__name__.endswith('Operation')]",
]

CONTRACT = (TypeError, ValueError, RuntimeError, AttributeError, OSError)
"""What of an error a program may rely on: whether it is one of these; and pydantic's own class."""


def evaluate(here: Any, module: str) -> tuple[dict[str, Any], set[str]]:
    """Evaluate all expressions with the names of a module.

    Returns the outcomes, which another interpreter's can be compared with, and the errors that went unheard: those that
    finalisers raised.
    """
    # Upstream warns that there is no CuPy.
    logging.getLogger(module).setLevel(logging.ERROR)
    public = importlib.import_module(module)
    names = {name: getattr(public, name) for name in NAMES} | {"bare": bare}
    unheard = set()
    before, sys.unraisablehook = sys.unraisablehook, lambda raised: unheard.add(str(raised.exc_value))
    try:
        outcomes = {text: _outcome(text, names) for text in EXPRESSIONS}
        gc.collect()
    finally:
        sys.unraisablehook = before
    return outcomes, unheard


def bare(schema: Any) -> Any:
    """A JSON schema without its descriptions, which are the docstrings."""
    if isinstance(schema, dict):
        return {name: bare(value) for name, value in schema.items() if name != "description"}
    return [bare(each) for each in schema] if isinstance(schema, list) else schema


def _outcome(text: str, names: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        # As globals, since functions within the expressions see no others.
        return "is", repr(eval(text, dict(names)))
    except ValidationError as error:
        return "is refused by pydantic", [(each["type"], each["loc"]) for each in error.errors(include_url=False)]
    except Exception as error:
        return "raises", [each.__name__ for each in CONTRACT if isinstance(error, each)]
