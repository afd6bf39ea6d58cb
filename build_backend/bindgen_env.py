"""The two environment variables that bindgen needs where no libclang is installed system-wide.

nixl-sys generates its bindings at build time with bindgen, which loads libclang. The PyPI package `libclang` carries
the library but none of the compiler's own headers (stddef.h and the like); the ones of the installed GCC serve.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
from pathlib import Path

__all__ = ["bindgen_environment"]


def bindgen_environment() -> dict[str, str]:
    """Return the variables to add to the environment; what the user has set already is left out.

    Without the PyPI package the answer is empty: bindgen then looks for a libclang of the system.
    """
    libclang = _packaged_libclang()
    if libclang is None or "LIBCLANG_PATH" in os.environ:
        return {}
    environment = {"LIBCLANG_PATH": str(libclang)}
    headers = _compiler_headers()
    if headers is not None and "BINDGEN_EXTRA_CLANG_ARGS" not in os.environ:
        # bindgen splits the value as a shell would.
        environment["BINDGEN_EXTRA_CLANG_ARGS"] = f"-isystem {shlex.quote(str(headers))}"
    return environment


def _packaged_libclang() -> Path | None:
    """Return the folder of libclang.so in the PyPI package `libclang`, if that is importable."""
    spec = importlib.util.find_spec("clang")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        native = Path(location) / "native"
        if (native / "libclang.so").is_file():
            return native
    return None


def _compiler_headers() -> Path | None:
    """Return the folder of the C compiler's own headers."""
    for name in ("gcc", "g++", "cc", "c++"):
        compiler = shutil.which(name)
        if compiler is None:
            continue
        result = subprocess.run(  # noqa: S603
            [compiler, "-print-file-name=include"], capture_output=True, text=True, check=False
        )
        headers = Path(result.stdout.strip())
        # A compiler that does not know the file prints its bare name back.
        if result.returncode == 0 and headers.is_absolute():
            return headers
    return None
