"""How large each layer's gradient is, as numbers of a histogram: for looking into a training that goes wrong."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrcnn_cli.engine.files import append_row, read_rows
from mrcnn_cli.views.gradients import gradient_pictures

FILE, PICTURE = "gradients.jsonl", "gradients.png"
# Bins of the absolute value's decimal logarithm; what lies beyond is counted in the first or the last one.
LOWEST, HIGHEST, PER_DECADE = -12, 4, 2


def add_histograms(folder: Path, step: int, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """One more row of gradients.jsonl: {"step", "edges", "parameters": {name: {"norm", "zeros", "counts"}}}.

    Args:
        folder: the run's.
        step: counted from 1.
        parameters: with their gradients, before they are clipped.
    """
    found = {name: histogram(parameter.grad) for name, parameter in parameters if parameter.grad is not None}
    append_row(folder / FILE, {"step": step, "edges": edges(), "parameters": found})


def edges() -> list[float]:
    """The bounds of the bins, one more than there are bins."""
    return [LOWEST + place / PER_DECADE for place in range((HIGHEST - LOWEST) * PER_DECADE + 1)]


def histogram(gradient: Tensor) -> dict[str, Any]:
    """The Euclidean norm, how many values are zero, and how many of the others lie in each bin."""
    values = gradient.detach().float().abs().flatten()
    sizes = values[values > 0].log10().clamp(LOWEST, HIGHEST - 1e-3)
    bins = ((sizes - LOWEST) * PER_DECADE).long()
    counts = torch.bincount(bins, minlength=(HIGHEST - LOWEST) * PER_DECADE)
    return {
        "norm": float(torch.linalg.vector_norm(values)),
        "zeros": len(values) - len(sizes),
        "counts": counts.tolist(),
    }


def draw_histograms(folder: Path) -> None:
    """gradients.png, where there are any rows."""
    rows = read_rows(folder / FILE)
    if rows:
        gradient_pictures(rows, folder / PICTURE)
