"""How training went, as one picture: losses on the left, average precision on the right."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mrcnn_cli.views import canvas
from mrcnn_cli.views.colours import ALARM, GRID, HUES, INK, PALE, Colour

PANEL = (880, 600)  # pixels, with everything beside the curves
LEFT, RIGHT, TOP, BOTTOM = 76, 232, 66, 62  # what ticks, legend and title take of a panel
FINER = 3  # curves are drawn so many times larger and averaged down

LOSSES = (
    "loss_rpn_objectness",
    "loss_rpn_box",
    "loss_class",
    "loss_box",
    "loss_mask",
    "loss_keypoint",
    "loss_semantic",
)
PRECISIONS = {
    f"{kind}_{key}": f"{kind} {name}"
    for kind in ("mask", "box", "keypoint")
    for key, name in (("ap", "AP"), ("ap50", "AP50"))
} | {"pq": "PQ"}
RECALLS = {"proposal_ar1000": "AR of 1000", "proposal_ar100": "AR of 100"}  # of region proposal networks alone


@dataclass(frozen=True)
class _Curve:
    name: str
    steps: np.ndarray
    values: np.ndarray
    colour: Colour
    width: float = 2.0
    dots: bool = False
    named: bool = True  # in the legend


def loss_curves(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Writes a PNG of the losses over the steps and, where there were evaluations, of average precision.

    The total loss is drawn as it was, faintly, and smoothed; each of its terms smoothed. Steps whose loss was not a
    finite number are marked. The legend gives the last value of each curve.

    Args:
        rows: of `metrics.jsonl`: {"kind": "train", "step", "loss", "loss_...": ...} and {"kind": "evaluation", "step",
            "mask_ap", "mask_ap50", "box_ap", "box_ap50", "keypoint_ap", "keypoint_ap50"}, with "loss" of the
            validation images where it was computed, or, of proposals,
            {..., "proposal_ar1000", "proposal_ar100"}; any of the values may be absent, None or not finite. Of rows of
            one kind and step, as a resumed run leaves them, the last counts.
        path: a .png; replaced whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    training, evaluations = _rows(rows, "train"), _rows(rows, "evaluation")
    end = max([row["step"] for row in (*training, *evaluations)], default=1)
    panels = []
    if training or not evaluations:
        curves, broken = _losses(training, evaluations)
        panels.append(_panel("Loss", "smoothed; grey: the total of each step", curves, end, _top(curves), broken))
    if evaluations:
        title, curves = "Average precision", _averages(evaluations, PRECISIONS)
        if any(key in row for key in RECALLS for row in evaluations):
            title, curves = "Average recall", _averages(evaluations, RECALLS)
        top = min(max(_top(curves), 0.1), 1.0)
        panels.append(_panel(title, "on the validation set", curves, end, top))
    picture = Image.new("RGB", (PANEL[0] * len(panels), PANEL[1]), canvas.PAPER)
    for column, panel in enumerate(panels):
        picture.paste(panel, (column * PANEL[0], 0))
    canvas.save(picture, path)


def _rows(rows: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The rows of one kind by step, the last of each step."""
    steps = {row["step"]: row for row in rows if row.get("kind") == kind and isinstance(row.get("step"), int)}
    return [steps[step] for step in sorted(steps)]


def _series(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    values = [row.get(key) for row in rows]
    return np.array([math.nan if value is None else float(value) for value in values])


def _losses(rows: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> tuple[list[_Curve], np.ndarray]:
    """The curves, the last on top, and the steps whose loss is not finite."""
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    found = {key for row in rows for key in row if key.startswith("loss_")}
    terms = [key for key in LOSSES if key in found] + sorted(found - set(LOSSES))
    curves = []
    for index, key in enumerate(terms):
        name = key.removeprefix("loss_").replace("_", " ")
        curves.append(_Curve(name, steps, _smoothed(_series(rows, key)), HUES[index % len(HUES)]))
    total = _series(rows, "loss")
    broken = steps[[row.get("loss") is not None for row in rows] & ~np.isfinite(total)] if len(rows) else steps
    curves.append(_Curve("raw", steps, total, (196, 200, 207), width=1.2, named=False))
    curves.append(_Curve("total", steps, _smoothed(total), INK, width=3.2))
    validation = _series(evaluations, "loss")
    if np.isfinite(validation).any():
        at = np.array([row["step"] for row in evaluations], dtype=np.float64)
        curves.append(_Curve("validation", at, validation, HUES[len(terms) % len(HUES)], width=2.6, dots=True))
    return curves, broken


def _averages(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> list[_Curve]:
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    curves: list[_Curve] = []
    for key, name in names.items():
        values = _series(rows, key)
        if np.isfinite(values).any():
            curves.append(_Curve(name, steps, values, HUES[len(curves) % len(HUES)], width=2.6, dots=True))
    return curves


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The mean over a window of a twentieth of all steps around each; what is not finite is left out of it."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(values))
    half = np.minimum(places, len(values) // 40)  # as far back as ahead: a steep start is not levelled
    first, last = places - half, np.minimum(places + half + 1, len(values))
    return np.where(finite, (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1), np.nan)


def _top(curves: Sequence[_Curve]) -> float:
    """The upper end of the axis: all of the named curves, but not the rare leaps of a raw one."""
    highest = 0.0
    for curve in curves:
        values = curve.values[np.isfinite(curve.values)]
        if len(values):
            highest = max(highest, float(values.max() if curve.named else np.percentile(values, 99)))
    return highest * 1.06 if highest > 0 else 1.0


def _panel(
    title: str,
    subtitle: str,
    curves: Sequence[_Curve],
    end: float,
    top: float,
    broken: np.ndarray | None = None,
) -> Image.Image:
    panel = Image.new("RGB", PANEL, canvas.PAPER)
    pen = ImageDraw.Draw(panel)
    width, height = PANEL[0] - LEFT - RIGHT, PANEL[1] - TOP - BOTTOM
    right = end * 1.02 or 1.0
    x_ticks, y_ticks = _ticks(right, 6, finest=1.0), _ticks(top, 6)
    plot = Image.new("RGB", (width * FINER, height * FINER), canvas.PAPER)
    brush = ImageDraw.Draw(plot)
    for tick in y_ticks:
        y = (1 - tick / top) * height * FINER
        brush.line((0, y, width * FINER, y), fill=GRID, width=FINER)
    for curve in curves:
        across = curve.steps / right * width * FINER
        down = (1 - np.clip(curve.values, -top, 3 * top) / top) * height * FINER
        _stroke(brush, across, down, curve)
    for step in [] if broken is None else broken.tolist():
        x = step / right * width * FINER
        brush.line((x, 0, x, 10 * FINER), fill=ALARM, width=2 * FINER)
    panel.paste(plot.reduce(FINER), (LEFT, TOP))
    face, bold = canvas.font(15), canvas.font(22)
    pen.text((LEFT, 20), title, fill=INK, font=bold)
    pen.text((LEFT + bold.getlength(title) + 12, 27), subtitle, fill=PALE, font=face)
    pen.line((LEFT, TOP + height, LEFT + width, TOP + height), fill=PALE)
    for tick, text in zip(y_ticks, _texts(y_ticks), strict=True):
        pen.text((LEFT - 10, TOP + (1 - tick / top) * height), text, fill=PALE, font=face, anchor="rm")
    for tick, text in zip(x_ticks, _texts(x_ticks), strict=True):
        x = LEFT + tick / right * width
        pen.line((x, TOP + height, x, TOP + height + 5), fill=PALE)
        pen.text((x, TOP + height + 10), text, fill=PALE, font=face, anchor="mt")
    pen.text((LEFT + width / 2, PANEL[1] - 12), "step", fill=PALE, font=face, anchor="mb")
    if any(np.isfinite(curve.values).any() for curve in curves):
        _legend(pen, curves, broken)
    else:
        pen.text((LEFT + width / 2, TOP + height / 2), "nothing recorded yet", fill=PALE, font=face, anchor="mm")
    return panel


def _stroke(brush: ImageDraw.ImageDraw, across: np.ndarray, down: np.ndarray, curve: _Curve) -> None:
    """The line through all finite values, broken at the others; a value without neighbours becomes a dot."""
    finite = np.isfinite(down)
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]]).astype(np.int8)))
    for first, last in zip(bounds[::2], bounds[1::2], strict=True):
        points = _thinned(np.stack([across[first:last], down[first:last]], axis=1))
        if len(points) > 1:
            line = [(float(x), float(y)) for x, y in points]
            brush.line(line, fill=curve.colour, width=round(curve.width * FINER), joint="curve")
        if curve.dots or len(points) == 1:
            radius = (curve.width + 1.5) * FINER
            for x, y in points:
                brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=curve.colour)


def _thinned(points: np.ndarray, groups: int = PANEL[0] * FINER) -> np.ndarray:
    """At most two points, the lowest and the highest, for each of `groups` stretches: the line looks the same."""
    if len(points) <= 2 * groups:
        return points
    bounds = np.linspace(0, len(points), groups + 1).astype(int)
    kept: list[int] = []
    for first, last in itertools.pairwise(bounds.tolist()):
        low, high = points[first:last, 1].argmin(), points[first:last, 1].argmax()
        kept += sorted({int(first + low), int(first + high)})
    return points[kept]


def _legend(pen: ImageDraw.ImageDraw, curves: Sequence[_Curve], broken: np.ndarray | None) -> None:
    """Names, colours and last values, beside the curves so that it never hides one; the most important first."""
    face, small = canvas.font(15), canvas.font(13)
    left, right = PANEL[0] - RIGHT + 22, PANEL[0] - 24
    entries = []
    for curve in sorted(curves, key=lambda curve: -curve.width):
        values = curve.values[np.isfinite(curve.values)]
        if curve.named:
            entries.append((curve.name, f"{values[-1]:.3f}" if len(values) else "-", curve.colour))
    if broken is not None and len(broken):
        entries.append(("not finite", f"{len(broken)} step{'s' if len(broken) > 1 else ''}", ALARM))
    pen.text((right, TOP), "last", fill=PALE, font=small, anchor="rm")
    for index, (name, number, colour) in enumerate(entries):
        y = TOP + 24 + 26 * index
        pen.rounded_rectangle((left, y - 2, left + 20, y + 2), radius=2, fill=colour)
        pen.text((left + 30, y), canvas.fit(canvas.spell(name), face, 118), fill=INK, font=face, anchor="lm")
        pen.text((right, y), number, fill=PALE, font=face, anchor="rm")


def _ticks(end: float, count: int, finest: float = 0.0) -> list[float]:
    """Round numbers from 0 up to `end`, about `count` of them and at least `finest` apart."""
    power = 10.0 ** math.floor(math.log10(end / count))
    step = max(next(factor * power for factor in (1, 2, 2.5, 5, 10) if end / (factor * power) <= count), finest)
    return [index * step for index in range(math.floor(end / step * (1 + 1e-9)) + 1)]


def _texts(ticks: Sequence[float]) -> list[str]:
    """The ticks, all with as many decimals as the finest needs; thousands as "20k"."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    if step >= 1000:
        return [f"{tick / 1000:g}k" if tick else "0" for tick in ticks]
    decimals = next(places for places in range(9) if abs(round(step, places) - step) < 1e-3 * step or places == 8)
    return [f"{tick:.{decimals}f}" for tick in ticks]
