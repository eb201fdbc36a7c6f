"""Made-up data, written as a data folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_cli.data.dataset_file import FILE_NAME, DatasetFile, SourceConfig, dataset_toml
from mrcnn_cli.data.image import encode_png
from mrcnn_cli.data.loader import SplitConfig
from mrcnn_cli.data.shapes import CLASSES, shapes
from mrcnn_cli.engine.evaluate import Progress
from mrcnn_cli.engine.files import make_folder, write_bytes
from mrcnn_cli.errors import UserError
from mrcnn_cli.structures import Size


def write_shapes(
    out: Path,
    splits: Mapping[str, int],
    size: Size,
    most: int,
    seed: int,
    progress: Progress = lambda done, total: None,
) -> dict[str, dict[str, int]]:
    """A data folder of squares, circles and triangles; how many images and objects each split has.

    Args:
        out: a folder that does not exist or is empty.
        splits: name -> number of pictures; a split of none is left out.
        size: (height, width) of each picture.
        most: shapes in one picture.
        seed: the same one makes the same pictures.
        progress: called with the pictures done and their number.

    Raises:
        UserError: `out` holds something or cannot be written.
    """
    make_folder(out)
    if any(out.iterdir()):
        raise UserError(f"{out}: is not empty; name a new folder with --out")
    wanted = {name: count for name, count in splits.items() if count}
    counts = {}
    done = 0
    for name, count in wanted.items():
        make_folder(out / name)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            image, labels, masks = shapes(seed, name, number, size, most)
            file_name = f"{number:06}.png"
            write_bytes(out / name / file_name, encode_png(image))
            images.append({"id": number, "file_name": file_name, "height": size[0], "width": size[1]})
            for label, mask in zip(labels, masks, strict=True):
                annotations.append(_annotation(len(annotations) + 1, number, label + 1, mask))
            done += 1
            progress(done, sum(wanted.values()))
        categories = [{"id": label, "name": kind} for label, kind in enumerate(CLASSES, start=1)]
        truth = {"images": images, "annotations": annotations, "categories": categories}
        write_bytes(out / f"{name}.json", json.dumps(truth).encode())
        counts[name] = {"images": count, "objects": len(annotations)}
    content = DatasetFile(
        name="shapes",
        classes=CLASSES,
        splits={name: SplitConfig(images=Path(name), annotations=Path(f"{name}.json")) for name in wanted},
        source=SourceConfig(format="synth shapes", path="", options={"size": list(size), "most": most, "seed": seed}),
    )
    write_bytes(out / FILE_NAME, dataset_toml(content).encode())  # last: without it a folder is no data set
    return counts


def _annotation(number: int, image: int, category: int, mask: np.ndarray) -> dict[str, Any]:
    encoding = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": coco_mask.toBbox(encoding).tolist(),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(encoding["size"]), "counts": encoding["counts"].decode("ascii")},
    }
