"""Write .cargo/config.toml, so that cargo works in a plain shell: `python scripts/write_cargo_config.py`.

Run it with the interpreter of the virtual environment. The file is this checkout's own and git ignores it. A variable
that the shell sets wins over the file.
"""

import json
import os
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_backend"))

from bindgen_env import bindgen_environment  # noqa: E402


def nixl_library() -> Path | None:
    """Return the C library in the NIXL wheel of this interpreter's site-packages."""
    site_packages = Path(sysconfig.get_path("platlib"))
    found = sorted(site_packages.glob(".nixl_cu*.mesonpy.libs/libnixl_capi.so"))
    return found[0] if found else None


def base_python() -> str:
    """Return the interpreter below the virtual environment, as maturin's `use-base-python` does.

    Both must name the same file: PyO3 is rebuilt whenever the path changes.
    """
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def main() -> None:
    """Write the file, unless it says so already: a newer file would make cargo look at everything again."""
    # What this shell happens to set must not decide what the file says.
    for name in ("LIBCLANG_PATH", "BINDGEN_EXTRA_CLANG_ARGS"):
        os.environ.pop(name, None)
    environment = {**bindgen_environment(), "PYO3_PYTHON": base_python()}
    library = nixl_library()
    if library is not None:
        environment["DYNAMO_NIXL_LIBRARY"] = str(library)
    lines = ["# Written by scripts/write_cargo_config.py (`make setup`).", "[env]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in environment.items()]
    text = "\n".join(lines) + "\n"
    target = ROOT / ".cargo" / "config.toml"
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
