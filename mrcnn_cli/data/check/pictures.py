"""Faults of the image files: missing, damaged, turned, of another size or kind, listed nowhere, or there twice.

Near-duplicates are found by a perceptual hash of 16 x 16 numbers: a thumbnail whose brightness and contrast are taken
out. The product of two is the correlation of the thumbnails, which resizing, compression and exposure leave near 1.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mrcnn_cli.data.check.faults import Finding
from mrcnn_cli.data.check.tables import ImageEntry, Split, Table
from mrcnn_cli.data.image import SUFFIXES, Description, describe, preview
from mrcnn_cli.data.workers import in_workers
from mrcnn_cli.errors import UserError

HASH_SIDE = 16
PREVIEW_SIDE = 128  # pixels of the thumbnail that is averaged into a hash
ALIKE = 0.98  # correlation of two hashes
FLAT = 1.0  # standard deviation, in grey levels, below which a thumbnail tells nothing
ROWS = 512  # hashes compared with all others at once


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of a listed image's file.

    Attributes:
        fault: "image-missing", "image-unreadable" or "image-truncated"; None for a sound one.
        words: of the fault.
        description: what the header says; None where it cannot be read.
        digest: of the file's bytes.
        hash: [256] float32, of length 1, or 0 for a picture of one colour.
    """

    fault: str | None
    words: str = ""
    description: Description | None = None
    digest: bytes = b""
    hash: np.ndarray | None = None


def look(path: Path) -> Picture:
    """A picture's file, read once through."""
    if not path.is_file():
        return Picture("image-missing", f"{path} does not exist")
    try:
        description = describe(path)
    except UserError as error:
        return Picture("image-unreadable", str(error))
    try:
        small = preview(path, PREVIEW_SIDE)
    except UserError as error:
        return Picture("image-truncated", str(error), description)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").digest()[:16]
    return Picture(None, "", description, digest, perceptual_hash(small))


def look_at_all(
    tables: Sequence[Table], workers: int, progress: Callable[[int, int], None] | None = None
) -> list[list[Picture]]:
    """The pictures of each split, in the order of its images, looked at in parallel."""
    paths = [table.split.folder / image.file_name for table in tables for image in table.images]
    found: list[Picture] = []
    for picture in in_workers(lambda number: look(paths[number]), range(len(paths)), workers):
        found.append(picture)
        if progress is not None:
            progress(len(found), len(paths))
    remaining = iter(found)
    return [[next(remaining) for _ in table.images] for table in tables]


def picture_findings(tables: Sequence[Table], pictures: Sequence[Sequence[Picture]]) -> list[Finding]:
    """All faults of the files that `look_at_all` looked at."""
    findings = []
    for table, looked_at in zip(tables, pictures, strict=True):
        elsewhere = _elsewhere(table.split.folder) if any(p.fault == "image-missing" for p in looked_at) else {}
        for image, picture in zip(table.images, looked_at, strict=True):
            if picture.fault == "image-missing" and (found := elsewhere.get(os.path.basename(image.file_name))):
                picture = replace(picture, words=f"{picture.words}; there is {found}")
            findings += list(_file_findings(table.split, image, picture))
    return findings + _mixed(tables, pictures) + _not_listed(tables) + _twins(tables, pictures)


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """[256] float32 of a picture [h, w, 3]: of mean 0 and length 1; all 0 for a picture of one colour."""
    grey = image.astype(np.float32).mean(axis=2)
    for axis in (0, 1):
        grey = _averaged(grey, axis)
    centred = (grey - grey.mean()).reshape(-1)
    return centred / np.linalg.norm(centred) if grey.std() >= FLAT else np.zeros_like(centred)


def _averaged(grey: np.ndarray, axis: int) -> np.ndarray:
    """HASH_SIDE averages along one axis, of parts as equal as whole pixels allow."""
    edges = np.linspace(0, grey.shape[axis], HASH_SIDE + 1)
    first = np.minimum(np.floor(edges[:-1]).astype(np.int64), grey.shape[axis] - 1)
    last = np.maximum(np.ceil(edges[1:]).astype(np.int64), first + 1)
    sums = np.concatenate([np.zeros_like(grey.take([0], axis)), grey.cumsum(axis)], axis)
    shape = [1, 1]
    shape[axis] = HASH_SIDE
    return (sums.take(last, axis) - sums.take(first, axis)) / (last - first).reshape(shape)


def _finding(fault: str, split: Split, image: ImageEntry, words: str) -> Finding:
    place = ("images", image.place, -1)
    return Finding(fault, split.name, str(split.path), words, image.file_name, image.id, None, place)


def _file_findings(split: Split, image: ImageEntry, picture: Picture) -> Iterator[Finding]:
    if picture.fault is not None:
        yield _finding(picture.fault, split, image, picture.words)
    description = picture.description
    if description is None:
        return
    said, (height, width) = (image.height, image.width), description.size
    if image.height and said != description.size:
        words = f"is {height} x {width} (height x width), the annotation file says {said[0]} x {said[1]}"
        turned = said == description.stored_size
        if turned:
            words += f", its size before the EXIF orientation {description.orientation} turns it"
        yield _finding("exif-size" if turned else "size-disagrees", split, image, words)
    elif description.orientation != 1:
        words = f"has the EXIF orientation {description.orientation}; its annotations fit the upright picture"
        yield _finding("exif-rotation", split, image, words)


def _mixed(tables: Sequence[Table], pictures: Sequence[Sequence[Picture]]) -> list[Finding]:
    kinds = Counter(p.description.pixels for looked_at in pictures for p in looked_at if p.description)
    if len(kinds) < 2:
        return []
    [(usual, count)] = kinds.most_common(1)
    return [
        _finding("mixed-pixels", table.split, image, f"is {picture.description.pixels}, {count:,} others are {usual}")
        for table, looked_at in zip(tables, pictures, strict=True)
        for image, picture in zip(table.images, looked_at, strict=True)
        if picture.description is not None and picture.description.pixels != usual
    ]


def _not_listed(tables: Sequence[Table]) -> list[Finding]:
    """Image files that no split lists, in the folders in which listed ones lie (others may hold masks)."""
    listed = {_normal(table.split.folder / image.file_name) for table in tables for image in table.images}
    findings = []
    seen: set[str] = set()
    for table in tables:
        for parent in sorted({os.path.dirname(image.file_name) for image in table.images}):
            folder = table.split.folder / parent
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
            paths = [_normal(folder / name) for name in names if Path(name).suffix.lower() in SUFFIXES]
            if listed.isdisjoint(paths):
                continue
            for path in paths:
                if path not in listed and path not in seen:
                    seen.add(path)
                    shown = os.path.join(parent, os.path.basename(path))
                    where = table.split.name, str(table.split.path)
                    findings.append(Finding("image-not-listed", *where, f"{path} is in no annotation file", shown))
    return findings


def _elsewhere(folder: Path) -> dict[str, str]:
    """name -> path of the files below a folder."""
    return {name: os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names}


def _normal(path: Path) -> str:
    return os.path.abspath(path)


def _twins(tables: Sequence[Table], pictures: Sequence[Sequence[Picture]]) -> list[Finding]:
    """Each image that is, or looks like, an earlier one."""
    sound = [
        (table.split, image, picture)
        for table, looked_at in zip(tables, pictures, strict=True)
        for image, picture in zip(table.images, looked_at, strict=True)
        if picture.fault is None
    ]
    first: dict[bytes, int] = {}
    twin_of: dict[int, tuple[int, str]] = {}
    paths: dict[str, int] = {}
    for number, (split, image, picture) in enumerate(sound):
        path = _normal(split.folder / image.file_name)
        earlier = first.setdefault(picture.digest, number)
        if earlier != number and not (path in paths and sound[paths[path]][0] is split):
            twin_of[number] = earlier, "the same file content"
        paths.setdefault(path, number)
    hashes = np.array([picture.hash for *_, picture in sound], np.float32).reshape(-1, HASH_SIDE**2)
    for number, (earlier, likeness) in _alike(hashes).items():
        twin_of.setdefault(number, (earlier, f"looks the same, correlation {likeness:.3f}"))
    findings = []
    for number, (earlier, words) in sorted(twin_of.items()):
        (split, image, _), (other_split, other, _) = sound[number], sound[earlier]
        exact = words == "the same file content"
        kind = "duplicate" if split is other_split else "leaked"
        fault = f"{kind}-image" if exact else f"near-{kind}-image"
        findings.append(_finding(fault, split, image, f"{other.file_name} of {other_split.name}: {words}"))
    return findings


def _alike(hashes: np.ndarray) -> dict[int, tuple[int, float]]:
    """For each hash [N, 256] that is like an earlier one: which is most like it, and the correlation."""
    found: dict[int, tuple[int, float]] = {}
    for begin in range(0, len(hashes), ROWS):
        end = min(begin + ROWS, len(hashes))
        likeness = hashes[begin:end] @ hashes[:end].T
        likeness[np.arange(begin, end)[:, None] <= np.arange(end)[None]] = 0  # itself and later ones
        best = likeness.argmax(axis=1)
        for row in np.flatnonzero(likeness[np.arange(end - begin), best] >= ALIKE).tolist():
            found[begin + row] = int(best[row]), float(likeness[row, best[row]])
    return found
