"""What can be wrong with one number, box, polygon or run-length encoding of COCO's format, in words.

The reader of data sets (`mrcnn_cli.data.coco`) and the search for faults (`mrcnn_cli.data.check`) judge by these same
rules.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mrcnn_cli.ops.run_lengths import run_lengths

# Boxes in COCO's files are rounded to hundredths: one that leaves the image by less is no fault.
SLACK = 0.05
NUMBERS = {int, float}

BoxFault = Literal["is no box", "not finite", "negative size", "zero area", "outside of its image", "leaves its image"]
PolygonFault = Literal[
    "holds something else than numbers",
    "fewer than 3 points or half a point",
    "coordinates that are not finite",
    "points far outside of the image",
]


def box_fault(bbox: Any, height: int, width: int) -> BoxFault | None:
    """What is wrong with a box [x, y, width, height] in an image of this size."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not NUMBERS.issuperset(map(type, bbox)):
        return "is no box"
    if not finite(bbox):
        return "not finite"
    x, y, box_width, box_height = bbox
    if box_width <= 0 or box_height <= 0:
        return "negative size" if box_width < 0 or box_height < 0 else "zero area"
    if max(x, 0.0) >= min(x + box_width, width) or max(y, 0.0) >= min(y + box_height, height):
        return "outside of its image"
    return "leaves its image" if max(-x, -y, x + box_width - width, y + box_height - height) > SLACK else None


def polygon_fault(polygon: Sequence[Any], height: int, width: int) -> PolygonFault | None:
    """What is wrong with a polygon [x1, y1, x2, y2, ...] in an image of this size."""
    if not NUMBERS.issuperset(map(type, polygon)):
        return "holds something else than numbers"
    if len(polygon) < 6 or len(polygon) % 2:
        return "fewer than 3 points or half a point"
    if not finite(polygon):
        return "coordinates that are not finite"
    side = max(height, width)
    if min(polygon) < -side or max(polygon) > 2 * side:  # filling it would take for ever
        return "points far outside of the image"
    return None


def read_runs(encoding: dict[str, Any]) -> np.ndarray:
    """The lengths of an encoding's runs, as `run_lengths` gives them.

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    try:
        return run_lengths(encoding)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"has no {error}" if isinstance(error, KeyError) else str(error)) from None


def finite(values: Sequence[float]) -> bool:
    """Whether all are finite; integers beyond a float's range, which JSON knows, are not."""
    try:
        return all(map(math.isfinite, values))
    except OverflowError:
        return False


def whole(value: Any) -> int | None:
    """A number that can be an id, a height or a width (3.0 is 3); None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62 else None
