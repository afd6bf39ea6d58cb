"""`python -m dynamo_nixl` is the command `dynamo-nixl`."""

from .cli import main

main()
