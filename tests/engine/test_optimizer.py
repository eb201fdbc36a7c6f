import math

import pytest
import torch
from torch import nn

from mrcnn_cli.engine.optimizer import TrainConfig, WeightAverage, build_optimizer, learning_rate, set_learning_rate


def test_warm_up_rises_linearly_to_the_full_rate():
    config = TrainConfig(learning_rate=1.0, warmup_steps=10, warmup_factor=0.1)
    rates = [learning_rate(config, step) for step in range(12)]
    assert rates[0] == pytest.approx(0.1 * 0.9 + 0.1)
    differences = [b - a for a, b in zip(rates[:9], rates[1:10], strict=True)]
    assert differences == pytest.approx([0.09] * 9)
    assert rates[9:] == pytest.approx([1.0, 1.0, 1.0])


def test_steps_divide_the_rate_at_each_decay_step():
    config = TrainConfig(learning_rate=0.02, warmup_steps=0, decay_steps=(60, 80), steps=90)
    assert [learning_rate(config, s) for s in (0, 59, 60, 79, 80, 89)] == pytest.approx(
        [0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002]
    )


def test_the_cosine_ends_at_zero_and_is_half_way_in_the_middle():
    config = TrainConfig(learning_rate=1.0, warmup_steps=20, schedule="cosine", steps=120)
    assert learning_rate(config, 20) == pytest.approx(1.0)
    assert learning_rate(config, 70) == pytest.approx(0.5)
    assert learning_rate(config, 119) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_the_backbone_learns_slower_and_vectors_do_not_decay():
    config = TrainConfig(optimizer="adamw", learning_rate=1.0, backbone_factor=0.3, weight_decay=0.01)
    model = Small()
    optimizer = build_optimizer(config, model)
    set_learning_rate(optimizer, 0.5)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == {
        id(model.backbone.weight): (0.15, 0.01),
        id(model.backbone.bias): (0.15, 0.0),
        id(model.head.weight): (0.5, 0.01),
        id(model.head.bias): (0.5, 0.0),
    }


def test_the_average_follows_the_formula_and_forgets_the_start():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.fill_(0.0)
    average = WeightAverage(model, 0.9)
    expected = 0.0
    for step in range(1, 200):
        with torch.no_grad():
            model[0].weight.fill_(float(step))
            model[1].num_batches_tracked.fill_(step)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.model[0].weight.item() == pytest.approx(expected, rel=1e-4)
    assert average.model[1].num_batches_tracked.item() == 199
    assert not average.model.training


def test_decay_steps_must_ascend():
    with pytest.raises(ValueError, match="decay_steps must ascend"):
        TrainConfig(decay_steps=(80, 60))
