"""What nvcc makes of the kernels, where it is there: code for every architecture, nothing spilled out of registers."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mrcnn_cli import _C

ROOT = Path(__file__).parent.parent
ARCHS = re.search(r'^DEFAULT_ARCHS = "([\d ]+)"', (ROOT / "setup.py").read_text(), re.MULTILINE)[1].split()
# Their loops run from registers: a spill would go through memory once for every sample or pair of boxes.
WITHOUT_SPILLS = ("roi_align", "nms")

nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
needs_nvcc = pytest.mark.skipif(nvcc is None, reason="no CUDA toolkit on this machine")


@needs_nvcc
@pytest.mark.skipif(bool(os.environ.get("MRCNN_CUDA_ARCHS")), reason="MRCNN_CUDA_ARCHS names other architectures")
@pytest.mark.skipif(os.environ.get("MRCNN_CUDA") == "0", reason="built without CUDA, as MRCNN_CUDA asks")
def test_the_kernels_are_built_for_every_architecture():
    assert _C.cuda
    assert _C.cuda_archs.split() == ARCHS


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("op", WITHOUT_SPILLS)
def test_no_kernel_spills_its_registers(op, tmp_path):
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    flags = ["-O3", "-std=c++17", "--fmad=false", "--resource-usage", "-Xcompiler=-fPIC"]
    source = ROOT / "csrc" / op / f"{op}_cuda.cu"
    result = subprocess.run(
        [nvcc, *flags, *codes, "-c", source, "-o", tmp_path / "kernels.o"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    reports = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads",
        result.stderr,
        re.DOTALL,
    )
    assert {arch for _, arch, _, _ in reports} == {f"sm_{arch}" for arch in ARCHS}
    assert [report for report in reports if report[2:] != ("0", "0")] == []
