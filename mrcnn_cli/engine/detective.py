"""Where a value that is not finite comes from: the step is taken again, and every layer is watched."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mrcnn_cli.structures import ImageBatch, Targets

Losses = Callable[[nn.Module, ImageBatch, Sequence[Targets]], dict[str, Tensor]]


@dataclass(frozen=True)
class Clue:
    """What was found when a step was taken again.

    Attributes:
        losses: each term.
        weights: parameters and buffers that were not finite before the step.
        pictures: places in the batch of pictures with pixels that are not finite.
        boxes: the same of boxes.
        layer: the first module whose output is not finite; "" where there is none.
        within: whether that module was already given such values, which its parent made outside of any module.
        images: places in the batch of the images in whose part of that output they are; empty where it has no parts.
        gradients: parameters whose gradient is not finite, in the order of the backward pass.
        behind: the first layer, in that order, whose output was given such a gradient; "" where there is none.
        largest: the parameter with the largest gradient and its absolute value, where all gradients are finite.
    """

    losses: dict[str, float]
    weights: tuple[str, ...] = ()
    pictures: tuple[int, ...] = ()
    boxes: tuple[int, ...] = ()
    layer: str = ""
    within: bool = False
    images: tuple[int, ...] = ()
    gradients: tuple[str, ...] = ()
    behind: str = ""
    largest: tuple[str, float] = ("", 0.0)

    @property
    def terms(self) -> list[str]:
        """The loss terms that are not finite."""
        return [name for name, value in self.losses.items() if not math.isfinite(value)]

    @property
    def symptom(self) -> str:
        """What was noticed, such as "loss_class is nan"; "" where the step is finite when it is taken again."""
        if self.terms:
            return f"{self.terms[0]} is {self.losses[self.terms[0]]}"
        if self.gradients:
            return f"the gradient of {self.gradients[0]} is not finite"
        name, value = self.largest
        return f"the norm of the gradient overflows ({value:.1e} in {name})" if value > HUGE else ""

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        if self.weights:
            more = f" and {len(self.weights) - 1} more" if len(self.weights) > 1 else ""
            return f"{self.weights[0]}{more} was not finite before the step, first seen in {self.layer or 'the losses'}"
        if self.layer:
            where = f"inside of {self.layer}" if self.within else f"in the output of {self.layer}"
            return f"first {where}"
        if self.boxes:
            return "boxes of the batch are not finite"
        if self.terms:
            return "every layer's output is finite: it arises in the loss itself"
        return f"first in the gradient of {self.behind}'s output" if self.behind else ""


# From here on, squares overflow float32, and so does the norm.
HUGE = math.sqrt(torch.finfo(torch.float32).max) / 10


def forward(model: nn.Module, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
    """The losses, as the training loop has them of the model."""
    losses: dict[str, Tensor] = model(images, targets)
    return losses


class Rewind:
    """What a step changes before its losses are known, kept so that the same step can be taken again.

    That is the model's buffers (statistics of batch norms, a running normalizer) and torch's random numbers.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.device = model, device
        self.kept: dict[str, Tensor] = {}
        self.random: dict[str, Tensor] = {}

    @torch.no_grad()
    def keep(self) -> None:
        buffers = dict(self.model.named_buffers())
        if self.kept.keys() != buffers.keys():
            self.kept = {name: torch.empty_like(buffer) for name, buffer in buffers.items()}
        if buffers:
            torch._foreach_copy_(list(self.kept.values()), list(buffers.values()))
        self.random = random_state(self.device)

    @torch.no_grad()
    def restore(self) -> None:
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self.kept[name])
        set_random_state(self.random, self.device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators, of the CPU and of the GPU that is trained on."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def investigate(model: nn.Module, images: ImageBatch, targets: Sequence[Targets], losses_of: Losses = forward) -> Clue:
    """Takes a step's forward and backward pass again, with every module watched; leaves no gradients.

    Args:
        model: as it was before the step.
        images: the batch.
        targets: the truth about it.
        losses_of: how the loop gets losses from the model.
    """
    watched = _Watched(model, len(images))
    parameters = dict(model.named_parameters())
    weights = [name for name, tensor in (*parameters.items(), *model.named_buffers()) if not _finite(tensor)]
    model.zero_grad(set_to_none=True)
    hooks = watched.hooks()
    try:
        losses = losses_of(model, images, targets)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        if all(map(math.isfinite, values.values())):
            torch.stack(list(losses.values())).sum().backward()
        sizes = {name: float(p.grad.abs().max()) for name, p in parameters.items() if p.grad is not None}
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    finite = {name: size for name, size in sizes.items() if math.isfinite(size)}
    return Clue(
        losses=values,
        weights=tuple(weights),
        pictures=_faulty(images.pixels),
        boxes=tuple(place for place, target in enumerate(targets) if not _finite(target.boxes)),
        layer=watched.layer,
        within=watched.within,
        images=watched.images,
        gradients=tuple(watched.gradients),
        behind=watched.behind,
        largest=max(finite.items(), key=lambda item: item[1], default=("", 0.0)),
    )


class _Watched:
    """The hooks, and what they saw first."""

    def __init__(self, model: nn.Module, count: int):
        self.model, self.count = model, count
        self.layer, self.within, self.behind = "", False, ""
        self.images: tuple[int, ...] = ()
        self.gradients: list[str] = []

    def hooks(self) -> list[Any]:
        modules = [(name, module) for name, module in self.model.named_modules() if name]
        parameters = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        return [
            *(module.register_forward_hook(self._after(name)) for name, module in modules),
            *(p.register_post_accumulate_grad_hook(self._accumulated(name)) for name, p in parameters),
        ]

    def _after(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(self._arrived(name))
                if not self.layer and not _finite(tensor):
                    # A module that was given such values by none before it: its parent has made them in between.
                    given = [tensor for tensor in _tensors(inputs) if not _finite(tensor)]
                    self.within = bool(given) and "." in name
                    self.layer = name.rpartition(".")[0] if self.within else name
                    self.images = self._images(given[0] if self.within else tensor)

        return hook

    def _images(self, output: Tensor) -> tuple[int, ...]:
        return _faulty(output) if output.dim() == 4 and len(output) == self.count else ()

    def _arrived(self, name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            if not self.behind and not _finite(gradient):
                self.behind = name

        return hook

    def _accumulated(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None and not _finite(parameter.grad):
                self.gradients.append(name)

        return hook


def _tensors(value: Any) -> Iterator[Tensor]:
    """The real tensors in what a module takes or gives."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, ImageBatch):
        yield from _tensors(value.pixels)


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.detach()).all())


def _faulty(parts: Tensor) -> tuple[int, ...]:
    """Which parts [N, ...] hold a value that is not finite."""
    return tuple(place for place, part in enumerate(parts) if not _finite(part))
