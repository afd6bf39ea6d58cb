"""A bad wire: joins two network namespaces by TAP devices and loses and delays what passes between them.

`python relay.py PID PID DEVICE`: the namespaces of two processes get a device each. It says `ready`, then obeys
lines of its standard input, `LOSS DELAY` (a share and seconds), answers each with `done`, and ends with its input. tc's
netem would do the same, but not every kernel has it.
"""

from __future__ import annotations

import collections
import ctypes
import fcntl
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
FRAME = 1 << 17
QUEUED = 10_000
"""Frames that a delay may hold back in either direction; more push out the oldest."""


def device_in(pid: int, name: str) -> int:
    """Make a TAP device in the namespace of a process, to be attached to for as long as the descriptor is open."""
    with open(f"/proc/{pid}/ns/net") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def forward(ends: list[int]) -> None:
    """Pass frames on until the standard input ends."""
    loss = delay = 0.0
    chance = random.Random(1)
    held: list[collections.deque[tuple[float, bytes]]] = [collections.deque(maxlen=QUEUED) for _ in ends]
    commands = bytearray()
    while True:
        due = [queue[0][0] - time.monotonic() for queue in held if queue]
        ready, _, _ = select.select([0, *ends], [], [], max(0.0, min(due)) if due else None)
        if 0 in ready:
            read = os.read(0, 1024)
            if not read:
                return
            commands += read
            if commands.endswith(b"\n"):
                loss, delay = map(float, commands.split())
                commands.clear()
                os.write(1, b"done\n")
        now = time.monotonic()
        for index, end in enumerate(ends):
            if end in ready:
                held[index].extend((now + delay, frame) for frame in _frames(end) if chance.random() >= loss)
            _give(ends[1 - index], held[index], now)


def _frames(end: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < 64:
        try:
            frames.append(os.read(end, FRAME))
        except OSError:
            # There are no more, or the device is not up.
            break
    return frames


def _give(end: int, queue: collections.deque[tuple[float, bytes]], now: float) -> None:
    while queue and queue[0][0] <= now:
        try:
            os.write(end, queue.popleft()[1])
        except OSError:
            # Down or full: lost.
            continue


if __name__ == "__main__":
    made = [device_in(int(pid), sys.argv[3]) for pid in sys.argv[1:3]]
    os.write(1, b"ready\n")
    forward(made)
