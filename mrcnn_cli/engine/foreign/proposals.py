"""Proposals of other systems: Detectron's and Detectron2's pickles, and Selective Search's MATLAB files.

Coordinates come out as ours: continuous, x2 - x1 is a box's width. Detectron and Detectron2 train on their numbers as
they are, and so do we; Selective Search counts pixels from 1 and includes the last one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.data.matlab import HDF5_MAGIC, MAGIC, read_matlab
from mrcnn_cli.data.proposals import Proposals, gathered, read_proposals
from mrcnn_cli.engine.foreign.pickles import read_pickle
from mrcnn_cli.errors import UserError

# Detectron2's BoxMode: corners, or a corner with width and height; both in pixels.
CORNERS, CORNER_AND_SIZE = 0, 1


def read_any_proposals(path: Path) -> Proposals:
    """The proposals of a file, ours or another system's; which one it is its content tells.

    Raises:
        UserError: no such file, none of these, damaged, or a pickle that wants to run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if start[8:9] == b"{":  # after the length of the header: safetensors
        return read_proposals(path)
    if start.startswith((MAGIC, HDF5_MAGIC, b"MATLAB")):
        return _selective_search(path, read_matlab(path))
    if not start.startswith((b"\x80", b"(", b"}")):  # how a pickled dictionary begins
        raise UserError(
            f"{path}: holds no proposals; known are files of 'mrcnn proposals', pickles of Detectron and Detectron2, "
            "and MATLAB files of Selective Search"
        )
    content = read_pickle(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, not proposals: a dictionary of ids, boxes and scores"
        )
    try:
        return _detectron(path, content)
    except (TypeError, ValueError) as error:  # entries of any other type
        raise UserError(f"{path}: holds no proposals, or is damaged ({error})") from None


def _detectron(path: Path, content: Mapping[Any, Any]) -> Proposals:
    """{"ids" or "indexes", "boxes", "objectness_logits" or "scores"}, one entry for each image."""

    def entry(*names: str) -> Sequence[Any]:
        for name in names:
            if name in content:
                return content[name]
        has = ", ".join(map(str, list(content)[:5]))
        raise UserError(f"{path}: holds no proposals: it has no '{names[0]}' (it has {has or 'nothing'})")

    ids, scores = entry("ids", "indexes"), entry("objectness_logits", "scores")
    boxes = [np.asarray(part, np.float64).reshape(-1, 4) for part in entry("boxes")]
    if not len(ids) == len(boxes) == len(scores):
        raise UserError(f"{path}: {len(ids)} ids, {len(boxes)} lists of boxes and {len(scores)} of scores: damaged")
    mode = content.get("bbox_mode", CORNERS)
    if mode == CORNER_AND_SIZE:
        boxes = [np.concatenate([part[:, :2], part[:, :2] + part[:, 2:]], 1) for part in boxes]
    elif mode != CORNERS:
        raise UserError(f"{path}: boxes of mode {mode}; 0 (corners) and 1 (corner and size) in pixels are known")
    numbers = [_number(value) for value in ids]
    names = ["" if number >= 0 else str(value) for number, value in zip(numbers, ids, strict=True)]
    marks = [np.asarray(part, np.float64).reshape(-1) for part in scores]
    return gathered(path, numbers, names, [(0, 0)] * len(ids), boxes, marks)


def _number(value: Any) -> int:
    """An id as a number; -1 for a name, such as Pascal VOC's "000005"."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and str(int(value)) == value else -1
    return int(value)


def _selective_search(path: Path, variables: Mapping[str, Any]) -> Proposals:
    """boxes: a cell of [P, 4] y1, x1, y2, x2 counted from 1; images: a cell of names without suffix."""
    boxes, images = variables.get("boxes"), variables.get("images")
    if not isinstance(boxes, list) or not isinstance(images, list):
        has = ", ".join(variables) or "nothing"
        raise UserError(f"{path}: holds no proposals of Selective Search: cells 'boxes' and 'images' (it has {has})")
    names = [name[0] if isinstance(name, list) and name else name for name in images]
    if len(names) != len(boxes) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: {len(boxes)} lists of boxes and {len(names)} names of images: damaged")
    corners = []
    for name, part in zip(names, boxes, strict=True):
        if not isinstance(part, np.ndarray) or part.size % 4 or (part.size and part.shape[-1] != 4):
            raise UserError(f"{path}: image {name}: no list of boxes [P, 4]")
        corners.append(part.reshape(-1, 4)[:, [1, 0, 3, 2]] - [1, 1, 0, 0])
    ranks = [-np.arange(len(part), dtype=np.float64) for part in corners]  # the file's order
    return gathered(path, [-1] * len(names), names, [(0, 0)] * len(names), corners, ranks)
