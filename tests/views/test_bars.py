import numpy as np
import pytest
from PIL import Image

from mrcnn_cli.errors import UserError
from mrcnn_cli.views.bars import LEFT, WIDTH, ratio_bars
from mrcnn_cli.views.colours import HUES


def rows(*ratios):
    return [
        {"op": f"op{i}", "case": "a case", "device": "cpu", "threads": 1, "ms": 1.0, "peer_ratio": ratio}
        for i, ratio in enumerate(ratios)
    ]


def lengths(path):
    """Pixels of each bar, from the top, and where it begins."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture) == np.array(HUES[0])
    columns = pixels.all(2)[80:]
    inside = columns.sum(1) > 3
    starts = np.flatnonzero(np.diff(np.concatenate([[False], inside]).astype(int)) == 1)
    return [(int(columns[start + 2].sum()), int(columns[start + 2].argmax())) for start in starts]


def test_a_bar_is_as_long_as_the_logarithm_of_its_ratio(tmp_path):
    ratio_bars(rows(10.0, 100.0), tmp_path / "bars.png")
    (short, _), (long, start) = lengths(tmp_path / "bars.png")
    assert start == LEFT
    assert long == pytest.approx(WIDTH, abs=2)
    assert short == pytest.approx(WIDTH / 2, abs=2)


def test_a_bar_of_who_is_slower_points_to_the_left_of_one(tmp_path):
    ratio_bars(rows(0.5, 2.0), tmp_path / "bars.png")
    (slower, from_left), (faster, from_middle) = lengths(tmp_path / "bars.png")
    assert slower == pytest.approx(faster, abs=2)
    assert from_left < from_middle


def test_nothing_to_show_still_makes_a_picture(tmp_path):
    ratio_bars([], tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.width > LEFT + WIDTH


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        ratio_bars(rows(2.0), tmp_path / "nowhere" / "bars.png")
