"""How large gradients are, layer by layer, as one picture: their sizes at the last step, and their norms over time."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mrcnn_cli.views import canvas
from mrcnn_cli.views.colours import GRID, HUES, INK, PALE

NAMES, WIDTH, GAP, MARGIN = 330, 420, 40, 24  # pixels: names of layers, a panel, between and around panels
TOP, BOTTOM, ROW = 96, 44, 16
MOST_STEPS = 200  # columns of the right panel; of more recorded steps, evenly many are left out


def gradient_pictures(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Writes a picture of two panels with one line for each parameter, in the model's order.

    Left, at the last recorded step: which share of the gradient's values (of those that are not zero) is of which size,
    the darker the more. Right, at each recorded step: the gradient's norm, the darker the larger.

    Args:
        rows: {"step", "edges", "parameters": {name: {"norm", "zeros", "counts"}}}, sizes as decimal logarithms.
        path: a .png; replaced whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    last = rows[-1]
    names = list(last["parameters"])
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_STEPS)).round().astype(int))
    shown = [rows[place] for place in chosen.tolist()]
    height = TOP + ROW * len(names) + BOTTOM
    picture = Image.new("RGB", (NAMES + 2 * WIDTH + GAP + 2 * MARGIN, height), canvas.PAPER)
    pen = ImageDraw.Draw(picture)
    face, bold, small = canvas.font(12), canvas.font(20), canvas.font(13)
    pen.text((MARGIN, 16), "Gradients", fill=INK, font=bold)
    for row, name in enumerate(names):
        y = TOP + ROW * row + ROW / 2
        label = canvas.fit(canvas.spell(name), face, NAMES - 12)
        pen.text((MARGIN + NAMES - 8, y), label, fill=INK, font=face, anchor="rm")
    left, right = MARGIN + NAMES, MARGIN + NAMES + WIDTH + GAP

    counts = np.array([last["parameters"][name]["counts"] for name in names], np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    _heat(picture, left, shares / max(float(shares.max()), 1e-12))
    pen.text((left, 54), f"sizes of the values at step {last['step']}", fill=PALE, font=small)
    edges = last["edges"]
    for place, edge in enumerate(edges):
        if float(edge).is_integer() and edge % 2 == 0:
            x = left + WIDTH * place / (len(edges) - 1)
            pen.line((x, TOP, x, height - BOTTOM), fill=GRID)
            pen.text((x, height - BOTTOM + 6), f"1e{edge:.0f}", fill=PALE, font=face, anchor="mt")

    norms = np.array([[_log(row["parameters"].get(name, {}).get("norm")) for row in shown] for name in names])
    low, high = _range(norms)
    _heat(picture, right, (np.nan_to_num(norms, nan=low) - low) / max(high - low, 1e-12))
    scale = f"norm, 1e{low:.1f} (white) to 1e{high:.1f}, steps {shown[0]['step']} to {shown[-1]['step']}"
    pen.text((right, 54), scale, fill=PALE, font=small)
    for x, row, anchor in ((right, shown[0], "lt"), (right + WIDTH, shown[-1], "rt")):
        pen.text((x, height - BOTTOM + 6), f"step {row['step']}", fill=PALE, font=face, anchor=anchor)
    canvas.save(picture, path)


def _heat(picture: Image.Image, x: int, values: np.ndarray) -> None:
    """A panel of one cell for each value 0..1, from white to the first hue."""
    weight = values.clip(0, 1)[:, :, None]
    cells = (np.array(canvas.PAPER) * (1 - weight) + np.array(HUES[0]) * weight).round().astype(np.uint8)
    size = (WIDTH, ROW * len(values))
    picture.paste(Image.fromarray(cells).resize(size, Image.Resampling.NEAREST), (x, TOP))


def _log(norm: float | None) -> float:
    return math.log10(norm) if norm is not None and 0 < norm < math.inf else math.nan


def _range(norms: np.ndarray) -> tuple[float, float]:
    finite = norms[np.isfinite(norms)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
