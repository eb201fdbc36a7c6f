"""What a data set is made of, as one picture: classes, sizes, shapes, and objects per image."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mrcnn_cli.views import canvas
from mrcnn_cli.views.colours import GRID, HUES, INK, PALE

PANEL, MARGIN, GAP, TOP = (560, 300), 36, 44, 84  # pixels; a panel is (width, height)
BINS, MOST_CLASSES = 32, 12


def histograms(name: str, values: Mapping[str, Any], path: str | Path) -> None:
    """Writes a picture of four panels.

    Args:
        name: of the data set.
        values: as `engine.data_stats.distributions` gives them.
        path: a .png; replaced whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    width, height = PANEL
    picture = Image.new("RGB", (2 * width + 2 * MARGIN + GAP, TOP + 2 * height + GAP + MARGIN), canvas.PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((MARGIN, 24), canvas.fit(canvas.spell(name), canvas.font(24), 2 * width), fill=INK, font=canvas.font(24))
    corners = [(MARGIN + i * (width + GAP), TOP + j * (height + GAP)) for j in (0, 1) for i in (0, 1)]
    _classes(pen, corners[0], values["classes"])
    _bars(pen, corners[1], "Size: root of the box's area, pixels", values["size"], logarithmic=True)
    _bars(pen, corners[2], "Shape: height / width", values["aspect"], logarithmic=True)
    _bars(pen, corners[3], "Objects per image", values["objects_per_image"], logarithmic=False)
    canvas.save(picture, path)


def _classes(pen: ImageDraw.ImageDraw, corner: tuple[int, int], counts: Mapping[str, int]) -> None:
    x, y = corner
    _title(pen, corner, f"Objects of {len(counts)} class{'es' if len(counts) != 1 else ''}")
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown = ranked if len(ranked) <= MOST_CLASSES else ranked[: MOST_CLASSES - 1]
    if len(shown) < len(ranked):
        rest = ranked[len(shown) :]
        shown = [*shown, (f"{len(rest)} others", sum(count for _, count in rest))]
    largest = max([count for _, count in shown], default=0) or 1
    face = canvas.font(14)
    row = min((PANEL[1] - 40) / max(len(shown), 1), 34)
    for place, (name, count) in enumerate(shown):
        middle = y + 40 + row * (place + 0.5)
        label = canvas.fit(canvas.spell(name), face, 140)
        pen.text((x + 145, middle), label, fill=INK, font=face, anchor="rm")
        end = x + 156 + (PANEL[0] - 240) * count / largest
        pen.rounded_rectangle((x + 156, middle - row * 0.32, max(end, x + 158), middle + row * 0.32), 3, fill=HUES[0])
        pen.text((max(end, x + 158) + 8, middle), f"{count:,}", fill=PALE, font=face, anchor="lm")


def _bars(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], title: str, values: np.ndarray, *, logarithmic: bool
) -> None:
    x, y = corner
    _title(pen, corner, title)
    values = np.asarray(values, np.float64)
    values = values[values > 0] if logarithmic else values
    if not len(values):
        return
    counts, edges = _binned(values, logarithmic)
    across = _scale(edges[0], edges[-1], x, x + PANEL[0], logarithmic)
    floor, face = y + PANEL[1] - 24, canvas.font(13)
    top = y + 44
    for share in (0.5, 1.0):
        level = floor - (floor - top) * share
        pen.line((x, level, x + PANEL[0], level), fill=GRID)
        pen.text((x + PANEL[0], level - 2), f"{counts.max() * share:,.0f}", fill=PALE, font=face, anchor="rb")
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            height = max((floor - top) * count / counts.max(), 1)
            pen.rectangle((across(left) + 1, floor - height, max(across(right) - 1, across(left) + 1), floor), HUES[0])
    pen.line((x, floor, x + PANEL[0], floor), fill=PALE)
    for mark in _marks(edges[0], edges[-1], logarithmic):
        pen.line((across(mark), floor, across(mark), floor + 4), fill=PALE)
        pen.text((across(mark), floor + 7), f"{mark:g}", fill=PALE, font=face, anchor="mt")
    median = float(np.median(values))
    pen.line((across(median), top, across(median), floor), fill=HUES[1], width=2)
    pen.text((across(median) + 6, top - 14), f"median {median:.3g}", fill=HUES[1], font=face, anchor="lm")


def _title(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    pen.text(corner, text, fill=INK, font=canvas.font(17))


def _binned(values: np.ndarray, logarithmic: bool) -> tuple[np.ndarray, np.ndarray]:
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        edges = np.geomspace(low / 1.05, high * 1.05, BINS + 1)
    else:
        step = max(int(np.ceil((high - low + 1) / BINS)), 1)
        edges = np.arange(low - 0.5, high + step + 0.5, step)
    return np.histogram(values, edges)[0], edges


def _scale(low: float, high: float, left: float, right: float, logarithmic: bool) -> Callable[[float], float]:
    form = np.log if logarithmic else np.asarray
    first, last = float(form(low)), float(form(high))
    return lambda value: left + (right - left) * (float(form(value)) - first) / (last - first)


def _marks(low: float, high: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        marks = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
        return [mark for mark in marks if low <= mark <= high]
    step = max(round((high - low) / 6), 1)
    return [float(mark) for mark in range(int(np.ceil(low)), int(high) + 1, step)]
