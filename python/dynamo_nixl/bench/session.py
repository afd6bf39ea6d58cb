"""A whole run: each implementation in turn, each case of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .implementations import Implementation, NotInstalledError, find
from .pair import Pair
from .results import Results

if TYPE_CHECKING:
    from .peer.case import Case


class Progress(Protocol):
    """Is told how far a run has come."""

    def begin(self, steps: int) -> None:
        """Steps of equal size are to follow, more or less."""

    def step(self, what: str) -> None:
        """Another one has been done; what comes next."""


def run(names: list[str], cases: list[Case], runs: int, progress: Progress) -> Results:
    """Measure the cases with each of these implementations.

    Raises
    ------
    PeerFailedError
        Where a process has ended early.
    """
    results = Results(runs)
    found: dict[str, Implementation] = {}
    for name in names:
        try:
            found[name] = find(name)
        except NotInstalledError as error:
            results.missing[name] = str(error)
    progress.begin(runs * len(found) * (len(cases) + 1))
    for number in range(1, runs + 1):
        # Each in each run: what drifts, drifts for all of them.
        for name, implementation in found.items():
            with Pair(implementation) as pair:
                progress.step(name)
                results.versions[name] = pair.versions
                for case in cases:
                    results.add(number, name, case, pair.measure(case))
                    progress.step(name)
    return results
