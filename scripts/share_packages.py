"""Lets the virtual environment of the running interpreter see a folder of packages: `share_packages.py FOLDER`.

What is installed in the environment itself goes before what is in the folder.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path


def main(folder: Path) -> None:
    """Write the `.pth` file, once, whichever folder it named before."""
    if sys.prefix == sys.base_prefix:
        raise SystemExit(f"{sys.executable} is not of a virtual environment")
    file = Path(sysconfig.get_path("purelib"), "shared-packages.pth")
    file.write_text(f"{folder.resolve(strict=True)}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
