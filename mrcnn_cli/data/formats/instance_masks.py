"""Folders with an image and one mask file for each object, as in the Data Science Bowl 2018.

<id>/images/<id>.png with <id>/masks/*.png, or images/<id>.png with masks/<id>/*.png.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_cli.data.formats.collection import Picture, mask_instance
from mrcnn_cli.data.formats.label_maps import ENDING
from mrcnn_cli.data.formats.source import Reading, Source
from mrcnn_cli.data.image import read_mask

MASKS = ("masks", "mask")
SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg")


def recognize(source: Source) -> str | None:
    found = next(iter(_folders(source).items()), None)
    return f"{found[0].parent.name}/{found[0].name}/ has a mask file for each object" if found else None


def read(reading: Reading) -> Iterator[Picture]:
    """The images that have a folder of masks; each file that has a pixel is an object."""
    for folder, paths in _folders(reading.source).items():
        with reading.guard(folder):
            image = _image(reading, folder)
            height, width = reading.size(image)
            picture = Picture(image, height, width, split=reading.source.split_of(image))
            for path in paths:
                with reading.guard(path):
                    mask = read_mask(path)
                    if mask.shape != (height, width):
                        raise ValueError(f"is {mask.shape[0]} x {mask.shape[1]}, its image {height} x {width}")
                    instance = mask_instance(reading.unnamed, mask)
                    if instance is None:
                        reading.notes.note("mask file without a pixel", "left out", str(path))
                    else:
                        picture.instances.append(instance)
            _count_overlaps(reading, picture)
            yield picture


def _folders(source: Source) -> dict[Path, list[Path]]:
    """Each folder of mask files, with them."""
    found: dict[Path, list[Path]] = {}
    for path in source.below(*SUFFIXES):
        own, above = path.parent.name.lower(), path.parent.parent.name.lower()
        beside = own in MASKS and (path.parent.parent / "images").is_dir()
        if (beside and not _paired(path)) or above in MASKS:
            found.setdefault(path.parent, []).append(path)
    return found


def _paired(path: Path) -> bool:
    """Whether a mask file is called like an image beside its folder: then it is a map of all objects."""
    images = path.parent.parent / "images"
    stems = (path.stem, ENDING.sub("", path.stem))
    return any((images / f"{stem}{suffix}").is_file() for stem in stems for suffix in SUFFIXES)


def _image(reading: Reading, folder: Path) -> Path:
    if folder.name.lower() in MASKS:
        images = sorted(path for path in (folder.parent / "images").iterdir() if path.suffix.lower() in SUFFIXES)
        if len(images) != 1:
            raise ValueError(f"{folder.parent / 'images'} has {len(images)} images instead of one")
        return images[0]
    return reading.image(folder.name, folder.parent.parent, reading.source.split_of(folder))


def _count_overlaps(reading: Reading, picture: Picture) -> None:
    """Notes masks that share pixels: they are kept, but a person may want to know."""
    encodings = [instance.segmentation for instance in picture.instances]
    if len(encodings) > 1:
        together = int(coco_mask.area(coco_mask.merge(encodings)))
        if int(np.sum(coco_mask.area(encodings))) > together:
            reading.notes.note("image with masks that overlap", "kept as they are", str(picture.path))
