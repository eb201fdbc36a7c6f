"""COCO's run-length encodings of masks, checked: the lengths of their runs and back."""

import operator
from typing import Any

import numpy as np

from mrcnn_cli import _C

MOST_PIXELS = 2**31 - 1  # of a mask: its pixels are counted in int32


def mask_size(encoding: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of an encoding.

    Raises:
        ValueError: they are not there, or are no size.
    """
    size = encoding.get("size")
    try:
        height, width = (operator.index(length) for length in size)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise ValueError(f"the size is {size!r}, not [height, width]") from None
    if height < 0 or width < 0 or height * width > MOST_PIXELS:
        raise ValueError(f"the size is {height} x {width}, not two numbers from 0 with less than 2^31 pixels")
    return height, width


def packed_lengths(counts: Any) -> bytes:
    """Lengths of runs as bytes of little-endian uint32, from compressed (bytes, str) or plain (list) counts.

    Raises:
        ValueError: they are malformed; the message says how.
    """
    if isinstance(counts, str):
        counts = counts.encode("ascii", errors="replace")
    if isinstance(counts, bytes):
        return _C.rle_counts(counts)
    try:
        runs = np.asarray(counts)
    except (ValueError, OverflowError):  # ragged, or numbers beyond all types
        runs = np.asarray(None)
    if runs.ndim != 1 or (runs.size and (runs.dtype.kind not in "ui" or runs.min() < 0 or runs.max() >= 2**32)):
        raise ValueError("the counts are neither a string nor a list of whole numbers from 0 below 2^32")
    return runs.astype("<u4").tobytes()


def run_lengths(encoding: dict[str, Any]) -> np.ndarray:
    """Lengths of the runs of a COCO run-length encoding: background first, then by turns, down the columns: int64.

    Raises:
        ValueError: the encoding is malformed; the message says how.
        KeyError: it has no counts.
    """
    height, width = mask_size(encoding)
    runs = np.frombuffer(packed_lengths(encoding["counts"]), "<u4").astype(np.int64)
    check_total(int(runs.sum()), height, width)
    return runs


def check_total(total: int, height: int, width: int) -> None:
    """Raises ValueError unless runs add up to the pixels of their mask."""
    if total != height * width:
        raise ValueError(f"the counts add up to {total} pixels, the size is {height} x {width} = {height * width}")


def compressed(runs: np.ndarray) -> bytes:
    """The compressed counts of a COCO run-length encoding."""
    return _C.rle_compress(runs.astype("<u4").tobytes())
