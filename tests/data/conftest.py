"""Small data sets that a test may damage before they are read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_cli.data.coco import Dataset


class Files:
    """A folder of images and a COCO file: two cells in a.png (40 x 60; polygons and runs), nothing in b.png (30 x 30),
    one cell and a crowd in c.png (32 x 48)."""

    def __init__(self, root: Path):
        self.folder, self.path = root / "images", root / "coco.json"
        self.folder.mkdir()
        self.content: Any = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cell"}]}
        generator = np.random.default_rng(0)
        for number, name, shape in ((1, "a.png", (40, 60)), (2, "b.png", (30, 30)), (5, "c.png", (32, 48))):
            Image.fromarray(generator.integers(0, 256, (*shape, 3), np.uint8)).save(self.folder / name)
            self.images.append({"id": number, "file_name": name, "height": shape[0], "width": shape[1]})
        self.object(11, 1, [5, 4, 10, 12], [[5, 4, 15, 4, 15, 16, 5, 16]])
        self.object(12, 1, [30, 20, 8, 6], runs((40, 60), (slice(20, 26), slice(30, 38))))
        self.object(13, 5, [1, 2, 5, 7], [[1, 2, 6, 2, 6, 9, 1, 9]])
        self.object(14, 5, [20, 10, 20, 20], runs((32, 48), (slice(10, 30), slice(20, 40))), iscrowd=1)

    @property
    def images(self) -> list[dict[str, Any]]:
        return self.content["images"]

    @property
    def annotations(self) -> list[dict[str, Any]]:
        return self.content["annotations"]

    def object(self, number: int, image: int, bbox: list[float], segmentation: Any = None, **more: Any) -> None:
        annotation = {"id": number, "image_id": image, "category_id": 7, "bbox": bbox, "iscrowd": 0}
        annotation |= {"area": bbox[2] * bbox[3], "segmentation": segmentation} | more
        self.annotations.append({key: value for key, value in annotation.items() if value is not None})

    def annotation(self, number: int) -> dict[str, Any]:
        return next(annotation for annotation in self.annotations if annotation["id"] == number)

    def write(self, text: str | None = None) -> None:
        self.path.write_text(json.dumps(self.content) if text is None else text)

    def read(self, **more: Any) -> Dataset:
        self.write()
        return Dataset.read(self.folder, self.path, **more)


def runs(size: tuple[int, int], region: Any) -> dict[str, Any]:
    """A region of an image as a compressed run-length encoding that JSON can hold."""
    mask = np.zeros(size, np.uint8, order="F")
    mask[region] = 1
    encoding = coco_mask.encode(mask)
    return {"size": list(size), "counts": encoding["counts"].decode()}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)
