"""A pytest plugin with one fixture.

In the `conftest.py` beside your `pytest.ini` or `pyproject.toml`::

    pytest_plugins = ["dynamo_nixl.testing.plugin"]
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import Faults


@pytest.fixture
def nixl_faults() -> Iterator[Faults]:
    """A set of faults of its own for each test, with seed 0, cleared when the test has ended.

    Examples
    --------
    ::

        async def test_a_lost_worker_is_replaced(nixl_faults):
            client = Client(nixl_faults.attach(Connector()))
            nixl_faults.lose("worker-1")
            assert await client.fetch("image") is not None
            assert nixl_faults.injected["lost"] > 0
    """
    faults = Faults()
    yield faults
    # Before anything that the test made is closed: pieces that are held would be waited for.
    faults.clear()
