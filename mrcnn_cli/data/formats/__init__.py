"""Formats of annotations: each one's reader, and the writers of those that are common targets."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mrcnn_cli.config import Config
from mrcnn_cli.data.coco import Repairs
from mrcnn_cli.data.formats.collection import Collection, Picture
from mrcnn_cli.data.formats.source import BROKEN, Reading, Source
from mrcnn_cli.errors import UserError


@dataclass(frozen=True)
class Format:
    """A format of annotations.

    Attributes:
        title: for people.
        looked_for: by what it is recognized.
        module: where its reader is.
        functions: the names there of the functions that recognize, read and write.
    """

    title: str
    looked_for: str
    module: str
    functions: tuple[str, str, str] = ("recognize", "read", "write")

    def recognize(self, source: Source) -> str | None:
        """What was found that speaks for this format, in words; None where nothing does."""
        return getattr(self._code(), self.functions[0])(source)

    def read(self, reading: Reading) -> Iterator[Picture]:
        return getattr(self._code(), self.functions[1])(reading)

    @property
    def write(self) -> Callable[[Collection, Repairs], Iterator[tuple[str, bytes | Picture]]] | None:
        """Gives the files of a collection, images as pictures; None where the format is only read."""
        return getattr(self._code(), self.functions[2], None)

    @property
    def options(self) -> type[Config]:
        return getattr(self._code(), "Options", Config)

    def _code(self) -> Any:
        return importlib.import_module(f"mrcnn_cli.data.formats.{self.module}")


# In the order in which they are tried: what has a mark of its own comes before what only looks like it.
FORMATS = {
    "prepared": Format("mrcnn", "dataset.toml", "prepared"),
    "lvis": Format("LVIS", "a COCO file whose categories have a frequency", "coco", ("recognize_lvis", "read", "")),
    "coco": Format("COCO", "a JSON file with images, annotations and categories", "coco"),
    "panoptic": Format("COCO panoptic", "a JSON file whose annotations have segments_info", "panoptic"),
    "tfrecord": Format("TFRecord of TensorFlow's Object Detection API", "*.tfrecord or *.record files", "tfrecord"),
    "cityscapes": Format("Cityscapes", "files *_gtFine_instanceIds.png or *_gtFine_polygons.json", "cityscapes"),
    "kitti": Format("KITTI objects", "text files of a class and 14 numbers", "kitti"),
    "yolo": Format("YOLO", "data.yaml or obj.data, or text files of 'class x y width height' and images", "yolo"),
    "voc": Format("Pascal VOC", "XML files with <annotation>", "voc"),
    "labelme": Format("LabelMe", "JSON files with shapes and imagePath", "labelme"),
    "via": Format("VGG Image Annotator 1 and 2", "a JSON file of images with regions", "via"),
    "cvat": Format("CVAT for images", "an XML file with <annotations>", "cvat"),
    "openimages": Format("Open Images", "a CSV file with ImageID, LabelName and XMin", "openimages"),
    "rle-csv": Format("Run lengths as in Kaggle's CSV", "a CSV file with ImageId and EncodedPixels", "rle_csv"),
    "csv": Format("keras-retinanet's CSV", "a CSV file of path,x1,y1,x2,y2,class", "csv_boxes"),
    "frcnn": Format(
        "keras-frcnn's text", "a text file of path,x1,y1,x2,y2,class", "csv_boxes", ("recognize_text", "read_text", "")
    ),
    "instance-masks": Format("A mask file for each object", "folders masks/ beside images/", "instance_masks"),
    "label-maps": Format(
        "Label maps", "grey PNG or TIFF files called like the images, in a folder such as labels/", "label_maps"
    ),
}
WRITERS = ("coco", "yolo", "voc", "labelme", "rle-csv")


def guess(source: Source) -> tuple[str, str]:
    """The name of a source's format, and what speaks for it.

    Raises:
        UserError: none is recognized; it lists what was looked for.
    """
    for name, form in FORMATS.items():
        try:
            reason = form.recognize(source)
        except BROKEN:  # a file of another form, or damaged: nothing speaks for this format
            continue
        if reason:
            return name, reason
    looked = "; ".join(f"{name}: {form.looked_for}" for name, form in FORMATS.items())
    raise UserError(f"{source.path}: its format cannot be guessed. Looked for {looked}. Say which it is with --format")
