"""The figure of a data set."""

import numpy as np
from PIL import Image

from mrcnn_cli.views.colours import HUES
from mrcnn_cli.views.histograms import histograms


def drawn(path, values):
    histograms("cells", values, path)
    return np.asarray(Image.open(path))


def blue(pixels):
    return (pixels == np.array(HUES[0])).all(axis=2)


def values(**more):
    sizes = np.array([10.0, 12, 15, 40])
    return {"classes": {"one": 3, "two": 1}, "size": sizes, "aspect": sizes / 10, "objects_per_image": [1, 3]} | more


def test_a_class_with_three_times_the_objects_has_a_bar_three_times_as_long(tmp_path):
    bars = blue(drawn(tmp_path / "a.png", values()))[:, :600]  # the panel of the classes
    lengths = bars[84:380].sum(axis=1)
    lengths = np.unique(lengths[lengths > 60])
    assert lengths.max() / lengths.min() > 2.5


def test_every_panel_has_bars(tmp_path):
    bars = blue(drawn(tmp_path / "a.png", values()))
    height, width = bars.shape
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            assert bars[rows, columns].any()


def test_no_objects_and_many_classes_are_drawn_too(tmp_path):
    nothing = {"size": np.zeros(0), "aspect": np.zeros(0), "objects_per_image": np.zeros(3)}
    assert drawn(tmp_path / "a.png", values(classes={f"class {i}": i for i in range(99)}, **nothing)).any()
    assert drawn(tmp_path / "b.png", values(classes={}, **nothing)).any()
    assert drawn(tmp_path / "c.png", values(size=np.array([5.0]), aspect=np.array([1.0]))).any()
