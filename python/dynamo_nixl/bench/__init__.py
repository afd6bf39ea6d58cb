"""Benchmarks: this package beside others, between two processes. `dynamo-nixl bench` is the way in.

Each implementation has two processes of its own, an owner and a reader, that run the same program (`peer`) with another
module, or one in Rust that says the same (`benches/raw` in a checkout). What is measured, and how, is in `cases`;
`session` starts the processes; `tables`, `plot` and `results` show what came out.
"""
