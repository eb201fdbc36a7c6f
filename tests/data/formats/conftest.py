"""Sources of any format, read; pictures to annotate; the real fixtures beside the checkout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrcnn_cli.data.formats import FORMATS, guess
from mrcnn_cli.data.formats.collection import Instance, Picture
from mrcnn_cli.data.formats.source import Reading, Source
from mrcnn_cli.engine.prepare import collect

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the real fixtures are not beside this checkout (../shared/data)")
    return SHARED


class Outcome:
    """What one reading found."""

    def __init__(self, format: str, reading: Reading, pictures: list[Picture]):
        self.format, self.reading, self.pictures = format, reading, pictures
        self.faults, self.notes = reading.faults, reading.notes.lines()

    @property
    def instances(self) -> list[Instance]:
        return [instance for picture in self.pictures for instance in picture.instances]

    def boxes(self) -> dict[str, list[tuple[Any, ...]]]:
        """image -> its classes with their boxes, sorted."""
        return {
            picture.path.stem: sorted((str(one.label), *one.box) for one in picture.instances)
            for picture in self.pictures
        }


def read_source(path: Path, images: Path | None = None, classes: tuple[str, ...] = (), **options: Any) -> Outcome:
    """What the guessed format reads."""
    source = Source(path, images)
    format, _ = guess(source)
    reading = Reading(source, FORMATS[format].options(**options), classes)
    return Outcome(format, reading, list(FORMATS[format].read(reading)))


@pytest.fixture
def read() -> Callable[..., Outcome]:
    return read_source


@pytest.fixture
def paint(tmp_path: Path) -> Callable[..., Path]:
    """Makes an image file of a size below tmp_path."""

    def call(name: str, height: int = 40, width: int = 60) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)
        return path

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a text or the JSON of a value below tmp_path."""

    def call(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return call


@pytest.fixture
def collected() -> Callable[..., Any]:
    return collect
