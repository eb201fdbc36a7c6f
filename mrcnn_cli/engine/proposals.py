"""Proposals of a trained region proposal network, for a file that Fast R-CNN reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.image import read_image
from mrcnn_cli.data.loader import evaluation_batches, images_batch
from mrcnn_cli.data.proposals import Proposals, gathered
from mrcnn_cli.engine.checkpoint import Checkpoint
from mrcnn_cli.engine.evaluate import Progress
from mrcnn_cli.errors import UserError
from mrcnn_cli.evaluation.proposals import AverageRecall
from mrcnn_cli.models.proposal_network import propose
from mrcnn_cli.structures import Detections, ImageBatch


def propose_dataset(
    checkpoint: Checkpoint, dataset: Dataset, out: Path, progress: Progress = lambda done, total: None
) -> tuple[Proposals, dict[str, Any]]:
    """The proposals of all images of a data set, and how many of its objects they cover.

    Args:
        checkpoint: a model with a region proposal network.
        dataset: its classes do not matter.
        out: the file that they are for.
        progress: called with the images done and their number.

    Returns:
        Proposals, and the metrics of `evaluation.proposals.AverageRecall`.

    Raises:
        UserError: a model without such a network; an image that cannot be read.
    """
    check_proposes(checkpoint)
    found: list[Detections] = []
    recall = AverageRecall()
    data, size = checkpoint.config.data, checkpoint.config.evaluate.batch_size
    for images, _ in evaluation_batches(dataset, data, batch_size=size):
        for one in _proposed(checkpoint, images):
            recall.add(one.boxes.numpy(), *dataset.annotations.boxes_and_areas(len(found)))
            found.append(one)
        progress(len(found), len(dataset))
    ids, names = [record.id for record in dataset.images], [record.file_name for record in dataset.images]
    return _gathered(out, ids, names, found), recall.metrics()


def propose_files(
    checkpoint: Checkpoint, files: Sequence[Path], out: Path, progress: Progress = lambda done, total: None
) -> Proposals:
    """The proposals of picture files, to be found again by the files' names.

    Args:
        checkpoint: a model with a region proposal network.
        files: images.
        out: the file that they are for.
        progress: called with the images done and their number.

    Raises:
        UserError: a model without such a network; a file that is no image.
    """
    check_proposes(checkpoint)
    found, data = [], checkpoint.config.data
    for file in files:
        found += _proposed(checkpoint, images_batch([read_image(file, data.channels)], data))
        progress(len(found), len(files))
    return _gathered(out, [-1] * len(files), [str(file) for file in files], found)


def check_proposes(checkpoint: Checkpoint) -> None:
    """UserError unless the model has a region proposal network."""
    if not hasattr(checkpoint.model, "rpn"):
        raise UserError(
            f"{checkpoint.path}: {checkpoint.config.model.name} has no region proposal network; take weights of "
            "proposal_network, faster_rcnn or another model that has one"
        )


@torch.inference_mode()
def _proposed(checkpoint: Checkpoint, images: ImageBatch) -> list[Detections]:
    return propose(checkpoint.model, images.to(checkpoint.device))


def _gathered(out: Path, ids: Sequence[int], names: Sequence[str], found: Sequence[Detections]) -> Proposals:
    sizes = [one.size for one in found]
    return gathered(out, ids, names, sizes, [one.boxes.numpy() for one in found], [one.scores.numpy() for one in found])
