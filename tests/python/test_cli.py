"""The command `dynamo-nixl`: demo and doctor."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import typer
from dynamo_nixl import __version__
from dynamo_nixl.cli import _ucx_log
from dynamo_nixl.cli._app import parse_size
from dynamo_nixl.cli._payload import Tensors, checksum, clear, describe, shape_of


def command(*arguments, program=("-m", "dynamo_nixl"), **environment):
    """Run the command line in a process of its own; UCX's log variables are the demo's to set."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("UCX_LOG")}
    return subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**inherited, **environment},
    )


class TestCommandLine:
    def test_help(self):
        result = command("--help")
        assert result.returncode == 0
        assert "demo" in result.stdout
        assert "doctor" in result.stdout

    def test_version(self):
        result = command("--version")
        assert (result.returncode, result.stdout) == (0, f"dynamo-nixl {__version__}\n")

    @pytest.mark.parametrize("missing", ["typer", "rich", "aiohttp"])
    def test_without_the_extra(self, missing):
        program = f"import sys; sys.modules[{missing!r}] = None; from dynamo_nixl.cli import main; main()"
        result = command("demo", program=("-c", program))
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr == f"dynamo-nixl needs {missing}, install with: pip install 'dynamo-nixl[cli]'\n"

    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("1", 1),
            ("4096", 4096),
            ("4K", 4096),
            ("4 KiB", 4096),
            ("1mb", 1 << 20),
            ("64M", 64 << 20),
            ("2GiB", 2 << 30),
        ],
    )
    def test_sizes(self, text, size):
        assert parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "0", "-1", "1.5M", "4Q", "K", "many"])
    def test_no_sizes(self, text):
        with pytest.raises(typer.BadParameter):
            parse_size(text)


class TestPayload:
    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 12, 4096, 4100, 1 << 20, 3 << 20])
    def test_shapes(self, size):
        shape, is_float = shape_of(size)
        elements = 1
        for extent in shape:
            elements *= extent
        assert elements * (4 if is_float else 1) == size

    @pytest.mark.parametrize("library", ["torch", "numpy"])
    def test_contents(self, monkeypatch, library):
        from dynamo_nixl import Descriptor

        if library == "numpy":
            monkeypatch.setitem(sys.modules, "torch", None)
        tensors = Tensors()
        assert tensors.library.startswith(f"{library} ")
        tensor = tensors.random(4096)
        assert describe(tensor) == "float32[32 x 32]"
        descriptor, empty = Descriptor(tensor), Descriptor(tensors.zeros(4096))
        assert descriptor.size == empty.size == 4096
        assert checksum(descriptor) != checksum(empty)
        clear(descriptor)
        assert checksum(descriptor) == checksum(empty)


# As UCX 1.23 of NIXL 1.5.1 printed it, shortened.
UCX_LOG = """\
[1795230091.001634] [vm:5658 :0]     ucp_context.c:2753 UCX  INFO  Version 1.23.0 (loaded from /x/libucp.so.0.0.0)
[1795230091.016194] [vm:5658 :0]      ucp_worker.c:1997 UCX  INFO    owner self cfg#0 am(tcp/lo cma/memory)
[1795230091.017089] [vm:5658 :0]   +--------+-------------+-----------------------------------+
[1795230091.017089] [vm:5658 :0]   | owner self cfg#0                                         |
[1795230091.017089] [vm:5658 :0]   | remote memory write by ucp_put* from host memory to host |
[1795230091.017089] [vm:5658 :0]   +--------+-------------+-----------------------------------+
[1795230091.017089] [vm:5658 :0]   | Range  | Description |              Config               |
[1795230091.017089] [vm:5658 :0]   +--------+-------------+-----------------------------------+
[1795230091.017089] [vm:5658 :0]   | 0..inf | zero-copy   | self/memory                       |
[1795230091.017089] [vm:5658 :0]   +--------+-------------+-----------------------------------+
[1795230091.018898] [vm:5658 :0]      ucp_worker.c:1997 UCX  INFO    owner intra-node cfg#1 am(tcp/lo cma/memory)
[1795230091.018898] [vm:5658 :0]   +------------+--------------------+---------------+
[1795230091.018898] [vm:5658 :0]   | owner intra-node cfg#1                          |
[1795230091.018898] [vm:5658 :0]   | active message by ucp_am_send* from host memory |
[1795230091.018898] [vm:5658 :0]   +------------+--------------------+---------------+
[1795230091.018898] [vm:5658 :0]   |   Range    |    Description     |    Config     |
[1795230091.018898] [vm:5658 :0]   +------------+--------------------+---------------+
[1795230091.018898] [vm:5658 :0]   |          0 | short              | tcp/lo        |
[1795230091.018898] [vm:5658 :0]   | 1..inf     | multi-frag copy-in | tcp/lo        |
[1795230091.018898] [vm:5658 :0]   +------------+--------------------+---------------+
[1795230091.020000] [vm:5658 :0]   +--------+-------------+-------------------------------------------+
[1795230091.020000] [vm:5658 :0]   | owner intra-node cfg#1                                           |
[1795230091.020000] [vm:5658 :0]   | remote memory read by ucp_get*(multi) into host memory from host |
[1795230091.020000] [vm:5658 :0]   +--------+-------------+-------------------------------------------+
[1795230091.020000] [vm:5658 :0]   | Range  | Description |                  Config                   |
[1795230091.020000] [vm:5658 :0]   +--------+-------------+-------------------------------------------+
[1795230091.020000] [vm:5658 :0]   | 0..8K  | short       | sysv/memory                               |
[1795230091.020000] [vm:5658 :0]   | 8193..inf | zero-copy | cma/memory                               |
[1795230091.020000] [vm:5658 :0]   +--------+-------------+-------------------------------------------+
"""


class TestUcxLog:
    def test_tables_about_peers(self):
        found = _ucx_log.protocols(UCX_LOG.splitlines())
        assert [protocol.operation for protocol in found] == [
            "active message by ucp_am_send* from host memory",
            "remote memory read by ucp_get*(multi) into host memory from host",
        ]
        assert found[0].ranges == [(0, 0, "tcp/lo"), (1, None, "tcp/lo")]

    def test_transport(self):
        assert _ucx_log.transport(UCX_LOG, "read", 8192) == "sysv/memory"
        assert _ucx_log.transport(UCX_LOG, "read", 1 << 30) == "cma/memory"
        # How a worker would reach itself says nothing about a peer.
        assert _ucx_log.transport(UCX_LOG, "write", 1) is None
        assert _ucx_log.transport("", "read", 1) is None

    def test_version(self):
        assert _ucx_log.version(UCX_LOG) == "1.23.0"
        assert _ucx_log.version("") is None

    def test_a_user_s_own_log_is_left_alone(self, tmp_path):
        environment = {"UCX_LOG_LEVEL": "debug"}
        assert not _ucx_log.turn_on(environment, tmp_path)
        assert environment == {"UCX_LOG_LEVEL": "debug"}


@pytest.mark.nixl
class TestDemo:
    @pytest.mark.parametrize("transports", [None, "tcp"])
    def test_both_directions(self, transports):
        environment = {} if transports is None else {"UCX_TLS": transports}
        result = command("demo", "--json", "--repeat", "2", "--size", "5", "--size", "1M", **environment)
        assert result.stderr == ""
        assert result.returncode == 0
        report = json.loads(result.stdout)
        assert report["ok"] is True
        assert report["peer_stderr"] == ""
        assert report["side_channel"].startswith("http://127.0.0.1:")
        results = report["results"]
        assert Counter(each["direction"] for each in results) == {"read": 2, "write": 2}
        assert {each["size"] for each in results} == {5, 1 << 20}
        assert all(len(each["seconds"]) == 2 and each["gigabytes_per_second"] > 0 for each in results)
        assert {each["verified_by"] for each in results} == {"this process", "the peer"}
        # Which ones UCX takes by default depends on the machine: that it takes one it may take, and tells, does not.
        expected = r"\btcp\b" if transports else r"\b(tcp|cma|knem|xpmem|sysv|posix|rc|dc|ud)"
        assert all(re.search(expected, each["transport"] or "nothing") for each in results)

    def test_for_people(self):
        result = command("demo", "--repeat", "1", "--size", "4K")
        assert result.stderr == ""
        assert result.returncode == 0
        for part in ("read from peer", "write to peer", "float32[32 x 32]", "4,096", "GB/s", "transport"):
            assert part in result.stdout

    def test_a_transport_that_ucx_does_not_tell(self, tmp_path):
        log = str(tmp_path / "log")
        result = command("demo", "--repeat", "1", "--size", "4K", UCX_LOG_FILE=log, UCX_LOG_LEVEL="error")
        assert result.returncode == 0
        assert "not known" in result.stdout

    def test_a_time_limit(self):
        result = command("demo", "--timeout", "1", "--repeat", "1000000", "--size", "1M")
        assert result.returncode == 1
        assert "no result within 1 s" in result.stderr

    def test_a_peer_that_dies(self, tmp_path):
        # Imported by every Python process that finds it; only the peer is to stumble over it.
        (tmp_path / "sitecustomize.py").write_text(
            "import sys\nif any('_demo_peer' in each for each in sys.orig_argv): sys.exit('stumbled')\n"
        )
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        result = command("demo", "--size", "4K", PYTHONPATH=path)
        assert result.returncode == 1
        assert "the peer ended before it was ready" in result.stderr
        assert "stumbled" in result.stderr


def test_demo_without_nixl(tmp_path):
    result = command("demo", "--json", DYNAMO_NIXL_LIBRARY=str(tmp_path))
    assert result.returncode == 1
    assert "DYNAMO_NIXL_LIBRARY names no library" in result.stderr
    assert json.loads(result.stdout)["ok"] is False


@pytest.mark.nixl
class TestDoctor:
    def test_works(self):
        result = command("doctor", "--json")
        assert result.stderr == ""
        assert result.returncode == 0
        report = json.loads(result.stdout)
        assert report["is_ok"] is True
        assert report["nixl"]["opening a connector"].startswith("works")
        assert "1.4.1 <= version < 1.6" in report["nixl"]["version"]
        assert "end of that process" not in report["nixl"]

    def test_for_people(self):
        result = command("doctor", UCX_TLS="tcp")
        assert result.returncode == 0
        for part in ("System", "NIXL", "Packages", "Environment", "UCX_TLS", "A connector can be opened."):
            assert part in result.stdout

    def test_says_that_nixl_was_loaded_before(self):
        program = (
            "import glob, importlib.machinery, importlib.util, os, sys\n"
            "origin = next(p for d in sys.path for p in glob.glob(os.path.join(d, 'nixl_cu*', '_bindings.*.so')))\n"
            "loader = importlib.machinery.ExtensionFileLoader('_bindings', origin)\n"
            "importlib.util.module_from_spec(importlib.util.spec_from_loader('_bindings', loader))\n"
            "from dynamo_nixl.cli import main\n"
            "main()\n"
        )
        result = command("doctor", "--json", program=("-c", program))
        assert result.returncode == 0
        assert any("by someone else" in advice for advice in json.loads(result.stdout)["advice"])


def test_doctor_without_nixl(tmp_path):
    result = command("doctor", DYNAMO_NIXL_LIBRARY=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == ""
    assert "DYNAMO_NIXL_LIBRARY names no library" in result.stdout
    assert "No connector can be opened." in result.stdout


def test_doctor_on_a_bare_machine():
    program = (
        "import importlib.metadata, sys\n"
        "installed = importlib.metadata.distribution\n"
        "def distribution(name):\n"
        "    if name.startswith('nixl'):\n"
        "        raise importlib.metadata.PackageNotFoundError(name)\n"
        "    return installed(name)\n"
        "importlib.metadata.distribution = distribution\n"
        "from dynamo_nixl.cli import doctor\n"
        "sys.exit(doctor.run_doctor(as_json=True))\n"
    )
    result = command(program=("-c", program), DYNAMO_NIXL_LIBRARY="")
    report = json.loads(result.stdout)
    assert report["nixl"]["chosen"].startswith("whatever the loader's search path has")
