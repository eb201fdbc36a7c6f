"""MATLAB's files up to version 7 (not 7.3, which is HDF5), as far as tables of boxes need it.

The format is MathWorks' "MAT-File Format", level 5: a head of 128 bytes, then elements of a type, a number of bytes and
that many bytes, padded to a multiple of eight. Reading runs nothing.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.errors import UserError

MAGIC = b"MATLAB 5.0 MAT-file"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# Types of elements, by their number in the format.
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED, UTF8, UTF16, UTF32 = 14, 15, 16, 17, 18
# Classes of matrices.
CELL, CHAR, SINGLE, DOUBLE, UINT64 = 1, 4, 7, 6, 15
COMPLEX = 0x0800  # a flag
# What decoding garbage raises.
_DAMAGED = (struct.error, zlib.error, ValueError, TypeError, LookupError, OverflowError, RecursionError, StopIteration)
LARGEST = 2**31  # bytes of one compressed variable; more is no table of boxes


def read_matlab(path: Path) -> dict[str, Any]:
    """The variables of a file: numbers as arrays, text as str, cells as lists in MATLAB's order (down the columns).

    Variables of other classes (structures, objects, sparse matrices) are left out.

    Raises:
        UserError: no file of this kind, or damaged.
    """
    data = path.read_bytes()
    if data.startswith(HDF5_MAGIC) or data.startswith(b"MATLAB 7.3"):
        raise UserError(f"{path}: a MATLAB file of version 7.3, which is not read; save it with '-v7' in MATLAB")
    if not data.startswith(MAGIC) or data[126:128] not in (b"IM", b"MI"):
        raise UserError(f"{path}: not a MATLAB file")
    order = "<" if data[126:128] == b"IM" else ">"
    variables: dict[str, Any] = {}
    try:
        for kind, content in _elements(data[128:], order):
            if kind == COMPRESSED:
                [(kind, content)] = _elements(_inflated(content), order)
            if kind == MATRIX:
                name, value = _matrix(content, order)
                if value is not None:
                    variables[name] = value
    except _DAMAGED as error:
        raise UserError(f"{path}: a damaged MATLAB file ({error or type(error).__name__})") from None
    return variables


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:  # at most four bytes, in the place of the size
            yield kind & 0xFFFF, data[place + 4 : place + 4 + (kind >> 16)]
            place += 8
            continue
        content = data[place + 8 : place + 8 + size]
        if len(content) < size:
            raise ValueError("it ends too early")
        yield kind, content
        place += 8 + size
        if kind != COMPRESSED:
            place += -size % 8


def _inflated(content: bytes) -> bytes:
    stream = zlib.decompressobj()
    data = stream.decompress(content, LARGEST)
    if stream.unconsumed_tail:
        raise ValueError("a variable of more than 2 GB")
    if not stream.eof:
        raise ValueError("it ends too early")
    return data


def _matrix(content: bytes, order: str) -> tuple[str, Any]:
    """Name and value of an array; the value is None where its class is of no use here."""
    if not content:
        return "", np.zeros((0, 0))  # how an empty cell is written
    parts = _elements(content, order)
    flags = struct.unpack(f"{order}II", next(parts)[1])[0]
    shape = [int(n) for n in _numbers(*next(parts), order)]
    name = next(parts)[1].decode("ascii")
    kind = flags & 0xFF
    if kind == CELL:
        return name, [_matrix(part, order)[1] for _, part in parts]
    if kind == CHAR:
        return name, _text(*next(parts, (UTF8, b"")), order)
    if not DOUBLE <= kind <= UINT64 or flags & COMPLEX:
        return name, None
    values = _numbers(*next(parts), order)
    # MATLAB stores whole numbers in the smallest type that holds them.
    return name, values.astype(np.float32 if kind == SINGLE else np.float64).reshape(shape, order="F")


def _numbers(kind: int, content: bytes, order: str) -> np.ndarray:
    return np.frombuffer(content, order + NUMBERS[kind])


def _text(kind: int, content: bytes, order: str) -> str:
    if kind in (UTF8, UTF16, UTF32):
        endian = "" if kind == UTF8 else "-le" if order == "<" else "-be"
        return content.decode({UTF8: "utf-8", UTF16: "utf-16", UTF32: "utf-32"}[kind] + endian)
    return "".join(map(chr, _numbers(kind, content, order).tolist()))
