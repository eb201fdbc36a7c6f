"""Builds the two compiled parts: `mrcnn_cli/_ops.so` (operators) and `mrcnn_cli/_C` (a small Python module).

`_ops.so` holds the CPU and the CUDA kernels in one file on Torch's stable ABI: built once, it loads in every
PyTorch >= 2.11, CPU-only builds included. The .cu files see no Torch header, so nvcc is run here, one command per file,
and only the toolkit on this machine decides whether CUDA is in - not the Torch that happens to be installed.

Environment:
    MRCNN_CUDA        auto (default: CUDA if a toolkit is found), 1 (a missing toolkit is an error) or 0 (CPU only)
    MRCNN_CUDA_ARCHS  compute capabilities, for example "80 90"; code for the last one is also kept as PTX
    MRCNN_WERROR      1 turns warnings of our own code into errors
    MRCNN_SANITIZE    1 builds the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer, for tests
    MAX_JOBS          the number of compilers at a time
"""

import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py
from torch.utils.cpp_extension import BuildExtension, include_paths

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = "75 80 86 89 90 100 120"
# Torch 2.10's stable ABI: every function we use exists from there, so the library loads in all later releases.
STABLE_ABI = "0x020a000000000000"


def toolkit() -> Path | None:
    """The root of a usable CUDA toolkit, judged by the files we need rather than by an `nvcc` on PATH."""
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), Path(nvcc).resolve().parent.parent if nvcc else None, "/usr/local/cuda"]
    for place in filter(None, places):
        root = Path(place)
        if all((root / part).exists() for part in ("include/cuda_runtime_api.h", "bin/nvcc")) and cudart(root):
            return root
    return None


def cudart(root: Path) -> Path | None:
    """The static CUDA runtime below a toolkit's root."""
    folders = (root / "lib64", root / "lib", *sorted(root.glob("targets/*/lib")))
    return next((folder / "libcudart_static.a" for folder in folders if (folder / "libcudart_static.a").exists()), None)


def chosen_toolkit() -> Path | None:
    """The toolkit to build with, or None for a CPU-only build, as MRCNN_CUDA asks."""
    wish = os.environ.get("MRCNN_CUDA", "auto").lower()
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"MRCNN_CUDA={wish}: must be auto, 1 or 0")
    found = None if wish == "0" else toolkit()
    if wish == "1" and found is None:
        raise SystemExit(
            "MRCNN_CUDA=1, but no CUDA toolkit was found: set CUDA_HOME to a folder that holds "
            "bin/nvcc, include/cuda_runtime_api.h and libcudart_static.a"
        )
    return found


def architectures() -> list[str]:
    """Compute capabilities to compile for, as nvcc writes them ("90", "90a")."""
    archs = [part.replace(".", "") for part in re.split(r"[\s,;]+", os.environ.get("MRCNN_CUDA_ARCHS", "")) if part]
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?", arch):
            raise SystemExit(f"MRCNN_CUDA_ARCHS: '{arch}' is no compute capability; write for example \"80 90\"")
    return archs or DEFAULT_ARCHS.split()


def nvcc_version(root: Path) -> str:
    text = subprocess.run([root / "bin" / "nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    return re.search(r"release (\d+\.\d+)", text)[1]


def supported(root: Path, archs: list[str]) -> list[str]:
    """Those of our default architectures that this nvcc knows; what a person names is taken at their word."""
    if os.environ.get("MRCNN_CUDA_ARCHS"):
        return archs
    listed = subprocess.run([root / "bin" / "nvcc", "--list-gpu-code"], check=True, capture_output=True, text=True)
    known = set(re.findall(r"sm_(\w+)", listed.stdout))
    return [arch for arch in archs if arch in known]


def jobs() -> int:
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


STRICT = os.environ.get("MRCNN_WERROR") == "1"
CUDA_ROOT = chosen_toolkit()
CUDA_ARCHS = supported(CUDA_ROOT, architectures()) if CUDA_ROOT else []
# Floating-point contraction stays off so that box geometry has the same bits on every compiler and device; the inner
# loops ask for fused multiply-adds by name.
CXX_FLAGS = ["-O3", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-g0", "-Wall", "-Wextra"]
CXX_FLAGS += ["-Werror"] if STRICT else []
# Python, which loads the library, brings the sanitizers' own code along: LD_PRELOAD, see tests/ops/test_fuzz.py.
SANITIZE = os.environ.get("MRCNN_SANITIZE") == "1"
if SANITIZE:
    CXX_FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"]
    CXX_FLAGS += ["-fno-omit-frame-pointer", "-O1"]
NVCC_FLAGS = [
    "-O3",
    "-std=c++17",
    "--fmad=false",
    "-Xfatbin=-compress-all",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
]
NVCC_FLAGS += ["-Werror=all-warnings", "-Xcompiler=-Werror"] if STRICT else []


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def headers(folders: list[str]) -> list[str]:
    """Other people's headers as system headers: their warnings are not ours."""
    return [flag for folder in folders for flag in ("-isystem", folder)]


def operators() -> Extension:
    """The operator library. It has no Python in it; it is an Extension so that wheels and `-e` installs carry it."""
    libraries = Path(torch.__file__).resolve().parent / "lib"
    # libtorch.so must stay among the needed libraries although no symbol of it is used directly: in a CUDA build of
    # Torch it brings in libtorch_cuda.so, where the weak reference to the current stream finds its target.
    link = [f"-L{libraries}", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-ltorch_cpu"]
    if CUDA_ROOT:
        link += [str(cudart(CUDA_ROOT)), "-lrt", "-ldl", "-lpthread"]
    macros = [("TORCH_TARGET_VERSION", STABLE_ABI)] + ([("MRCNN_CUDA", None)] if CUDA_ROOT else [])
    return Extension(
        "mrcnn_cli._ops",
        sources("*/*.cpp"),
        define_macros=macros,
        extra_compile_args={"cxx": CXX_FLAGS + headers(include_paths())},
        extra_link_args=[*link, "-Wl,--exclude-libs,ALL", "-fsanitize=address,undefined" if SANITIZE else "-Wl,-s"],
    )


def python_module() -> Extension:
    """The Python module: how it was built, and helpers that turn bytes into bytes."""
    facts = {
        "MRCNN_CUDA_VERSION": nvcc_version(CUDA_ROOT) if CUDA_ROOT else "",
        "MRCNN_CUDA_ARCHS": " ".join(CUDA_ARCHS),
        "MRCNN_TORCH_VERSION": str(torch.__version__),
    }
    macros = [(name, f'"{value}"') for name, value in facts.items()] + ([("MRCNN_CUDA", None)] if CUDA_ROOT else [])
    return Extension(
        "mrcnn_cli._C",
        sources("bindings.cpp"),
        define_macros=macros,
        extra_compile_args={"cxx": CXX_FLAGS + headers([pybind11.get_include()])},
        extra_link_args=["-Wl,-s"],
    )


class BuildKernels(BuildExtension):
    """Compiles the .cu files with nvcc while Torch's ninja build compiles the C++ files, and links all of them."""

    def get_ext_filename(self, name: str) -> str:
        # No Python ABI in the operator library, so none in its name.
        return str(Path(*name.split("."))) + ".so" if name.endswith("_ops") else super().get_ext_filename(name)

    def get_export_symbols(self, extension: Extension) -> list[str]:
        return extension.export_symbols

    def build_extensions(self) -> None:
        with ThreadPoolExecutor(jobs()) as pool:
            kernels = [pool.submit(self.compile_cuda, source) for source in sources("*/*_cuda.cu") if CUDA_ROOT]
            link = self.compiler.link_shared_object

            def link_with_kernels(objects: list[str], output: str, *rest: object, **options: object) -> None:
                of_kernels = [kernel.result() for kernel in kernels] if output.endswith("_ops.so") else []
                link([*objects, *of_kernels], output, *rest, **options)

            self.compiler.link_shared_object = link_with_kernels
            super().build_extensions()

    def compile_cuda(self, source: str) -> str:
        """One object file for one .cu file; compiled again only if a source, a header or the command changed."""
        target = (Path(self.build_temp) / source).with_suffix(".o").resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHS]
        codes.append(f"-gencode=arch=compute_{CUDA_ARCHS[-1]},code=compute_{CUDA_ARCHS[-1]}")
        compiler = ["-ccbin", os.environ["CXX"]] if os.environ.get("CXX") else []
        stamp, inputs = target.with_suffix(".command"), target.with_suffix(".d")
        command = [str(CUDA_ROOT / "bin" / "nvcc"), *NVCC_FLAGS, *compiler, *codes, "-MD", "-MF", str(inputs)]
        command += ["-c", source, "-o", str(target)]
        text = shlex.join(command)
        if all(path.exists() for path in (target, stamp, inputs)) and stamp.read_text() == text:
            files = [ROOT / name for name in inputs.read_text().replace("\\\n", " ").split(":", 1)[1].split()]
            if all(path.exists() and path.stat().st_mtime < target.stat().st_mtime for path in files):
                return str(target)
        stamp.unlink(missing_ok=True)
        print(text, flush=True)
        subprocess.run(command, check=True, cwd=ROOT)
        stamp.write_text(text)
        return str(target)


class BuildFresh(build):
    """Starts from an empty build/lib, so that nothing of an earlier build can end up in a wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildPackage(build_py):
    """Puts the recipes of `configs/` beside the package's code, so that their names work outside a checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "mrcnn_cli" / "configs"
            target.mkdir(parents=True, exist_ok=True)
            for recipe in sorted((ROOT / "configs").glob("*.toml")):
                shutil.copyfile(recipe, target / recipe.name)


setup(
    ext_modules=[operators(), python_module()],
    package_data={"mrcnn_cli": ["py.typed", "_C.pyi", "data/sample/**/*", "views/gallery.*"]},
    cmdclass={"build": BuildFresh, "build_ext": BuildKernels, "build_py": BuildPackage},
)
