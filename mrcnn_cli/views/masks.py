"""Instance masks cut out of their run-length encodings without ever filling the whole picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np


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
        ValueError: the runs do not add up to the picture.
    """
    height, width = (int(length) for length in mask["size"])
    counts = _counts(mask["counts"])
    edges = np.concatenate([[0], np.cumsum(counts)])
    if edges[-1] != height * width or (counts < 0).any():
        raise ValueError(
            f"mask: its runs cover {edges[-1]} pixels, a picture of {height} x {width} has {height * width}"
        )
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


def _counts(counts: bytes | str | Sequence[int]) -> np.ndarray:
    """Run lengths from the compressed form, in which each is spelled in characters of five bits (from 48 on, low bits
    first; bit 5: another follows; bit 4 of the last: negative) and from the fourth on is the difference to the one two
    before it."""
    if not isinstance(counts, bytes | str):
        return np.asarray(counts, dtype=np.int64)
    characters = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64)
    characters -= 48
    last = (characters & 32) == 0
    ends = np.flatnonzero(last)
    if not len(ends):
        return np.zeros(0, np.int64)
    characters = characters[: ends[-1] + 1]
    begins = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(characters)) - np.repeat(begins, ends + 1 - begins)
    values = np.add.reduceat((characters & 31) << (5 * places), begins)
    lengths = ends + 1 - begins
    values -= np.where(characters[ends] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
