"""Detectron2's recorded numbers (tests/detectron2_reference) and our models filled with the weights they belong to.

The reference holds, for each model, every parameter's name and shape, the rule that fills it (`fill.py`), and what
Detectron2 0.6 gave then: feature maps, proposals, logits, detections, losses, gradients. Large tensors are recorded by
200 of their entries.
"""

import importlib.util
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask

from mrcnn_cli.config import override, read, recipes, validate
from mrcnn_cli.engine.checkpoint import load_weights
from mrcnn_cli.engine.foreign import detectron2
from mrcnn_cli.engine.foreign.names import rename
from mrcnn_cli.engine.run import RunConfig
from mrcnn_cli.models import build_model
from mrcnn_cli.structures import IGNORED, ImageBatch, Masks, Targets

FOLDER = Path(__file__).parents[1] / "detectron2_reference"
IMAGES = (0, 1)

# Absolute tolerances: about ten times what a second thread changed in Detectron2 itself.
FEATURES, HEADS, LOSS, GRADIENT_NORM, GRADIENT = 5e-4, 2e-3, 1e-4, 1e-2, 3e-2
BORDERLINE = 0.055  # scores below it are so near to the threshold of 0.05 that rounding decides


@cache
def fill():
    """The module with the rule."""
    spec = importlib.util.spec_from_file_location("detectron2_fill", FOLDER / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def inputs():
    return dict(np.load(FOLDER / "inputs.npz"))


@cache
def components():
    return dict(np.load(FOLDER / "components.npz"))


@cache
def extras():
    return dict(np.load(FOLDER / "extras.npz"))


class Reference:
    """The record of one model.

    Args:
        name: of its files.
        recipe: ours.
        overrides: of the recipe, where the record was made with other numbers than the zoo's.
    """

    def __init__(self, name, recipe, overrides=()):
        self.spec = json.loads((FOLDER / "models" / f"{name}.json").read_text())
        self.record = dict(np.load(FOLDER / "models" / f"{name}.npz"))
        table = override(read(recipes()[recipe]), overrides)
        self.config = validate(RunConfig, table, recipe)
        renamed = rename({entry["name"]: torch.empty(0) for entry in self.spec["state_dict"]}, detectron2.NAMES)
        self.names = {theirs: ours for ours, theirs in renamed.sources.items()}
        self.num_classes = self.spec["conventions"].get(
            "MODEL.ROI_HEADS.NUM_CLASSES", self.spec["conventions"].get("MODEL.RETINANET.NUM_CLASSES", 80)
        )

    def weights(self):
        """Detectron2's name -> tensor."""
        return {name: torch.from_numpy(value) for name, value in fill().fill_from_json(self.spec).items()}

    def model(self):
        """Ours, filled, in evaluation mode. Every tensor of both sides takes part."""
        renamed = rename(self.weights(), detectron2.NAMES)
        assert not renamed.unknown
        model = build_model(self.config.model, self.num_classes)
        load_weights(model, renamed.tensors, self.spec["name"])
        return model.to(memory_format=torch.channels_last).eval()

    def ours(self, name):
        """Our name of Detectron2's parameter."""
        return self.names[name]

    def images(self, index):
        """Image 0 or 1 as a batch; Detectron2's order of channels is BGR."""
        pixels = torch.from_numpy(inputs()[f"img{index}_bgr"][..., ::-1].copy()).permute(2, 0, 1)
        height, width = inputs()[f"img{index}_original_hw"].tolist()
        return ImageBatch.collate([pixels], [(height, width)], self.config.data.size_divisor)

    def sample(self, key):
        """(entries, their places in the flattened tensor, its standard deviation)."""
        shape = self.record[f"{key}/shape"]
        places = fill().sample_indices(int(np.prod(shape)))
        return self.record[f"{key}/sample"], places, float(self.record[f"{key}/mean_std"][1])

    def check(self, key, tensor, tolerance):
        """The tensor equals what was recorded, within a tolerance in standard deviations of the recorded tensor."""
        assert list(tensor.shape) == self.record[f"{key}/shape"].tolist(), key
        expected, places, deviation = self.sample(key)
        found = tensor.detach().contiguous().reshape(-1)[torch.from_numpy(places)].float().numpy()
        error = np.abs(found - expected).max() / deviation
        assert error <= tolerance, f"{key}: off by {error:.2e} standard deviations"


def target(num_classes=80, bitmaps=False):
    """The truth about image 0 for a model of so many classes, with masks as polygons or as bitmaps' run lengths."""
    given = inputs()
    boxes, labels = torch.from_numpy(given["gt/boxes"]), torch.from_numpy(given["gt/classes"]).long()
    if bitmaps:
        height, width = components()["rasterize/bitmask_hw"].tolist()
        bits = np.unpackbits(components()["rasterize/bitmask_full_packed"])[: len(boxes) * height * width]
        masks = [coco_mask.encode(np.asfortranarray(mask)) for mask in bits.reshape(-1, height, width)]
    else:
        masks = [[given[key].tolist() for key in sorted(given) if key.startswith(f"gt/polygon_{i}_")] for i in range(3)]
    height, width = given["img0_bgr"].shape[:2]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    semantic = ((rows // 16 * 3 + columns // 16 * 5) % 54).to(torch.uint8)  # the record's rule
    semantic[:8] = IGNORED
    return Targets(
        boxes,
        labels % num_classes,  # all of one class for the model of keypoints
        torch.zeros(0, 4),
        Masks(masks, torch.eye(2, 3, dtype=torch.float64)),
        semantic=semantic,
        keypoints=torch.from_numpy(given["gt/keypoints"]),
    )


def without_objects(truth):
    """The same image with nothing on it."""
    return replace(
        truth, boxes=truth.boxes[:0], labels=truth.labels[:0], masks=truth.masks[[]], keypoints=truth.keypoints[:0]
    )


def first_ones(indices, count, random):
    """In place of a random choice: what the reference was made with."""
    return indices[:count]


def pairs(boxes, labels, expected_boxes, expected_labels, pixels):
    """For each expected box the place of the one found that is nearest and of its class, -1 where none is near."""
    if not len(boxes):
        return torch.full((len(expected_boxes),), -1)
    distance = (expected_boxes[:, None] - boxes[None]).abs().amax(2)
    distance[expected_labels[:, None] != labels[None]] = torch.inf
    nearest = distance.min(1)
    return torch.where(nearest.values <= pixels, nearest.indices, -1)
