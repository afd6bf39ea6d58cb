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
    """

    phase: str | None = None
    status: str | None = None


class TransferError(NixlConnectError):
    """A transfer could not be started or did not end well. The destination's contents are undefined."""


class MetadataError(NixlConnectError, ValueError):
    """Metadata from a peer is malformed, too large, or conflicts with what is known of that peer."""


class RegistrationError(NixlConnectError):
    """NIXL refused to register memory; the text says which range and what to check."""


class ConnectorClosedError(NixlConnectError):
    """The connector was closed; nothing new can be started on it."""
