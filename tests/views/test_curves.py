"""The picture of a run, for tidy and for odd rows."""

import math
import os

import numpy as np
import pytest
from PIL import Image

from mrcnn_cli.errors import UserError
from mrcnn_cli.views import curves


def train_row(step, loss=None, **values):
    loss = 2.0 / step + 0.4 if loss is None else loss
    terms = {"loss_rpn_objectness": loss * 0.3, "loss_mask": loss * 0.7} | values
    return {"kind": "train", "step": step, "loss": loss, **terms, "learning_rate": 1e-3}


def evaluation_row(step, **values):
    return {"kind": "evaluation", "step": step, "mask_ap": 0.3, "mask_ap50": 0.6, "box_ap": 0.35} | values


def drawn(rows, tmp_path):
    curves.loss_curves(rows, tmp_path / "losses.png")
    assert os.listdir(tmp_path) == ["losses.png"]
    with Image.open(tmp_path / "losses.png") as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def count(picture, colour):
    """Pixels of exactly this colour where the curves are, the legend left out."""
    panels = [
        picture[:, start + curves.LEFT : start + curves.PANEL[0] - curves.RIGHT + 8]
        for start in range(0, picture.shape[1], curves.PANEL[0])
    ]
    return sum(int((panel == np.array(colour)).all(axis=2).sum()) for panel in panels)


def test_losses_and_precision_are_drawn_side_by_side(tmp_path):
    rows = [train_row(step) for step in range(1, 101)] + [evaluation_row(50), evaluation_row(100, mask_ap=0.4)]
    picture = drawn(rows, tmp_path)
    assert picture.shape == (curves.PANEL[1], 2 * curves.PANEL[0], 3)
    left, right = picture[:, : curves.PANEL[0]], picture[:, curves.PANEL[0] :]
    assert count(left, curves.INK) > 500
    assert min(count(left, hue) for hue in curves.HUES[:2]) > 300
    assert min(count(right, hue) for hue in curves.HUES[:3]) > 300
    assert count(right, curves.HUES[3]) == 0  # box AP50 is not in the rows


def test_without_evaluations_there_is_one_panel(tmp_path):
    assert drawn([train_row(step) for step in range(1, 20)], tmp_path).shape[1] == curves.PANEL[0]


def test_without_losses_there_is_the_panel_of_precision(tmp_path):
    picture = drawn([evaluation_row(10), evaluation_row(20)], tmp_path)
    assert picture.shape[1] == curves.PANEL[0]
    assert count(picture, curves.HUES[0]) > 300


def test_networks_of_proposals_are_drawn_by_their_recall(tmp_path):
    rows = [
        {"kind": "evaluation", "step": n, "proposal_ar1000": 0.1 * n, "proposal_ar100": 0.05 * n} for n in (1, 2, 3)
    ]
    picture = drawn(rows, tmp_path)
    assert min(count(picture, hue) for hue in curves.HUES[:2]) > 300
    assert count(picture, curves.HUES[2]) == 0


def test_a_single_row_is_a_dot(tmp_path):
    picture = drawn([train_row(1)], tmp_path)
    assert 20 < count(picture, curves.HUES[0]) < 200


def test_no_rows_give_empty_axes(tmp_path):
    assert count(drawn([], tmp_path), curves.HUES[0]) == 0


def test_steps_whose_loss_is_not_finite_are_marked_and_interrupt_the_curve(tmp_path):
    rows = [train_row(step) for step in range(1, 61)]
    tidy = drawn(rows, tmp_path)
    for step in (20, 21, 40):
        rows[step - 1] = train_row(step, loss=math.nan)
    rows[49] = train_row(50, loss=math.inf)
    broken = drawn(rows, tmp_path)
    assert count(tidy, curves.ALARM) == 0
    assert count(broken, curves.ALARM) > 4 * 10
    assert count(broken, curves.INK) < 0.97 * count(tidy, curves.INK)


def test_a_run_of_nothing_but_nan_is_drawn(tmp_path):
    rows = [train_row(step, loss=math.nan) for step in range(1, 30)] + [evaluation_row(29, mask_ap=math.nan)]
    assert count(drawn(rows, tmp_path), curves.ALARM) > 29 * 5


def test_absent_values_and_rows_of_other_kinds_are_passed_over(tmp_path):
    rows = [
        train_row(1),
        {"kind": "train", "step": 2},
        {"kind": "train", "step": 3, "loss": None, "loss_mask": None},
        {"kind": "train", "loss": 3.0},
        {"kind": "note", "step": 900, "loss": 1000.0},
        {"step": 5},
        evaluation_row(3, mask_ap=None, box_ap=None),
        train_row(4),
    ]
    picture = drawn(rows, tmp_path)
    assert count(picture, curves.ALARM) == 0  # absent is not the same as not finite
    assert count(picture, curves.HUES[1]) > 20


def test_rows_of_a_resumed_run_count_once_each_the_last_of_a_step(tmp_path):
    first = [train_row(step, loss=50.0) for step in range(1, 41)]
    second = [train_row(step) for step in range(1, 61)]
    mixed = drawn(first + second[::-1], tmp_path)
    assert np.array_equal(mixed, drawn(second, tmp_path))


def test_the_mean_leaves_out_what_is_not_finite():
    values = np.ones(400)
    values[100] = np.nan
    values[200] = np.inf
    smoothed = curves._smoothed(values)
    assert np.flatnonzero(np.isnan(smoothed)).tolist() == [100, 200]
    assert np.allclose(smoothed[np.isfinite(values)], 1)


def test_smoothing_calms_noise_and_keeps_a_line():
    line = np.linspace(3, 1, 1000)
    noise = np.random.default_rng(0).normal(0, 0.2, 1000)
    smoothed = curves._smoothed(line + noise)
    assert np.abs(smoothed - line)[25:].max() < 0.25
    assert np.abs(smoothed - line).std() < 0.05
    assert np.allclose(curves._smoothed(line)[:970], line[:970])


@pytest.mark.parametrize(
    ("end", "texts"),
    [
        (1.02, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.26, ["0.00", "0.05", "0.10", "0.15", "0.20", "0.25"]),
        (612.0, ["0", "200", "400", "600"]),
        (91800.0, ["0", "20k", "40k", "60k", "80k"]),
        (0.0013, ["0.00000", "0.00025", "0.00050", "0.00075", "0.00100", "0.00125"]),
        (12240.0, ["0", "2.5k", "5k", "7.5k", "10k"]),
        (15300.0, ["0", "5k", "10k", "15k"]),
    ],
)
def test_ticks_are_round_numbers(end, texts):
    assert curves._texts(curves._ticks(end, 6)) == texts


def test_steps_have_no_ticks_between_them():
    assert curves._texts(curves._ticks(1.02, 6, finest=1.0)) == ["0", "1"]


def test_a_long_curve_is_thinned_to_its_highest_and_lowest_points():
    values = np.random.default_rng(0).random(60_000)
    values[31_234], values[31_240] = 9, -9
    points = np.stack([np.arange(60_000.0), values], axis=1)
    thinned = curves._thinned(points, 500)
    assert len(thinned) <= 1000
    assert (np.diff(thinned[:, 0]) > 0).all()
    assert {(31_234, 9), (31_240, -9)} <= {tuple(point) for point in thinned.tolist()}
    assert np.array_equal(curves._thinned(points, 30_000), points)


def test_a_long_run_is_drawn(tmp_path):
    random = np.random.default_rng(0).random(20_000)
    rows = [train_row(step, loss=0.5 + noise) for step, noise in enumerate(random.tolist(), start=1)]
    assert count(drawn(rows, tmp_path), curves.INK) > 500


def test_curves_for_an_absent_folder_are_a_mistake_of_the_user(tmp_path):
    with pytest.raises(UserError, match=r"losses\.png: cannot be written"):
        curves.loss_curves([train_row(1)], tmp_path / "absent" / "losses.png")
