"""The mini-batch of a loss: which of the matched anchors or proposals take part."""

import torch
from torch import Tensor

from mrcnn_cli.structures import Targets

# Streams of random numbers drawn for one image; a further consumer takes a further number, so that none shifts another.
RPN_STREAM, ROI_STREAM = 1, 2


def generator(target: Targets, stream: int) -> torch.Generator:
    """The random numbers of one image and one consumer; on the CPU, so that every device draws the same."""
    return torch.Generator().manual_seed((target.seed * 1_000_003 + stream) % (1 << 63))


def sample(matched: Tensor, count: int, positive_fraction: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the positives and of the negatives of a mini-batch, each in ascending order.

    At most `count * positive_fraction` positives; negatives fill up to `count` ("Fast R-CNN", Girshick, 2015).

    Args:
        matched: [A] as `ops.match_anchors` gives it: >= 0 object, -1 background, -2 ignored.
        count: size of the mini-batch.
        positive_fraction: upper limit of the share of positives, 0..1.
        random: where the choice is drawn from.
    """
    positives, negatives = (matched >= 0).nonzero()[:, 0], (matched == -1).nonzero()[:, 0]
    positives = _choose(positives, int(count * positive_fraction), random)
    return positives, _choose(negatives, count - len(positives), random)


def _choose(indices: Tensor, count: int, random: torch.Generator) -> Tensor:
    """`count` of the indices, every subset equally likely; all of them if there are no more."""
    if len(indices) <= count:
        return indices
    chosen = torch.randperm(len(indices), generator=random)[:count].sort().values
    return indices[chosen.to(indices.device)]
