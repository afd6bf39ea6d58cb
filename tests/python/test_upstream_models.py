"""The classes that need no NIXL behave as upstream's: both interpreters evaluate the same expressions."""

from __future__ import annotations

import pytest

from support import expressions, upstream

pytestmark = [pytest.mark.interop, pytest.mark.timeout(280)]

DIFFERENT = {
    # Upstream's compares by name and has no hash.
    "hash(Connector('w'))",
}


@pytest.mark.usefixtures("needs_upstream")
def test_every_expression_has_the_same_outcome(spawn):
    theirs, unheard = spawn(python=upstream.PYTHON).call(
        expressions.evaluate, "dynamo.nixl_connect", limit=upstream.PATIENCE
    )
    # Its half-made descriptors complain when they are let go; ours do not.
    assert unheard == {"'Descriptor' object has no attribute '_nixl_hndl'"}
    ours, unheard = spawn().call(expressions.evaluate, "dynamo_nixl")
    assert unheard == set()
    assert list(ours) == list(theirs) == expressions.EXPRESSIONS
    different = {text: (ours[text], theirs[text]) for text in theirs if ours[text] != theirs[text]}
    assert set(different) == DIFFERENT, different
    # As JSON, there and back, byte for byte.
    text = f"RdmaMetadata.model_validate_json({expressions.WIRE!r}).model_dump_json()"
    assert ours[text] == theirs[text] == ("is", repr(expressions.WIRE))
    # The table is no table of typing errors: it holds enough of each, and no name that is missing.
    sorts = [outcome[0] for outcome in theirs.values()]
    assert min(sorts.count("is"), sorts.count("raises"), sorts.count("is refused by pydantic")) > 50
    assert ("raises", []) not in theirs.values()
