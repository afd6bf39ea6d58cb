#!/usr/bin/env bash
# Rust tests with nextest where it is installed, else with cargo's own runner; the arguments go to either.
set -euo pipefail

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run "$@"
    # nextest does not run the examples in the documentation.
    cargo test --doc "$@"
else
    cargo test --no-run "$@"
    # This runner knows no timeout of its own: what hangs must not hang for ever.
    timeout --foreground 1200 cargo test "$@"
fi
