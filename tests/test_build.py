"""What is shipped: the source distribution builds, with CUDA and without, and works far from the checkout."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command, cwd, **environment):
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{command}: {result.stdout[-2000:]}{result.stderr[-3000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source distribution, unpacked, so that nothing of the checkout can leak into a build."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT, cwd=ROOT)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    [unpacked] = [path for path in folder.iterdir() if path.is_dir()]
    return unpacked


@pytest.mark.slow
@pytest.mark.parametrize("cuda", ["auto", "0"])
def test_a_wheel_from_the_source_distribution_works_far_from_the_checkout(source, tmp_path, cuda):
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, source, cwd=tmp_path, MRCNN_CUDA=cuda)
    [wheel] = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    here = {"cwd": tmp_path, "PYTHONPATH": str(site)}
    where = run(sys.executable, "-c", "import mrcnn_cli; print(mrcnn_cli.__file__)", **here)
    assert where.startswith(str(site))
    assert "nuclei" in run(sys.executable, "-m", "mrcnn_cli", "config", "list", **here)
    built = run(sys.executable, "-c", "from mrcnn_cli import _C; print(_C.cuda)", **here).strip()
    if cuda == "0":
        assert built == "False"
    rows = json.loads(run(sys.executable, "-m", "mrcnn_cli", "gradcheck", "nms", "roi_align", "--json", **here))
    assert rows
    assert all(row["passed"] for row in rows)
    settings = ("train.steps=1", "train.batch_size=1", "data.augment.crop=96", "model.backbone.width=8")
    flags = [part for setting in settings for part in ("--set", setting)]
    run(sys.executable, "-m", "mrcnn_cli", "train", "nuclei_scratch", *flags, "--out", "run", **here)
    assert (tmp_path / "run" / "best.safetensors").is_file()
