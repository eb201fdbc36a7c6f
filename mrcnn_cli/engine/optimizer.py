"""What changes the weights: optimiser, learning rate as a function of the step, and the running average of weights."""

import copy
import math
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from mrcnn_cli.config import Config
from mrcnn_cli.engine.layers import factors
from mrcnn_cli.engine.numerics import Precision


class TrainConfig(Config):
    weights: Path | None = None  # start from these: a run, a checkpoint, or a file of another system
    steps: int = Field(90_000, ge=1)
    batch_size: int = Field(16, ge=1)  # images per step, over all processes and parts
    accumulate: int = Field(1, ge=1)  # parts that a step is done in, one after the other: less memory, more time
    seed: int = Field(0, ge=0)
    deterministic: bool = True  # the same bits on every run, on a GPU too; the CPU has them anyway
    compile: bool = False  # backbone, neck and heads by torch.compile; it needs a compiler where it runs
    compile_step: int = Field(256, ge=128, multiple_of=128)  # pixels; for sides of these multiples it compiles
    precision: Precision = "float32"  # of convolutions and products in training; float16 with a scaler of gradients
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.02, gt=0)
    learning_rate_images: int | None = Field(None, ge=1)  # batch that it is meant for; scaled by batch_size over this
    learning_rate_factors: str = ""  # of layers, such as "backbone.1=0.1, heads=2"; in place of backbone_factor
    layers: str = "all"  # the ones that learn, such as "heads" or "heads,backbone.4+" (see docs/training.md)
    backbone_factor: float = Field(1.0, ge=0, le=1)  # the backbone's share of the learning rate
    momentum: float = Field(0.9, ge=0, lt=1)  # of SGD
    weight_decay: float = Field(1e-4, ge=0)
    norm_weight_decay: float = Field(0.0, ge=0)  # of normalisations and biases
    warmup_steps: int = Field(500, ge=0)
    warmup_factor: float = Field(1e-3, gt=0, le=1)
    schedule: Literal["step", "cosine", "plateau"] = "step"
    decay_steps: tuple[int, ...] = (60_000, 80_000)  # of schedule = "step"
    decay_factor: float = Field(0.1, gt=0, lt=1)  # of "step" and "plateau"
    plateau_patience: int = Field(3, ge=1)  # of "plateau": evaluations without a gain after which the rate falls
    clip_norm: float | None = Field(None, gt=0)  # largest norm of the gradient
    average: float | None = Field(None, gt=0, lt=1)  # decay of the exponential average of weights that is evaluated
    save_every: int = Field(1000, ge=1)  # steps; also before each evaluation
    keep_states: int = Field(2, ge=1)  # of the newest saved states to go on from; 2: one is left if the last is damaged
    evaluate_every: int | None = Field(None, ge=1)  # steps; None: only after the last one
    evaluate_epochs: int | None = Field(None, ge=1)  # the same in passes over the training images
    validation_loss: bool = False  # computed at each evaluation too
    best_by: str | None = None  # the metric that best.safetensors is best in, such as "box_ap50"; a loss: the lowest
    keep_best: int = Field(1, ge=1)  # how many of the best weights; the next ones as best-<step>.safetensors
    patience: int | None = Field(None, ge=1)  # evaluations without a gain after which training ends
    least_gain: float = Field(0.0, ge=0)  # what counts as one, in the metric's units; 0: any
    histograms: int | None = Field(None, ge=1)  # steps between rows of gradients.jsonl, one per layer; None: no
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()  # beside metrics.jsonl; see engine/logs.py

    @model_validator(mode="after")
    def _ordered(self) -> "TrainConfig":
        if list(self.decay_steps) != sorted(set(self.decay_steps)):
            raise ValueError("decay_steps must ascend")
        if self.accumulate > self.batch_size:
            raise ValueError("accumulate must not exceed batch_size: each part needs an image")
        if self.evaluate_every is not None and self.evaluate_epochs is not None:
            raise ValueError("evaluate_every and evaluate_epochs say the same thing: give one of them")
        if not self.evaluates_often:
            for key, given in (("patience", self.patience), ("schedule", self.schedule == "plateau")):
                if given:
                    raise ValueError(f"{key} = {getattr(self, key)!r} needs evaluations on the way: set evaluate_every")
        return self

    @property
    def evaluates_often(self) -> bool:
        """Whether there are evaluations before the last step."""
        return self.evaluate_every is not None or self.evaluate_epochs is not None

    @property
    def needs_validation_loss(self) -> bool:
        return self.validation_loss or (self.best_by or "").startswith("loss")

    @property
    def full_rate(self) -> float:
        """The learning rate after warm-up, scaled linearly to the batch ("Accurate, Large Minibatch SGD", 2017)."""
        if self.learning_rate_images is None:
            return self.learning_rate
        return self.learning_rate * self.batch_size / self.learning_rate_images


def learning_rate(config: TrainConfig, step: int, plateaus: int = 0) -> float:
    """The learning rate of step 0, 1, ...: linear warm-up, then steps or half a cosine down to zero.

    Args:
        config: which of them.
        step: steps done.
        plateaus: how often the rate has fallen by schedule = "plateau", see `stopping.decays`.
    """
    if config.schedule == "cosine":
        rest = max(config.steps - config.warmup_steps, 1)
        passed = min(max(step - config.warmup_steps, 0) / rest, 1.0)
        rate = config.full_rate * 0.5 * (1 + math.cos(math.pi * passed))
    elif config.schedule == "plateau":
        rate = config.full_rate * config.decay_factor**plateaus
    else:
        rate = config.full_rate * config.decay_factor ** sum(step >= decay for decay in config.decay_steps)
    if step < config.warmup_steps:
        progress = (step + 1) / config.warmup_steps
        rate *= config.warmup_factor * (1 - progress) + progress
    return rate


def scaling_hint(recipe: TrainConfig, config: TrainConfig) -> str | None:
    """What to say where the batch is another one than the recipe's learning rate is meant for, and nothing scales it.

    Of SGD alone: with AdamW, which divides by the gradient's size, a smaller batch hardly asks for it.
    """
    changed = config.batch_size != recipe.batch_size and config.learning_rate == recipe.learning_rate
    if not changed or config.learning_rate_images is not None or config.optimizer != "sgd":
        return None
    scaled = config.learning_rate * config.batch_size / recipe.batch_size
    return (
        f"hint     the recipe's learning rate {config.learning_rate:g} is meant for {recipe.batch_size} images, and "
        f"{config.batch_size} want {scaled:.4g}: --set train.learning_rate_images={recipe.batch_size}"
    )


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over what has gradients: backbone and the rest, each with and without weight decay.

    Every group's share of the learning rate is its "factor".

    Raises:
        UserError: train.learning_rate_factors names layers that the model does not have.
    """
    named = factors(model, config.learning_rate_factors)
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_backbone = name.startswith("backbone.")
            factor = named.get(name, config.backbone_factor if in_backbone else 1.0)
            groups.setdefault((in_backbone, parameter.ndim < 2, factor), []).append(parameter)
    described = [
        {
            "params": parameters,
            "factor": factor,
            "weight_decay": config.norm_weight_decay if is_vector else config.weight_decay,
        }
        for (_, is_vector, factor), parameters in groups.items()
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(described, lr=config.full_rate, fused=True)
    return torch.optim.SGD(described, lr=config.full_rate, momentum=config.momentum, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


class WeightAverage:
    """Exponential moving average of a model's weights and statistics, as a model of its own.

    The decay rises with the step, so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.model.state_dict(), model.state_dict()
        averaged = [name for name in mine if mine[name].is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in averaged], [theirs[name] for name in averaged], weight)
        for name in mine.keys() - averaged:
            mine[name].copy_(theirs[name])
