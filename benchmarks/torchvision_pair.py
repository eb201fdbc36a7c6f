"""torchvision's maskrcnn_resnet50_fpn and our Mask R-CNN with the same weights and numbers, and how both are timed."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of the profiler, which else speaks of GPUs that are not there

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the weights are copied as the tests copy them

from mrcnn_cli.engine.memory import peak_memory_mb  # noqa: E402
from mrcnn_cli.models.mask_rcnn import MaskRCNN, MaskRCNNConfig  # noqa: E402
from tests.models.torchvision_oracle import DEVIATION, MEAN, copy_weights  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchvision
    from torchvision.models.detection import maskrcnn_resnet50_fpn

CLASSES = 90
EVERYTHING = 1_000_000  # a mini-batch of that size takes every anchor and every proposal
# Theirs -> ours.
LOSSES = {
    "loss_objectness": "loss_rpn_objectness",
    "loss_rpn_box_reg": "loss_rpn_box",
    "loss_classifier": "loss_class",
    "loss_box_reg": "loss_box",
    "loss_mask": "loss_mask",
}
# Convolutions and matrix products: of the libraries under PyTorch, and our own of 3x3.
CONVOLUTION_CALLS = (
    "mrcnn::conv3x3",
    "aten::conv2d",
    "aten::conv_transpose2d",
    "aten::linear",
    "aten::convolution_backward",
    "aten::addmm",
    "mkldnn::_convolution_pointwise",
    "mkldnn::_linear_pointwise",
)
BACKWARD_CALLS = ("ConvolutionBackward0", "AddmmBackward0", "_LinearBackward")


def config(samples=None, score_threshold=0.05, **backbone):
    """Our recipe with torchvision's numbers; `samples` in every mini-batch, or torchvision's 256 and 512."""
    roi = {"sampling_ratio": 2, "aligned": False}
    rpn = {"samples_per_image": samples or 256, "pre_nms_top_n": 1000, "post_nms_top_n": 1000}
    return MaskRCNNConfig.model_validate(
        {
            "name": "mask_rcnn",
            "pixels": {"mean": [255 * m for m in MEAN], "deviation": [255 * d for d in DEVIATION]},
            "backbone": {"name": "resnet50", "norm": "batch_norm"} | backbone,
            "anchors": {"sizes": [[32], [64], [128], [256], [512]], "rounded": True},
            "rpn": rpn,
            "box_head": {
                "roi": {"resolution": 7, **roi},
                "samples_per_image": samples or 512,
                "smooth_l1_beta": 1 / 9,
                "min_size": 0.01,
                "score_threshold": score_threshold,
            },
            "mask_head": {"roi": {"resolution": 14, **roi}, "target": {"aligned": False, "threshold": 0.0}},
        }
    )


def torchvisions(**numbers):
    """Its model with random weights that give scores of all sizes, and batch norms that know real activations."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1, **numbers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "cls_logits" in name:  # sigmoids that saturate at 1 would tie, and torchvision ranks by them
                parameter.mul_(0.3)
            elif "cls_score" in name:  # and classes that all score 1 would leave the order to rounding
                parameter.mul_(0.2)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        model.backbone.body(torch.randn(2, 3, 256, 256))
        for norm in norms:
            norm.momentum = 0.1
    return model


def same_in_ours(theirs, recipe):
    """Our model, filled from theirs; channels last, as the commands run it."""
    ours = MaskRCNN(recipe, CLASSES)
    copy_weights(theirs, ours)
    return ours.to(memory_format=torch.channels_last)


def in_turn(works, rounds):
    """Medians in seconds of each piece of work; the order turns round from round to round."""
    times, names = {name: [] for name in works}, list(works)
    for _ in range(rounds):
        for name in names:
            started = time.perf_counter()
            works[name]()
            times[name].append(time.perf_counter() - started)
        names.reverse()
    return {name: statistics.median(values) for name, values in times.items()}


def seconds_in_convolutions(work):
    """(seconds of the work, of these in convolutions and matrix products), under the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        work()
        total = time.perf_counter() - started
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.name in CONVOLUTION_CALLS or event.name.split(": ")[-1] in BACKWARD_CALLS
    ]
    spent, until = 0, 0.0
    for start, end in sorted(spans):  # calls lie inside of one another
        spent += max(end - max(start, until), 0)
        until = max(until, end)
    return total, spent / 1e6


def peak_megabytes(script, name, options):
    """Peak memory of a process that runs the script for one contestant alone."""
    command = [sys.executable, script, "--alone", name, "--threads", str(torch.get_num_threads()), *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def report_peak():
    """For a process started by `peak_megabytes`."""
    print(peak_memory_mb())


def report(script, works, rounds, facts, options=()):
    """Times, profiles and measures the memory of contestants, of which "mrcnn" is ours; prints and returns it all."""
    seconds = in_turn(works, rounds)
    rows = {}
    for name, work in works.items():
        total, in_convolutions = seconds_in_convolutions(work)
        rows[name] = {
            "seconds": seconds[name],
            "ratio": seconds[name] / seconds["mrcnn"],
            "share_in_convolutions": in_convolutions / total,
            "peak_mb": peak_megabytes(script, name, options),
        }
        print(
            f"{name:<28} {seconds[name]:7.3f} s  {rows[name]['ratio']:5.2f}x  convolutions and matrix products "
            f"{100 * rows[name]['share_in_convolutions']:3.0f} %  peak {rows[name]['peak_mb']:6.0f} MB",
            flush=True,
        )
    return stamped(rows, rounds, facts)


def stamped(rows, rounds, facts):
    """All that was measured, with when and where, and the ceilings that convolutions set, which are printed.

    Args:
        rows: name -> what was measured of it, at least "seconds" and "share_in_convolutions".
        rounds: how often.
        facts: what else there is to say.
    """
    floor = rows["mrcnn"]["seconds"] * rows["mrcnn"]["share_in_convolutions"]
    ceilings = {name: row["seconds"] / floor for name, row in rows.items() if name != "mrcnn"}
    for name, ceiling in ceilings.items():
        print(f"were all else free, we would be {ceiling:.2f}x as fast as {name}")
    with open("/proc/cpuinfo") as lines:
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": processor or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "rounds": rounds,
        **facts,
        "rows": rows,
        "ceilings": ceilings,
    }
