"""Files of weights are read without running what is in them."""

import collections
import os
import pickle
import struct
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch

from mrcnn_cli.engine.foreign.pickles import read_weights
from mrcnn_cli.errors import UserError

ARRAYS = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "conv.bias": np.float32(3)}


class Command:
    """What runs a command where it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings: one opcode for both."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_by_name_come_out_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "model.pkl"
    with path.open("wb") as file:
        pickle.dump({"model": ARRAYS, "__author__": "someone", "matching_heuristics": True}, file, protocol=protocol)
    tensors, about = read_weights(path)
    assert tensors["conv.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["conv.bias"].item() == 3
    assert about == {"__author__": "someone", "matching_heuristics": True}


@pytest.mark.parametrize("core", ["core", "_core"])
def test_arrays_pickled_by_either_numpy_are_the_same(tmp_path, core):
    path = tmp_path / "model.pkl"
    data = pickle.dumps({"model": ARRAYS}, protocol=0)
    here = b"numpy._core" if b"numpy._core" in data else b"numpy.core"
    path.write_bytes(data.replace(here, f"numpy.{core}".encode()))
    assert read_weights(path)[0]["conv.weight"].sum() == 15


def test_detectrons_pickles_of_python_2_are_read(tmp_path):
    path = tmp_path / "model.pkl"
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump({"blobs": {"conv1_w": ARRAYS["conv.weight"]}, "cfg": "MODEL: {}"})
    assert b"_codecs" not in path.read_bytes()  # as Python 3 would have written the array's bytes
    tensors, about = read_weights(path)
    assert tensors["conv1_w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert about["cfg"] == "MODEL: {}"


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save_are_read_with_what_trainers_put_beside_the_weights(tmp_path, zipped):
    path = tmp_path / "model.pth"
    state = collections.OrderedDict((f"module.{name}", torch.ones(2)) for name in ("a.weight", "b.weight"))
    beside = {"iteration": np.int64(3), "optimizer": {"lr": np.float64(0.1), "seen": np.ones(2)}}
    torch.save({"state_dict": state, **beside}, path, _use_new_zipfile_serialization=zipped)
    tensors, about = read_weights(path)
    assert sorted(tensors) == ["a.weight", "b.weight"]  # without the wrapper's prefix
    assert about["iteration"] == 3


def test_safetensors_of_other_programs_are_read(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    assert read_weights(path)[0]["a"].tolist() == [1, 1]


def test_byte_orders_and_empty_arrays_survive(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"big": np.array([1.5, 2], ">f4"), "none": np.zeros((0, 4)), "half": np.float16(2)}))
    tensors, _ = read_weights(path)
    assert tensors["big"].tolist() == [1.5, 2]
    assert tensors["none"].shape == (0, 4)
    assert tensors["half"].dtype == torch.float16


@pytest.mark.parametrize("form", ["pickle", "zip", "old torch.save"])
def test_a_file_that_would_run_a_command_is_refused_and_names_it(tmp_path, form):
    path, witness = tmp_path / "evil.pkl", tmp_path / "ran"
    content = {"model": ARRAYS if form == "pickle" else {"a": torch.ones(2)}, "extra": Command(witness)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=r"evil.pkl: refused: this pickle wants posix\.system, which could run code"):
        read_weights(path)
    assert not witness.exists()
    if form == "pickle":  # the file does what the test is about
        pickle.loads(path.read_bytes())
        assert witness.exists()


def wants(module, name):
    """A pickle that looks one name up and does nothing with it."""
    return b"c" + f"{module}\n{name}\n".encode() + b"."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("os", "system"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "array.__class__"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "namedtuple"),
        ("importlib", "import_module"),
        ("mrcnn_cli.engine.train", "train"),
    ],
)
def test_no_other_name_is_looked_up(tmp_path, module, name):
    path = tmp_path / "evil.pkl"
    path.write_bytes(wants(module, name))
    with pytest.raises(UserError, match=f"refused: this pickle wants {module}.{name}"):
        read_weights(path)


def test_names_with_dots_do_not_reach_attributes(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.")
    with pytest.raises(UserError, match=r"wants numpy.dtype.__init__"):
        read_weights(path)


def test_a_whole_pickled_module_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(UserError, match=r"model.pth: refused: this pickle wants torch.nn.modules.linear.Linear"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02", bytes(100), b"PK\x03\x04" + bytes(60)])
def test_a_file_that_holds_no_weights_is_named(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="model.pth: damaged, or no file of weights"):
        read_weights(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_file_that_was_cut_short_is_named(tmp_path, form, keep):
    path = tmp_path / "model.pth"
    if form == "torch":
        torch.save({"a": torch.arange(1000.0)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": {"a": np.arange(1000.0)}}))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match="model.pth: damaged, or no file of weights"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not weights by name"),
        ({"epoch": 3}, r"holds no tensors \(its entries: epoch\)"),
        ({"model": {}}, "holds no tensors"),
    ],
)
def test_contents_that_are_no_weights_are_told(tmp_path, content, message):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone.pth: no such file"):
        read_weights(tmp_path / "gone.pth")
