"""The pictures of an evaluation with the most mistakes, the truth beside what was found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.image import as_rgb, normalize
from mrcnn_cli.engine.files import make_folder
from mrcnn_cli.engine.found import mistakes
from mrcnn_cli.engine.predict import overlay_paths
from mrcnn_cli.engine.run import RunConfig
from mrcnn_cli.evaluation import coco
from mrcnn_cli.structures import Detections
from mrcnn_cli.views import canvas
from mrcnn_cli.views.overlay import compare, contact_sheet
from mrcnn_cli.views.skeleton import Skeleton

COLUMNS = 2  # of the overview; each picture is two side by side


def write_comparisons(
    out: Path, dataset: Dataset, config: RunConfig, results: Sequence[dict[str, Any]], count: int
) -> list[Path]:
    """Write the truth beside what was found of the worst images, and all of these in out/overview.png.

    Args:
        out: the folder; each picture gets its file in out/pictures.
        dataset: what was evaluated on.
        config: of the model; detections below its predict.score_threshold are left out.
        results: COCO results of all images.
        count: how many images.

    Returns:
        The pictures' files, the worst first.

    Raises:
        UserError: a file that cannot be written, or would overwrite a picture of the data.
    """
    threshold, offset = config.predict.score_threshold, config.data.keypoints.offset
    found = _found(dataset, results, threshold, offset)
    chosen = worst(dataset, found)[:count]
    paths = overlay_paths([dataset.images[index].path for index in chosen], out / "pictures")
    truth = dataset.coco()
    points = dataset.keypoints
    skeleton = Skeleton()
    if points is not None:
        skeleton = Skeleton(points.names or (), points.lines(), config.predict.keypoint_threshold)
    pictures = []
    for index, path in zip(chosen, paths, strict=True):
        image = as_rgb(normalize(dataset.read_image(index, config.data.channels), config.data.normalize))
        objects = coco.truth_detections(truth, dataset.images[index].id, dataset.category_ids, offset)
        title = dataset.images[index].file_name
        pictures.append(compare(image, objects, found[index], dataset.classes, title=title, skeleton=skeleton))
        make_folder(path.parent)
        canvas.save(pictures[-1], path)
    if pictures:
        canvas.save(contact_sheet(pictures, COLUMNS), out / "overview.png")
    return paths


def worst(dataset: Dataset, found: Sequence[Detections]) -> list[int]:
    """The places of all images, the worst first: by the share of objects and detections that have no partner.

    A partner has the same class and overlaps by IoU 0.5 of boxes (`mistakes`). Of equal shares more mistakes are worse,
    then the order is the data's.
    """

    def quality(index: int) -> tuple[float, int]:
        objects, detections = dataset.annotations[index], found[index]
        missed, false = mistakes(
            objects.boxes.astype(np.float64),
            objects.labels,
            objects.crowds,
            detections.boxes.double().numpy(),
            detections.labels.numpy(),
        )
        wrong = int(missed.sum() + false.sum())
        return -wrong / max(int((~objects.crowds).sum()) + len(detections), 1), -wrong

    return sorted(range(len(dataset)), key=quality)


def _found(
    dataset: Dataset, results: Sequence[dict[str, Any]], threshold: float, keypoint_offset: float
) -> list[Detections]:
    """The detections of each image from a score on."""
    entries: dict[int, list[dict[str, Any]]] = {record.id: [] for record in dataset.images}
    for entry in results:
        if entry["score"] >= threshold:
            entries[entry["image_id"]].append(entry)
    return [
        coco.detections(entries[record.id], dataset.category_ids, (record.height, record.width), keypoint_offset)
        for record in dataset.images
    ]
