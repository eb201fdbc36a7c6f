"""Proposals of Detectron, Detectron2 and Selective Search."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from mrcnn_cli.data.annotations import ImageRecord
from mrcnn_cli.data.proposals import gathered, packed
from mrcnn_cli.engine.foreign.proposals import read_any_proposals
from mrcnn_cli.errors import UserError

MATLAB = Path(__file__).parents[2] / "data" / "selective_search.mat"
BOXES = [np.array([[0, 0, 10, 20], [5, 5, 50, 40]], np.float32), np.array([[1, 2, 3, 4]], np.float32)]
LOGITS = [np.array([-1.5, 2.0], np.float32), np.array([0.5], np.float32)]


def pickled(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "names", [("ids", "boxes", "objectness_logits"), ("indexes", "boxes", "scores"), ("ids", "boxes", "scores")]
)
def test_pickles_of_detectron_and_detectron2_are_read_best_box_first(tmp_path, names, protocol):
    content = dict(zip(names, ([7, np.int64(3)], BOXES, LOGITS), strict=True))
    proposals = read_any_proposals(pickled(tmp_path / "p.pkl", content, protocol))
    assert proposals.image_ids.tolist() == [7, 3]
    assert proposals[0].tolist() == [[5, 5, 50, 40], [0, 0, 10, 20]]
    assert proposals[1].tolist() == [[1, 2, 3, 4]]
    assert proposals.scores.tolist() == [2.0, -1.5, 0.5]


def test_boxes_of_a_corner_and_a_size_become_corners(tmp_path):
    content = {"ids": ["7", "000003"], "boxes": BOXES, "objectness_logits": LOGITS, "bbox_mode": 1}
    proposals = read_any_proposals(pickled(tmp_path / "p.pkl", OrderedDict(content)))
    assert proposals[0].tolist() == [[5, 5, 55, 45], [0, 0, 10, 20]]
    assert proposals.image_ids.tolist() == [7, -1]  # "000003" is a name, as of Pascal VOC
    images = [ImageRecord(1, "JPEGImages/000003.jpg", 10, 10, Path()), ImageRecord(7, "x.jpg", 10, 10, Path())]
    matched = proposals.matched(images, Path("voc.json"))
    assert [len(boxes) for boxes in matched] == [1, 2]


@pytest.mark.parametrize("name", ["selective_search.mat", "selective_search_compressed.mat"])
def test_selective_searchs_boxes_are_counted_from_1_y_first_and_include_the_last_pixel(name):
    proposals = read_any_proposals(MATLAB.with_name(name))
    assert proposals.file_names == ("000005", "000007", "2008_000123")
    # y1 x1 y2 x2 = 1 1 100 80: the first 100 rows and 80 columns
    assert proposals[0].tolist() == [[0, 0, 80, 100], [10, 20, 50, 60], [6, 4, 300, 9]]
    assert [len(proposals[i]) for i in range(3)] == [3, 0, 40]
    assert proposals.place(-1, "VOC2007/JPEGImages/000007.jpg") == 1


def test_our_own_file_is_recognised_by_its_content(tmp_path):
    path = tmp_path / "p.pkl"
    path.write_bytes(packed(gathered(path, [7, 3], ["a", "b"], [(0, 0)] * 2, BOXES, LOGITS)))
    assert read_any_proposals(path)[1].tolist() == [[1, 2, 3, 4]]


class Exploit:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["ids", "boxes", "extra"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not(tmp_path, place):
    path, mark = tmp_path / "p.pkl", tmp_path / "ran"
    content = {"ids": [7, 3], "boxes": BOXES, "scores": LOGITS, place: Exploit(f"touch {mark}")}
    pickled(path, content)
    with pytest.raises(UserError, match=rf"{path}: refused: this pickle wants \w+.system, which could run code"):
        read_any_proposals(path)
    assert not mark.exists()


GOOD = {"ids": [7, 3], "boxes": BOXES, "scores": LOGITS}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"weight": BOXES[0]}}, r"holds no proposals: it has no 'ids' \(it has model\)"),
        ({**GOOD, "ids": [7]}, "1 ids, 2 lists of boxes and 2 of scores: damaged"),
        ({**GOOD, "bbox_mode": 4}, "boxes of mode 4; 0 .* and 1 .* are known"),
        ({**GOOD, "boxes": [BOXES[0], BOXES[1][:, :3]]}, "holds no proposals, or is damaged"),
        ({**GOOD, "scores": [LOGITS[0], LOGITS[0]]}, "image 3: boxes"),
        ({**GOOD, "ids": [None, 3]}, "holds no proposals, or is damaged"),
        ({**GOOD, "boxes": [BOXES[0] * np.nan, BOXES[1]]}, "image 7: a box is not finite"),
    ],
)
def test_pickles_that_hold_something_else_are_refused_in_one_line(tmp_path, content, message):
    path = pickled(tmp_path / "p.pkl", content)
    with pytest.raises(UserError, match=message) as caught:
        read_any_proposals(path)
    assert str(caught.value).startswith(str(path))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "p"
    for content, message in (
        (b"hello", "holds no proposals; known are"),
        (b"", "holds no proposals; known are"),
        (pickle.dumps(GOOD)[:-20], "damaged, or no pickle"),
        (pickle.dumps([1, 2]), "holds a list, not proposals"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "MATLAB file of version 7.3"),
        (MATLAB.read_bytes()[:500], "a damaged MATLAB file"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_any_proposals(path)
    with pytest.raises(UserError, match="nothing.pkl: cannot be read: No such file"):
        read_any_proposals(tmp_path / "nothing.pkl")


def test_a_matlab_file_without_the_two_cells_says_what_it_has(tmp_path):
    data = bytearray(MATLAB.read_bytes())
    place = data.index(b"images")
    data[place : place + 6] = b"imagez"
    path = tmp_path / "p.mat"
    path.write_bytes(data)
    with pytest.raises(UserError, match="cells 'boxes' and 'images' .it has boxes, imagez, numbers"):
        read_any_proposals(path)
