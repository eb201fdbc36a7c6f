"""The compiled module: COCO's run lengths as bytes, and what it says of how it was built."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_cli import _C
from mrcnn_cli.ops.run_lengths import compressed, run_lengths


def runs_of(mask):
    """Lengths of runs in column order, background first."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size])
    return np.array([0, *runs] if flat[0] else runs, "<u4")


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 60), (300, 200)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_counts_are_those_that_pycocotools_packed(size, share):
    mask = (np.random.default_rng(0).random(size) < share).astype(np.uint8)
    packed = coco_mask.encode(np.asfortranarray(mask))["counts"]
    runs = runs_of(mask)
    assert np.frombuffer(_C.rle_counts(packed), "<u4").tolist() == runs.tolist()
    assert _C.rle_compress(runs.tobytes()) == packed


def test_nothing_is_nothing():
    assert _C.rle_counts(b"") == b""
    assert _C.rle_compress(b"") == b""


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_any_runs_come_back(runs):
    raw = np.array(runs, "<u4").tobytes()
    assert _C.rle_counts(_C.rle_compress(raw)) == raw


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(text):
    try:
        runs = _C.rle_counts(text)
    except ValueError:
        return
    assert _C.rle_counts(_C.rle_compress(runs)) == runs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"P", "end in the middle of a number"),
        (b"0 0", "no part of a number, at position 1"),
        (b"0\xff", "no part of a number, at position 1"),
        (b"O", "run 0 has the impossible length -1"),
        (b"PPPPPPP0", "more than 32 bits"),
        (b"ooooooo", "end in the middle of a number|more than 32 bits"),
        (b"oooooo?", "impossible length"),
    ],
)
def test_malformed_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        _C.rle_counts(text)


def test_runs_of_half_a_number_are_refused():
    with pytest.raises(ValueError, match="got 6 bytes"):
        _C.rle_compress(b"\0" * 6)


def test_run_lengths_survive_the_round_trip():
    mask = np.asfortranarray(np.random.default_rng(6).random((17, 23)) < 0.3, np.uint8)
    encoding = coco_mask.encode(mask)
    counts = run_lengths(encoding)
    assert compressed(counts) == encoding["counts"]
    plain = {"size": [17, 23], "counts": counts.tolist()}
    assert np.array_equal(run_lengths(plain), counts)
    assert np.array_equal(run_lengths(encoding | {"counts": encoding["counts"].decode()}), counts)
    assert np.array_equal(np.repeat(np.arange(len(counts)) % 2, counts).reshape(23, 17).T, mask)


@pytest.mark.parametrize(
    "counts", ["~~~", b"\x80", "0", [3, 4], [400, -9], [391.5], "é", 7, [[391]], ["391"], None, [True] * 391]
)
def test_malformed_runs_are_refused(counts):
    with pytest.raises((ValueError, TypeError)):
        run_lengths({"size": [17, 23], "counts": counts})


def test_the_module_says_how_it_was_built():
    assert isinstance(_C.cuda, bool)
    assert bool(_C.cuda_version) == bool(_C.cuda_archs) == _C.cuda
    assert _C.compiler.startswith("g++")
    assert _C.torch_version[0].isdigit()
