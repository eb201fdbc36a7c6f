"""What a file of weights holds, without running any of its code: pickles, files of torch.save, safetensors.

A pickle is a program: it may name any function and call it. These readers know the few names that arrays and plain
containers need and refuse every other one, saying which.
"""

import importlib
import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mrcnn_cli.errors import UserError

# Where a pickle may find arrays: NumPy 2 renamed its `core`; Python 2 called `builtins` otherwise.
_ARRAYS = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}
_ARRAYS |= {("numpy", "ndarray"), ("numpy", "dtype")}
_CONTAINERS = {("collections", "OrderedDict"), ("_codecs", "encode")}
_CONTAINERS |= {(m, n) for m in ("builtins", "__builtin__") for n in ("set", "frozenset", "bytearray", "complex")}
# Data that describes an array's type as NumPy's classes of today, e.g. numpy.dtypes.Float32DType.
_DTYPES = {("numpy.dtypes", type(np.dtype(code)).__name__) for code in "?bBhHiIlLqQefdFDSUO"}

# torch.save's old format begins with this number.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
# Where in the file the weights are, in the order of trust; none of them: the file is the weights.
_PLACES = ("model", "state_dict", "model_state_dict", "blobs", "weights")
# What wrappers put in front of every name: DataParallel and its kin, Lightning, torch.compile.
_WRAPPERS = ("module.", "model.", "_orig_mod.")


class _Refused(Exception):
    """A name that the pickle wanted and must not have."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in _ARRAYS:
            return _numpy(module, name)
        if (module, name) in _CONTAINERS | _DTYPES:
            return getattr(importlib.import_module(module.replace("__builtin__", "builtins")), name)
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object outside of the file")


def _numpy(module: str, name: str) -> Any:
    """The function of that name wherever this NumPy keeps it."""
    for core in ("numpy._core", "numpy.core"):
        try:
            return getattr(importlib.import_module(re.sub(r"^numpy\._?core", core, module)), name)
        except ModuleNotFoundError:
            continue
    raise _Refused(f"{module}.{name}")


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file by their own names, and what else the file says about itself.

    Args:
        path: a pickle (.pkl), a file of torch.save (.pth, .pt) or safetensors; recognised by its content.

    Returns:
        Tensors, with the prefixes of wrappers taken off; and the file's other entries ("__author__", "meta", ...).

    Raises:
        UserError: no such file, damaged, none of these, wanting to run code, or without tensors.
    """
    content = _read(path)
    place = next((key for key in _PLACES if isinstance(content.get(key), Mapping)), None)
    about = {key: value for key, value in content.items() if key != place} if place else {}
    found = dict(_tensors(content[place] if place else content))
    if not found:
        raise UserError(f"{path}: holds no tensors (its entries: {', '.join(map(str, list(content)[:5])) or 'none'})")
    for wrapper in _WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    return found, about


def read_pickle(path: Path) -> Any:
    """What a pickle of arrays and plain containers holds.

    Raises:
        UserError: no such file, damaged, or wanting to run code.
    """
    try:
        return _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except _Refused as error:
        raise UserError(
            f"{path}: refused: this pickle wants {error}, which could run code on your machine; arrays and plain "
            "containers are all that it may hold - save it again as such where you trust the file"
        ) from None
    except Exception as error:  # a damaged file makes the decoder raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, or no pickle ({reason})") from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if zipfile.is_zipfile(path):
            content = _torch_load(path)
        else:
            with path.open("rb") as file:
                start = file.read(64)
            is_safetensors = start[8:9] == b"{"  # after the length of the header
            content = safetensors.torch.load_file(path) if is_safetensors else _unpickle(path, path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except _Refused as error:
        raise UserError(
            f"{path}: refused: this pickle wants {error}, which could run code on your machine; weights need arrays "
            "and plain containers only - save them again as such where you trust the file"
        ) from None
    except Exception as error:  # a damaged file makes the decoders raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, or no file of weights ({reason})") from None
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, not weights by name; save model.state_dict() rather than the "
            "model"
        )
    return content


def _unpickle(path: Path, data: bytes) -> Any:
    stream = io.BytesIO(data)
    # latin1: what Python 2 called a string of bytes, among them the arrays of Detectron's files.
    content = _Unpickler(stream, encoding="latin1").load()
    return _torch_load(path) if content == _TORCH_MAGIC else content


def _torch_load(path: Path) -> Any:
    arrays = [(_numpy(module, name), f"{module}.{name}") for module, name in sorted(_ARRAYS)]
    dtypes = [getattr(np.dtypes, name) for _, name in sorted(_DTYPES)]
    try:
        with torch.serialization.safe_globals([*arrays, *dtypes]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", str(error))
        if wanted is None:
            raise
        raise _Refused(wanted[1]) from None


def _tensors(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every array and tensor."""
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield str(name), value.detach()
        elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
            native = np.asarray(value).astype(value.dtype.newbyteorder("="))  # a copy: pickled arrays may be read-only
            yield str(name), torch.from_numpy(native)
