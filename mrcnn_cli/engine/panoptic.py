"""Predicted segments in COCO's panoptic format: a list, and a folder of PNG files beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrcnn_cli.data.image import encode_png
from mrcnn_cli.data.panoptic import colours_of
from mrcnn_cli.engine.files import make_folder, write_bytes
from mrcnn_cli.evaluation.panoptic import segments_info
from mrcnn_cli.structures import Segments


class PanopticFiles:
    """Takes pictures one by one: their PNG files are written at once, the list at the end.

    COCO's panoptic evaluation reads the two, and so does every command here that takes annotations.

    Args:
        path: of the list; the PNG files go into the folder of that name without .json.
        categories: of each label, things first, with `id`, `name` and `isthing`.
    """

    def __init__(self, path: Path, categories: Sequence[dict[str, Any]]):
        self.path, self.folder = path, path.with_suffix("")
        self.categories = list(categories)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, segments: Segments, image_id: int, image: str, name: str) -> None:
        """One picture.

        Args:
            segments: of it.
            image_id: its id.
            image: its file name.
            name: of the PNG within the folder.

        Raises:
            UserError: the folder cannot be written.
        """
        ids = segments.ids.numpy()
        make_folder((self.folder / name).parent)
        write_bytes(self.folder / name, encode_png(colours_of(ids)))
        things = sum(category["isthing"] for category in self.categories)
        info = segments_info(segments, [category["id"] for category in self.categories], things)
        height, width = ids.shape
        self.images.append({"id": image_id, "file_name": image, "height": height, "width": width})
        self.annotations.append({"image_id": image_id, "file_name": name, "segments_info": info})

    def lists(self) -> list[list[dict[str, Any]]]:
        """What the list at the end will say of the pictures so far."""
        return [self.images, self.annotations]

    def merge(self, lists: list[list[dict[str, Any]]]) -> None:
        """Add the pictures that another process has taken and written."""
        images, annotations = lists
        self.images += images
        self.annotations += annotations

    def write(self) -> bool:
        """Writes the list, if there was any picture; whether there was.

        Raises:
            UserError: it cannot be written.
        """
        if not self.images:
            return False
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        write_bytes(self.path, json.dumps(content).encode())
        return True
