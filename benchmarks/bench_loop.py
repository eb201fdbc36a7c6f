"""Training from JPEG files to changed weights, the whole loop: ours and torchvision's reference, side by side.

    python benchmarks/bench_loop.py --threads 2 --workers 1 --rounds 5 --json benchmarks/results/loop.json

Mask R-CNN R50-FPN as torchvision's reference scripts train it from ImageNet weights: batch norms, the stem and the
first stage frozen. Photographs of 480 x 640 shown at 512 x 682, two in a batch, float32; the same weights, schedule and
number of processes that load. Ours is what `mrcnn train` runs, with its checks for NaN and metrics.jsonl, and with no
picture kept decoded. torchvision's is rebuilt here from what its reference scripts do: COCO files by pycocotools,
pictures by Pillow, masks as images, flips, a DataLoader, losses summed and checked, SGD with a linear warm-up. It runs
as it comes and once more channels last, the layout that ours has.

The losses of a first batch, each side's from the files, are compared first, with mini-batches of every anchor and every
proposal, so that no draw is left to chance. Then the loops take turns, some steps each; a turn's first steps, whose
batches were loaded during another's turn, do not count.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from bench_loader import made_up
from pycocotools import mask as coco_mask
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import CocoDetection
from torchvision.models.detection import MaskRCNN as TheirMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms import functional as pictures
from torchvision_pair import (
    CLASSES,
    EVERYTHING,
    LOSSES,
    config,
    same_in_ours,
    seconds_in_convolutions,
    stamped,
    torchvisions,
)

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.loader import DataConfig, SplitConfig, validation_batches
from mrcnn_cli.data.transforms import Resize
from mrcnn_cli.engine.memory import keep_freed_memory
from mrcnn_cli.engine.optimizer import TrainConfig
from mrcnn_cli.engine.run import RunConfig, prepare
from mrcnn_cli.engine.train import train
from mrcnn_cli.models.mask_rcnn import MaskRCNN

SHORT_SIDE, LONG_SIDE, BATCH, PICTURES = 512, 1333, 2, 24
UNCOUNTED = 2  # steps at the beginning of a turn: a process of torchvision's loader is two batches ahead
FOREVER = 10**6  # steps, far more than are taken, so that neither loop comes to its end
# The reference scripts' rate for 16 images, scaled to two, and their warm-up.
RATE, MOMENTUM, WEIGHT_DECAY, WARMUP_STEPS, WARMUP_FACTOR = 0.02 * BATCH / 16, 0.9, 1e-4, 1000, 1e-3
CHANNELS_LAST = "torchvision, channels last"
PHASES = ("data", "forward", "backward", "optimiser", "rest")


def their_model(samples=None):
    """torchvision's, with the norms and frozen layers that it has with ImageNet weights."""
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    sizes = {"rpn_batch_size_per_image": samples or 256, "box_batch_size_per_image": samples or 512}
    model = TheirMaskRCNN(body, num_classes=CLASSES + 1, min_size=SHORT_SIDE, max_size=LONG_SIDE, **sizes)
    model.load_state_dict(torchvisions().state_dict())
    return model.train()


def our_config(samples=None):
    return config(samples, norm="frozen_batch_norm", weights="given", frozen_stages=2)


def data_config(images, annotations, workers):
    return DataConfig(
        train=SplitConfig(images=images, annotations=annotations),
        resize=Resize(short_side=SHORT_SIDE, long_side=LONG_SIDE, method="torchvision"),
        workers=workers,
        cache_mb=0,
    )


class TheirPictures(CocoDetection):
    """Pictures 0..1 [3, H, W] and their targets, as the reference's dataset and transforms give them.

    Args:
        flip: the chance to be mirrored.
    """

    def __init__(self, images, annotations, flip):
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of its progress
            super().__init__(images, annotations)
        self.flip = flip

    def __getitem__(self, index):
        picture, annotations = super().__getitem__(index)
        width, height = picture.size
        annotations = [annotation for annotation in annotations if not annotation["iscrowd"]]
        boxes = torch.tensor([annotation["bbox"] for annotation in annotations]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=width)
        boxes[:, 1::2].clamp_(min=0, max=height)
        masks = torch.zeros(len(annotations), height, width, dtype=torch.uint8)
        for mask, annotation in zip(masks, annotations, strict=True):
            parts = coco_mask.decode(coco_mask.frPyObjects(annotation["segmentation"], height, width))
            mask[:] = torch.from_numpy(parts).any(dim=2)
        labels = torch.tensor([annotation["category_id"] for annotation in annotations])
        keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        target = {"boxes": boxes[keep], "labels": labels[keep], "masks": masks[keep]}
        image = pictures.pil_to_tensor(picture)
        if torch.rand(1) < self.flip:
            image, target["masks"] = pictures.hflip(image), target["masks"].flip(-1)
            target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
        return pictures.convert_image_dtype(image), target


def in_lists(batch):
    return tuple(zip(*batch, strict=True))


def compared(images, annotations):
    """The largest difference of the losses by their size, and the mask's; raises unless they are the same."""
    theirs, their_pictures = their_model(EVERYTHING), TheirPictures(images, annotations, flip=0.0)
    ours = same_in_ours(theirs, our_config(EVERYTHING)).train()
    batches = validation_batches(
        Dataset.read(images, annotations), data_config(images, annotations, workers=0), batch_size=BATCH, seed=0
    )
    with torch.no_grad():
        expected = theirs(*in_lists([their_pictures[index] for index in range(BATCH)]))
        losses = ours(*next(batches))
    apart = {name: float((losses[name] / expected[there] - 1).abs()) for there, name in LOSSES.items()}
    masks = apart.pop("loss_mask")  # at their edges: ours cuts polygons, theirs images of them that were resized
    worst = max(apart.values())
    if not (worst < 1e-3 and masks < 2e-2):
        raise SystemExit(f"the losses differ by {worst:.2g}, the mask's by {masks:.2g}: not timed: {expected} {losses}")
    return {"loss_difference": worst, "mask_loss_difference": masks}


def our_loop(images, annotations, workers, folder):
    """Trains; yields the seconds that each step has waited for its batch."""
    weights = folder / "weights.pth"
    torch.save(their_model().state_dict(), weights)
    schedule = {"learning_rate": RATE, "warmup_steps": WARMUP_STEPS, "warmup_factor": WARMUP_FACTOR}
    schedule |= {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "norm_weight_decay": WEIGHT_DECAY}
    recipe = RunConfig(
        model=our_config(),
        data=data_config(images, annotations, workers),
        train=TrainConfig(weights=weights, steps=FOREVER, save_every=FOREVER, batch_size=BATCH, **schedule),
    )
    for step in train(prepare(recipe, folder / "run", "cpu")):
        yield step.values["data_seconds"]


def their_loop(images, annotations, workers, memory_format):
    """The same by the reference's train_one_epoch, in an epoch that does not end."""
    dataset = TheirPictures(images, annotations, flip=0.5)
    order = RandomSampler(dataset, num_samples=BATCH * FOREVER)
    loader = DataLoader(dataset, BATCH, sampler=order, num_workers=workers, collate_fn=in_lists)
    model = their_model().to(memory_format=memory_format)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, WARMUP_FACTOR, total_iters=WARMUP_STEPS)
    meters = []
    started = time.perf_counter()
    for batch in loader:
        waited = time.perf_counter() - started
        losses = model(*batch)
        loss = sum(losses.values())
        if not torch.isfinite(loss):
            raise SystemExit(f"torchvision's losses are not finite: {losses}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
        meters.append({name: float(value.detach()) for name, value in losses.items()})
        yield waited
        started = time.perf_counter()


class Clock:
    """When a step's phases begin and end, told by the calls that both loops make: of the model and of the optimiser."""

    def __init__(self):
        self.at = {}
        self.regions = 0  # whose masks were learnt: a step's largest cost that depends on what it draws
        nn.modules.module.register_module_forward_pre_hook(self.entered)
        nn.modules.module.register_module_forward_hook(self.left)
        register_optimizer_step_pre_hook(partial(self.mark, "backward done"))
        register_optimizer_step_post_hook(partial(self.mark, "updated"))

    def mark(self, name, *_):
        self.at[name] = time.perf_counter()

    def entered(self, module, _):
        if isinstance(module, MaskRCNN | TheirMaskRCNN):
            self.mark("begun")

    def left(self, module, _, output):
        if isinstance(module, nn.ConvTranspose2d):  # each mask head has one
            self.regions = len(output)
        elif isinstance(module, MaskRCNN | TheirMaskRCNN):
            self.mark("forward done")

    def step(self, loop):
        """One step of a loop: seconds by phase, and regions."""
        started = time.perf_counter()
        waited = next(loop)
        total, at = time.perf_counter() - started, self.at
        phases = {
            "data": waited,
            "forward": at["forward done"] - at["begun"],
            "backward": at["backward done"] - at["forward done"],
            "optimiser": at["updated"] - at["backward done"],
        }
        return {**phases, "rest": total - sum(phases.values()), "seconds": total, "regions": self.regions}


def raced(loops, clock, steps, rounds):
    """name -> medians over rounds of the means over a turn's steps; the order turns round from round to round."""
    turns, names = {name: [] for name in loops}, list(loops)
    for _ in range(rounds):
        for name in names:
            taken = [clock.step(loops[name]) for _ in range(UNCOUNTED + steps)][UNCOUNTED:]
            turns[name].append({key: statistics.fmean(step[key] for step in taken) for key in taken[0]})
        names.reverse()
    return {
        name: {key: statistics.median(turn[key] for turn in taken) for key in taken[0]} for name, taken in turns.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=1, help="processes that load, of each loop")
    parser.add_argument("--steps", type=int, default=6, help="of a turn that count")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        data = made_up(folder, PICTURES, CLASSES)
        facts = compared(*data)
        print(
            f"losses within {facts['loss_difference']:.1e} of each other, the masks' within "
            f"{facts['mask_loss_difference']:.1e}",
            flush=True,
        )
        facts |= {"batch": BATCH, "short_side": SHORT_SIDE, "workers": arguments.workers, "steps": arguments.steps}
        theirs = partial(their_loop, *data, arguments.workers)
        loops = {
            "mrcnn": our_loop(*data, arguments.workers, folder),
            "torchvision": theirs(torch.contiguous_format),
            CHANNELS_LAST: theirs(torch.channels_last),
        }
        clock = Clock()
        rows = raced(loops, clock, arguments.steps, arguments.rounds)
        for name, row in rows.items():
            for _ in range(UNCOUNTED):
                next(loops[name])
            total, in_convolutions = seconds_in_convolutions(partial(next, loops[name]))
            row["share_in_convolutions"] = in_convolutions / total
            row["images_per_second"] = BATCH / row["seconds"]
            row["ratio"] = row["seconds"] / rows["mrcnn"]["seconds"]
            print(
                f"{name:<28} {row['images_per_second']:6.3f} images/s  {row['ratio']:5.2f}x  "
                f"convolutions and matrix products {100 * row['share_in_convolutions']:3.0f} %\n  a step: "
                + ", ".join(f"{phase} {row[phase]:.3f} s" for phase in PHASES)
                + f"; {row['regions']:.0f} regions with masks",
                flush=True,
            )
        for loop in loops.values():
            loop.close()
    result = stamped(rows, arguments.rounds, facts)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
