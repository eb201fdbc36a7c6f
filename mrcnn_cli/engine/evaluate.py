"""How good a model is on annotated images: COCO's metrics of objects and of panoptic segments."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.loader import evaluation_batches, share, validation_batches
from mrcnn_cli.engine.distributed import ALONE, World
from mrcnn_cli.engine.panoptic import PanopticFiles
from mrcnn_cli.engine.run import RunConfig, finds_classes, has_head
from mrcnn_cli.evaluation import coco
from mrcnn_cli.evaluation.keypoints import keypoint_sigmas
from mrcnn_cli.evaluation.panoptic import PanopticQuality, segments_info
from mrcnn_cli.evaluation.proposals import AverageRecall
from mrcnn_cli.structures import Detections, ImageBatch

Progress = Callable[[int, int], None]


def evaluate(
    model: nn.Module,
    config: RunConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda done, total: None,
    segments: PanopticFiles | None = None,
    world: World = ALONE,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Metrics by COCO's rules (pycocotools; panoptic quality too) and the results that they are of.

    Args:
        model: is put into evaluation mode for this, and back.
        config: its run.
        dataset: annotated images, with the classes of the model in its order.
        device: where the model is.
        should_stop: asked after each batch; True ends with metrics None.
        progress: called with the images done and their number.
        segments: where those of a panoptic model are written, by each process its own; the first one's caller ends it.
        world: the processes that share the images; the metrics are computed by the first one, which tells the others.

    Returns:
        Metrics (`box_ap`, `box_ap50`, `mask_ap`, `keypoint_ap`, ..., 0..1), None when stopped; and COCO results. Of a
        panoptic model on panoptic data also `pq` and the others of `PanopticQuality`; of a region proposal network
        alone average recall (`proposal_ar1000`, ...), and no results. The results are complete in the first process.
    """
    results: list[dict[str, Any]] = []
    quality = PanopticQuality(dataset.categories)
    recall = None if finds_classes(config) else AverageRecall()
    was_training = model.training
    model.eval()
    world.align(model)
    batch_size = config.evaluate.batch_size
    # Whole batches are shared, so that none is padded in another way than by one process.
    mine = share(range(-(-len(dataset) // batch_size)), world.rank, world.size)
    first, last = mine.start * batch_size, min(mine.stop * batch_size, len(dataset))
    stopped = False
    try:
        done = first
        for images, records in evaluation_batches(
            dataset, config.data, batch_size=batch_size, part=world.rank, parts=world.size
        ):
            for record, found in zip(records, predict_batch(model, images, device), strict=True):
                if recall is None:
                    offset = config.data.keypoints.offset
                    results += coco.results(found, record.id, dataset.category_ids, record.file_name, offset)
                else:
                    recall.add(found.boxes.numpy(), *dataset.annotations.boxes_and_areas(done))
                _count(quality, dataset, done, found)
                if segments is not None and found.segments is not None:
                    segments.add(found.segments, record.id, record.file_name, f"{record.id:012}.png")
                done += 1
            progress(done - first, last - first)
            stopped = should_stop()
            if stopped:
                break
    finally:
        model.train(was_training)
    if world.any(stopped):
        return None, results
    counted = {
        "results": results,
        "quality": quality.counts(),
        "recall": None if recall is None else recall.counts(),
        "segments": None if segments is None else segments.lists(),
    }
    for rank, other in enumerate(world.gather(counted)):
        if rank > 0:
            results += other["results"]
            quality.merge(other["quality"])
            if recall is not None:
                recall.merge(other["recall"])
            if segments is not None:
                segments.merge(other["segments"])
    metrics = _metrics(config, dataset, results, quality, recall) if world.is_first else None
    return world.tell(metrics), results


def _metrics(
    config: RunConfig,
    dataset: Dataset,
    results: list[dict[str, Any]],
    quality: PanopticQuality,
    recall: AverageRecall | None,
) -> dict[str, Any]:
    """What was found in all images, summed up."""
    if recall is not None:
        return recall.metrics()
    names = dataset.keypoints.names if dataset.keypoints is not None and has_head(config, "keypoint_head") else None
    metrics = coco.evaluate(
        dataset.coco(),
        results,
        masks=dataset.has_masks and has_head(config, "mask_head"),
        max_detections=config.evaluate.max_detections,
        keypoint_sigmas=keypoint_sigmas(names, config.evaluate.keypoint_sigmas) if names is not None else None,
        max_keypoint_detections=config.evaluate.max_keypoint_detections,
    )
    if quality.counted:
        panoptic = quality.metrics()
        for name, values in panoptic.pop("classes").items():
            metrics["classes"].setdefault(name, {}).update(values)
        metrics |= panoptic
    return metrics


@torch.no_grad()
def validation_losses(
    model: nn.Module,
    config: RunConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> dict[str, float] | None:
    """The losses of annotated images as training computes them, means over the images; the model stays as it was.

    Pictures are not varied, batch norms use their statistics and dropout is off, so that losses differ between two
    evaluations only by the weights.

    Args:
        model: of the run.
        config: its run.
        dataset: annotated images, with the classes of the model in its order.
        device: where the model is.
        should_stop: asked after each batch; True ends with None.
        world: the processes that share the images.

    Returns:
        `loss`, the sum, and its terms.
    """
    sums, count, stopped = dict[str, float](), 0, False
    batches = validation_batches(
        dataset,
        config.data,
        batch_size=config.evaluate.batch_size,
        seed=config.train.seed,
        part=world.rank,
        parts=world.size,
    )
    with _training_without_traces(model):
        for images, targets in batches:
            losses = model(images.to(device), [target.to(device) for target in targets])
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss) * len(images)
            count += len(images)
            stopped = should_stop()
            if stopped:
                break
    if world.any(stopped):
        return None
    for rank, (others, number) in enumerate(world.gather([sums, count])):
        if rank > 0:
            sums = {name: sums.get(name, 0.0) + value for name, value in others.items()} or sums
            count += number
    means = {name: value / count for name, value in sums.items()}
    return world.tell({"loss": sum(means.values()), **means})


@contextmanager
def _training_without_traces(model: nn.Module) -> Iterator[None]:
    """The model in training mode but for what keeps statistics or draws; all modes and statistics are put back."""
    modes = [(module, module.training) for module in model.modules()]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    for module, _ in modes:
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


def _count(quality: PanopticQuality, dataset: Dataset, index: int, found: Detections) -> None:
    """Counts the segments of one image, where there are any on both sides."""
    truth = dataset.panoptic_truth(index) if found.segments is not None else None
    if truth is None or found.segments is None:
        return
    info = segments_info(found.segments, [category["id"] for category in dataset.categories], len(dataset.classes))
    quality.add(*truth, found.segments.ids.numpy(), info, dataset.images[index].file_name)


@torch.inference_mode()
def predict_batch(model: nn.Module, images: ImageBatch, device: torch.device) -> list[Any]:
    """The detections of one batch."""
    return model.predict(images.to(device))  # type: ignore[operator]  # nn.Module's attributes are untyped
