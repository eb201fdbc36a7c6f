"""MATLAB files as scipy 1.17 wrote them: savemat with and without compression."""

import struct
from pathlib import Path

import numpy as np
import pytest

from mrcnn_cli.data.matlab import read_matlab
from mrcnn_cli.errors import UserError

FILES = [Path(__file__).parent / name for name in ("selective_search.mat", "selective_search_compressed.mat")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_arrays_texts_and_cells_are_read_and_other_things_left_out(path):
    found = read_matlab(path)
    assert list(found) == ["boxes", "images", "numbers", "small", "flags", "word"]  # not the structure "other"
    assert found["images"] == ["000005", "000007", "2008_000123"]
    assert found["word"] == "größe"
    assert found["numbers"].dtype == np.float32
    np.testing.assert_array_equal(found["numbers"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["small"], [[0, 1, 2]])
    first, empty, many = found["boxes"]
    np.testing.assert_array_equal(first, [[1, 1, 100, 80], [21, 11, 60, 50], [5, 7, 9, 300]])
    assert empty.shape == (0, 4)
    assert many.shape == (40, 4)
    assert many.sum(axis=0).tolist() == [4112, 4201, 8450, 8213]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_cut_anywhere_or_with_any_byte_changed_is_read_or_refused_in_one_line(path, tmp_path):
    data, copy = path.read_bytes(), tmp_path / "copy.mat"
    random = np.random.default_rng(0)
    changed = []
    for place in random.integers(128, len(data), 300).tolist():
        changed += [data[:place], data[:place] + bytes([random.integers(256)]) + data[place + 1 :]]
    messages = []
    for content in changed:
        copy.write_bytes(content)
        try:
            read_matlab(copy)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 300
    assert all(message.startswith(f"{copy}: a damaged MATLAB file (") for message in messages)


def test_a_file_of_the_other_byte_order_is_read(tmp_path):
    """Made by hand after the format's description: one 1 x 2 array of doubles stored as 16-bit numbers."""

    def element(kind, content):
        return struct.pack(">II", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    body = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 1, 2))
    body += struct.pack(">HH", 1, 1) + b"a\0\0\0" + element(3, struct.pack(">hh", 258, -3))
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    path = tmp_path / "big.mat"
    path.write_bytes(head + element(14, body))
    np.testing.assert_array_equal(read_matlab(path)["a"], [[258.0, -3.0]])


def test_files_of_version_7_3_and_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    with pytest.raises(UserError, match=r"a.mat: a MATLAB file of version 7.3, which is not read; save it with '-v7'"):
        read_matlab(path)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"a.mat: not a MATLAB file"):
        read_matlab(path)
