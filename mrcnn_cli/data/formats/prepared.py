"""A data set that `mrcnn data prepare` wrote: read again, to be converted or divided anew."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mrcnn_cli.data.dataset_file import FILE_NAME, read_dataset_file
from mrcnn_cli.data.formats import coco
from mrcnn_cli.data.formats.collection import Picture
from mrcnn_cli.data.formats.source import Reading, Source


def recognize(source: Source) -> str | None:
    return f"{FILE_NAME} of 'mrcnn data prepare'" if _file(source).is_file() else None


def read(reading: Reading) -> Iterator[Picture]:
    """The pictures of all splits, each with the name of its split."""
    content = read_dataset_file(_file(reading.source))
    for name, split in content.splits.items():
        assert split.images is not None
        assert split.annotations is not None
        part = Reading(Source(split.annotations, split.images), coco.Options())
        for picture in coco.read(part):
            yield replace(picture, split=name)
        reading.faults += part.faults
        reading.missing |= part.missing
        reading.notes.merge(part.notes)
        reading.categories |= part.categories
    reading.classes += content.classes


def _file(source: Source) -> Path:
    return source.path if source.path.name == FILE_NAME else source.root / FILE_NAME
