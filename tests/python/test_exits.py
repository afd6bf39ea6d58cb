"""How processes end that have used NIXL: with the code they should, in silence, and at all."""

from __future__ import annotations

import json
import signal
import textwrap
import time

import pytest

from support import flight, roles, scripts
from support.scripts import Ended

pytestmark = pytest.mark.nixl

HEAD = """
import asyncio
import gc
import sys
import threading
from dynamo_nixl import Connector, Descriptor, RdmaMetadata

async def exchange(size):
    # Both ends in one process: what counts is that NIXL was used. All ends with the frame.
    owner, reader = Connector(), Connector()
    exposed = await owner.create_readable(Descriptor(bytes(size)))
    begun = await reader.begin_read(exposed.metadata(), Descriptor(bytearray(size)))
    await asyncio.gather(begun.wait_for_completion(), exposed.wait_for_completion())
    return owner, reader, exposed, begun
"""


def program(body: str) -> str:
    return HEAD + textwrap.dedent(body)


CLEAN = {
    "all is disposed of": """
        async def main():
            *_, exposed, begun = await exchange(5000)
            with exposed, begun:
                pass
        asyncio.run(main())
    """,
    "a live connector": """
        connectors = asyncio.run(exchange(5000))
    """,
    "in a reference cycle": """
        async def main():
            cycle = list(await exchange(5000))
            cycle.append(cycle)
        gc.disable()
        asyncio.run(main())
    """,
    "an outstanding readable": """
        async def main():
            global connector, operation
            connector = Connector()
            operation = await connector.create_readable(Descriptor(bytearray(5000)))
            operation.metadata()
        asyncio.run(main())
    """,
    "an outstanding waiter": """
        async def main():
            global connector, task
            connector = Connector()
            operation = await connector.create_readable(Descriptor(bytearray(5000)))
            task = asyncio.create_task(operation.wait_for_completion())
            await asyncio.sleep(0)
        asyncio.run(main())
    """,
    "an outstanding big exposure": """
        async def main():
            global operation
            operation = await Connector().create_writable(Descriptor(bytearray(64 << 20)))
        asyncio.run(main())
    """,
    "a read that was just begun": """
        async def main():
            global everything
            owner, reader = Connector(), Connector()
            exposed = await owner.create_readable(Descriptor(bytes(64 << 20)))
            begun = await reader.begin_read(exposed.metadata(), Descriptor(bytearray(64 << 20)))
            everything = owner, reader, exposed, begun
        asyncio.run(main())
    """,
    "opening is under way": """
        async def main():
            global connector
            connector = Connector()
            asyncio.create_task(connector.create_readable(Descriptor(bytearray(5000))))
            await asyncio.sleep(0.01)
        asyncio.run(main())
    """,
    "sys.exit(0) in a task": """
        async def main():
            global everything
            everything = await exchange(5000)
            sys.exit(0)
        asyncio.run(main())
    """,
    "a loop that was never closed": """
        loop = asyncio.new_event_loop()
        everything = loop.run_until_complete(exchange(5000))
        loop.close()
    """,
    "a loop that is closed while opening": """
        asyncio.run(exchange(5000))
        loop = asyncio.new_event_loop()
        connector = Connector()
        task = loop.create_task(connector.warmup())
        task._log_destroy_pending = False  # asyncio would remark on it, rightly
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
    """,
    "a loop that is closed when the news arrive": """
        asyncio.run(exchange(5000))
        class Closing(asyncio.SelectorEventLoop):
            def call_soon_threadsafe(self, *arguments, **options):
                if not self.is_running():
                    self.close()
                return super().call_soon_threadsafe(*arguments, **options)
        loop = Closing()
        connector = Connector()
        task = loop.create_task(connector.warmup())
        task._log_destroy_pending = False  # asyncio would remark on it, rightly
        loop.run_until_complete(asyncio.sleep(0.005))
        connector._own_connection()._native.open_blocking()
        while not loop.is_closed() and not task.done():
            pass
    """,
    "a loop that was closed while opening": """
        asyncio.run(exchange(5000))
        loop = asyncio.new_event_loop()
        connector = Connector()
        task = loop.create_task(connector.warmup())
        task._log_destroy_pending = False  # asyncio would remark on it, rightly
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        # Until the agent exists, and its news have nowhere to go.
        connector._own_connection()._native.open_blocking()
        asyncio.run(exchange(5000))
    """,
    "many are opening": """
        async def main():
            global connectors, tasks
            connectors = [Connector() for _ in range(4)]
            tasks = [asyncio.ensure_future(each.warmup()) for each in connectors]
            for task in tasks:
                task._log_destroy_pending = False
            await asyncio.sleep(0.2)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    """,
    "a peer that was only connected to": """
        from dynamo_nixl import Remote
        connectors = Connector(), Connector()
        owner, reader = (connector._own_connection() for connector in connectors)
        with Remote(reader, owner.metadata):
            pass
    """,
    "in a thread that has ended": """
        def work():
            global everything
            everything = asyncio.run(exchange(5000))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """,
    "never used": """
        connector = Connector("worker")
        descriptor = Descriptor(bytearray(5))
    """,
}


@pytest.mark.parametrize("body", CLEAN.values(), ids=CLEAN)
def test_clean(tmp_path, transport, body):
    assert scripts.run(program(body), tmp_path, transport) == Ended(0, "", "")


def test_sys_exit_with_a_code_in_a_task(tmp_path):
    body = """
        async def fail():
            sys.exit(7)
        async def main():
            global everything
            everything = await exchange(5000)
            await asyncio.create_task(fail())
        asyncio.run(main())
    """
    assert scripts.run(program(body), tmp_path) == Ended(7, "", "")


def test_an_exception_out_of_main(tmp_path):
    body = """
        async def main():
            global everything
            everything = await exchange(5000)
            operation = await everything[0].create_readable(Descriptor(bytearray(5000)))
            raise LookupError("on purpose")
        asyncio.run(main())
    """
    code, output, errors = scripts.run(program(body), tmp_path)
    assert (code, output) == (1, "")
    assert errors.startswith("Traceback (most recent call last):")
    assert errors.endswith("\nLookupError: on purpose\n")
    assert errors.count("Traceback") == 1


def test_a_coroutine_that_was_never_awaited(tmp_path):
    body = """
        async def main():
            global waiting
            operation = await Connector().create_readable(Descriptor(bytearray(5000)))
            waiting = operation.wait_for_completion()
        asyncio.run(main())
    """
    code, output, errors = scripts.run(program(body), tmp_path)
    assert (code, output) == (0, "")
    # Python's own remark, and nothing besides.
    assert "was never awaited" in errors
    assert all(
        "coroutine" in line or line.startswith(("Exception ignored", "RuntimeWarning")) or not line.strip()
        for line in errors.splitlines()
    ), errors


WAITS = {
    "in a loop": """
        async def main():
            operation = await Connector().create_readable(Descriptor(bytearray(5000)))
            print("waiting", flush=True)
            await operation.wait_for_completion()
        asyncio.run(main())
    """,
    "without a loop": """
        operation = asyncio.run(Connector().create_readable(Descriptor(bytearray(5000))))
        print("waiting", flush=True)
        operation._native.wait_blocking(2, None)
    """,
}


@pytest.mark.parametrize("body", WAITS.values(), ids=WAITS)
def test_ctrl_c_while_waiting(tmp_path, body):
    process = scripts.start(program(body), tmp_path)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    code, output, errors = scripts.end(process)
    # Python ends itself with the signal after an uncaught KeyboardInterrupt.
    assert (code, output) == (-signal.SIGINT, "")
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_a_fork_that_ends_normally(tmp_path):
    """The child inherits a connector without its threads; its exit must neither hang nor disturb the parent."""
    body = """
        import os
        import warnings
        warnings.simplefilter("ignore")
        everything = asyncio.run(exchange(5000))
        child = os.fork()
        if child == 0:
            sys.exit(3)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 3
        asyncio.run(exchange(5000))
    """
    assert scripts.run(program(body), tmp_path) == Ended(0, "", "")


def test_forks_in_the_middle_of_traffic(tmp_path):
    """What a child inherits it leaves alone: locks that a thread held, and memory that NIXL shares with its parent."""
    body = """
        import os
        import warnings
        warnings.simplefilter("ignore")
        is_over = False
        def traffic():
            async def forever():
                owner, reader = Connector(), Connector()
                while not is_over:
                    exposed = await owner.create_readable(Descriptor(bytes(300_000)))
                    begun = await reader.begin_read(exposed.metadata(), Descriptor(bytearray(300_000)))
                    await asyncio.gather(begun.wait_for_completion(), exposed.wait_for_completion())
            asyncio.run(forever())
        thread = threading.Thread(target=traffic)
        thread.start()
        connector = Connector()
        for _ in range(60):
            operations = [asyncio.run(connector.create_readable(Descriptor(bytearray(5000)))) for _ in range(3)]
            operations[0].cancel()
            child = os.fork()
            if child == 0:
                operations[1].cancel()
                del operations
                gc.collect()
                sys.exit(3)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 3
        is_over = True
        thread.join()
        asyncio.run(exchange(5000))
    """
    assert scripts.run(program(body), tmp_path) == Ended(0, "", "")


ENDINGS = {
    "the end of main": ("await asyncio.sleep(0)", 0),
    "sys.exit in a task": ("await asyncio.create_task(leave())", 3),
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT)\nawait waiting", -signal.SIGINT),
}
"""What a coroutine does to end its process, and the exit code."""

AT_WORK = """
import json
import os
import signal

async def leave():
    sys.exit(3)

async def signalled():
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
"""

READS = """
async def main():
    global connector, operation, waiting
    connector = Connector()
    small, big = (RdmaMetadata.model_validate(json.loads(text)) for text in {metadata!r})
    # Connects, which nothing can while the owner stands still.
    begun = await connector.begin_read(small, Descriptor(bytearray(small.descriptors[0].size)))
    await begun.wait_for_completion()
    print("connected", flush=True)
    await signalled()
    operation = await connector.begin_read(big, Descriptor(bytearray(big.descriptors[0].size)))
    waiting = asyncio.ensure_future(operation.wait_for_completion())
    await asyncio.sleep(0.2)
    assert not waiting.done()
{ending}
asyncio.run(main())
"""

OWNS = """
async def main():
    global connector, operation, waiting
    connector = Connector()
    for size in (1, {size}):
        operation = await connector.create_readable(Descriptor(bytearray(size)))
        print(operation.metadata().model_dump_json(), flush=True)
        waiting = asyncio.ensure_future(operation.wait_for_completion())
        if size == 1:
            await waiting
    await signalled()
    assert not waiting.done()
{ending}
asyncio.run(main())
"""

TOLD = ("TransferError", "CancelledByPeerError", "PeerLostError")
PATIENCE = 30.0


def ended_well(process, expected):
    """Insist on the exit code, on silence, and on an end without a wait for what cannot come."""
    start = time.monotonic()
    code, output, errors = scripts.end(process, PATIENCE)
    assert (code, output) == (expected, ""), errors
    if expected == -signal.SIGINT:
        # Python's own, and nothing besides.
        assert errors.startswith("Traceback (most recent call last):")
        assert errors.endswith("\nKeyboardInterrupt\n")
        assert not [
            line for line in errors.splitlines() if "UCX" in line or "nixl_" in line or "Exception ignored" in line
        ]
    else:
        assert errors == ""
    return time.monotonic() - start


@pytest.mark.parametrize(("ending", "code"), ENDINGS.values(), ids=ENDINGS)
def test_an_exit_in_the_middle_of_a_read_from_a_stopped_owner(spawn, tmp_path, ending, code):
    """What is in flight cannot end: the exit does not wait for it for long, and the owner is told when it goes on."""
    owner = spawn(flight.TCP, loses_peers=True)
    exposed = [owner.call(roles.expose_readable, [size]) for size in (1, flight.BIG)]
    metadata = [json.dumps(each) for _, each in exposed]
    source = AT_WORK + READS.format(metadata=metadata, ending=textwrap.indent(ending, "    "))
    process = scripts.start(program(source), tmp_path, flight.TCP)
    assert process.stdout.readline() == "connected\n"
    assert owner.call(roles.wait, exposed[0][0]) == "DONE"
    owner.pause()
    (tmp_path / "go").touch()
    try:
        assert ended_well(process, code) < PATIENCE / 2
    finally:
        owner.resume()
    error, status = owner.call(roles.fail_to_wait, exposed[1][0], limit=PATIENCE)
    assert (error in TOLD, status) == (True, "ERR" if error != "CancelledByPeerError" else "STOP")


@pytest.mark.parametrize(("ending", "code"), ENDINGS.values(), ids=ENDINGS)
def test_an_exit_of_an_owner_whose_reader_is_at_work(spawn, tmp_path, ending, code):
    reader = spawn(flight.TCP)
    source = AT_WORK + OWNS.format(size=flight.BIG, ending=textwrap.indent(ending, "    "))
    process = scripts.start(program(source), tmp_path, flight.TCP)
    assert reader.call(roles.read, json.loads(process.stdout.readline()), seed=0)[0] == "DONE"
    begun = reader.call(roles.begin_read, json.loads(process.stdout.readline()))
    reader.pause()
    (tmp_path / "go").touch()
    try:
        assert ended_well(process, code) < PATIENCE / 2
    finally:
        reader.resume()
    error, status = reader.call(roles.fail_to_wait, begun, limit=PATIENCE)
    assert (error in TOLD, status) == (True, "ERR" if error != "CancelledByPeerError" else "STOP")


@pytest.mark.parametrize(("ending", "code"), [("pass", 0), ("sys.exit(3)", 3)], ids=["normally", "sys.exit"])
def test_a_forked_child_and_its_parent_at_work(spawn, tmp_path, ending, code):
    """The child may use nothing that it inherited; the parent's exposure is read after the child has ended."""
    body = f"""
        import os
        import warnings
        from dynamo_nixl import ForkedError
        warnings.simplefilter("ignore")
        everything = asyncio.run(exchange(5000))
        connector = everything[0]
        def refuses(use):
            try:
                asyncio.run(use())
            except ForkedError:
                return
            raise AssertionError("it was of use")
        def refuses_call(use):
            async def call():
                use()
            refuses(call)
        def in_child():
            refuses(lambda: connector.create_readable(Descriptor(bytearray(5000))))
            refuses(connector.warmup)
            refuses(lambda: operation.wait_for_completion(timeout=5))
            refuses(operation.wait_quiesced)
            refuses(lambda: operation.__aexit__(None, None, None))
            refuses_call(operation.metadata)
            refuses_call(operation.renew)
            refuses_call(lambda: operation.is_quiesced)
            assert isinstance(operation.error, ForkedError), operation.error
            operation.cancel()
            {ending}
        def in_parent(child):
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == {code}
            print(operation.metadata().model_dump_json(), flush=True)
            asyncio.run(operation.wait_for_completion())
        operation = asyncio.run(connector.create_readable(Descriptor(bytearray(5000))))
        child = os.fork()
        in_parent(child) if child else in_child()
    """
    reader = spawn()
    process = scripts.start(program(body), tmp_path)
    text = process.stdout.readline()
    if not text:
        pytest.fail(str(scripts.end(process)))
    assert reader.call(roles.read, json.loads(text))[0] == "DONE"
    ended_well(process, 0)


HANGS_UP = """
    import os
    import signal
    calls = []
    # Whoever runs the tests may ignore it, as nohup does.
    signal.signal(signal.SIGHUP, (lambda *_: calls.append(1)) if {handles} else signal.SIG_DFL)
    def caught():
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        # But for 32 and 33, which are glibc's own and come with the first thread.
        return [int(fields[name], 16) & ~(3 << 31) for name in ("SigCgt", "SigIgn", "SigBlk")]
    before = caught()
    everything = asyncio.run(exchange(5000))
    assert caught() == before, (before, caught())
    os.kill(os.getpid(), signal.SIGHUP)
    assert calls == [1], calls
"""


@pytest.mark.parametrize(("handles", "code"), [(True, 0), (False, -signal.SIGHUP)], ids=["handled", "default"])
def test_signals_are_left_to_the_program(tmp_path, handles, code):
    """UCX would take SIGHUP, to switch its log on."""
    process = scripts.start(program(textwrap.dedent(HANGS_UP.format(handles=handles))), tmp_path)
    ended_well(process, code)
