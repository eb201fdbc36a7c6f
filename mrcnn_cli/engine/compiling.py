"""A model's networks compiled by torch.compile for training: few compilations, and the losses of the model itself.

Compiled are the backbone with its neck, the head on the pyramid, and the heads on regions. Hand-written operators and
all else, which depends on what is in the images, stay outside. A compilation is for one shape of input; to bound their
number, shapes are padded to one of few:

* images to the next multiple of `train.compile_step` of both sides, of which no layer notices anything
  (`models.extent`); maps are cut to their own size before anything else sees them;
* regions to the next of 16, 24, 32, 48, 64, ..., with regions of zeros, whose results are dropped.

Evaluation, and all else that needs no gradient, takes the model as it is.
"""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mrcnn_cli.errors import UserError
from mrcnn_cli.models.extent import Extent, enlarged, entered
from mrcnn_cli.models.sync_batch_norm import SyncBatchNorm
from mrcnn_cli.structures import Size

MOST_SHAPES = 512  # of one part; far more than there can be, for beyond it the part would not be compiled, in silence
FEWEST_REGIONS = 16


def check(device: torch.device) -> None:
    """UserError where torch.compile lacks what it needs on this machine."""
    name, key = (os.environ.get("CXX", "g++"), "CXX") if device.type == "cpu" else (os.environ.get("CC", "gcc"), "CC")
    if device.type != "cpu" and importlib.util.find_spec("triton") is None:
        raise UserError("train.compile: needs the package triton on a GPU: install it, or leave the key out")
    if shutil.which(name.partition(" ")[0]) is None:
        raise UserError(
            f"train.compile: needs a compiler where it runs, and there is no {name!r}: install one (apt install g++), "
            f"name one in the environment variable {key}, or leave the key out"
        )


def compile_parts(model: nn.Module, step: int) -> None:
    """Has the networks of a model compiled when training first calls them.

    Args:
        model: of `models.build_model`, whose copies are not compiled: to be made before.
        step: train.compile_step; images of models with a fixed size of input are not padded.

    Raises:
        UserError: batch norms that exchange their statistics, in several processes.
    """
    shared = dist.is_initialized() and dist.get_world_size() > 1
    if shared and any(isinstance(part, SyncBatchNorm) for part in model.modules()):
        raise UserError(
            "train.compile: norm = sync_batch_norm exchanges statistics between processes, which is not compiled; take "
            "group_norm or frozen_batch_norm, or leave the key out"
        )
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_SHAPES)
    parts: dict[str, Any] = dict(model.named_children())
    if "fpn" in parts:
        parts["backbone"].forward = _Backbone(parts["backbone"].forward, step)
        parts["fpn"].forward = _Neck(parts["fpn"].forward)
    else:  # SSD, whose pictures have one size
        for name in ("backbone", "maps", "ssd_head"):
            parts[name].forward = _Part(parts[name].forward)
    for name in ("rpn", "retina_head"):
        if name in parts:
            parts[name].forward = _MapsHead(parts[name].forward, parts[name].strides, step)
    heads: list[Any] = [module for module in model.modules() if hasattr(module, "of_regions")]
    for head in heads:
        if not _has_statistics(head):
            head.of_regions = _Regions(head.of_regions)


def undo(model: nn.Module) -> None:
    """The model as it was."""
    for module in model.modules():
        for name in ("forward", "of_regions"):
            if isinstance(module.__dict__.get(name), _Part):
                delattr(module, name)


def region_count(count: int) -> int:
    """To how many regions so many are padded: to the next of 16, 24, 32, 48, 64, ..."""
    padded = FEWEST_REGIONS
    while padded < count:
        padded += padded // 2 if padded & (padded - 1) == 0 else padded // 3
    return padded


def padded_size(size: Sequence[int], step: int) -> Size:
    """The size that images of this one are padded to: multiples of the step."""
    height, width = (-(-side // step) * step for side in size)
    return height, width


class _Part:
    """A method of a module, compiled for each shape that it is called with; as it was where no gradient is needed."""

    def __init__(self, plain: Callable[..., Any]):
        self.plain = plain
        self.compiled = torch.compile(plain, dynamic=False)

    def __call__(self, inputs: Any) -> Any:
        return self.run(inputs) if torch.is_grad_enabled() else self.plain(inputs)

    def run(self, inputs: Any) -> Any:
        """What it gives in training."""
        return self.call(inputs)

    def call(self, inputs: Any, extent: Extent | None = None) -> Any:
        """The compiled method.

        Raises:
            UserError: the compiler failed.
        """
        try:
            with warnings.catch_warnings(), nullcontext() if extent is None else entered(extent):
                # The compiler itself looks at the gradients of what it is given.
                warnings.filterwarnings("ignore", "The .grad attribute of a Tensor", UserWarning)
                return self.compiled(inputs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            cause = error.inner_exception
            reason = f"{type(cause).__name__}: {str(cause).strip()}".splitlines()[0]
            raise UserError(f"train.compile: the compiler failed ({reason}); leave the key out") from error


class _Padded(list[Tensor]):
    """Maps of which only a part counts."""

    def __init__(self, maps: Sequence[Tensor], extent: Extent, size: Size):
        super().__init__(maps)
        self.extent, self.size = extent, size


class _Backbone(_Part):
    """Pixels -> maps, larger than the pixels ask for."""

    def __init__(self, plain: Callable[..., Any], step: int):
        super().__init__(plain)
        self.step = step

    def run(self, inputs: Tensor) -> list[Tensor]:
        size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
        padded = padded_size(size, self.step)
        if padded == size:
            return self.call(inputs)
        extent = _extent(size, padded, inputs.device)
        return _Padded(self.call(enlarged(inputs, padded), extent), extent, size)


class _Neck(_Part):
    """Maps -> pyramid of the size that the pixels ask for."""

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        if not isinstance(inputs, _Padded):
            return self.call(inputs)
        (height, width), (rows, columns) = inputs.extent.size, inputs.size
        return [
            _cut(map, (-(-rows * map.shape[-2] // height), -(-columns * map.shape[-1] // width)))
            for map in self.call(list(inputs), inputs.extent)
        ]


class _MapsHead(_Part):
    """Pyramid -> lists of maps of its levels' sizes."""

    def __init__(self, plain: Callable[..., Any], strides: Sequence[int], step: int):
        super().__init__(plain)
        self.strides, self.step = strides, step

    def run(self, inputs: list[Tensor]) -> tuple[list[Tensor], ...]:
        sizes = [(int(map.shape[-2]), int(map.shape[-1])) for map in inputs]
        size = (sizes[0][0] * self.strides[0], sizes[0][1] * self.strides[0])
        height, width = padded = padded_size(size, self.step)
        if padded == size:
            return self.call(inputs)
        maps = [
            enlarged(map, (height // stride, width // stride)) for map, stride in zip(inputs, self.strides, strict=True)
        ]
        found = self.call(maps, _extent(size, padded, inputs[0].device))
        return tuple([_cut(map, size) for map, size in zip(maps, sizes, strict=True)] for maps in found)


class _Regions(_Part):
    """Regions -> what a head says of each."""

    def run(self, inputs: Tensor) -> Any:
        count = len(inputs)
        if not count:
            return self.plain(inputs)
        padded = inputs.new_zeros(region_count(count), *inputs.shape[1:])
        found = self.call(torch.cat([inputs, padded[count:]]))
        return found[:count] if isinstance(found, Tensor) else tuple(part[:count] for part in found)


def _extent(size: Size, padded: Size, device: torch.device) -> Extent:
    return Extent(torch.tensor(size, device=device), padded)


def _cut(map: Tensor, size: Size) -> Tensor:
    return map[..., : size[0], : size[1]].contiguous(memory_format=torch.channels_last)


def _has_statistics(head: nn.Module) -> bool:
    """Whether regions of zeros would count, in the statistics of a batch."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in head.modules())
