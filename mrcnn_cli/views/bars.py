"""How many times as long others take, as one picture of bars."""

import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mrcnn_cli.views import canvas
from mrcnn_cli.views.colours import GRID, HUES, INK, PALE

LEFT, WIDTH, RIGHT = 560, 620, 90  # pixels for names, bars, and numbers beyond the longest bar
TOP, BOTTOM = 84, 54
ROW, GAP = 22, 18  # of a bar; between operators
MARKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def ratio_bars(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Writes a picture with one bar for each case and peer, its length the logarithm of the ratio.

    Args:
        rows: as `mrcnn bench kernels` gives them: {"op", "case", "device", "threads", "<peer>_ratio", ...}.
        path: a .png; replaced whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    bars = [
        (row["op"], row["case"], key.removesuffix("_ratio"), float(row[key]))
        for row in rows
        for key in row
        if key.endswith("_ratio")
    ]
    peers = list(dict.fromkeys(peer for _, _, peer, _ in bars))
    operators = list(dict.fromkeys(op for op, _, _, _ in bars))
    low = min([1.0, *(ratio for *_, ratio in bars)])
    high = max([2.0, *(ratio for *_, ratio in bars)])
    first = max([mark for mark in MARKS if mark <= low], default=MARKS[0])
    last = min([mark for mark in MARKS if mark >= high], default=high)

    def across(ratio: float) -> float:
        return LEFT + WIDTH * (math.log(max(ratio, first)) - math.log(first)) / (math.log(last) - math.log(first))

    height = TOP + ROW * len(bars) + GAP * len(operators) + BOTTOM
    picture = Image.new("RGB", (LEFT + WIDTH + RIGHT, height), canvas.PAPER)
    pen = ImageDraw.Draw(picture)
    face, bold, small = canvas.font(14), canvas.font(22), canvas.font(15)
    pen.text((24, 20), "Time of others, by ours", fill=INK, font=bold)
    if rows:
        threads = rows[0]["threads"]
        where = (
            f"{rows[0]['device']}, {threads} thread{'s' if threads > 1 else ''}; logarithmic; longer is better for us"
        )
        pen.text((24 + bold.getlength("Time of others, by ours") + 12, 27), where, fill=PALE, font=small)
    for mark in (mark for mark in MARKS if first <= mark <= last):
        x = across(mark)
        pen.line((x, TOP - 8, x, height - BOTTOM), fill=PALE if mark == 1 else GRID, width=2 if mark == 1 else 1)
        pen.text((x, height - BOTTOM + 8), f"{mark:g}x", fill=PALE, font=face, anchor="mt")
    for index, peer in enumerate(peers):
        pen.rounded_rectangle((LEFT + 150 * index, 58, LEFT + 150 * index + 18, 70), radius=3, fill=HUES[index])
        pen.text((LEFT + 150 * index + 26, 64), canvas.spell(peer), fill=INK, font=face, anchor="lm")
    y, before = TOP, None
    for op, case, peer, ratio in bars:
        if op != before:
            y += GAP if before is not None else 0
            before, shown = op, None
            pen.text((24, y + ROW / 2), canvas.fit(canvas.spell(op), face, 150), fill=INK, font=face, anchor="lm")
        if case != shown:
            name = canvas.fit(canvas.spell(case), face, LEFT - 200)
            pen.text((LEFT - 12, y + ROW / 2), name, fill=PALE, font=face, anchor="rm")
            shown = case
        ends = sorted((across(1.0), across(ratio)))
        pen.rectangle((ends[0], y + 3, max(ends[1], ends[0] + 1), y + ROW - 4), fill=HUES[peers.index(peer)])
        pen.text((ends[1] + 7, y + ROW / 2), f"{ratio:.1f}x", fill=INK, font=face, anchor="lm")
        y += ROW
    canvas.save(picture, path)
