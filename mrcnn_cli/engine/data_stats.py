"""What a data set is made of: counts, sizes, shapes, crowding, and how well a recipe's anchors fit."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.data.check.tables import Table, read_table
from mrcnn_cli.data.coco_file import without_collecting
from mrcnn_cli.data.image import read_image
from mrcnn_cli.data.statistics import statistics_of
from mrcnn_cli.engine.anchor_fit import Anchors, Objects, anchors_of, fit, objects_of, suggestion
from mrcnn_cli.engine.data_check import SIZES, Progress, Source, read_splits
from mrcnn_cli.engine.pixels import depth_warnings, in_recipes_order
from mrcnn_cli.engine.run import RunConfig
from mrcnn_cli.errors import UserError

QUANTILES = (("min", 0.0), ("p5", 0.05), ("median", 0.5), ("p95", 0.95), ("max", 1.0))


def read_tables(source: Source) -> list[Table]:
    """The splits' annotations.

    Raises:
        UserError: an annotation file cannot be read.
    """
    with without_collecting():
        splits, unreadable = read_splits(source)
        if unreadable:
            raise UserError(unreadable[0].words)
        return [read_table(split)[0] for split in splits]


def statistics(tables: Sequence[Table], config: RunConfig) -> dict[str, Any]:
    """Everything as plain numbers.

    Objects are counted as the annotation files have them, faulty ones left out; crowds are counted apart. Sizes are the
    square roots of the boxes' areas.

    Returns:
        "splits": per split "images", "empty_images", "objects", "crowds", "masks", "image_height", "image_width",
        "objects_per_image", "size" (pixels of the picture), "aspect" (height / width); "classes": per class "objects",
        "images", "size"; "input": with the recipe's resizing "size" and shares "small", "medium", "large"; "anchors":
        "positive_iou", "negative_iou" and as in `anchor_fit.Fit` "recipe" and "suggested", or None without objects.
    """
    objects = objects_of(tables, config)
    extent = np.sqrt(objects.sides.prod(axis=1))
    anchors = anchors_of(config)
    return {
        "splits": {table.split.name: _split(table) for table in tables},
        "classes": _classes(tables),
        "input": {
            "size": _quantiles(extent),
            **{name: _share((extent >= low) & (extent < high)) for name, low, high in SIZES},
        },
        "anchors": None if anchors is None or not len(objects) else _anchors(objects, anchors),
    }


def pixels(table: Table, config: RunConfig, workers: int, progress: Progress) -> dict[str, Any] | None:
    """Mean and deviation of the channels, as a recipe with "auto" would compute them from this split.

    Args:
        table: the split.
        config: how pictures are normalized, and the order of the channels.
        workers: processes that read pictures.
        progress: told how many of how many pictures are done.

    Returns:
        "split", "pictures" and "left_out" (looked at, and of these not read), "normalize", "channels" (their order),
        "mean", "deviation", and "warnings"; None if no picture can be read.
    """
    paths = [table.split.folder / image.file_name for image in table.images]
    first = _first_picture(paths, config.data.channels)
    if first is None:
        return None
    image, path = first
    data = config.data.model_copy(update={"channels": image.shape[2], "workers": workers})
    found = statistics_of(
        lambda place: read_image(paths[place], data.channels), len(paths), data, skip_broken=True, progress=progress
    )
    if not found.pictures:
        return None
    return {
        "split": table.split.name,
        "pictures": found.pictures,
        "left_out": len(found.faults),
        "normalize": data.normalize,
        "channels": config.model.pixels.channels,
        "mean": in_recipes_order(found.mean, config.model.pixels),
        "deviation": in_recipes_order(found.deviation, config.model.pixels),
        "warnings": depth_warnings(image, path, data),
    }


def distributions(tables: Sequence[Table]) -> dict[str, Any]:
    """Values for a figure: "classes" (name -> objects), "size", "aspect" and "objects_per_image" as arrays."""
    sides = np.concatenate([_sides(table) for table in tables])
    return {
        "classes": {name: values["objects"] for name, values in _classes(tables).items()},
        "size": np.sqrt(sides.prod(axis=1)),
        "aspect": sides[:, 1] / sides[:, 0],
        "objects_per_image": np.concatenate([_per_image(table) for table in tables]),
    }


def _first_picture(paths: Sequence[Path], channels: int | None) -> tuple[np.ndarray, Path] | None:
    """The first that can be read, and its file."""
    for path in paths:
        try:
            return read_image(path, channels), path
        except UserError:
            continue
    return None


def _anchors(objects: Objects, anchors: Anchors) -> dict[str, Any]:
    return {
        "positive_iou": anchors.positive_iou,
        "negative_iou": anchors.negative_iou,
        "recipe": asdict(fit(objects, anchors)),
        "suggested": asdict(fit(objects, suggestion(objects, anchors))),
    }


def _split(table: Table) -> dict[str, Any]:
    sizes, sides, per_image = table.sizes(), _sides(table), _per_image(table)
    masked = np.zeros(len(table), bool)
    masked[table.polygons.owner] = True
    masked[list(table.encodings)] = True
    known = sizes[sizes[:, 0] > 0]
    return {
        "images": len(table.images),
        "empty_images": int((per_image == 0).sum()),
        "objects": int((~table.crowd).sum()),
        "crowds": int(table.crowd.sum()),
        "masks": int(masked.sum()),
        "image_height": _quantiles(known[:, 0]),
        "image_width": _quantiles(known[:, 1]),
        "objects_per_image": _quantiles(per_image) | {"mean": _mean(per_image)},
        "size": _quantiles(np.sqrt(sides.prod(axis=1))),
        "aspect": _quantiles(sides[:, 1] / sides[:, 0]),
    }


def _classes(tables: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """In the order of the first split's ids."""
    names = dict.fromkeys(table.categories[number] for table in tables for number in sorted(table.categories))
    result = {}
    for name in names:
        count, images, sizes = 0, 0, []
        for table in tables:
            numbers = [number for number, known in table.categories.items() if known == name]
            chosen = np.isin(table.category, numbers) & ~table.crowd
            count += int(chosen.sum())
            images += len(np.unique(table.image[chosen]))
            sizes.append(np.sqrt(table.bboxes[chosen & np.isfinite(table.bboxes).all(axis=1), 2:].prod(axis=1)))
        result[name] = {"objects": count, "images": images, "size": _quantiles(np.concatenate(sizes))}
    return result


def _sides(table: Table) -> np.ndarray:
    """[G, 2] width and height of the objects' boxes."""
    return table.bboxes[~table.crowd & np.isfinite(table.bboxes).all(axis=1), 2:]


def _per_image(table: Table) -> np.ndarray:
    return np.bincount(table.image[~table.crowd], minlength=len(table.images))


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return {name: None for name, _ in QUANTILES}
    found = np.quantile(values, [share for _, share in QUANTILES])
    return {name: round(float(value), 3) for (name, _), value in zip(QUANTILES, found, strict=True)}


def _share(chosen: np.ndarray) -> float | None:
    return round(float(chosen.mean()), 4) if len(chosen) else None


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 3) if len(values) else None
