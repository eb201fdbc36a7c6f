"""Which layers learn, and how fast: named as people name them, "heads,backbone.4+".

A name is `all`, `heads` (everything but the backbone), the name of a module as it stands in the weights (`rpn`,
`backbone.stages.3`, `box_head.logits`), or a part of the backbone by its number, with a plus that part and all behind
it. Parts are counted as by the keys that freeze them: the stem is 1, so 2 to 5 are the stages C2 to C5 of a ResNet.
"""

import re
from collections.abc import Iterable

from torch import nn

from mrcnn_cli.errors import UserError


def restrict(model: nn.Module, layers: str) -> list[nn.Module]:
    """Let only these layers learn, among those that the model's recipe lets learn.

    Returns:
        The batch norms that come to rest; they are to stay in evaluation mode, so that their statistics do too.

    Raises:
        UserError: an unknown name; nothing is left that learns.
    """
    chosen = {name for word in layers.split(",") for name in _named(model, word.strip(), "train.layers")}
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not chosen & learning:
        raise UserError(f"train.layers = {layers!r}: nothing of that learns, as the model's recipe freezes it")
    parameters = dict(model.named_parameters())
    for name in learning - chosen:
        parameters[name].requires_grad_(False)
    return [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and f"{path}.weight" in learning - chosen
    ]


def learning(model: nn.Module) -> tuple[int, int]:
    """How many parameters learn, and of how many."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, learns in counts if learns), sum(count for count, _ in counts)


def factors(model: nn.Module, text: str) -> dict[str, float]:
    """Parameter -> factor on the learning rate, of "backbone.1=0.1, heads=2"; the last one that names it counts.

    Raises:
        UserError: an unknown name, or no positive number.
    """
    found: dict[str, float] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        word, equals, number = (part.strip() for part in pair.partition("="))
        if not equals or not re.fullmatch(r"\d*\.?\d+(e-?\d+)?", number) or float(number) == 0:
            raise UserError(
                f"train.learning_rate_factors: {pair!r}: expected LAYERS=FACTOR with a factor above 0, such as "
                "backbone.1=0.1; layers that shall not learn are left out of train.layers"
            )
        found |= dict.fromkeys(_named(model, word, "train.learning_rate_factors"), float(number))
    return found


def _named(model: nn.Module, word: str, key: str) -> set[str]:
    """The parameters that one name stands for."""
    names = [name for name, _ in model.named_parameters()]
    number = re.fullmatch(r"backbone\.(\d+)(\+?)", word)
    if word == "all":
        return set(names)
    if word == "heads":
        return {name for name in names if not name.startswith("backbone.")}
    if number:
        parts = _backbone_parts(model)
        first = int(number[1])
        if not 1 <= first <= len(parts):
            raise UserError(f"{key}: {word!r}: the backbone has the parts 1 to {len(parts)}, the stem being 1")
        return _below(names, parts[first - 1 :] if number[2] else parts[first - 1 : first])
    found = _below(names, [word])
    if not found:
        known = ", ".join(name for name, _ in model.named_children() if _below(names, [name]))
        raise UserError(f"{key}: {word!r}: no such layers; known: all, heads, backbone.N, backbone.N+, {known}")
    return found


def _backbone_parts(model: nn.Module) -> list[str]:
    """The parts of the backbone from the pixels on: the modules of its lists one by one."""
    parts: list[str] = []
    for name, child in model.get_submodule("backbone").named_children():
        inner = [f"{name}.{index}" for index in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
        parts += [f"backbone.{part}" for part in inner]
    return parts


def _below(names: Iterable[str], modules: list[str]) -> set[str]:
    return {name for name in names if any(name == module or name.startswith(f"{module}.") for module in modules)}
