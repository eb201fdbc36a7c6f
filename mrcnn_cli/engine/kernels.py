"""The kernels held against slow Python and against other implementations: what `gradcheck` and `bench kernels` show."""

import difflib
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli.engine.run import choose_device
from mrcnn_cli.errors import UserError
from mrcnn_cli.ops import batched_nms, decode, encode, grid_anchors, multilevel_roi_align, nms, reference, roi_align

# Largest difference from the float64 loop, for values of about one: the rounding of the type.
TOLERANCE = {"float64": 1e-10, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
GRADIENT_TOLERANCE = 1e-6  # central differences in float64 with steps of 1e-6
STEP = 1e-6

Row = dict[str, Any]


# ---------------------------------------------------------------------------------------------------- gradcheck


@dataclass(frozen=True)
class Check:
    """An operator on one input, and the loop that it must agree with.

    Attributes:
        function, loop: of the tensors that are computed with.
        values: those tensors, float64 on the CPU; the first is differentiated, where there is a gradient.
        exact: the result is whole numbers, or is rounded once, and must be equal.
        differentiable: there is a gradient.
        dtypes: the types that the operator takes.
    """

    function: Callable[..., Tensor]
    loop: Callable[..., Tensor]
    values: tuple[Tensor, ...]
    exact: bool = False
    differentiable: bool = False
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16")


def _checks(op: str) -> Iterator[tuple[str, Check]]:
    """Named inputs of an operator."""
    random = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, size, size + 2, dtype=torch.float64, generator=random) for size in (12, 6)]
    rois = torch.tensor(
        [[0, 1.3, 2.1, 30.7, 22.9], [1, -6.0, -4.0, 14.0, 9.0], [1, 20.0, 20.0, 90.0, 70.0], [0, 7.0, 7.0, 7.5, 7.2]]
    )
    if op == "roi_align":
        for aligned in (True, False):
            for ratio in (2, 0):
                yield (
                    f"{'aligned' if aligned else 'not aligned'}, {ratio or 'adaptive'} samples",
                    Check(
                        lambda x, a=aligned, r=ratio: roi_align(
                            x, rois.to(x.device, _boxes_type(x)), (3, 2), 0.25, r, a
                        ),
                        lambda x, a=aligned, r=ratio: reference.roi_align(x, rois, (3, 2), 0.25, r, a),
                        (maps[0],),
                        differentiable=True,
                    ),
                )
    elif op == "multilevel_roi_align":
        scales = (0.25, 0.125)
        rois = rois[rois[:, 0].argsort(stable=True)]  # lists by image come back in this order
        yield (
            "two levels",
            Check(
                lambda x, y: multilevel_roi_align(
                    [x, y], _by_image(rois.to(x.device, _boxes_type(x))), (2, 2), scales, 2, True, 40, 3
                ),
                lambda x, y: reference.multilevel_roi_align([x, y], rois, (2, 2), scales, 2, True, 40, 3),
                (maps[0], maps[1]),
                differentiable=True,
            ),
        )
    elif op in ("nms", "batched_nms"):
        # Thirty-seconds of pixels are exact in every type, so every type must keep the same boxes.
        corner = torch.randint(0, 64, (300, 2), generator=random).double()
        boxes = torch.cat([corner, corner + torch.randint(4, 40, (300, 2), generator=random)], 1)
        scores = torch.randperm(300, generator=random).double() / 300
        groups = torch.randint(0, 4, (300,), generator=random)
        types = ("float64", "float32")
        if op == "nms":
            yield (
                "300 boxes",
                Check(
                    lambda b: nms(b, scores.to(b.device), 0.5),
                    lambda b: reference.nms(b, scores, 0.5),
                    (boxes,),
                    exact=True,
                    dtypes=types,
                ),
            )
        else:
            yield (
                "300 boxes, 4 groups",
                Check(
                    lambda b: batched_nms(b, scores.to(b.device), groups.to(b.device), 0.5),
                    lambda b: reference.batched_nms(b, scores, groups, 0.5),
                    (boxes,),
                    exact=True,
                    dtypes=types,
                ),
            )
    elif op == "grid_anchors":
        for rounded in (False, True):
            yield (
                "rounded" if rounded else "not rounded",
                Check(
                    lambda x, r=rounded: grid_anchors(
                        (16, 40), (0.5, 1, 2), (3, 5), 8, rounded=r, dtype=x.dtype, device=x.device
                    ),
                    lambda x, r=rounded: reference.grid_anchors((16, 40), (0.5, 1, 2), (3, 5), 8, rounded=r),
                    (torch.zeros(1, dtype=torch.float64),),
                    dtypes=("float64", "float32"),
                ),
            )
    else:
        anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 35.0, 25.0]], dtype=torch.float64)
        boxes = anchors + torch.tensor([[1.0, -2.0, 3.0, 4.0]], dtype=torch.float64)
        weights = (10.0, 10.0, 5.0, 5.0)
        deltas = _encode_loop(boxes, anchors, weights)
        function, loop, values = (encode, _encode_loop, boxes) if op == "encode" else (decode, _decode_loop, deltas)
        yield (
            "weights 10, 10, 5, 5",
            Check(
                lambda x: function(x, anchors.to(x), weights),
                lambda x: loop(x, anchors, weights),
                (values,),
                differentiable=True,
                dtypes=("float64", "float32"),
            ),
        )


OPERATORS = ("roi_align", "multilevel_roi_align", "nms", "batched_nms", "grid_anchors", "encode", "decode")


def gradcheck(ops: Sequence[str] | None = None, device: str = "cpu", dtype: str | None = None) -> list[Row]:
    """Every operator against its loop in float64, and its gradient against central differences.

    Args:
        ops: names, see OPERATORS; None: all.
        device: cpu, cuda, cuda:N.
        dtype: float64, float32, float16 or bfloat16; None: all that the operator takes.

    Returns:
        Rows with op, case, check, dtype, error (largest difference), tolerance and passed.

    Raises:
        UserError: an unknown operator or type, or a device that is not there.
    """
    if dtype is not None and dtype not in TOLERANCE:
        raise UserError(f"--dtype {dtype}: unknown; known: {', '.join(TOLERANCE)}")
    place = choose_device(device)
    rows = []
    for op in _known(ops, OPERATORS):
        for case, check in _checks(op):
            for name in check.dtypes:
                if dtype in (None, name):
                    rows.append(_compared(op, case, check, name, place))
            if check.differentiable and dtype in (None, "float64"):
                rows.append(_differentiated(op, case, check, place))
    return rows


def _compared(op: str, case: str, check: Check, dtype: str, device: torch.device) -> Row:
    # The loop sees the numbers as they are rounded to the type: only the arithmetic is judged.
    values = [value.to(device, getattr(torch, dtype)) for value in check.values]
    result = check.function(*values).detach().cpu()
    expected = check.loop(*[value.cpu().double() for value in values]).detach()
    if result.shape != expected.shape:
        error = math.inf
    else:
        error = float((result.double() - expected.double()).abs().max()) if result.numel() else 0.0
    scale = max(float(expected.abs().max()), 1.0) if expected.numel() and not check.exact else 1.0
    return _row(op, case, "equals the loop", dtype, error, 0.0 if check.exact else TOLERANCE[dtype] * scale)


def _differentiated(op: str, case: str, check: Check, device: torch.device) -> Row:
    """The gradient of a weighted sum of the result, in float64, against central differences, number by number."""
    values = [value.to(device, torch.float64).requires_grad_() for value in check.values]
    result = check.function(*values)
    weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64, device=device).reshape(result.shape)
    analytical = torch.autograd.grad((result * weights).sum(), values)
    error = 0.0
    with torch.no_grad():
        for value, gradient in zip(values, analytical, strict=True):
            flat, slopes = value.view(-1), gradient.reshape(-1)
            for i in range(flat.numel()):
                middle = flat[i].item()
                flat[i] = middle + STEP
                above = float((check.function(*values) * weights).sum())
                flat[i] = middle - STEP
                below = float((check.function(*values) * weights).sum())
                flat[i] = middle
                error = max(error, abs((above - below) / (2 * STEP) - slopes[i].item()))
    return _row(op, case, "gradient equals differences", "float64", error, GRADIENT_TOLERANCE)


def _row(op: str, case: str, check: str, dtype: str, error: float, tolerance: float) -> Row:
    passed = error <= tolerance  # False for NaN
    return {
        "op": op,
        "case": case,
        "check": check,
        "dtype": dtype,
        "error": error,
        "tolerance": tolerance,
        "passed": passed,
    }


def _boxes_type(values: Tensor) -> torch.dtype:
    """Boxes beside half-precision features stay float32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _by_image(rois: Tensor) -> list[Tensor]:
    """[R, 5] as a list by image."""
    return [rois[rois[:, 0] == image, 1:] for image in range(int(rois[:, 0].max()) + 1)]


def _encode_loop(boxes: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    rows = []
    for (x1, y1, x2, y2), (a1, b1, a2, b2) in zip(boxes.tolist(), anchors.tolist(), strict=True):
        width, height = a2 - a1, b2 - b1
        shift = ((x1 + x2 - a1 - a2) / 2 / width, (y1 + y2 - b1 - b2) / 2 / height)
        scale = (math.log((x2 - x1) / width), math.log((y2 - y1) / height))
        rows.append([value * weight for value, weight in zip((*shift, *scale), weights, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def _decode_loop(deltas: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    rows = []
    for row, (a1, b1, a2, b2) in zip(deltas.tolist(), anchors.tolist(), strict=True):
        dx, dy, dw, dh = (value / weight for value, weight in zip(row, weights, strict=True))
        width, height = a2 - a1, b2 - b1
        x, y = (a1 + a2) / 2 + dx * width, (b1 + b2) / 2 + dy * height
        half_width, half_height = width * math.exp(dw) / 2, height * math.exp(dh) / 2
        rows.append([x - half_width, y - half_height, x + half_width, y + half_height])
    return torch.tensor(rows, dtype=torch.float64)


# -------------------------------------------------------------------------------------------------------- bench

BENCHED = ("roi_align", "multilevel_roi_align", "nms", "batched_nms", "grid_anchors")
# Maps P2-P5 of an image of 800 x 1088 pixels.
LEVELS = ((200, 272), (100, 136), (50, 68), (25, 34))
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


@dataclass(frozen=True)
class Race:
    """One piece of work, done by us and by others; `peers` maps a name to the same work done there."""

    case: str
    ours: Callable[[], Any]
    peers: dict[str, Callable[[], Any]]
    tolerance: float


def bench(
    ops: Sequence[str] | None = None, device: str = "cpu", threads: int | None = None, seconds: float = 0.5
) -> Iterator[Row]:
    """Times of the kernels beside plain PyTorch and, where it is installed, torchvision; answers are compared first.

    Every round runs each contestant once, in turn, in this process; a time is the median over rounds.

    Args:
        ops: names, see BENCHED; None: all.
        device: cpu, cuda, cuda:N.
        threads: of PyTorch on the CPU; None: as they are.
        seconds: at least so long, and at least three rounds, for each case.

    Yields:
        Rows with op, case, device, threads, ms, and for each peer `<peer>_ms` and `<peer>_ratio` (its time by ours).

    Raises:
        UserError: an unknown operator, a device that is not there, or answers that differ.
    """
    place = choose_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for op in _known(ops, BENCHED):
            for race in _races(op, place):
                yield {"op": op, "case": race.case, "device": str(place), "threads": torch.get_num_threads()} | _run(
                    op, race, place, seconds
                )
    finally:
        torch.set_num_threads(before)


def _run(op: str, race: Race, device: torch.device, seconds: float) -> Row:
    expected = race.ours()
    for peer, work in race.peers.items():
        error = _difference(expected, work())
        if not error <= race.tolerance:
            raise UserError(
                f"{op}, {race.case}: our answer differs from {peer}'s by {error:.2g}, so it is not timed; "
                f"run 'mrcnn gradcheck {op}'"
            )
    contestants = {"": race.ours, **race.peers}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    began = time.perf_counter()
    while len(times[""]) < 3 or time.perf_counter() - began < seconds:
        for name, work in contestants.items():
            _wait(device)
            started = time.perf_counter()
            work()
            _wait(device)
            times[name].append(1e3 * (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in times.items()}
    row: Row = {"ms": medians[""]}
    for peer in race.peers:
        row |= {f"{peer}_ms": medians[peer], f"{peer}_ratio": medians[peer] / medians[""]}
    return row


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _difference(one: Any, other: Any) -> float:
    """Largest difference of two results (tensors, or sequences of them), by the size of the values."""
    if isinstance(one, Tensor):
        if one.shape != other.shape:
            return math.inf
        if not one.numel():
            return 0.0
        scale = max(float(other.abs().max()), 1.0)
        return float((one.double() - other.double()).abs().max()) / scale
    return max(_difference(a, b) for a, b in zip(one, other, strict=True))


def _races(op: str, device: torch.device) -> Iterator[Race]:
    random = torch.Generator().manual_seed(0)
    vision = _torchvision()
    if op in ("roi_align", "multilevel_roi_align"):
        maps = [torch.randn(1, 256, *size, generator=random).to(device) for size in LEVELS]
        boxes = _boxes(500, 800, 1088, 16, 600, random).to(device)
        yield from _pooling_races(op, maps, boxes, vision)
    elif op == "nms":
        for count in (1000, 12000):
            boxes = _boxes(count, 800, 1088, 16, 400, random).to(device)
            scores = torch.rand(count, generator=random).to(device)
            peers: dict[str, Callable[[], Any]] = {}
            if count <= 1000:
                peers["plain"] = partial(_plain_nms, boxes, scores, 0.7)
            if vision:
                peers["torchvision"] = partial(vision.nms, boxes, scores, 0.7)
            yield Race(f"{count} boxes", partial(nms, boxes, scores, 0.7), peers, 0.0)
    elif op == "batched_nms":
        boxes, scores = _boxes(20000, 800, 1088, 16, 400, random).to(device), torch.rand(20000, generator=random)
        scores, groups = scores.to(device), torch.randint(0, 80, (20000,), generator=random).to(device)
        peers = {}
        if vision:
            peers["torchvision"] = lambda: _in_order(vision.batched_nms(boxes, scores, groups, 0.5), scores)
        yield Race(
            "20000 boxes, 80 classes", lambda: _in_order(batched_nms(boxes, scores, groups, 0.5), scores), peers, 0.0
        )
    else:
        strides, sizes = (4, 8, 16, 32, 64), (32, 64, 128, 256, 512)
        grids = [(-(-800 // stride), -(-1088 // stride)) for stride in strides]

        def ours() -> list[Tensor]:
            return [
                grid_anchors((size,), (0.5, 1.0, 2.0), grid, stride, device=device)
                for size, grid, stride in zip(sizes, grids, strides, strict=True)
            ]

        def plain() -> list[Tensor]:
            return [
                _plain_anchors(size, (0.5, 1.0, 2.0), grid, stride, device)
                for size, grid, stride in zip(sizes, grids, strides, strict=True)
            ]

        yield Race("5 levels of 800 x 1088", ours, {"plain": plain}, 1e-6)


def _pooling_races(op: str, maps: list[Tensor], boxes: Tensor, vision: Any) -> Iterator[Race]:
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    for layout, form in (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format)):
        for backward in (False, True):
            inputs = [m.to(memory_format=form).requires_grad_(backward) for m in maps]
            works: dict[str, Callable[[], Any]]
            if op == "roi_align":  # one level, half-pixel shift
                inputs, scale = inputs[1:2], SCALES[1]
                works = {
                    "ours": partial(roi_align, inputs[0], rois, 7, scale, 2, True),
                    "plain": partial(_plain_roi_align, inputs[0], rois, 7, scale, 2),
                }
                if vision:
                    works["torchvision"] = partial(vision.roi_align, inputs[0], rois, 7, scale, 2, True)
            else:
                works = {"ours": partial(multilevel_roi_align, inputs, [boxes], 7, SCALES, 2, False)}
                if vision:
                    pooler = vision.MultiScaleRoIAlign([str(i) for i in range(len(inputs))], 7, 2)
                    named = {str(i): x for i, x in enumerate(inputs)}
                    works["torchvision"] = partial(pooler, named, [boxes], [(800, 1088)])
            if backward:
                works = {name: _gradient_of(work, inputs) for name, work in works.items()}
            direction = "backward" if backward else "forward"
            yield Race(f"{direction} 500 regions 7x7, C=256, {layout}", works.pop("ours"), works, 1e-4)


def _gradient_of(work: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    """The backward pass alone: the forward pass is done once, beforehand."""
    result = work()
    weights = torch.linspace(-1, 1, result.numel(), device=result.device).reshape(result.shape)
    return lambda: torch.autograd.grad(result, inputs, weights, retain_graph=True)


def _boxes(count: int, height: int, width: int, low: float, high: float, random: torch.Generator) -> Tensor:
    """Boxes inside an image; the roots of their areas are spread evenly in their logarithm, sides 1:2 to 2:1."""
    size = torch.exp(torch.rand(count, generator=random) * math.log(high / low)) * low
    aspect = torch.exp((torch.rand(count, generator=random) - 0.5) * math.log(4.0)).sqrt()
    sides = torch.stack([size * aspect, size / aspect], 1)
    limits = torch.tensor([float(width), float(height)])
    center = torch.rand(count, 2, generator=random) * limits
    low_corner = (center - sides / 2).clamp(min=0)
    return torch.cat([low_corner, torch.minimum(center + sides / 2, limits)], 1)


def _in_order(keep: Tensor, scores: Tensor) -> Tensor:
    """Kept indices by score and number, so that equal scores in another order make no difference."""
    keep = keep.sort().values
    return keep[scores[keep].argsort(descending=True, stable=True)]


def _plain_roi_align(x: Tensor, rois: Tensor, size: int, scale: float, ratio: int) -> Tensor:
    """RoIAlign (aligned) with PyTorch's own operators: all samples gathered, mixed and averaged."""
    low, high = rois[:, 1:3] * scale - 0.5, rois[:, 3:5] * scale - 0.5
    steps = (torch.arange(size * ratio, device=x.device) + 0.5) / (size * ratio)
    points = low[:, None] + (high - low)[:, None] * steps[None, :, None]  # [R, size * ratio, x y]
    mixed = x[0].permute(1, 2, 0)
    weights = []
    for axis, length in ((1, x.shape[2]), (0, x.shape[3])):
        position = points[..., axis]
        inside = (position >= -1) & (position <= length)
        position = position.clamp(0, length - 1)
        first = position.floor().long().clamp(max=length - 1)
        second = (first + 1).clamp(max=length - 1)
        rest = position - first
        weights.append((first, second, (1 - rest) * inside, rest * inside))
    result = x.new_zeros(len(rois), size * ratio, size * ratio, x.shape[1])
    for row, row_weight in ((weights[0][0], weights[0][2]), (weights[0][1], weights[0][3])):
        for column, column_weight in ((weights[1][0], weights[1][2]), (weights[1][1], weights[1][3])):
            share = row_weight[:, :, None, None] * column_weight[:, None, :, None]
            result = result + share * mixed[row[:, :, None], column[:, None, :]]
    result = result.view(len(rois), size, ratio, size, ratio, -1).mean((2, 4))
    return result.permute(0, 3, 1, 2)


def _plain_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """NMS with PyTorch's own operators: a row of overlaps for each box that stays."""
    order = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        sides = torch.minimum(boxes[best, 2:], boxes[order, 2:]) - torch.maximum(boxes[best, :2], boxes[order, :2])
        overlap = sides.clamp(min=0).prod(1)
        order = order[overlap / (area[best] + area[order] - overlap) <= threshold]
    return torch.stack(kept)


def _plain_anchors(
    size: float, ratios: Sequence[float], grid: tuple[int, int], stride: int, device: torch.device
) -> Tensor:
    ratio = torch.tensor(ratios, device=device)
    width, height = size / ratio.sqrt(), size * ratio.sqrt()
    base = torch.stack([-width, -height, width, height], 1) / 2
    y, x = torch.meshgrid(
        torch.arange(grid[0], device=device) * stride, torch.arange(grid[1], device=device) * stride, indexing="ij"
    )
    return (torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) + base).reshape(-1, 4)


def _torchvision() -> Any:
    """torchvision.ops, a peer to compare with, or None: we do not depend on it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchvision.ops
    except (ImportError, RuntimeError):  # RuntimeError: it is there, but for another torch
        return None
    return torchvision.ops


def _known(ops: Iterable[str] | None, names: Sequence[str]) -> list[str]:
    chosen = list(ops or names)
    for op in chosen:
        if op not in names:
            close = difflib.get_close_matches(op, names, n=1)
            raise UserError(
                f"{op}: unknown operator; " + (f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}")
            )
    return chosen
