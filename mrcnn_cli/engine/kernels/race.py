"""One piece of work done by us and by others, side by side: answers are compared first, then everyone is timed."""

import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli.errors import UserError
from mrcnn_cli.ops import onednn

Row = dict[str, Any]
Work = Callable[[], Any]

TENTHS = 10


@dataclass(frozen=True)
class Race:
    """One piece of work, done by us and by others.

    Attributes:
        case: what the input is.
        ours: does it.
        peers: name -> the same work done there, giving the same answer; "plain" is PyTorch's own operators.
        tolerance: largest difference of the answers, by the size of the values.
        bytes: that have to be read and written at least, for the share of the machine's copy bandwidth; 0: not stated.
        operations: multiplications and additions that have to be done, for the share of its peak; 0: not stated.
        answer: turns what a contestant gives into what is compared (a tensor or a sequence of them), outside of the
            timing; for work whose answers come in another form.
    """

    case: str
    ours: Work
    peers: Mapping[str, Work]
    tolerance: float = 0.0
    bytes: int = 0
    operations: int = 0
    answer: Callable[[Any], Any] | None = None

    def answered(self, result: Any) -> Any:
        return result if self.answer is None else self.answer(result)


@dataclass(frozen=True)
class Limits:
    """What the machine can do at best: bytes copied (read and written) and float32 operations, per second."""

    bytes: float
    operations: float


def timed(op: str, race: Race, device: torch.device, seconds: float, limits: Limits) -> Row:
    """Medians in milliseconds, their spread, and for each peer its time by ours.

    Every round runs each contestant once, in an order that turns round from round to round, in this process.

    Raises:
        UserError: an answer differs from ours.
    """
    expected = race.answered(race.ours())
    for peer, work in race.peers.items():
        error = difference(expected, race.answered(work()))
        if not error <= race.tolerance:
            raise UserError(
                f"{op}, {race.case}: our answer differs from {peer}'s by {error:.2g}, so it is not timed; "
                f"run 'mrcnn gradcheck {op}'"
            )
    contestants = {"": race.ours, **race.peers}
    times = _rounds(contestants, device, seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    own = sorted(times[""])
    row: Row = {
        "ms": medians[""],
        # between the tenths at both ends: the noise of the machine, not of the work
        "ms_low": own[len(own) // TENTHS],
        "ms_high": own[-1 - len(own) // TENTHS],
        "rounds": len(own),
    }
    for peer in race.peers:
        row |= {f"{peer}_ms": medians[peer], f"{peer}_ratio": medians[peer] / medians[""]}
    if race.bytes:
        speed = race.bytes / medians[""] * 1e3
        row |= {"gigabytes_per_second": speed / 1e9, "share_of_copy": speed / limits.bytes}
    if race.operations:
        row["share_of_peak"] = race.operations / medians[""] * 1e3 / limits.operations
    return row


def _rounds(contestants: dict[str, Work], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call, for at least `seconds` and three rounds."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    began = time.perf_counter()
    while len(times[""]) < 3 or time.perf_counter() - began < seconds:
        for name in names:
            _wait(device)
            started = time.perf_counter()
            contestants[name]()
            _wait(device)
            times[name].append(1e3 * (time.perf_counter() - started))
        names.reverse()  # whoever comes after whom: caches and clocks favour nobody
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def difference(one: Any, other: Any) -> float:
    """Largest difference of two results (tensors, or sequences of them), by the size of the values."""
    if isinstance(one, Tensor):
        if one.shape != other.shape:
            return math.inf
        if not one.numel():
            return 0.0
        scale = max(float(other.detach().abs().max()), 1.0) if other.dtype != torch.bool else 1.0
        return float((one.detach().double() - other.detach().double()).abs().max()) / scale
    if len(one) != len(other):
        return math.inf
    return max((difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)


def measured_limits(device: torch.device) -> Limits:
    """Measures a copy far larger than the caches and a product of matrices that fit them."""
    megabytes = 128 if device.type == "cpu" else 2048
    source = torch.ones(megabytes << 18, device=device)  # float32
    target = torch.empty_like(source)
    size = 1024 if device.type == "cpu" else 8192
    left = torch.randn(size, size, device=device)
    product = onednn.linear if onednn.takes(left) else torch.mm  # on AMD's processors mm is half as fast
    works: dict[str, Work] = {"": lambda: target.copy_(source), "product": lambda: product(left, left)}
    for work in works.values():
        work()
    times = _rounds(works, device, 0.3)
    copied, multiplied = min(times[""]) / 1e3, min(times["product"]) / 1e3
    return Limits(2 * source.numel() * source.element_size() / copied, 2 * size**3 / multiplied)


@functools.cache
def torchvision() -> Any:
    """torchvision (with torchvision.ops and torchvision.models.detection), a peer, or None: we do not depend on it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchvision.models.detection
            import torchvision.ops
    except (ImportError, RuntimeError):  # RuntimeError: it is there, but for another torch
        return None
    return torchvision


def gradient_of(work: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Work:
    """The backward pass alone: the forward pass is done once, beforehand."""
    result = work()
    random = torch.Generator().manual_seed(7)
    weights = torch.empty_like(result).copy_(torch.randn(result.shape, generator=random))
    return lambda: torch.autograd.grad(result, inputs, weights, retain_graph=True)
