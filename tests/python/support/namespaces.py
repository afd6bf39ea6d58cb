"""Two network namespaces and a wire between them that can be cut, for workers that share no loopback.

The namespaces have no names: each one is that of a process that waits for the end of its input. So they go, and their
devices with them, when that process ends, which it does with the tests', however they end.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = "wire0"
"""The device at either end."""
ADDRESSES = ("10.213.0.1", "10.213.0.2")
TCP = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": DEVICE}
"""The environment of workers that talk over the wire and over nothing else."""
TOOLS = ("ip", "nsenter", "unshare")
_NO_TOOLS = "no iproute2 or util-linux"
_RELAY = Path(__file__).with_name("relay.py")
_NEW_SYS = 'mount -t sysfs sysfs /sys && exec "$@"'
"""UCX finds its devices in /sys, which shows those of the namespace that it was mounted in."""
_OWN_PIDS = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


class UnavailableError(Exception):
    """What the tests need, and this machine does not let them have."""


class Wire(ABC):
    """A wire between two namespaces. The first one's end is the one that is set down where that is how it is cut."""

    def __init__(self, holders: list[subprocess.Popen[bytes]]) -> None:
        self._holders = holders

    def at(self, end: int, *, own_pids: bool = False) -> list[str]:
        """The command prefix for a worker at one end, 0 or 1; optionally in a pid namespace of its own as well."""
        inside = ["unshare", "--mount", "sh", "-c", _NEW_SYS, "sh"]
        return [*self._enter(end), *inside, *(_OWN_PIDS if own_pids else [])]

    @abstractmethod
    def cut(self) -> None:
        """Let nothing pass any more."""

    @abstractmethod
    def mend(self) -> None:
        """Let everything pass again."""

    def _enter(self, end: int) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._holders[end].pid}/ns/net"]

    def _run(self, end: int, *command: str) -> str:
        done = subprocess.run([*self._enter(end), *command], capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise UnavailableError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def _set_up(self, end: int) -> None:
        self._run(end, "ip", "link", "set", "lo", "up")
        self._run(end, "ip", "address", "add", f"{ADDRESSES[end]}/24", "dev", DEVICE)
        self._run(end, "ip", "link", "set", DEVICE, "up")

    def _await_carrier(self) -> None:
        """The kernel takes its time, and UCX does not take a device without a carrier."""
        deadline = time.monotonic() + 20
        while not all(re.search(r"LOWER_UP.* state (UP|UNKNOWN) ", self._shown(end)) for end in (0, 1)):
            assert time.monotonic() < deadline, [self._shown(end) for end in (0, 1)]
            time.sleep(0.01)

    def _shown(self, end: int) -> str:
        return self._run(end, "ip", "-oneline", "link", "show", DEVICE)


class VethPair(Wire):
    """A veth pair. It is cut by setting one of its ends down: the stack there knows, the other end has no carrier."""

    def __init__(self, holders: list[subprocess.Popen[bytes]]) -> None:
        super().__init__(holders)
        there = str(holders[1].pid)
        self._run(0, "ip", "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", there)
        for end in (0, 1):
            self._set_up(end)
        self._await_carrier()

    def cut(self) -> None:
        self._run(0, "ip", "link", "set", DEVICE, "down")

    def mend(self) -> None:
        self._run(0, "ip", "link", "set", DEVICE, "up")
        self._await_carrier()


class Relayed(Wire):
    """Two TAP devices with a process between them. When it is cut, frames vanish and nobody is told."""

    def __init__(self, holders: list[subprocess.Popen[bytes]], relay: subprocess.Popen[bytes]) -> None:
        super().__init__(holders)
        self._relay = relay
        self._expect(b"ready\n")
        for end in (0, 1):
            self._set_up(end)
        self._await_carrier()

    def worsen(self, *, loss: float = 0.0, delay: float = 0.0) -> None:
        """Lose a share of the frames from now on, and hold back the others for so many seconds, either way."""
        assert self._relay.stdin is not None
        self._relay.stdin.write(f"{loss} {delay}\n".encode())
        self._relay.stdin.flush()
        self._expect(b"done\n")

    def cut(self) -> None:
        self.worsen(loss=1.0)

    def mend(self) -> None:
        self.worsen()

    def _expect(self, line: bytes) -> None:
        assert self._relay.stdout is not None
        if self._relay.stdout.readline() != line:
            raise UnavailableError("no TAP devices")


def own_pids() -> list[str]:
    """The command prefix for a worker in a pid namespace of its own. Raises `UnavailableError`."""
    if any(shutil.which(tool) is None for tool in TOOLS):
        raise UnavailableError(_NO_TOOLS)
    if os.geteuid() != 0 or subprocess.run([*_OWN_PIDS, "true"], capture_output=True).returncode:
        raise UnavailableError("no right to make pid namespaces")
    return _OWN_PIDS


@contextlib.contextmanager
def veth_pair() -> Iterator[VethPair]:
    """Join two new namespaces by a veth pair. Raises `UnavailableError`."""
    with _namespaces() as holders:
        try:
            wire = VethPair(holders)
        except UnavailableError:
            raise UnavailableError("no veth devices") from None
        yield wire


@contextlib.contextmanager
def relayed() -> Iterator[Relayed]:
    """Join two new namespaces by a relay. Raises `UnavailableError`."""
    with _namespaces() as holders:
        program = [sys.executable, str(_RELAY), *(str(each.pid) for each in holders), DEVICE]
        with _ended(program) as relay:
            yield Relayed(holders, relay)


@contextlib.contextmanager
def _namespaces() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Have two processes in new network namespaces, which do nothing."""
    if any(shutil.which(tool) is None for tool in TOOLS):
        raise UnavailableError(_NO_TOOLS)
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        raise UnavailableError("no right to make network namespaces")
    with contextlib.ExitStack() as stack:
        holders = []
        for _ in range(2):
            holder = stack.enter_context(_ended(["unshare", "--net", "sh", "-c", "echo; exec cat"]))
            assert holder.stdout is not None
            # From here on it is where it belongs.
            assert holder.stdout.readline() == b"\n"
            holders.append(holder)
        yield holders


@contextlib.contextmanager
def _ended(program: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that ends with its standard input, and see to it that it does."""
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
