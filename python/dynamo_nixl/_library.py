"""Finding NIXL's C library and loading it, at first use.

NIXL comes as one of two wheels, for CUDA 12 and CUDA 13, which work without a GPU too; or from a build of one's own.
`find` only looks; `ensure_loaded` loads what it chose. What is missing or unsuitable is an ImportError that says what
was looked for, where, and what helps.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from . import _core

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIBRARY: Final = "libnixl_capi.so"
VARIABLE: Final = "DYNAMO_NIXL_LIBRARY"
SUPPORTED: Final = "1.4.1 <= version < 1.6"
_OLDEST: Final = (1, 4, 1)
_BEYOND: Final = (1, 6)
_CUDA_MAJORS: Final = (13, 12)
"""The CUDA versions that NIXL has wheels for, the one to prefer first."""


class Candidate(NamedTuple):
    """A library that could be loaded."""

    path: str
    """Its path; the bare name where the dynamic loader is to look for it."""
    origin: str
    """How it was found."""
    version: str | None
    """NIXL's version, where a wheel's metadata tells."""

    @property
    def is_supported(self) -> bool:
        """Whether the version is in range; one that nobody tells is judged by its symbols, when it is loaded."""
        return self.version is None or _OLDEST <= _numbers(self.version) < _BEYOND


class Search(NamedTuple):
    """What a look around has shown."""

    candidates: list[Candidate]
    """In the order of preference; the loader's path, which only loading can search, is not among them."""
    misses: list[str]
    """Where there was nothing, in the order of looking."""
    is_decided: bool
    """The first candidate is the only one to consider: the user named it, or its siblings are in this process."""
    cuda_major: int | None
    """The CUDA version of an installed torch."""


class Load(NamedTuple):
    """How NIXL came into this process."""

    candidate: Candidate
    libefa: str | None
    """The system's libefa, if there is one that UCX would load."""
    libucs: str | None
    """UCX's base library, if it was in this process before: what the environment says was read by then."""


_lock = threading.Lock()
_load: Load | None = None


def _renew_lock() -> None:
    """In a forked child; what was loaded stays."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def is_loaded() -> bool:
    """Whether `ensure_loaded` has nothing left to do."""
    return _load is not None


def loaded() -> Load | None:
    """How NIXL was loaded, or None if it was not yet."""
    return _load


def ensure_loaded() -> None:
    """Find and load NIXL, once. Takes tens of milliseconds; any thread may call it.

    Raises
    ------
    ImportError
        If NIXL is missing, its version unsupported, or one of its functions absent. A later call looks again.
    """
    global _load
    with _lock:
        if _load is not None:
            return
        search = find(os.environ)
        candidate = choose(search)
        libefa, libucs = system_libefa(os.environ), mapped_libucs()
        if libefa is not None:
            _keep_efa_out(os.environ)
        if libucs is None:
            _silence(os.environ)
        try:
            _core.load_library(candidate.path)
        except ImportError as error:
            if candidate.path == LIBRARY:
                raise ImportError(_not_found(search, error)) from error
            raise ImportError(
                f"NIXL could not be loaded from {candidate.path} ({candidate.origin}): {error}\n"
                f"{_advice(search.cuda_major)}"
            ) from error
        _load = Load(candidate, libefa, libucs)


def find(environ: Mapping[str, str]) -> Search:
    """Look for NIXL everywhere but on the loader's path. Loads nothing.

    Raises
    ------
    ImportError
        If the user names a library that does not exist.
    """
    cuda_major = torch_cuda_major()
    named = environ.get(VARIABLE)
    if named:
        return Search([_named_by_user(named)], [], True, cuda_major)
    misses = [f"{VARIABLE}: not set"]

    candidates = []
    for directory in _mapped_directories():
        path = directory / LIBRARY
        if path.is_file():
            candidates.append(Candidate(str(path), "beside NIXL libraries that are loaded already", _version_of(path)))
        else:
            misses.append(f"beside NIXL libraries that are loaded already: no {LIBRARY} in {directory}")
    is_decided = bool(candidates)
    if not is_decided and len(misses) == 1:
        misses.append("beside NIXL libraries that are loaded already: there are none")

    majors = sorted(_CUDA_MAJORS, key=lambda major: major != cuda_major)
    for major in majors:
        found = _in_distribution(f"nixl-cu{major}")
        if isinstance(found, str):
            misses.append(found)
        elif all(found.path != candidate.path for candidate in candidates):
            candidates.append(found)
    return Search(candidates, misses, is_decided, cuda_major)


def choose(search: Search) -> Candidate:
    """Decide which library to load. The loader's path comes last.

    Raises
    ------
    ImportError
        If all there is has a version out of range.
    """
    considered = search.candidates[:1] if search.is_decided else search.candidates
    for candidate in considered:
        if candidate.is_supported:
            return candidate
    if considered:
        found = "; ".join(f"{each.version} at {each.path} ({each.origin})" for each in considered)
        raise ImportError(
            f"no supported version of NIXL, {SUPPORTED} is needed but found: {found}\n{_advice(search.cuda_major)}"
        )
    return Candidate(LIBRARY, "the loader's search path", None)


def torch_cuda_major() -> int | None:
    """Tell the CUDA version an installed torch was built for, without importing torch; None if there is none."""
    # getattr: torch may be half imported by another thread.
    version = getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None)
    if isinstance(version, str):
        return int(version.split(".")[0])

    from importlib.metadata import PackageNotFoundError, distribution

    try:
        torch = distribution("torch")
    except PackageNotFoundError:
        return None
    # Wheels of the PyTorch index say it in their version (2.13.0+cu130), those of PyPI only in what they require.
    texts = [(r"\+cu(\d\d)\d", torch.version)]
    for requirement in torch.requires or ():
        texts.append((r"^nvidia-[a-z0-9-]+-cu(\d+)\b", requirement))
        texts.append((r"^cuda-toolkit\b[^;]*==\s*(\d+)\.", requirement))
    for pattern, text in texts:
        match = re.search(pattern, text)
        if match is not None:
            return int(match[1])
    return None


def system_libefa(environ: Mapping[str, str]) -> str | None:
    """Find the `libefa.so.1` that the dynamic loader would find, or None."""
    directories = [Path(entry) for entry in environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    try:
        cache = Path("/etc/ld.so.cache").read_bytes()
    except OSError:
        cache = b""
    # The cache is a table of offsets into zero-terminated strings, the paths among them.
    cached = re.findall(rb"(/[^\0]*)/libefa\.so\.1\0", cache)
    directories += [Path(os.fsdecode(entry)) for entry in cached]
    directories += [Path(entry) for entry in ("/lib64", "/usr/lib64", "/lib", "/usr/lib")]
    for directory in directories:
        path = directory / "libefa.so.1"
        if path.exists():
            return str(path)
    return None


def mapped_libucs() -> str | None:
    """Find UCX's base library among what this process has mapped."""
    return next((str(path) for path in _mapped_files() if path.name.startswith("libucs")), None)


def _keep_efa_out(environ: os._Environ[str]) -> None:
    # UCX's EFA module would load the system's libefa and with it a second copy of libnl-route, whose destructors crash
    # the process when it exits. Nothing but EFA adapters is lost; who has one can set UCX_MODULES=all.
    environ.setdefault("UCX_MODULES", "^efa")


def _silence(environ: os._Environ[str]) -> None:
    # Where a connection breaks, NIXL writes to stderr and UCX to stdout, both of which are the program's own; what
    # matters of it is in the errors. And UCX takes SIGHUP, from the program's handler if need be, to switch its log on.
    for name, value in (("UCX_LOG_LEVEL", "fatal"), ("NIXL_LOG_LEVEL", "FATAL"), ("UCX_DEBUG_SIGNO", "0")):
        environ.setdefault(name, value)


def _named_by_user(named: str) -> Candidate:
    path = Path(named).expanduser()
    if path.is_dir():
        path = path / LIBRARY
    if not path.is_file():
        raise ImportError(
            f"{VARIABLE} names no library, it must be the path of {LIBRARY} or of its directory: {named}\n"
            f"Correct it, or unset it to have NIXL looked for. {_advice(torch_cuda_major())}"
        )
    # Absolute, because a bare file name would be looked for on the loader's path.
    path = path.absolute()
    return Candidate(str(path), f"named by {VARIABLE}", _version_of(path))


def _mapped_files() -> Iterator[Path]:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            lines = maps.readlines()
    except OSError:
        return
    seen = set()
    for line in lines:
        fields = line.rstrip("\n").split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/") and fields[5] not in seen:
            seen.add(fields[5])
            yield Path(fields[5])


def _mapped_directories() -> list[Path]:
    """Where the NIXL libraries lie that someone, for example the `nixl` package, has loaded."""
    directories = []
    for path in _mapped_files():
        if re.match(r"libnixl\b.*\.so\b|libnixl_(common|capi)\b.*\.so\b", path.name) and path.parent not in directories:
            directories.append(path.parent)
    return directories


def _in_distribution(name: str) -> Candidate | str:
    """Find the library of an installed wheel, or a line that says why there is none."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = distribution(name)
    except PackageNotFoundError:
        return f"distribution {name}: not installed"
    underscored = name.replace("-", "_")
    path = Path(str(found.locate_file(f".{underscored}.mesonpy.libs/{LIBRARY}")))
    if path.is_file():
        return Candidate(str(path), f"distribution {name}", found.version)
    return f"distribution {name}: {found.version} is installed, but there is no {path}"


def _version_of(path: Path) -> str | None:
    """Tell the version of the wheel that a library belongs to, if it lies in one."""
    match = re.fullmatch(r"\.(nixl_cu\d+)\.mesonpy\.libs", path.parent.name)
    if match is None:
        return None
    for info in path.parent.parent.glob(f"{match[1]}-*.dist-info"):
        return info.name.removesuffix(".dist-info").removeprefix(f"{match[1]}-")
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """Take the leading numbers of a version: those of 1.5.0rc1 are 1, 5, 0."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match is not None else ()


def _not_found(search: Search, error: ImportError) -> str:
    looked = "\n".join(f"  - {miss}" for miss in [*search.misses, f"the loader's search path: {error}"])
    # The first words are upstream's: workers look for them.
    return (
        f"NIXL Python bindings must be installed: NIXL was not found, looked for {LIBRARY}:\n{looked}\n"
        f"{_advice(search.cuda_major)}"
    )


def _advice(cuda_major: int | None) -> str:
    majors = [cuda_major] if cuda_major in _CUDA_MAJORS else sorted(_CUDA_MAJORS)
    commands = " or ".join(pip_command(major) for major in majors)
    return f"Install it with {commands}, or name a library with {VARIABLE}."


def pip_command(cuda_major: int) -> str:
    """Tell how to install a supported NIXL for a CUDA version."""
    oldest, beyond = (".".join(str(number) for number in version) for version in (_OLDEST, _BEYOND))
    return f"pip install 'nixl-cu{cuda_major}>={oldest},<{beyond}'"
