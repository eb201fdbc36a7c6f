"""One step's batch done in parts, with the losses and gradients of the whole.

A loss is a sum divided by a count, of which the mask head's (how many regions hit an object) is known only once the
proposals are. So a step of several parts goes over them twice: first to count, by the very same computation, so that
the counts are exact; then with the counts of all parts and processes as denominators, for the gradients. This costs one
forward pass more.

A step changes buffers (running statistics) once, in however many parts it is done: what stays is the last part's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mrcnn_cli.data.loader import share
from mrcnn_cli.engine.distributed import World
from mrcnn_cli.structures import Denominator, ImageBatch, Targets, at_least_one

Part = tuple[ImageBatch, Sequence[Targets]]


def losses_in_parts(
    world: World,
    model: nn.Module,
    network: nn.Module,
    images: ImageBatch,
    targets: Sequence[Targets],
    parts: int,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[dict[str, Tensor]]:
    """This process's share of the losses, part by part: to be propagated back before the next one is asked for.

    The sum over parts and processes is the loss of the whole batch.

    Args:
        world: the processes.
        model: the model itself.
        network: the same as `World.parallel` gives it.
        images: this process's share of a step.
        targets: one per image.
        parts: how many.
        autocast: what the model computes in, see `numerics.autocast`.
    """
    images = images.padded(*world.largest(*images.pixels.shape[-2:]))
    if parts == 1:
        with autocast():
            losses = network(images, targets, world.denominator)
        yield losses
        return
    batches = divided(images, targets, parts)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with autocast():
        totals = _totals(world, model, batches)
    for number, batch in enumerate(batches, start=1):
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        waits = number < parts and isinstance(network, DistributedDataParallel)
        with network.no_sync() if waits else nullcontext():  # type: ignore[operator]  # attributes are untyped
            with autocast():
                losses = network(*batch, _replay(totals))
            yield losses


def divided(images: ImageBatch, targets: Sequence[Targets], parts: int) -> list[Part]:
    """A process's share of a step in so many parts."""
    shares = [share(range(len(images)), part, parts) for part in range(parts)]
    return [(images.part(places), targets[places.start : places.stop]) for places in shares]


def _totals(world: World, model: nn.Module, batches: Sequence[Part]) -> Tensor:
    """The denominators in the order in which the model asks for them, over all parts and processes."""
    counted = []
    for batch in batches:
        counts: list[Any] = []

        def count(number: Any, counts: list[Any] = counts) -> Any:
            counts.append(number)
            return at_least_one(number)

        model(*batch, count)
        counted.append(torch.stack([torch.as_tensor(number).cpu() for number in counts]))
    return world.sum(torch.stack(counted).sum(0)).clamp(min=1)


def _replay(totals: Tensor) -> Denominator:
    numbers = iter(totals)
    return lambda count: next(numbers)
