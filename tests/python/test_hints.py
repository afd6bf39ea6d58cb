"""Failures that NIXL reports with a bare status: the error's hint says what in the environment to change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support import scripts
from support.scripts import Ended

pytestmark = pytest.mark.nixl

SILENT = {"UCX_LOG_LEVEL": "fatal", "NIXL_LOG_LEVEL": "FATAL"}
"""Nothing is printed by us; the libraries would."""
MORE = "started with UCX_LOG_LEVEL=info and NIXL_LOG_LEVEL=INFO, the process says more"

PROGRAM = """
import asyncio
import base64
import json
import os
import resource
import zlib
from dynamo_nixl import Connector, Descriptor, NixlConnectError, RdmaMetadata

def as_of_a_foreign_peer(metadata):
    # What is behind the stream is ours; without it, a reader takes an agent with NIXL's own defaults.
    stream = zlib.decompressobj()
    text = stream.decompress(base64.b64decode(metadata.nixl_metadata.removeprefix("b64:")))
    fields = metadata.model_dump() | {"nixl_metadata": "b64:" + base64.b64encode(zlib.compress(text)).decode()}
    return RdmaMetadata.model_validate(fields)

async def transfer(change=lambda metadata: metadata):
    owner, reader = Connector(), Connector()
    exposed = await owner.create_readable(Descriptor(bytes(5000)))
    begun = await reader.begin_read(change(exposed.metadata()), Descriptor(bytearray(5000)))
    await begun.wait_for_completion()

def told(program):
    try:
        asyncio.run(program)
    except NixlConnectError as error:
        assert error.hint in str(error)
        print(json.dumps([type(error).__name__, error.phase, error.status, error.hint]))
"""


def failure(tmp_path, environment, program="told(transfer())"):
    """Run a program that fails; returns the error's class, phase, status and hint."""
    ended = scripts.run(PROGRAM + program, tmp_path, SILENT | environment)
    assert (ended.code, ended.errors) == (0, ""), ended
    return json.loads(ended.output)


BACKEND = ["NixlConnectError", "create back end", "NIXL_CAPI_ERROR_BACKEND"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"UCX_TLS": "self"}, "UCX_TLS=self has no transport that notices when a peer is gone: unset it, or add tcp"),
        ({"UCX_TLS": "cma"}, "UCX_TLS=cma has no transport that notices when a peer is gone: unset it, or add tcp"),
        ({"UCX_TLS": "nonsense"}, "UCX_TLS=nonsense asks for nonsense, which UCX may not have: unset it, or add tcp"),
        (
            {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "nonsense"},
            "UCX_NET_DEVICES names nonsense, which is not here: unset it, or choose from ",
        ),
    ],
    ids=["self", "cma", "nonsense", "device"],
)
def test_a_back_end_that_cannot_be_made(tmp_path, environment, expected):
    *facts, hint = failure(tmp_path, environment)
    assert facts == BACKEND
    assert hint.startswith(expected)
    assert hint.endswith(f"; {MORE}")


def test_rdma_where_there_is_none(tmp_path):
    if Path("/sys/class/infiniband").exists():
        pytest.skip("this machine has RDMA devices")
    *facts, hint = failure(tmp_path, {"UCX_TLS": "rc"})
    assert facts == BACKEND
    assert hint == f"UCX_TLS=rc asks for RDMA, and this machine shows no RDMA device: unset it, or add tcp; {MORE}"


def test_shared_memory_alone_with_a_foreign_peer(tmp_path):
    """It serves own peers, whose agents are made otherwise."""
    ended = scripts.run(PROGRAM + "told(transfer())", tmp_path, SILENT | {"UCX_TLS": "posix,sysv,self"})
    assert ended == Ended(0, "", "")
    *facts, hint = failure(tmp_path, {"UCX_TLS": "posix,sysv,self"}, "told(transfer(as_of_a_foreign_peer))")
    assert facts == BACKEND
    assert hint.startswith("UCX_TLS=posix,sysv,self has no transport that notices when a peer is gone")


@pytest.mark.parametrize("more", range(6, 21, 2))
def test_hardly_any_files(tmp_path, more):
    """Where UCX runs out of them at a bad moment it aborts the process, so it is not let."""
    limit = f"""
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + {more}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
told(transfer())
"""
    name, phase, _, hint = failure(tmp_path, {}, limit)
    assert name == "NixlConnectError"
    assert phase in ("create agent", "create back end")
    assert "raise `ulimit -n`" in hint


def test_a_transfer_that_fails(tmp_path):
    """The peer's memory is no longer there: nothing in the environment is wrong, and the general advice remains."""
    program = """
import ctypes, mmap
async def main():
    owner, reader = Connector(), Connector()
    memory = mmap.mmap(-1, 1 << 20)
    exposed = await owner.create_readable(Descriptor(memory))
    metadata = as_of_a_foreign_peer(exposed.metadata())
    libc = ctypes.CDLL(None)
    address = metadata.descriptors[0].ptr
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(1 << 20), 0) == 0
    begun = await reader.begin_read(metadata, Descriptor(bytearray(1 << 20)))
    try:
        await begun.wait_for_completion()
    finally:
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(1 << 20), 3) == 0
told(main())
"""
    name, _, status, hint = failure(tmp_path, {}, program)
    assert (name, status) == ("TransferError", "NIXL_CAPI_ERROR_BACKEND")
    assert hint.startswith("the peer may be gone, or what it exposed; ")
    assert hint.endswith(MORE)
    *_, hint = failure(tmp_path, {"UCX_NET_DEVICES": "nonsense"}, program)
    assert "UCX_NET_DEVICES names nonsense" in hint
