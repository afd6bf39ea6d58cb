"""The two processes of a benchmark. Run with `python -m peer`, also by interpreters without this package.

Nothing here imports anything but the standard library, numpy and the module that is measured.
"""
