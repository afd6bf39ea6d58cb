"""What can go wrong, one class per thing a caller can act on.

Every class derives from `NixlConnectError`, itself a `RuntimeError`, because upstream's users catch that. Wrong
argument types stay `TypeError`, arguments that do not fit each other `ValueError`, and a missing NIXL library
`ImportError`.
"""


class NixlConnectError(RuntimeError):
    """The base of every failure of a connector, an operation or NIXL itself.

    Attributes
    ----------
    phase
        The step that failed, such as `"load peer"` or `"post transfer"`; None where there is none.
    status
        NIXL's status as its C API names it, such as `"NIXL_CAPI_ERROR_BACKEND"`; None where NIXL had no part in it.
    operation
        What was under way (`readable`, `writable`, `read` or `write`) and its notification key, such as
        `"readable 8ffc1dc9-aafc-43b5-82fd-8406eb1f4eb2"`; None where no operation was made.
    peer
        The name of the peer's agent; None where it is not known or had no part in it.
    bytes_done
        How many bytes of a transfer had moved; None of anything else.
    hint
        What may help; part of the text, too.
    """

    phase: str | None = None
    status: str | None = None
    operation: str | None = None
    peer: str | None = None
    bytes_done: int | None = None
    hint: str | None = None


class TransferError(NixlConnectError):
    """A transfer could not be started or did not end well. The destination's contents are undefined."""


class MetadataError(NixlConnectError, ValueError):
    """Metadata from a peer is malformed, too large, or conflicts with what is known of that peer."""


class RegistrationError(NixlConnectError):
    """NIXL refused to register memory; the text says which range and what to check."""


class ConnectorClosedError(NixlConnectError):
    """The connector was closed; nothing new can be started on it."""


class TransferTimeoutError(TransferError, TimeoutError):
    """A transfer did not end within its `timeout`, or did not move for `stall_timeout`.

    Its memory stays pinned until the wire is done with it: `wait_quiesced()` tells when. Bytes may still land there.
    """


class PeerLostError(TransferError, ConnectionError):
    """The peer's process is gone."""


class CancelledByPeerError(TransferError):
    """The peer has cancelled the operation, or given it up; the text says why."""


class LeaseExpiredError(TransferError):
    """No peer has completed the operation before its lease ended."""


class StaleMetadataError(MetadataError):
    """The operation that the metadata comes from has ended. What was read, if anything, may be another one's data."""


class IntegrityError(TransferError):
    """What has arrived is not what was exposed: its checksum differs. The destination's contents are worth nothing."""


class QuarantineFullError(TransferError):
    """Transfers with the peer that have ended otherwise keep more memory pinned than `quarantine_limit` allows."""


class ForkedError(NixlConnectError):
    """The object was made before this process was forked off, and is of no use here: make a new connector.

    Also raised by a new one, where no copy of NIXL can be made for this process: the message says why.
    """
