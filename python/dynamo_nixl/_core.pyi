"""Types of the compiled module. Private: the public names are in `dynamo_nixl`."""

from asyncio import Future
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeAlias, final

__version__: Final[str]

STARTED: Final[int]
"""Phase of an operation: its memory is registered and, on the active side, its peer is loaded."""
FINISHED: Final[int]
"""Phase of an operation: it has its one outcome."""

QUIET: Final[int]
"""Phase of an operation: it has ended, and the wire can no longer touch its memory, or nobody will ever know."""

READ: Final[int]
WRITE: Final[int]

LocalRange: TypeAlias = tuple[int, int, int, int, object]
"""(DeviceKind, device id, address, bytes, owner): the owner is kept alive as long as the wire may touch the range."""
RemoteRange: TypeAlias = tuple[int, int, int, int]
"""(DeviceKind, device id, address, bytes)."""

def load_library(path: str) -> None:
    """Load NIXL's C library from `path` and check every symbol that is used. Raises ImportError; idempotent."""

def decode_metadata(text: str) -> bytes:
    """NIXL's blob out of the text that travels, either encoding; not parsed. Raises MetadataError."""

def loaded_library() -> str | None:
    """The path NIXL was loaded from by `load_library`, or None before that."""

def shutdown(timeout: float) -> bool:
    """Close every open connector of this process, in order. For `atexit`. True when all went quiet in time."""

@final
class Connector:
    """A connector's native half: its NIXL agents (lanes), registrations and peers. Makes no agent until opened."""

    def __new__(
        cls,
        name: str,
        lease: float | None,
        grace: float,
        stall_timeout: float | None,
        timeout: float | None,
        keepalive: float | None,
        quarantine_limit: int,
        copy_lanes: int | None,
        faults: Faults | None = None,
    ) -> Connector:
        """Seconds and bytes; None: no limit. `faults` happen to its agents."""
    @property
    def name(self) -> str: ...
    @property
    def is_open(self) -> bool: ...
    def open(self) -> Awaitable[None]:
        """Make the control agent (about half a second) off the loop's thread. Idempotent, single-flight, any loop."""
    def open_blocking(self) -> None:
        """`open` for a thread without a running loop; releases the GIL."""
    def begin(
        self,
        direction: int,
        nixl_metadata: str,
        notification_key: str,
        remote: Sequence[RemoteRange],
        local: Sequence[LocalRange],
        timeout: float | None,
        verify: bool,
    ) -> Operation:
        """Start a transfer of `remote[i]` into/from `local[i]`. Never blocks on the wire.

        Raises ValueError (sizes, counts), MetadataError (malformed or not covering `remote`), ConnectorClosedError.
        What fails later is the operation's outcome.
        """
    def connect(self, metadata: str | bytes) -> Operation:
        """Load a peer from the text that travels or from NIXL's own blob. Ends once it is loaded; moves nothing.

        Raises MetadataError, ConnectorClosedError. What fails later is the operation's outcome.
        """
    def agent_metadata(self) -> bytes:
        """NIXL's own blob about the control agent and all that is registered with it. Opens the connector."""
    def expose(self, direction: int, local: Sequence[LocalRange], lease: float | None, verify: bool) -> Operation:
        """Let a peer read (READ) or write (WRITE) `local`, once, for `lease` seconds."""
    def register(self, local: Sequence[LocalRange]) -> list[Region]:
        """Register ranges with the control agent, so that operations on them or on parts of them need not.

        Counted; never twice. Releases the GIL. Raises RegistrationError.
        """
    def peers(self) -> list[str]:
        """Names of the remote agents that are loaded now."""
    def stats(self) -> dict[str, int]:
        """Counters since the connector was opened."""
    def begin_close(self, timeout: float) -> None:
        """As `close`, without waiting for it."""
    def close(self, timeout: float) -> bool:
        """Stop taking work, drive what is in flight to its end, drop the agents. True when quiet in time."""

@final
class Region:
    """One counted hold on a registration; released when it is dropped."""

    def release(self) -> None: ...
    @property
    def is_registered(self) -> bool: ...

@final
class Operation:
    """One operation, active or passive. Dropping the last reference cancels it."""

    @property
    def status(self) -> int:
        """An OperationStatus number."""
    @property
    def has_started(self) -> bool: ...
    @property
    def has_finished(self) -> bool: ...
    @property
    def notification_key(self) -> str: ...
    @property
    def peer(self) -> str | None:
        """The remote agent's name; None on the passive side."""
    @property
    def bytes_total(self) -> int: ...
    @property
    def bytes_done(self) -> int: ...
    def metadata(self, hex_encode: bool) -> str:
        """The `nixl_metadata` text for the peer. Passive side, once started."""
    def cancel(self) -> bool:
        """End an unfinished operation as CANCELLED: no further piece is posted. True if this call ended it."""
    def raise_for_outcome(self) -> None:
        """Raise the failure if the outcome is one; nothing for COMPLETE, CANCELLED or while unfinished."""
    @property
    def error(self) -> BaseException | None:
        """What `raise_for_outcome` would raise."""
    @property
    def is_quiet(self) -> bool:
        """Whether it has ended and the wire can no longer touch its memory."""
    def raise_for_never_quiet(self) -> None:
        """Raise where it can never be told that the wire is done with the memory."""
    def renew(self, lease: float | None) -> None:
        """Let an exposure end `lease` seconds from now, or never. Raises ValueError where it has ended."""
    def wait_blocking(self, phase: int, timeout: float | None) -> bool:
        """Wait for a phase on this thread with the GIL released; False at the timeout. Ctrl-C is honoured."""

@final
class Hub:
    """Carries completions into one event loop: an eventfd and the futures that wait behind it."""

    def __new__(cls) -> Hub: ...
    def fileno(self) -> int: ...
    def watch(self, operation: Operation, phase: int, future: Future[Any]) -> int | None:
        """Resolve `future` once `operation` reaches `phase`; None when it already has. Otherwise a ticket."""
    def forget(self, ticket: int) -> bool:
        """Drop a ticket whose future nobody awaits any more. True where its operation has arrived nevertheless."""
    def drain(self) -> None:
        """Resolve the futures whose operations have arrived. Loop's thread only; for `loop.add_reader`."""

When: TypeAlias = tuple[int, int | None, float, str | None]
"""(the first event from 1, how many or None for all, how likely, the peer's name or None for any)."""

@final
class Faults:
    """A set of faults, for any number of connectors."""

    def __new__(cls, seed: int) -> Faults: ...
    def add(self, effect: str, variant: str, seconds: float | None, when: When) -> Fault:
        """Have something go wrong from now on. Raises ValueError for an effect or variant that does not exist.

        "drop", "delay" and "duplicate" come as "completion", "message" or "any"; the others as "", "fail" also as
        "after moving" and "lost" as "dead".
        """
    def release(self) -> None:
        """Let go of what is held now. The faults stay."""
    def clear(self) -> None:
        """Take every fault out, and let go of what they hold."""
    @property
    def injected(self) -> dict[str, int]:
        """How often each effect has struck so far; those that have not are left out."""

@final
class Fault:
    """One fault of a set."""

    @property
    def injected(self) -> int: ...
    def release(self) -> None: ...
    def clear(self) -> None: ...
