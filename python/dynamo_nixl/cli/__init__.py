"""The command `dynamo-nixl`. Its libraries come with the extra `cli` and are loaded only here."""

import importlib.util
import sys

_NEEDED = ("typer", "rich", "aiohttp")


def main() -> None:
    """Run the command line."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"dynamo-nixl needs {', '.join(missing)}, install with: pip install 'dynamo-nixl[cli]'\n",
        )
        raise SystemExit(1)
    from ._app import app

    app(prog_name="dynamo-nixl")
