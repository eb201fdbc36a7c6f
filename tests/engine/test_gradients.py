"""Histograms of gradients: counted as a plain loop counts, written as often as asked, drawn as they are."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mrcnn_cli.engine.gradients import edges, histogram
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.train import Interrupted, train
from mrcnn_cli.models import build_model
from mrcnn_cli.views.gradients import NAMES, ROW, TOP, WIDTH, gradient_pictures


def test_a_histogram_is_what_a_loop_counts():
    torch.manual_seed(0)
    gradient = torch.randn(40, 30) * 10.0 ** torch.randint(-14, 6, (40, 30))
    gradient[0, :7] = 0
    found, bounds = histogram(gradient), edges()
    counts = [0] * (len(bounds) - 1)
    for value in gradient.flatten().tolist():
        if value:
            size = min(max(math.log10(abs(value)), bounds[0]), bounds[-1] - 1e-3)
            counts[max(place for place, bound in enumerate(bounds[:-1]) if bound <= size)] += 1
    assert found["zeros"] == 7
    assert sum(found["counts"]) == 40 * 30 - 7
    assert np.abs(np.subtract(found["counts"], counts)).sum() <= 2  # a value on a bound, in float32
    assert found["norm"] == pytest.approx(float(gradient.double().norm()), rel=1e-5)


def test_rows_come_as_often_as_asked_and_a_resumed_run_goes_on_with_them(tmp_path, tiny):
    def run():
        return prepare(read_config("nuclei_scratch", {**tiny, "train.histograms": 2}), tmp_path / "run", "cpu")

    steps = []
    with pytest.raises(Interrupted):
        for step in train(run(), should_stop=lambda: len(steps) == 3):
            steps.append(step)
    list(train(run(), resume=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "gradients.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    model = build_model(run().config.model, 1)
    learnt = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    for row in rows:
        assert {name: sum(v["counts"]) + v["zeros"] for name, v in row["parameters"].items()} == learnt
    with Image.open(tmp_path / "run" / "gradients.png") as picture:
        assert picture.height > ROW * len(learnt)


def test_without_the_key_nothing_is_written(tmp_path, tiny):
    list(train(prepare(read_config("nuclei_scratch", {**tiny, "train.steps": 1}), tmp_path / "run", "cpu")))
    assert not list((tmp_path / "run").glob("gradients*"))


def test_the_picture_is_dark_where_the_values_are(tmp_path):
    layer = nn.Linear(30, 1, bias=False)
    layer.weight.grad = torch.full((1, 30), 3e-5)
    row = {"step": 5, "edges": edges(), "parameters": {"layer.weight": histogram(layer.weight.grad)}}
    gradient_pictures([row], tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as picture:
        line = np.asarray(picture.convert("L"))[TOP + ROW // 2, 24 + NAMES : 24 + NAMES + WIDTH]
    columns = np.flatnonzero(line < 200)
    size = edges()[0] + (columns.mean() + 0.5) / WIDTH * (edges()[-1] - edges()[0])
    assert math.floor(size * 2) == math.floor(math.log10(3e-5) * 2)
