"""One binary for every PyTorch: the operator library built here passes the op tests under another torch, unchanged; and
one source: it compiles with the headers of the oldest torch that is supported."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OTHER_TORCH = os.environ.get("MRCNN_OTHER_TORCH", "2.13.0")
NEEDED = ("numpy", "pycocotools", "pydantic", "tomli-w", "pytest", "hypothesis")


@pytest.mark.slow
def test_the_operator_library_built_here_passes_the_op_tests_under_another_torch(tmp_path):
    assert not version("torch").startswith(OTHER_TORCH), "the other torch must be another one"
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    # Exactly this torch; the rest at the versions that are here. torchvision, which is bound to one torch, stays out.
    packages = [f"torch=={OTHER_TORCH}", *(f"{name}=={version(name)}" for name in NEEDED)]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    found = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], check=True, capture_output=True)
    assert found.stdout.decode().startswith(OTHER_TORCH)
    # The kernels for older processors are the same functions for every torch.
    chosen = ["tests/ops", "--ignore=tests/ops/test_plain_kernels.py", "-m", "not slow and not gpu"]
    result = subprocess.run(
        [python, "-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    print(result.stdout[-3000:])
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.slow
def test_the_sources_compile_with_the_headers_of_the_oldest_torch(tmp_path):
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [oldest] = [found[1] for name in dependencies if (found := re.fullmatch(r"torch>=([0-9.]+)", name))]
    # Not installed, which would bring gigabytes of CUDA along: headers are all that is needed.
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*download, "-d", tmp_path, f"torch=={oldest}.0"], check=True)
    [wheel] = tmp_path.glob("torch-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path, [name for name in file.namelist() if name.startswith("torch/include/")])
    headers = tmp_path / "torch" / "include"
    target = re.search(r'^STABLE_ABI = "(\w+)"', (ROOT / "setup.py").read_text(), re.MULTILINE)[1]
    # as that release's own build of extensions would have it
    flags = [
        "-std=c++17",
        "-fsyntax-only",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-DTORCH_TARGET_VERSION={target}",
    ]

    def compiled(source):
        includes = ["-isystem", headers, "-isystem", headers / "torch" / "csrc" / "api" / "include"]
        command = ["c++", *flags, "-DMRCNN_CUDA", *includes, source]
        return source.name, subprocess.run(command, capture_output=True, text=True)

    sources = sorted((ROOT / "csrc").glob("*/*.cpp"))
    assert len(sources) > 15
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failures = {name: result.stderr[:2000] for name, result in pool.map(compiled, sources) if result.returncode}
    assert failures == {}
