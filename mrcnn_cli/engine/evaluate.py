"""How good a model is on annotated images: COCO's metrics."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.loader import evaluation_batches
from mrcnn_cli.engine.run import RunConfig, has_head
from mrcnn_cli.evaluation import coco
from mrcnn_cli.evaluation.keypoints import keypoint_sigmas
from mrcnn_cli.structures import ImageBatch

Progress = Callable[[int, int], None]


def evaluate(
    model: nn.Module,
    config: RunConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda done, total: None,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Metrics by COCO's rules (pycocotools) and the results that they are of.

    Args:
        model: is put into evaluation mode for this, and back.
        config: its run.
        dataset: annotated images, with the classes of the model in its order.
        device: where the model is.
        should_stop: asked after each batch; True ends with metrics None.
        progress: called with the images done and their number.

    Returns:
        Metrics (`box_ap`, `box_ap50`, `mask_ap`, `keypoint_ap`, ..., 0..1), None when stopped; and COCO results.
    """
    results: list[dict[str, Any]] = []
    was_training = model.training
    model.eval()
    try:
        done = 0
        for images, records in evaluation_batches(dataset, config.data, batch_size=config.evaluate.batch_size):
            for record, found in zip(records, predict_batch(model, images, device), strict=True):
                offset = config.data.keypoints.offset
                results += coco.results(found, record.id, dataset.category_ids, record.file_name, offset)
            done += len(records)
            progress(done, len(dataset))
            if should_stop():
                return None, results
    finally:
        model.train(was_training)
    names = dataset.keypoints.names if dataset.keypoints is not None and has_head(config, "keypoint_head") else None
    metrics = coco.evaluate(
        dataset.coco(),
        results,
        masks=dataset.has_masks and has_head(config, "mask_head"),
        max_detections=config.evaluate.max_detections,
        keypoint_sigmas=keypoint_sigmas(names, config.evaluate.keypoint_sigmas) if names is not None else None,
        max_keypoint_detections=config.evaluate.max_keypoint_detections,
    )
    return metrics, results


@torch.inference_mode()
def predict_batch(model: nn.Module, images: ImageBatch, device: torch.device) -> list[Any]:
    """The detections of one batch."""
    return model.predict(images.to(device))  # type: ignore[operator]  # nn.Module's attributes are untyped
