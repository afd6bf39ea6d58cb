#!/usr/bin/env bash
# Says what this machine lacks before a build fails on it: check_tools.sh <python>
set -euo pipefail

python=$1
missing=0

complain() {
    echo "error: $1" >&2
    missing=1
}

if ! command -v "$python" >/dev/null; then
    complain "no '$python' here; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    complain "$("$python" --version 2>&1 || echo "'$python' does not start"): Python 3.11 or newer is needed; name one: make PYTHON=python3.12"
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    complain "'$python' has no venv module; on Debian and Ubuntu it is in the package python3-venv"
fi
command -v cargo >/dev/null || complain "no cargo here; install Rust 1.85 or newer, for example with rustup"
command -v g++ >/dev/null || complain "no g++ here; a Rust dependency compiles C++"

exit "$missing"
