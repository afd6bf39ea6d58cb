"""Children that were forked off a process at work with NIXL, and make connectors of their own.

What they inherited is inert; what they make works, towards their parent, strangers and each other; they end as they
should, in silence, and the parent does not notice.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

from support import roles, scripts
from support.scripts import Ended

pytestmark = pytest.mark.nixl

HEAD = """
import asyncio
import json
import multiprocessing
import os
import sys
import threading
import warnings
from dynamo_nixl import Connector, Descriptor, ForkedError, NixlConnectError, RdmaMetadata

# Python warns of forks where there are threads, and NIXL has some.
warnings.simplefilter("ignore", DeprecationWarning)

def pattern(size):
    return bytes(range(1, 252)) * (size // 251) + bytes(size % 251)

async def read(reader, metadata, size):
    received = bytearray(size)
    begun = await reader.begin_read(metadata, Descriptor(received))
    await begun.wait_for_completion()
    assert received == pattern(size), "other bytes have arrived"
    return begun

async def exchange(size=300_000, times=1):
    owner, reader = Connector(), Connector()
    for _ in range(times):
        exposed = await owner.create_readable(Descriptor(pattern(size)))
        begun = await read(reader, exposed.metadata(), size)
        await exposed.wait_for_completion()
    return owner, reader, exposed, begun

def refuses(use):
    try:
        asyncio.run(use())
    except ForkedError as error:
        assert "new connector" in str(error), error
        return
    raise AssertionError("it was of use")

def run_in_child(body):
    # Not by os._exit: how the child ends is a part of what is tested.
    child = os.fork()
    if child == 0:
        body()
        sys.exit(7)
    return child

def reap(child):
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code == 7, code

async def handed_over(reader):
    return RdmaMetadata.model_validate_json(await asyncio.to_thread(reader.readline))

def hand_over(writer, operation):
    print(operation.metadata().model_dump_json(), file=writer, flush=True)

class Traffic:
    # Exchanges in a thread of its own, without a break. At least one falls into the block.
    def __enter__(self):
        self.pid, self.is_over, self.count, self.has_begun = os.getpid(), False, 0, threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))
        self.thread.start()
        assert self.has_begun.wait(60)
        return self

    async def run(self):
        owner, reader = Connector(), Connector()
        while not self.is_over:
            exposed = await owner.create_readable(Descriptor(pattern(300_000)))
            await read(reader, exposed.metadata(), 300_000)
            await exposed.wait_for_completion()
            self.count += 1
            self.has_begun.set()

    def __exit__(self, *_):
        if os.getpid() != self.pid:
            return
        before, self.is_over = self.count, True
        self.thread.join()
        assert self.count > before, "the traffic has stopped"
"""


def run(body: str, tmp_path, transport) -> Ended:
    return scripts.run(HEAD + textwrap.dedent(body), tmp_path, transport)


CLEAN = Ended(0, "", "")


def test_a_new_connector_beside_inherited_ones(tmp_path, transport):
    body = """
        connector, _, exposed, begun = asyncio.run(exchange())
        open_one = asyncio.run(connector.create_readable(Descriptor(bytes(5000))))
        unused = Connector()
        def in_child():
            for inherited in (connector, unused):
                refuses(lambda: inherited.create_readable(Descriptor(bytes(5000))))
                refuses(inherited.warmup)
            refuses(lambda: open_one.wait_for_completion(timeout=5))
            mine = asyncio.run(exchange(times=5))
            refuses(lambda: connector.create_readable(Descriptor(bytes(5000))))
            refuses(lambda: open_one.wait_for_completion(timeout=5))
            refuses(open_one.wait_quiesced)
            try:
                open_one.metadata()
            except ForkedError:
                pass
            else:
                raise AssertionError("it has metadata")
            assert isinstance(open_one.error, ForkedError)
            try:
                open_one.is_quiesced
            except ForkedError:
                pass
            else:
                raise AssertionError("it knows")
            open_one.cancel()
            connector.close()
            asyncio.run(connector.aclose())
            asyncio.run(exchange())
        reap(run_in_child(in_child))
        assert open_one.status.name == "IN_PROGRESS" or open_one.status.name == "INITIALIZED"
        reader = Connector()
        async def read_it():
            received = bytearray(5000)
            begun = await reader.begin_read(open_one.metadata(), Descriptor(received))
            await asyncio.gather(begun.wait_for_completion(), open_one.wait_for_completion())
        asyncio.run(read_it())
    """
    assert run(body, tmp_path, transport) == CLEAN


def test_children_of_a_parent_with_transfers_under_way(tmp_path, transport):
    body = """
        with Traffic() as traffic:
            for _ in range(5):
                children = [run_in_child(lambda: asyncio.run(exchange(times=3))) for _ in range(2)]
                for child in children:
                    reap(child)
        asyncio.run(exchange())
    """
    assert run(body, tmp_path, transport) == CLEAN


def test_a_parent_and_its_child_read_from_each_other(tmp_path, transport):
    body = """
        SIZE = 5_000_000
        everything = asyncio.run(exchange())
        from_parent, to_child = os.pipe()
        from_child, to_parent = os.pipe()
        async def both(reads, writes):
            with open(reads) as reads, open(writes, "w") as writes:
                connector = Connector()
                exposed = await connector.create_readable(Descriptor(pattern(SIZE)))
                hand_over(writes, exposed)
                await read(connector, await handed_over(reads), SIZE)
                await exposed.wait_for_completion()
                written = await connector.create_writable(Descriptor(bytearray(SIZE)))
                hand_over(writes, written)
                begun = await connector.begin_write(Descriptor(pattern(SIZE)), await handed_over(reads))
                await asyncio.gather(begun.wait_for_completion(), written.wait_for_completion())
        child = run_in_child(lambda: asyncio.run(both(from_parent, to_parent)))
        asyncio.run(both(from_child, to_child))
        reap(child)
    """
    assert run(body, tmp_path, transport) == CLEAN


def test_a_child_and_a_stranger(spawn, tmp_path, transport):
    """The stranger reads from the child, and the child from the stranger."""
    stranger = spawn(transport)
    number, metadata = stranger.call(roles.expose_readable, [700_000])
    body = f"""
        everything = asyncio.run(exchange())
        async def main():
            connector = Connector()
            metadata = RdmaMetadata.model_validate_json({json.dumps(metadata)!r})
            begun = await connector.begin_read(metadata, Descriptor(bytearray(700_000)))
            await begun.wait_for_completion()
            exposed = await connector.create_writable(Descriptor(bytearray(700_000)))
            print(exposed.metadata().model_dump_json(), flush=True)
            await exposed.wait_for_completion()
        reap(run_in_child(lambda: asyncio.run(main())))
    """
    process = scripts.start(HEAD + textwrap.dedent(body), tmp_path, transport)
    text = process.stdout.readline()
    if not text:
        pytest.fail(str(scripts.end(process)))
    assert stranger.call(roles.write, json.loads(text)) == "DONE"
    assert stranger.call(roles.wait, number) == "DONE"
    assert scripts.end(process) == CLEAN


def test_children_of_children(tmp_path, transport):
    body = """
        def generation(number, inherited):
            refuses(lambda: inherited[0].create_readable(Descriptor(bytes(5000))))
            everything = asyncio.run(exchange())
            if number < 3:
                reap(run_in_child(lambda: generation(number + 1, everything)))
            asyncio.run(exchange())
        everything = asyncio.run(exchange())
        reap(run_in_child(lambda: generation(1, everything)))
        asyncio.run(exchange())
    """
    assert run(body, tmp_path, transport) == CLEAN


def test_processes_and_pools_of_multiprocessing(tmp_path, transport):
    body = """
        def work(number):
            asyncio.run(exchange(times=3))
            return number
        if __name__ == "__main__":
            everything = asyncio.run(exchange())
            context = multiprocessing.get_context("fork")
            processes = [context.Process(target=work, args=(number,)) for number in range(2)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                assert process.exitcode == 0, process.exitcode
            with context.Pool(2) as pool:
                assert pool.map(work, range(4)) == [0, 1, 2, 3]
                pool.close()
                pool.join()
            asyncio.run(exchange())
    """
    assert run(body, tmp_path, transport) == CLEAN


def test_what_a_child_of_multiprocessing_did_last_arrives(tmp_path, transport):
    """Such a process leaves without looking at `atexit`, as soon as its function has returned."""
    body = """
        SIZE = 300_000
        def work(metadata):
            global connector
            connector = Connector()
            asyncio.run(read(connector, RdmaMetadata.model_validate_json(metadata), SIZE))
        async def main():
            connector = Connector()
            for _ in range(5):
                exposed = await connector.create_readable(Descriptor(pattern(SIZE)))
                process = context.Process(target=work, args=(exposed.metadata().model_dump_json(),))
                process.start()
                await exposed.wait_for_completion()
                await asyncio.to_thread(process.join)
                assert process.exitcode == 0, process.exitcode
        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            asyncio.run(main())
    """
    assert run(body, tmp_path, transport) == CLEAN


def test_a_fork_inside_of_a_running_loop(tmp_path, transport):
    """By multiprocessing, whose child never goes back there: asyncio cannot bear that, its selector being shared."""
    body = """
        def in_child():
            # A loop of its own, beside the one that it inherited in the middle of this.
            asyncio.run(exchange(times=3))
        async def main():
            connectors = Connector(), Connector()
            exposed = await connectors[0].create_readable(Descriptor(pattern(40_000_000)))
            received = bytearray(40_000_000)
            begun = await connectors[1].begin_read(exposed.metadata(), Descriptor(received))
            waiting = asyncio.ensure_future(begun.wait_for_completion())
            process = multiprocessing.get_context("fork").Process(target=in_child)
            process.start()
            await waiting
            await exposed.wait_for_completion()
            assert received == pattern(40_000_000)
            await asyncio.to_thread(process.join)
            assert process.exitcode == 0, process.exitcode
            await exchange()
        asyncio.run(main())
    """
    assert run(body, tmp_path, transport) == CLEAN


ENDINGS = {
    "an outstanding exposure": """
        operation = asyncio.run(connector.create_readable(Descriptor(bytearray(5000))))
        operation.metadata()
    """,
    "an outstanding waiter": """
        async def wait():
            global operation, task
            operation = await connector.create_readable(Descriptor(bytearray(5000)))
            task = asyncio.create_task(operation.wait_for_completion())
            await asyncio.sleep(0)
        asyncio.run(wait())
    """,
    "a read that was just begun": """
        async def begin():
            global exposed, begun
            exposed = await Connector().create_readable(Descriptor(bytes(64 << 20)))
            begun = await connector.begin_read(exposed.metadata(), Descriptor(bytearray(64 << 20)))
        asyncio.run(begin())
    """,
    "opening is under way": """
        async def open_it():
            asyncio.create_task(Connector().warmup())
            await asyncio.sleep(0.01)
        asyncio.run(open_it())
    """,
    "nothing was used": "",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_a_child_ends_with(tmp_path, transport, ending):
    body = f"""
everything = asyncio.run(exchange())
def in_child():
    global connector
    connector = Connector()
{textwrap.indent(textwrap.dedent(ending), "    ")}
reap(run_in_child(in_child))
context = multiprocessing.get_context("fork")
process = context.Process(target=in_child)
process.start()
process.join()
assert process.exitcode == 0, process.exitcode
asyncio.run(exchange())
"""
    assert run(body, tmp_path, transport) == CLEAN


def test_threads_and_loops_of_a_child(tmp_path, transport):
    body = """
        everything = asyncio.run(exchange())
        def in_child():
            ended = []
            def work():
                ended.append(asyncio.run(exchange(times=3)))
            for _ in range(2):
                threads = [threading.Thread(target=work) for _ in range(3)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert len(ended) == 6
            shared = Connector()
            def use():
                exposed = asyncio.run(shared.create_readable(Descriptor(pattern(5000))))
                asyncio.run(read(Connector(), exposed.metadata(), 5000))
            threads = [threading.Thread(target=use) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        reap(run_in_child(in_child))
    """
    assert run(body, tmp_path, transport) == CLEAN


def test_a_child_changes_its_environment(tmp_path):
    """Its UCX reads what the child has set."""
    body = """
        everything = asyncio.run(exchange())
        def in_child():
            os.environ["UCX_TLS"] = "no_such_transport"
            try:
                asyncio.run(exchange())
            except NixlConnectError as error:
                assert "UCX_TLS" in str(error), error
            else:
                raise AssertionError("it was not read")
        reap(run_in_child(in_child))
    """
    assert run(body, tmp_path, {"UCX_LOG_LEVEL": "fatal", "NIXL_LOG_LEVEL": "FATAL"}) == CLEAN


COPIES = """
import ctypes

PARTS = ("libnixl", "libserdes", "libstream", "libucm", "libucp", "libucs", "libuct", "libplugin_UCX")

def mapped():
    # The libraries of NIXL and UCX in this process: their programs' ranges, by file.
    files = {}
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            path = fields[-1].strip().removesuffix(" (deleted)")
            if len(fields) == 6 and "x" in fields[1] and os.path.basename(path).startswith(PARTS):
                start, end = (int(text, 16) for text in fields[0].split("-"))
                files.setdefault(path, []).append((start, end - start))
    return files

def names(files):
    return sorted(map(os.path.basename, files))

def protect(files, protection):
    # UCX's alone: the C++ library has taken functions of std::string from NIXL's, and uses them for everybody.
    libc = ctypes.CDLL(None)
    ucx = [ranges for path, ranges in files.items() if os.path.basename(path).startswith("libuc")]
    for start, size in (part for ranges in ucx for part in ranges):
        assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), protection) == 0
"""


def test_a_child_calls_nothing_of_what_it_inherited(tmp_path, transport):
    """But until its own UCX is at work the hooks of the inherited one, which are in the C library."""
    body = (
        COPIES
        + """
originals = {}
def generation(number):
    everything = asyncio.run(exchange())
    # Nothing in there can be run, until the end, when every library is taken down.
    protect(originals, 1)
    copies = {path: ranges for path, ranges in mapped().items() if path not in originals}
    assert names(copies) == NAMES, (names(copies), NAMES)
    assert len({os.path.dirname(path) for path in copies if "/libnixl" in path or "/libuc" in path}) <= 2, copies
    assert os.listdir(os.environ["TMPDIR"]) == [], "something is left"
    asyncio.run(exchange(times=3))
    originals.update(copies)
    if number < 2:
        protect(originals, 5)
        reap(run_in_child(lambda: generation(number + 1)))
    protect(originals, 5)
everything = asyncio.run(exchange())
originals.update(mapped())
NAMES = names(originals)
assert NAMES
reap(run_in_child(lambda: generation(1)))
asyncio.run(exchange())
"""
    )
    assert run(body, tmp_path, transport | {"TMPDIR": str(empty(tmp_path))}) == CLEAN


def test_copies_are_bound_to_copies(tmp_path):
    """By the dynamic loader, which tells where it has found each function and variable."""
    log = tmp_path / "bindings"
    body = """
        everything = asyncio.run(exchange())
        reap(run_in_child(lambda: asyncio.run(exchange())))
    """
    folder = str(empty(tmp_path))
    settings = {"TMPDIR": folder, "LD_DEBUG": "bindings", "LD_DEBUG_OUTPUT": str(log)}
    assert run(body, tmp_path, settings) == CLEAN
    bindings = re.compile(r"binding file (\S+) \[0\] to (\S+) \[0\]: normal symbol `(\w+)'")
    parts = re.compile(r"lib(nixl|serdes|stream|uc[mpst]|plugin_UCX)[^/]*$")
    seen = set()
    for each in tmp_path.glob("bindings.*"):
        for user, used, symbol in bindings.findall(each.read_text()):
            if user.startswith(folder):
                assert used.startswith(folder) or not parts.search(used), (user, used, symbol)
                seen.add(used.startswith(folder))
    assert seen == {True, False}


def test_a_folder_of_plugins(tmp_path):
    """Named by the environment, where a child's NIXL would find the plugin that belongs to the inherited one."""
    import dynamo_nixl._library as library

    plugins = str(Path(library.choose(library.find({})).path).parent / "plugins")
    body = (
        COPIES
        + f"""
PLUGINS = {plugins!r}
everything = asyncio.run(exchange())
def in_child():
    originals = mapped()
    everything = asyncio.run(exchange())
    protect(originals, 1)
    asyncio.run(exchange())
    assert os.environ["NIXL_PLUGIN_DIR"] == PLUGINS
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    assert libc.getenv(b"NIXL_PLUGIN_DIR") == PLUGINS.encode()
    protect(originals, 5)
reap(run_in_child(in_child))
"""
    )
    assert run(body, tmp_path, {"NIXL_PLUGIN_DIR": plugins}) == CLEAN


def test_where_no_copy_can_be_made(tmp_path):
    """It is said why, nothing is left, and once there is a place it works."""
    good = str(empty(tmp_path))
    body = f"""
        everything = asyncio.run(exchange())
        def in_child():
            os.environ["TMPDIR"] = "/nowhere"
            for _ in range(2):
                try:
                    asyncio.run(exchange())
                except ForkedError as error:
                    assert "TMPDIR" in str(error) and "/nowhere" in str(error), error
                else:
                    raise AssertionError("there is one")
            os.environ["TMPDIR"] = {good!r}
            # It is loaded, and then UCX refuses: the files stay until an agent is made, or until the end.
            os.environ["UCX_TLS"] = "no_such_transport"
            try:
                asyncio.run(exchange())
            except NixlConnectError as error:
                assert "UCX_TLS" in str(error), error
            assert len(os.listdir({good!r})) == 1
            if is_mended:
                del os.environ["UCX_TLS"]
                asyncio.run(exchange())
                assert os.listdir({good!r}) == []
        for is_mended in (True, False):
            reap(run_in_child(in_child))
            assert os.listdir({good!r}) == []
    """
    assert run(body, tmp_path, {"UCX_LOG_LEVEL": "fatal", "NIXL_LOG_LEVEL": "FATAL"}) == CLEAN


def test_libraries_for_the_whole_process(tmp_path):
    """What is loaded for everybody to use, a copy would use as well."""
    body = """
        import ctypes
        everything = asyncio.run(exchange())
        with open("/proc/self/maps") as maps:
            base = next(line.split()[-1] for line in maps if "/libucs" in line)
        ctypes.CDLL(base, ctypes.RTLD_GLOBAL)
        def in_child():
            try:
                asyncio.run(exchange())
            except ForkedError as error:
                assert "RTLD_GLOBAL" in str(error), error
            else:
                raise AssertionError("it was not noticed")
        reap(run_in_child(in_child))
    """
    assert run(body, tmp_path, {}) == CLEAN


def empty(folder):
    """Make a folder in which nobody else leaves anything."""
    made = folder / "temporary"
    made.mkdir()
    return made
