"""A data set cut into tiles."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.dataset_file import FILE_NAME, DatasetFile, SourceConfig, dataset_toml, read_dataset_file
from mrcnn_cli.data.image import encode_image
from mrcnn_cli.data.keypoints import KeypointsConfig
from mrcnn_cli.data.loader import SplitConfig
from mrcnn_cli.data.tiles import Tiling, cut_annotations
from mrcnn_cli.data.workers import in_workers
from mrcnn_cli.engine.evaluate import Progress
from mrcnn_cli.engine.files import make_folder, write_bytes
from mrcnn_cli.engine.prepare import check_target
from mrcnn_cli.errors import UserError


@dataclass(frozen=True)
class Tiled:
    """What was written.

    Attributes:
        splits: split -> numbers of images, tiles, objects, and regions to ignore.
        faults: pictures that could not be read, a line each.
    """

    splits: dict[str, dict[str, int]]
    faults: list[str]


def tile(
    data: Path,
    out: Path,
    tiling: Tiling,
    *,
    drop_empty: bool = False,
    workers: int = 0,
    progress: Progress = lambda done, total: None,
) -> Tiled:
    """A prepared data set of tiles: pictures without loss, COCO files that say where each tile lies, dataset.toml.

    Each image of the COCO files has `tile`: the file it was cut from (`source`, below the split's images), that image's
    id, height and width, and the tile's x and y there. Each annotation has the `source_id` of the one it is a part of.

    Args:
        data: a prepared data set.
        out: a folder that does not exist or is empty.
        tiling: how pictures are cut.
        drop_empty: leave out tiles without objects and regions to ignore.
        workers: processes that read and write pictures; 0: all in this one.
        progress: called with the pictures done and their number.

    Raises:
        UserError: no such data set, a faulty one, or one with maps of stuff; `out` is not empty or cannot be written.
    """
    content = read_dataset_file(data)
    check_target(out, data if data.is_dir() else data.parent, None)
    datasets = {}
    for name, split in content.splits.items():
        assert split.images is not None
        assert split.annotations is not None
        datasets[name] = Dataset.read(
            split.images, split.annotations, classes=content.classes, keypoints=KeypointsConfig()
        )
        if split.semantic is not None or datasets[name].maps is not None:
            raise UserError(
                f"{split.annotations}: has maps of stuff, which are not cut into tiles; tile a set of objects"
            )
    total = sum(map(len, datasets.values()))
    done = 0
    counts, faults = {}, []
    make_folder(out)
    for name, dataset in datasets.items():
        truth = dataset.coco()
        whole = truth["annotations"]
        truth |= {"images": [], "annotations": []}
        objects = ignored = 0
        for result in _tiles(dataset, whole, out / name, tiling, drop_empty, workers):
            done += 1
            progress(done, total)
            if isinstance(result, UserError):
                faults.append(str(result))
                continue
            for image, annotations in result:
                truth["images"].append({"id": len(truth["images"]) + 1} | image)
                for annotation in annotations:
                    ids = {"id": len(truth["annotations"]) + 1, "image_id": len(truth["images"])}
                    truth["annotations"].append(ids | annotation)
                    ignored += annotation["iscrowd"]
                    objects += 1 - annotation["iscrowd"]
        write_bytes(out / f"{name}.json", json.dumps(truth).encode())
        tiles = len(truth["images"])
        counts[name] = {"images": len(dataset), "tiles": tiles, "objects": objects, "ignored": ignored}
    options = {"size": tiling.size, "overlap": tiling.overlap, "min_visible": tiling.min_visible}
    described = DatasetFile(
        name=content.name,
        classes=content.classes,
        splits={name: SplitConfig(images=Path(name), annotations=Path(f"{name}.json")) for name in datasets},
        source=SourceConfig(format="tile", path=str(data.resolve()), options=options),
    )
    write_bytes(out / FILE_NAME, dataset_toml(described).encode())  # last: without it a folder is no data set
    return Tiled(counts, faults)


Tile = tuple[dict[str, Any], list[dict[str, Any]]]  # an image of a COCO file, without its id, and its annotations


def _tiles(
    dataset: Dataset,
    annotations: list[dict[str, Any]],
    folder: Path,
    tiling: Tiling,
    drop_empty: bool,
    workers: int,
) -> Iterator[list[Tile] | UserError]:
    """Each picture's tiles, written below `folder`; or why it cannot be read."""
    by_image: dict[int, list[dict[str, Any]]] = {record.id: [] for record in dataset.images}
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)
    stems = _stems([record.file_name for record in dataset.images])
    for stem in stems:
        make_folder((folder / stem).parent)

    def cut(index: int) -> list[Tile] | UserError:
        record = dataset.images[index]
        try:
            image = dataset.read_image(index)
        except UserError as error:
            return error
        if image.shape[2] == 3 and (image == image[:, :, :1]).all():
            image = image[:, :, :1]  # of grey, which the file had once
        tiles: list[Tile] = []
        for window, shown in cut_annotations(by_image[record.id], record.height, record.width, tiling):
            if drop_empty and not shown:
                continue
            x1, y1, x2, y2 = window
            suffix, content = encode_image(np.ascontiguousarray(image[y1:y2, x1:x2]))
            name = f"{stems[index]}_{y1:05}_{x1:05}{suffix}"
            write_bytes(folder / name, content)
            origin = {"source": record.file_name, "source_id": record.id, "x": x1, "y": y1}
            origin |= {"height": record.height, "width": record.width}
            tiles.append(({"file_name": name, "height": y2 - y1, "width": x2 - x1, "tile": origin}, shown))
        return tiles

    yield from in_workers(cut, range(len(dataset)), workers)


def _stems(names: list[str]) -> list[str]:
    """File names without suffixes, below the folder of tiles; those that would be one keep their suffix."""
    relative = [name.replace("..", "_").lstrip("/") for name in names]
    stems = [str(Path(name).with_suffix("")) for name in relative]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set()
    return [name if stem in twice else stem for name, stem in zip(relative, stems, strict=True)]
