"""Results as a picture: the time of a transfer over its size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .cases import cadence_name, size_name
from .tables import TITLES

if TYPE_CHECKING:
    from pathlib import Path

    from .results import Results


def write(results: Results, path: Path) -> None:
    """Draw one panel for each cadence, and write it in the format that the file's name tells.

    Raises
    ------
    ImportError
        Where matplotlib is not installed.
    ValueError
        For a format that it does not know.
    """
    try:
        # Without pyplot, which looks for a screen.
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a plot needs matplotlib: pip install matplotlib") from None
    gaps = sorted({shape[1] for shape in results.shapes})
    figure: Any = Figure(figsize=(6 * len(gaps), 4.5), layout="constrained")
    panels = figure.subplots(1, len(gaps), squeeze=False, sharey=True)[0]
    for panel, gap in zip(panels, gaps, strict=True):
        shapes = sorted(shape for shape in results.shapes if shape[1] == gap)
        for name in results.implementations:
            points = [(shape[0], results.time(name, shape)) for shape in shapes]
            panel.plot(*zip(*points, strict=True), marker="o", label=TITLES[name])
        if "ours" in results.implementations:
            points = [(shape[0], results.time("ours", shape, "owner")) for shape in shapes]
            if all(time is not None for _, time in points):
                panel.plot(*zip(*points, strict=True), marker=".", linestyle=":", label="dynamo_nixl, owner awake")
        panel.set(title=cadence_name(gap), xscale="log", yscale="log", xlabel="bytes")
        panel.set_xticks([shape[0] for shape in shapes], [size_name(shape[0]) for shape in shapes], minor=False)
        panel.minorticks_off()
        panel.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("microseconds, median")
    panels[-1].legend()
    figure.savefig(path, dpi=150)
