"""Instance masks cut out of their run-length encodings without ever filling the whole picture."""

from typing import Any

import numpy as np

from mrcnn_cli.ops.run_lengths import run_lengths


def crop(mask: dict[str, Any]) -> tuple[int, int, np.ndarray] | None:
    """The smallest window of a mask that holds all its pixels.

    The work grows with the window and not with the picture, so that thousands of small objects in a large picture
    are quick.

    Args:
        mask: a COCO run-length encoding {"size": [height, width], "counts": ...}, counts compressed (bytes, str) or
            plain (list).

    Returns:
        (left, top, window), the window [h, w] bool; None for a mask without pixels.

    Raises:
        ValueError: the encoding is malformed, or its runs do not add up to the picture.
    """
    height = mask["size"][0]
    edges = np.concatenate([[0], run_lengths(mask).cumsum()])
    starts, ends = edges[1:-1:2], edges[2::2]  # runs alternate: background first, then object; down the columns
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return None
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    within = np.zeros((right - left) * height + 1, np.int32)
    np.add.at(within, starts - left * height, 1)
    np.add.at(within, ends - left * height, -1)
    columns = np.cumsum(within[:-1], dtype=np.int32).astype(bool).reshape(right - left, height)
    rows = np.flatnonzero(columns.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return left, top, np.ascontiguousarray(columns[:, top:bottom].T)
