"""Proposals from elsewhere: boxes of each image that may hold an object, found once and kept in a file.

Our file (docs/proposals.md) is safetensors, so reading it runs nothing. Of I images with P proposals in all:

    image_ids  [I] int64    ids of the annotation file, -1 where there are none
    sizes      [I, 2] int64 height and width of each picture; 0 where they are not known
    first      [I + 1] int64  image i has the proposals first[i] ... first[i + 1] - 1
    boxes      [P, 4] float32  x1, y1, x2, y2 in pixels of the upright picture, best first within an image
    scores     [P] float32

Its metadata hold "format" and, as a JSON list, "file_names".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from mrcnn_cli.data.annotations import ImageRecord
from mrcnn_cli.errors import UserError
from mrcnn_cli.structures import Size

FORMAT = "mrcnn-proposals-1"
NAMED = 3  # of images that an error names


@dataclass(frozen=True, eq=False)
class Proposals:
    """The proposals of many images; see the head of this file.

    Attributes:
        source: the file.
        image_ids: [I].
        file_names: per image, "" where it is not known; without a suffix where the file has none.
        sizes: [I, 2].
        first: [I + 1].
        boxes: [P, 4].
        scores: [P].
    """

    source: Path
    image_ids: np.ndarray
    file_names: tuple[str, ...]
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    _places: dict[int | str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, (number, name) in enumerate(zip(self.image_ids.tolist(), self.file_names, strict=True)):
            for key in (*([number] if number >= 0 else []), *_names(name)):
                # Two pictures of one name in different folders: that name alone tells nothing.
                self._places[key] = place if key not in self._places else -1

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, place: int) -> np.ndarray:
        """The boxes [P_i, 4] of the image at this place in the file."""
        return self.boxes[self.first[place] : self.first[place + 1]]

    def place(self, image_id: int, file_name: str) -> int | None:
        """Where in the file an image is, by its id or else by its name; None: nowhere."""
        keys: list[int | str] = [*([image_id] if image_id >= 0 else []), *_names(file_name)]
        for key in keys:
            place = self._places.get(key, -1)
            if place >= 0:
                return place
        return None

    def matched(self, images: Sequence[ImageRecord], listing: Path | None = None) -> "MatchedProposals":
        """The proposals in the order of these images.

        Args:
            images: of a data set, or of files that are known by their names alone.
            listing: the annotation file that lists them, for errors.

        Raises:
            UserError: an image has none, or is another one than the proposals were made for.
        """
        found = [self.place(record.id, record.file_name) for record in images]
        missing = [record for record, place in zip(images, found, strict=True) if place is None]
        if missing:
            some = ", ".join(
                f"{record.file_name} (id {record.id})" if listing else record.file_name for record in missing[:NAMED]
            )
            more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
            where = f" of {listing}" if listing else ""
            raise UserError(
                f"{self.source}: has no proposals for {len(missing):,} of the {len(images):,} images{where}: "
                f"{some}{more}; make them with 'mrcnn proposals'"
            )
        places = np.array([place for place in found if place is not None], dtype=np.int64)
        if listing is not None:
            for record, place in zip(images, places.tolist(), strict=True):
                self._check_same(record, place, listing)
        return MatchedProposals(self, places)

    def _check_same(self, record: ImageRecord, place: int, listing: Path) -> None:
        name = self.file_names[place]
        if name and not {*_names(name)} & {*_names(record.file_name)}:
            raise UserError(
                f"{self.source}: was made for other images: id {record.id} is {name} there and {record.file_name} in "
                f"{listing}; make the proposals anew"
            )
        self.check_size(place, record.file_name, (record.height, record.width))

    def check_size(self, place: int, file_name: str, size: Size) -> None:
        """UserError where the image at this place was of another size when the proposals were made."""
        height, width = self.sizes[place].tolist()
        if height and (height, width) != size:
            raise UserError(
                f"{self.source}: was made for other images: {file_name} was {width} x {height} and is "
                f"{size[1]} x {size[0]}; make the proposals anew"
            )


@dataclass(frozen=True, eq=False)
class MatchedProposals(Sequence[np.ndarray]):
    """The proposals [P_i, 4] of each image of a data set, in its order."""

    proposals: Proposals
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # no slices
        return self.proposals[int(self.places[index])]


def gathered(
    source: Path,
    image_ids: Sequence[int],
    file_names: Sequence[str],
    sizes: Sequence[Size],
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
) -> Proposals:
    """Proposals of a list for each image; each image's are put in the order of their scores, best first.

    Raises:
        UserError: boxes that are not finite, or not as many as scores.
    """
    counts = [len(part) for part in boxes]
    for place, (part, marks) in enumerate(zip(boxes, scores, strict=True)):
        where = f"{source}: image {image_ids[place] if image_ids[place] >= 0 else file_names[place]}"
        if part.ndim != 2 or part.shape[1] != 4 or len(part) != len(marks):
            raise UserError(f"{where}: boxes {list(part.shape)} and scores {list(marks.shape)}, not [P, 4] and [P]")
        if not np.isfinite(part).all():
            raise UserError(f"{where}: a box is not finite; make the proposals anew")
    orders = [np.argsort(-np.asarray(part), kind="stable") for part in scores]
    ordered = [np.asarray(part, np.float32)[order] for part, order in zip(boxes, orders, strict=True)]
    ordered_scores = [np.asarray(part, np.float32)[order] for part, order in zip(scores, orders, strict=True)]
    return Proposals(
        source,
        np.asarray(image_ids, np.int64),
        tuple(file_names),
        np.asarray(sizes, np.int64).reshape(-1, 2),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([np.zeros((0, 4), np.float32), *ordered]),
        np.concatenate([np.zeros(0, np.float32), *ordered_scores]),
    )


def packed(proposals: Proposals) -> bytes:
    """Our file's content."""
    arrays = {key: getattr(proposals, key) for key in ("image_ids", "sizes", "first", "boxes", "scores")}
    about = {"format": FORMAT, "file_names": json.dumps(proposals.file_names)}
    return safetensors.numpy.save(arrays, metadata=about)


def read_proposals(path: Path) -> Proposals:
    """The proposals of our file.

    Raises:
        UserError: not our file, or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise UserError(f"{path}: a safetensors file, but no proposals: 'mrcnn proposals' makes them")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        proposals = Proposals(path, file_names=tuple(json.loads(about["file_names"])), **arrays)
        images, count = len(proposals), len(proposals.boxes)
        first = proposals.first
        sound = proposals.boxes.shape == (count, 4) and proposals.scores.shape == (count,)
        sound &= proposals.sizes.shape == (images, 2) and first.shape == (images + 1,)
        if not (sound and first[0] == 0 and first[-1] == count and (np.diff(first) >= 0).all()):
            raise ValueError("its arrays do not fit each other")
        if not np.isfinite(proposals.boxes).all():
            raise ValueError("a box is not finite")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: proposals, but damaged ({error}); make them anew with 'mrcnn proposals'") from None
    return proposals


def _names(file_name: str) -> list[str]:
    """What a picture may be called, the surest first: with its folder, without, and without its suffix."""
    path = PurePath(file_name)
    return list(dict.fromkeys([str(path), path.name, path.stem])) if file_name else []
