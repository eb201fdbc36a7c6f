"""Keypoints of objects: what they are called, which of them a mirror exchanges, and what a COCO file says of them."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shown  # cut short where it is long
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from mrcnn_cli.config import Config, validate
from mrcnn_cli.errors import UserError

Pairs = tuple[tuple[str, str], ...]

OUTSIDE = 1.0  # pixels by which a keypoint may leave its image: it counts pixels, or their corners

_LEFT = (
    (re.compile("left"), "right"),
    (re.compile("Left"), "Right"),
    (re.compile("LEFT"), "RIGHT"),
    (re.compile("^l(?=[_. -])|(?<=[_. -])l$"), "r"),
    (re.compile("^L(?=[_. -])|(?<=[_. -])L$"), "R"),
)


# A side in a name, where it begins a word: "upright" has none.
_SIDE = re.compile("(?<![a-z])(left|right)|Left|Right|LEFT|RIGHT|^[lrLR](?=[_. -])|(?<=[_. -])[lrLR]$")


class KeypointsConfig(Config):
    """What the keypoints of an object are; by default what the training file says."""

    names: tuple[str, ...] | None = Field(None, min_length=1)  # in the order of the annotations
    skeleton: Pairs | None = None  # joined by a line in pictures
    flip_pairs: Pairs | None = None  # exchanged where a picture is mirrored; by default left and right, by their names
    # From the file's coordinates to ours, in pixels: COCO counts pixels, and the middle of pixel i lies at i + 0.5, as
    # Detectron2 takes it; torchvision's models were trained with 0.
    offset: float = Field(0.5, ge=0, le=1)
    min_labelled: int = Field(0, ge=0)  # images with fewer labelled keypoints are not trained on; 1 in Detectron2's zoo

    @model_validator(mode="after")
    def _check(self) -> "KeypointsConfig":
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise ValueError("names has a name twice: rename one of them")
        for key in ("skeleton", "flip_pairs"):
            words = [name for pair in getattr(self, key) or () for name in pair]
            unknown = [name for name in words if self.names is not None and name not in self.names]
            if unknown:
                raise ValueError(f"{key} has {unknown[0]!r}, which is not among names")
            if key == "flip_pairs" and len(set(words)) != len(words):
                raise ValueError("flip_pairs has a name twice: each keypoint has one counterpart")
        return self

    def completed(self, names: Sequence[str], skeleton: Pairs) -> "KeypointsConfig":
        """With what is not given taken from a file; pairs to flip from the names.

        Raises:
            UserError: what is given does not fit the names.
        """
        found = {"names": names, "skeleton": skeleton, "flip_pairs": left_and_right(names)}
        given = {key: value for key, value in self.model_dump().items() if value is not None}
        return validate(KeypointsConfig, found | given, "data.keypoints")

    def mirror(self) -> np.ndarray:
        """[P] int64: the place of the keypoint that each is after a picture was mirrored."""
        names = self.names or ()
        places = np.arange(len(names))
        for one, other in self.flip_pairs or ():
            i, j = names.index(one), names.index(other)
            places[i], places[j] = j, i
        return places

    def lines(self) -> list[tuple[int, int]]:
        """The skeleton as pairs of places."""
        names = self.names or ()
        return [(names.index(one), names.index(other)) for one, other in self.skeleton or ()]


def left_and_right(names: Sequence[str]) -> Pairs:
    """The pairs whose names differ by left and right alone, or by an l and r that stand apart: left_ear, ear_L."""
    pairs = []
    for name in names:
        for pattern, right in _LEFT:
            counterpart = pattern.sub(right, name)
            if counterpart != name and counterpart in names:
                pairs.append((name, counterpart))
                break
    return tuple(pairs)


def one_sided(names: Sequence[str]) -> list[str]:
    """The names with a side, left or right, whose counterpart is missing: a mirror would not exchange them."""
    paired = {name for pair in left_and_right(names) for name in pair}
    return [name for name in names if name not in paired and _SIDE.search(name)]


def read_categories(
    path: Path, categories: Sequence[dict[str, Any]], given: KeypointsConfig
) -> tuple[KeypointsConfig | None, str | None]:
    """What a COCO file's categories say of keypoints, and what is wrong with its skeleton; None: nothing.

    Args:
        path: of the file, for messages.
        categories: as in the file; those without keypoints do not count.
        given: takes precedence, but its names must be those of the file.

    Raises:
        UserError: faulty names, or several lists of them.
    """
    lists: dict[tuple[str, ...], dict[str, Any]] = {}
    for category in categories:
        found = category.get("keypoints")
        if not found:
            continue
        where = f"{path}: category '{category.get('name')}'"
        if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
            raise UserError(f"{where}: 'keypoints' is {shown(found)}; write the list of their names")
        if len(set(found)) != len(found):
            twice = next(name for name in found if found.count(name) > 1)
            raise UserError(f"{where}: two keypoints have the name '{twice}'; rename one of them")
        lists.setdefault(tuple(found), category)
    if len(lists) > 1:
        one, other = (category.get("name") for category in list(lists.values())[:2])
        raise UserError(
            f"{path}: the categories '{one}' and '{other}' have different keypoints; a model has one list of them for "
            "all classes: make a file of each"
        )
    named = next(iter(lists), None)
    names = given.names or named
    if names is None:
        return None, None
    if named is not None and names != named:
        order = "in another order" if sorted(names) == sorted(named) else "not those"
        raise UserError(
            f"{path}: its keypoints ({', '.join(named)}) are {order} of the model or of data.keypoints.names "
            f"({', '.join(names)}); correct the file or the recipe"
        )
    skeleton, fault = _skeleton(lists[named].get("skeleton"), named) if named is not None else ((), None)
    return given.completed(names, skeleton), fault


def _skeleton(given: Any, names: Sequence[str]) -> tuple[Pairs, str | None]:
    """Pairs of names from COCO's pairs of places, which count from 1."""
    pairs = []
    for pair in given if isinstance(given, list) else []:
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(place) is int for place in pair)
        if not whole or not all(1 <= place <= len(names) for place in pair):
            return (), f"{shown(pair)}, but there are places 1 to {len(names)}"
        pairs.append((names[pair[0] - 1], names[pair[1] - 1]))
    return tuple(pairs), None


def visible_points(given: Any, offset: float, threshold: float = 0.0) -> list[tuple[float, float] | None]:
    """Where the keypoints of a COCO annotation or result lie, to be looked at: None for those that are not labelled, of
    too low a score or not finite; [] where the values are faulty.

    Args:
        given: x, y, visibility or score of each.
        offset: from these coordinates to continuous ones.
        threshold: visibility or score that is too low.
    """
    if not isinstance(given, list) or len(given) % 3 or not {int, float}.issuperset(map(type, given)):
        return []
    points: list[tuple[float, float] | None] = []
    for x, y, sure in zip(given[0::3], given[1::3], given[2::3], strict=True):
        shown_here = max(abs(x), abs(y)) < 1e9 and sure > threshold
        points.append((x + offset, y + offset) if shown_here else None)
    return points


def read_object(given: Any, names: Sequence[str], where: str) -> tuple[list[float], int]:
    """The keypoints of one annotation as in the file, [x, y, visibility, ...], and how many of them were not finite.

    Those that are not finite become keypoints that are not labelled, as all are where the annotation has none.

    Args:
        given: the annotation's entry.
        names: of the keypoints.
        where: the annotation, for messages.

    Raises:
        UserError: a wrong number of values, values that are no numbers, a visibility that COCO does not have.
    """
    if given is None or given == []:
        return [0.0] * (3 * len(names)), 0
    if not isinstance(given, list) or not {int, float}.issuperset(map(type, given)):
        raise UserError(f"{where}: 'keypoints' is {shown(given)}; write x, y and visibility of each keypoint")
    if len(given) != 3 * len(names):
        raise UserError(
            f"{where}: 'keypoints' has {len(given)} numbers instead of {3 * len(names)}, x, y and visibility of the "
            f"{len(names)} keypoints that its category names; correct one of them"
        )
    values, lost = [float(value) if abs(value) < 1e300 else math.nan for value in given], 0
    for place in range(0, len(values), 3):
        if not all(map(math.isfinite, values[place : place + 3])):
            values[place : place + 3] = [0.0, 0.0, 0.0]
            lost += 1
        elif values[place + 2] not in (0, 1, 2):
            raise UserError(
                f"{where}: keypoint '{names[place // 3]}' has the visibility {given[place + 2]}; write 0 (not "
                "labelled), 1 (labelled but hidden) or 2 (visible)"
            )
    return values, lost
