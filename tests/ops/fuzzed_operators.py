"""Every operator on thousands of calls that may be wrong in any way: shapes, types, numbers, indices.

Run by test_fuzz.py in a process that AddressSanitizer watches. A call must give a result, or say in words what is
wrong; whatever reads or writes outside of its tensors ends the process.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrcnn_cli import _C, ops

EXAMPLES = 120
ODD = (math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, -1.0, 3e9)
FLOATING = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
ANY = (*FLOATING, torch.int64, torch.int32, torch.bool)
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)


class Draw:
    """Arguments that are mostly right and sometimes not."""

    def __init__(self, random):
        self.random = random
        self.dtype = random.choice(FLOATING)
        # now and then everything is right, so that the kernels themselves are reached
        self.rate = random.choice((0.0, 0.0, 0.05, 0.3))

    def wrong(self):
        return self.random.random() < self.rate

    def size(self, low=0, high=6):
        return self.random.randint(low, high)

    def pick(self, *values):
        return self.random.choice(values)

    def shape(self, *sizes):
        sizes = [self.size() if self.wrong() else size for size in sizes]
        if self.wrong():
            sizes = sizes[:-1] if self.random.random() < 0.5 else [*sizes, self.size(1, 3)]
        return sizes

    def layout(self, tensor):
        if tensor.ndim == 4 and self.random.random() < 0.5:
            return tensor.contiguous(memory_format=torch.channels_last)
        if tensor.ndim >= 2 and self.random.random() < 0.3:
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        if tensor.ndim and self.random.random() < 0.3:
            return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]
        return tensor

    def values(self, *sizes, scale=1.0, dtype=None):
        generator = torch.Generator().manual_seed(self.random.getrandbits(31))
        tensor = torch.randn(self.shape(*sizes), generator=generator, dtype=torch.float64) * scale
        if tensor.numel() and self.random.random() < 0.5:
            flat = tensor.view(-1)
            for _ in range(self.size(1, 4)):
                flat[self.random.randrange(flat.numel())] = self.pick(*ODD)
        dtype = self.pick(*ANY) if self.wrong() else dtype or self.dtype
        if not dtype.is_floating_point:
            tensor = tensor.nan_to_num(0, 1, 0).clamp(-(2**30), 2**30)
        return self.layout(tensor.to(dtype))

    def boxes(self, count, extent=30.0, dtype=None):
        generator = torch.Generator().manual_seed(self.random.getrandbits(31))
        corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * extent
        sides = torch.rand(count, 2, generator=generator, dtype=torch.float64) * extent
        tensor = torch.cat([corner, corner + sides], 1)
        if count and self.random.random() < 0.5:
            for _ in range(self.size(1, 4)):
                tensor[self.random.randrange(count), self.random.randrange(4)] = self.pick(*ODD, 5e4, 1e6)
        if self.wrong():
            tensor = torch.zeros(self.shape(count, 4), dtype=torch.float64)
        dtype = self.pick(*ANY) if self.wrong() else dtype or self.pick(self.dtype, torch.float32)
        if not dtype.is_floating_point:
            tensor = tensor.nan_to_num(0, 1, 0).clamp(-(2**30), 2**30)
        return self.layout(tensor.to(dtype))

    def rois(self, count, images):
        boxes = self.boxes(count)
        index = torch.tensor([float(self.random.randrange(max(images, 1))) for _ in range(len(boxes))])[:, None]
        if self.wrong() and len(boxes):
            index[0] = self.pick(-1.0, float(images), math.nan, 1e20, 0.5)
        if boxes.ndim != 2:
            return boxes
        return torch.cat([index.to(boxes.dtype), boxes], 1)

    def indices(self, count, low, high):
        tensor = torch.tensor([self.random.randint(low, high) for _ in range(count)], dtype=torch.int64)
        if self.wrong() and count:
            tensor[0] = self.pick(-1, high + 1, 2**62, -(2**62))
        return self.layout(tensor.to(self.pick(*ANY) if self.wrong() else torch.int64))

    def threshold(self):
        return self.pick(0.5, 0.7, 0.0, 1.0, -1.0, math.nan, math.inf) if self.wrong() else self.pick(0.3, 0.5, 0.7)

    def sides(self):
        size = (self.size(1, 4), self.size(1, 4))
        return self.pick(0, -1, (0, 2), (2, -3)) if self.wrong() else self.pick(size, size[0])

    def scale(self):
        return self.pick(0.0, -1.0, math.nan, math.inf, 1e-30) if self.wrong() else self.pick(1.0, 0.25, 0.3)


def pooled_arguments(draw):
    images, channels = draw.size(1, 2), draw.size(1, 20)
    input = draw.values(images, channels, draw.size(1, 12), draw.size(1, 12))
    return input, draw.rois(draw.size(), images), draw.sides()


def roi_align(draw):
    input, rois, size = pooled_arguments(draw)
    return ops.roi_align(input, rois, size, draw.scale(), draw.pick(-1, 0, 1, 2, 3), draw.pick(True, False))


def multilevel_roi_align(draw):
    images, channels, levels = draw.size(1, 2), draw.size(1, 9), draw.size(1, 3) if not draw.wrong() else 0
    maps = [draw.values(images, channels, draw.size(1, 9), draw.size(1, 9)) for _ in range(levels)]
    scales = [0.5**level for level in range(levels if not draw.wrong() else draw.size())]
    boxes = [draw.boxes(draw.size()) for _ in range(images if not draw.wrong() else draw.size())]
    ratio, canonical = draw.pick(-1, 2), draw.pick(8, 224)
    return ops.multilevel_roi_align(maps, boxes, draw.sides(), scales, ratio, canonical_size=canonical)


def roi_pool(draw):
    input, rois, size = pooled_arguments(draw)
    return ops.roi_pool(input, rois, size, draw.scale())


def position_sensitive(function):
    def call(draw):
        images, size = draw.size(1, 2), (draw.size(1, 3), draw.size(1, 3))
        input = draw.values(images, draw.size(1, 3) * size[0] * size[1], draw.size(1, 9), draw.size(1, 9))
        return function(input, draw.rois(draw.size(), images), draw.sides() if draw.wrong() else size, draw.scale())

    return call


def nms(draw):
    count = draw.size(0, 70)
    boxes = draw.boxes(count)
    if draw.pick(True, False):
        return ops.batched_nms(boxes, draw.values(count), draw.indices(count, -2, 3), draw.threshold())
    return ops.nms(boxes, draw.values(count), draw.threshold())


def soft_nms(draw):
    count = draw.size(0, 40)
    method = "other" if draw.wrong() else draw.pick("linear", "gaussian", "hard")
    return ops.soft_nms(draw.boxes(count), draw.values(count), draw.threshold(), method=method)


def grid_anchors(draw):
    sizes = [draw.pick(16.0, 0.0, -1.0, math.nan) if draw.wrong() else 16.0 for _ in range(draw.size(0, 3))]
    grid = (draw.size(0, 5), -1 if draw.wrong() else draw.size(0, 5))
    dtype = draw.pick(*ANY) if draw.wrong() else torch.float32
    return ops.grid_anchors(sizes, (0.5, 1.0), grid, draw.pick(4, 8.0), dtype=dtype)


def match_anchors(draw):
    ignore = draw.boxes(draw.size()) if draw.pick(True, False) else None
    low, high = draw.threshold(), draw.threshold()
    return ops.match_anchors(draw.boxes(draw.size(0, 140)), draw.boxes(draw.size(0, 20)), low, high, True, ignore)


def overlaps(function):
    return lambda draw: function(draw.boxes(draw.size(0, 20)), draw.boxes(draw.size(0, 20)))


def paired_box_iou(draw):
    count = draw.size(0, 20)
    return ops.paired_box_iou(draw.boxes(count), draw.boxes(count))


def encode(draw):
    count = draw.size(0, 20)
    return ops.encode(draw.boxes(count), draw.boxes(count))


def decode(draw):
    count = draw.size(0, 20)
    return ops.decode(draw.values(count, 4), draw.boxes(count))


def rpn_proposals(draw):
    images, anchors, levels = draw.size(1, 2), draw.size(1, 3), draw.size(1, 3)
    grids = [(draw.size(1, 6), draw.size(1, 6)) for _ in range(levels)]
    logits = [draw.values(images, anchors, *grid) for grid in grids]
    deltas = [draw.values(images, 4 * anchors, *grid) for grid in grids]
    sizes = [[8.0 * (level + 1) for _ in range(anchors)] for level in range(levels)]
    return ops.rpn_proposals(
        logits,
        deltas,
        [(24, 24)] * (images if not draw.wrong() else draw.size()),
        sizes,
        (1.0,),
        [4 * 2**level for level in range(levels)],
        pre_nms_top_n=draw.size(1, 40),
        post_nms_top_n=draw.size(1, 20),
        nms_threshold=draw.threshold(),
    )


def paste_masks(draw):
    count, side = draw.size(), draw.size(1, 9)
    size = (draw.pick(0, -1, 1) if draw.wrong() else draw.size(1, 40), draw.size(1, 40))
    function = draw.pick(ops.paste_masks, ops.paste_masks_dense)
    return function(draw.values(count, side, side), draw.boxes(count), size, draw.threshold())


def segmentation(draw):
    height, width = draw.size(1, 9), draw.size(1, 9)
    if draw.pick(True, False):
        points = draw.size(3, 6) if not draw.wrong() else draw.size(0, 2)
        return [[draw.random.uniform(-9, 40) if not draw.wrong() else draw.pick(*ODD) for _ in range(2 * points)]]
    ends = sorted(draw.random.randint(0, height * width) for _ in range(draw.size()))
    counts = [b - a for a, b in zip([0, *ends], [*ends, height * width], strict=True)]
    if draw.wrong():
        counts[0] = draw.pick(-1, 2**31, 10**6)
    return {"size": [height, draw.size() if draw.wrong() else width], "counts": counts}


def mask_targets(draw):
    objects = [segmentation(draw) for _ in range(draw.size())]
    size = draw.pick(0, -1) if draw.wrong() else draw.size(1, 8)
    return ops.mask_targets(objects, draw.boxes(len(objects)), size)


def compressed_run_lengths(draw):
    runs = torch.tensor([draw.size(0, 2**20) for _ in range(draw.size(0, 30))], dtype=torch.int32)
    text = bytearray(_C.rle_compress(runs.numpy().tobytes()))
    if draw.wrong() and text:
        text[draw.random.randrange(len(text))] = draw.size(0, 255)
    return _C.rle_counts(bytes(text))


def sigmoid_focal_loss(draw):
    count, classes = draw.size(0, 20), draw.size(1, 20)
    reduction = "other" if draw.wrong() else draw.pick("none", "mean", "sum")
    logits = draw.values(count, classes)
    if draw.pick(True, False):
        return ops.sigmoid_focal_loss_labels(logits, draw.indices(count, -1, classes), reduction=reduction)
    return ops.sigmoid_focal_loss(logits, draw.values(count, classes).detach(), reduction=reduction)


def deform_conv2d(draw):
    groups, offset_groups = draw.size(1, 2), draw.size(1, 2)
    inputs, outputs = 2 * groups * offset_groups, 2 * groups
    kernel, stride, padding = (draw.size(1, 3), draw.size(1, 3)), draw.size(1, 2), draw.size(0, 2)
    images, height, width = draw.size(1, 2), draw.size(3, 8), draw.size(3, 8)
    out = [(side + 2 * padding - k) // stride + 1 for side, k in zip((height, width), kernel, strict=True)]
    taps = offset_groups * kernel[0] * kernel[1]
    return ops.deform_conv2d(
        draw.values(images, inputs, height, width),
        draw.values(images, 2 * taps, *out, scale=3.0),
        draw.values(outputs, inputs // groups, *kernel),
        draw.values(outputs) if draw.pick(True, False) else None,
        stride=stride,
        padding=padding,
        mask=draw.values(images, taps, *out) if draw.pick(True, False) else None,
    )


def conv3x3(draw):
    images, channels, outputs, height, width = draw.size(0, 2), draw.size(0, 40), draw.size(0, 40), draw.size(0, 9), 5
    return ops.conv3x3(
        draw.values(images, channels, height, width),
        draw.values(outputs, channels, 3, 3),
        draw.values(outputs) if draw.pick(True, False) else None,
        draw.values(images, outputs, height, width) if draw.pick(True, False) else None,
        draw.pick(True, False),
    )


CALLS = {
    "box_coverage": overlaps(ops.box_coverage),
    "box_iou": overlaps(ops.box_iou),
    "compressed_run_lengths": compressed_run_lengths,
    "conv3x3": conv3x3,
    "decode": decode,
    "deform_conv2d": deform_conv2d,
    "encode": encode,
    "generalized_box_iou": overlaps(ops.generalized_box_iou),
    "grid_anchors": grid_anchors,
    "mask_targets": mask_targets,
    "match_anchors": match_anchors,
    "multilevel_roi_align": multilevel_roi_align,
    "nms": nms,
    "paired_box_iou": paired_box_iou,
    "paste_masks": paste_masks,
    "ps_roi_align": position_sensitive(lambda *arguments: ops.ps_roi_align(*arguments)),
    "ps_roi_pool": position_sensitive(lambda *arguments: ops.ps_roi_pool(*arguments)),
    "roi_align": roi_align,
    "roi_pool": roi_pool,
    "rpn_proposals": rpn_proposals,
    "sigmoid_focal_loss": sigmoid_focal_loss,
    "soft_nms": soft_nms,
}


def differentiated(function, draw):
    """The call with gradients asked for, and the gradients."""
    made = []
    original = draw.values

    def values(*sizes, **keywords):
        tensor = original(*sizes, **keywords)
        if tensor.is_floating_point():
            tensor = tensor.detach().requires_grad_()
            made.append(tensor)
        return tensor

    draw.values = values
    result = function(draw)
    if isinstance(result, torch.Tensor) and result.requires_grad:
        torch.autograd.grad(result.sum(), made, allow_unused=True)
    return result


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_call_answers_or_says_what_is_wrong(name):
    answered = 0
    words = []

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=True, note_method_calls=False))
    def run(random):
        nonlocal answered
        try:
            differentiated(CALLS[name], Draw(random))
            answered += 1
        except REFUSALS as error:
            words.append(str(error))

    run()
    refused = len(words)
    assert all(len(text) > 10 for text in words)
    # A test that is always refused would not reach the kernel.
    assert answered > EXAMPLES // 5, (answered, refused)
    assert refused or name.startswith("compressed") or answered == EXAMPLES
