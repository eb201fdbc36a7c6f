"""Compiles the CUDA kernels with g++ and hands their launchers to Python."""

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "emulator"
SOURCES = [*sorted((ROOT / "csrc").glob("*/*_cuda.cu")), *sorted(FOLDER.glob("*.cpp")), FOLDER / "faults.cu"]
FLAGS = ["-std=c++17", "-DMRCNN_EMULATOR", f"-I{FOLDER}", "-O1", "-fPIC", "-ffp-contract=off"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
ORDERS = (0, 1, 2, 3)  # of the threads: forward, backward, shuffled, eager


def compiled(folder, flags, output, sources=SOURCES, objects=()):
    """Compiles sources with g++, .cu files too, and links them with objects that are there already."""
    made = objects_of(folder, flags, sources)
    subprocess.run([_compiler(), *flags, *made, *objects, "-o", folder / output], check=True)
    return folder / output


def objects_of(folder, flags, sources):
    """Compiles sources."""

    def one(source):
        target = folder / f"{source.name}.o"
        subprocess.run([_compiler(), *FLAGS, *flags, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sources))


def _compiler():
    compiler = shutil.which("g++")
    assert compiler, "the emulator is compiled with g++, which is not there"
    return compiler


def pointer(tensor):
    """The address of a tensor's numbers; None stays None."""
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else None)


def array(kind, values):
    """A C array, for example of ctypes.c_int."""
    return (kind * len(values))(*values)


def call(function, *arguments):
    """Calls a launcher: Python's whole numbers go as int64, floats as double, tensors as addresses.

    For launchers whose parameters are int64_t, double and pointers. Returns the words of a failure, or None.
    """
    function.restype = ctypes.c_char_p
    converted = []
    for argument in arguments:
        if isinstance(argument, bool | int):
            converted.append(ctypes.c_int64(argument))
        elif isinstance(argument, float):
            converted.append(ctypes.c_double(argument))
        elif argument is None or hasattr(argument, "data_ptr"):
            converted.append(pointer(argument))
        else:
            converted.append(argument)
    return function(*converted)
