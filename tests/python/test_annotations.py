"""Annotations of public functions can be resolved, as frameworks do that inject or check by them. No NIXL."""

from __future__ import annotations

from support import scripts
from support.scripts import Ended

PROGRAM = """
import inspect
import sys
import typing

import dynamo_nixl

def functions():
    # The models last: what they import must not be needed for the others.
    for name in sorted(dynamo_nixl.__all__, key=lambda name: name not in vars(dynamo_nixl)):
        public = getattr(dynamo_nixl, name)
        if not inspect.isclass(public):
            continue
        for kind in public.__mro__:
            if not kind.__module__.startswith("dynamo_nixl"):
                continue
            yield kind.__qualname__, kind
            for attribute, value in vars(kind).items():
                if attribute.startswith("_") and not attribute.startswith("__"):
                    continue
                if isinstance(value, property):
                    value = value.fget
                elif isinstance(value, (classmethod, staticmethod)):
                    value = value.__func__
                else:
                    value = getattr(value, "func", value)
                if inspect.isfunction(value) and value.__module__.startswith("dynamo_nixl"):
                    yield f"{kind.__qualname__}.{attribute}", value

assert "pydantic" not in sys.modules
resolved = {}
for name, function in functions():
    try:
        resolved[name] = typing.get_type_hints(function)
    except NameError as error:
        print(name, error)
assert len(resolved) > 80, len(resolved)
assert resolved["Connector.begin_read"]["remote_metadata"] is dynamo_nixl.RdmaMetadata
assert resolved["Descriptor.from_serialized"]["serialized"] is dynamo_nixl.SerializedDescriptor
assert resolved["Connection.__init__"]["connector"] is dynamo_nixl.Connector
assert resolved["RdmaMetadata.to_descriptors"]["return"] == dynamo_nixl.Descriptor | list[dynamo_nixl.Descriptor]
"""


def test_they_are_resolved_in_any_order(tmp_path):
    assert scripts.run(PROGRAM, tmp_path) == Ended(0, "", "")
