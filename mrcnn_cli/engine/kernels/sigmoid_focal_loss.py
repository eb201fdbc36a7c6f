"""sigmoid_focal_loss: checked with hard and soft targets, raced on the anchors of a RetinaNet with 80 classes."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.race import Race, Work, torchvision
from mrcnn_cli.ops import reference, sigmoid_focal_loss, sigmoid_focal_loss_labels

ANCHORS, CLASSES = 200_000, 80


def _logits(*size: int) -> Tensor:
    return 2 * torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def checks() -> Iterator[Check]:
    logits = _logits(9, 5)
    hard, soft = (_logits(9, 5).flip(0) > 1).double(), torch.linspace(0, 1, 45, dtype=torch.float64).reshape(9, 5)
    for name, targets in (("hard targets", hard), ("soft targets", soft)):
        for alpha, gamma in ((0.25, 2.0), (-1.0, 1.5)):
            yield Check(
                f"{name}, alpha {alpha:g}, gamma {gamma:g}",
                lambda x, t, a=alpha, g=gamma: sigmoid_focal_loss(x, t.detach(), a, g),
                lambda x, t, a=alpha, g=gamma: reference.sigmoid_focal_loss(x, t, a, g),
                (logits, targets),
                dtypes=("float64", "float32", "float16", "bfloat16"),
            )
            yield Check(
                f"{name}, alpha {alpha:g}, gamma {gamma:g}, slope",
                lambda x, t=targets, a=alpha, g=gamma: sigmoid_focal_loss(x, t.to(x.device), a, g),
                lambda x, t=targets, a=alpha, g=gamma: reference.sigmoid_focal_loss(x, t, a, g),
                (logits,),
                differentiable=True,
                dtypes=("float64",),
            )


def labels_checks() -> Iterator[Check]:
    labels = torch.tensor([-1, 0, 1, 2, 3, 4, 5, 5, 2])
    yield Check(
        "5 classes, background, an ignored row",
        lambda x: sigmoid_focal_loss_labels(x, labels.to(x.device)),
        lambda x: reference.sigmoid_focal_loss_labels(x, labels),
        (_logits(9, 5),),
        differentiable=True,
    )


def races(device: torch.device) -> Iterator[Race]:
    logits, _, targets = _anchors(device)
    vision = torchvision()
    for backward in (False, True):
        peers: dict[str, Work] = {"plain": _step(_plain, logits, targets, backward)}
        if vision:
            peers["torchvision"] = _step(
                partial(vision.ops.sigmoid_focal_loss, reduction="sum"), logits, targets, backward
            )
        yield _race(partial(sigmoid_focal_loss, reduction="sum"), logits, targets, backward, peers)


def labels_races(device: torch.device) -> Iterator[Race]:
    """From labels, which the peers turn into one-hot targets first."""
    logits, labels, _ = _anchors(device)
    vision = torchvision()
    for backward in (False, True):
        peers: dict[str, Work] = {"plain": _step(_from_one_hot(_plain), logits, labels, backward)}
        if vision:
            theirs = _from_one_hot(partial(vision.ops.sigmoid_focal_loss, reduction="sum"))
            peers["torchvision"] = _step(theirs, logits, labels, backward)
        yield _race(partial(sigmoid_focal_loss_labels, reduction="sum"), logits, labels, backward, peers)


Loss = Callable[[Tensor, Tensor], Tensor]


def _anchors(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels of which one in a dozen is an object, and the same as targets."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(ANCHORS, CLASSES, generator=random)
    labels = torch.randint(0, 12 * CLASSES, (ANCHORS,), generator=random).clamp(max=CLASSES)
    return logits.to(device), labels.to(device), _one_hot(labels).to(device)


def _one_hot(labels: Tensor) -> Tensor:
    targets = torch.zeros(len(labels), CLASSES + 1, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1)[:, :CLASSES].contiguous()


def _from_one_hot(loss: Loss) -> Loss:
    return lambda logits, labels: loss(logits, _one_hot(labels))


def _step(loss: Loss, logits: Tensor, truth: Tensor, backward: bool) -> Work:
    """The loss, or the loss and its gradient."""
    if not backward:
        return partial(loss, logits, truth)
    leaf = logits.clone().requires_grad_()

    def both() -> tuple[Tensor, ...]:
        total = loss(leaf, truth)
        return total.detach(), *torch.autograd.grad(total, leaf)

    return both


def _race(loss: Loss, logits: Tensor, truth: Tensor, backward: bool, peers: dict[str, Work]) -> Race:
    read = logits.numel() * logits.element_size() + truth.numel() * truth.element_size()
    written = logits.numel() * logits.element_size() if backward else 0
    passes = 2 if backward else 1
    case = f"{'forward and backward' if backward else 'forward'}, {ANCHORS} x {CLASSES}"
    return Race(case, _step(loss, logits, truth, backward), peers, 1e-4, bytes=passes * read + written)


def _plain(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss (alpha 0.25, gamma 2) with PyTorch's own operators."""
    p = logits.sigmoid()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = p * (1 - targets) + (1 - p) * targets
    return ((0.25 * targets + 0.75 * (1 - targets)) * wrong**2 * entropy).sum()
