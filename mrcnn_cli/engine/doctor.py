"""What this machine and this installation are like, as plain facts. Torch is imported late: it may be broken."""

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from mrcnn_cli import __version__
from mrcnn_cli import config as recipes
from mrcnn_cli.errors import UserError

INSTALL = "pip install --no-build-isolation -e . in the checkout, or install the package anew"
REBUILD = f"build it again: {INSTALL}"
PACKAGES = ("numpy", "pycocotools", "Pillow", "safetensors", "pydantic", "tomli-w", "click", "rich")
OLDEST_TORCH = (2, 11)
ENOUGH_SHARED_MEMORY = 256 * 2**20  # bytes; loader processes hand batches over through it
ENOUGH_DISK = 2**30


@dataclass(frozen=True)
class Fact:
    """Something that was looked at.

    Attributes:
        name: what it is.
        status: "fail" where mrcnn cannot work, "warn" where it works less well than it could.
        value: what was found.
        advice: what to do about it; empty where nothing need be done.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    value: str
    advice: str = ""


def examine() -> Iterator[Fact]:
    """Every fact, those first that others depend on; an examination that breaks down is a failure itself."""
    for name, look in EXAMINATIONS.items():
        try:
            yield from look()
        except Exception as error:  # the rest is still worth knowing
            yield Fact(name, "fail", _first_line(error), REBUILD if name in ("operators", "self-check") else "")


def _versions() -> Iterator[Fact]:
    yield Fact("mrcnn", "ok", f"{__version__} in {Path(__file__).resolve().parent.parent}")
    yield Fact("python", "ok", f"{platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        try:
            yield Fact(package, "ok", version(package))
        except PackageNotFoundError:
            yield Fact(package, "fail", "not installed", f"pip install {package}")


def _torch() -> Iterator[Fact]:
    try:
        import torch
    except ImportError as error:
        yield Fact("torch", "fail", _first_line(error), "pip install 'torch>=2.11'")
        return
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    new_enough = numbers >= OLDEST_TORCH
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    advice = "" if new_enough else "the kernels need PyTorch 2.11 or newer: pip install 'torch>=2.11'"
    yield Fact("torch", "ok" if new_enough else "fail", f"{torch.__version__}, {built}", advice)


def _processor() -> Iterator[Fact]:
    import torch

    from mrcnn_cli.engine.run import processor

    available = len(os.sched_getaffinity(0))
    yield Fact("cpu", "ok", f"{processor()}, {available} cores for us, {torch.get_num_threads()} threads")


def _memory() -> Iterator[Fact]:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) / 2**20
    low = free < 3
    yield Fact(
        "memory", "warn" if low else "ok", f"{free:.1f} GiB free", "the default recipe needs up to 3 GB" if low else ""
    )
    shared = shutil.disk_usage("/dev/shm").free
    low = shared < ENOUGH_SHARED_MEMORY
    yield Fact(
        "shared memory",
        "warn" if low else "ok",
        f"{shared / 2**20:,.0f} MiB free",
        "too little for loader processes: docker run --shm-size=1g, or --set data.workers=0" if low else "",
    )
    disk = shutil.disk_usage(Path.cwd()).free
    low = disk < ENOUGH_DISK
    yield Fact(
        "disk", "warn" if low else "ok", f"{disk / 2**30:.1f} GiB free here", "make room for runs" if low else ""
    )


def _operators() -> Iterator[Fact]:
    from mrcnn_cli import _C

    cuda = f"CUDA {_C.cuda_version} for {_C.cuda_archs}" if _C.cuda else "without CUDA"
    yield Fact("built", "ok", f"{cuda}, {_C.compiler}, against PyTorch {_C.torch_version}")
    importlib.import_module("mrcnn_cli.ops")
    yield Fact("operators", "ok", "the library loads")


def _gpus() -> Iterator[Fact]:
    import torch

    from mrcnn_cli import _C

    if not torch.cuda.is_available():
        reason = "PyTorch sees none" if torch.version.cuda else "PyTorch is a CPU build"
        yield Fact("gpu", "ok", f"none ({reason}); everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        value = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}"
        fault = _gpu_fault(10 * about.major + about.minor, _C.cuda, _C.cuda_archs)
        yield Fact(f"gpu {index}", "warn" if fault else "ok", value, fault)


def _gpu_fault(capability: int, cuda: bool, archs: str) -> str:
    """Why the kernels do not run on a GPU of this compute capability; empty if they do.

    Code for 8.0 runs on 8.6 too, but not on 9.0; code for the last one is there as PTX, for all later GPUs. Code with a
    letter, such as 90a, is for that very one.
    """
    if not cuda:
        return f"the kernels were built without CUDA; build them again: MRCNN_CUDA=1 {INSTALL}"
    exact = {int(arch.rstrip("af")) for arch in archs.split()}
    general = [int(arch) for arch in archs.split() if arch.isdigit()]
    same_generation = any(number // 10 == capability // 10 and number <= capability for number in general)
    from_ptx = archs.split()[-1].isdigit() and capability >= general[-1]
    if capability in exact or same_generation or from_ptx:
        return ""
    return f"the kernels were built for {archs}; build them again: MRCNN_CUDA_ARCHS={capability} {INSTALL}"


def _self_check() -> Iterator[Fact]:
    """The answers of two operators that can be told without a computer."""
    import torch

    from mrcnn_cli import _C
    from mrcnn_cli.ops import nms, roi_align

    devices = ["cpu"] + (["cuda"] if _C.cuda and torch.cuda.is_available() else [])
    for device in devices:
        boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], device=device)
        kept = nms(boxes, torch.tensor([0.8, 0.9, 0.7], device=device), 0.5).tolist()
        # On a ramp, the mean over a bin is the ramp at the bin's centre.
        ramp = torch.arange(16.0, device=device).expand(1, 1, 16, 16)
        rois = torch.tensor([[0.0, 2, 2, 10, 10]], device=device)
        pooled = roi_align(ramp, rois, 2, sampling_ratio=2)[0, 0].tolist()
        right = kept == [1, 2] and pooled == [[4.0, 8.0], [4.0, 8.0]]
        yield Fact(
            f"self-check {device}",
            "ok" if right else "fail",
            "nms and roi_align give the right answers" if right else f"nms gave {kept}, roi_align {pooled}",
            "" if right else f"{REBUILD}; then run mrcnn gradcheck --device {device}",
        )


def _sample() -> Iterator[Fact]:
    from mrcnn_cli.data.loader import sample_split

    for name in ("train", "val"):
        split = sample_split(name)
        there = split.images is not None and split.annotations is not None and Path(split.annotations).is_file()
        value = f"{split.annotations}" if there else "is missing from the package"
        yield Fact(f"sample {name}", "ok" if there else "fail", value, "" if there else REBUILD)


def _pretrained() -> Iterator[Fact]:
    from mrcnn_cli.engine.pretrained import INSTALL, lite0_weights
    from mrcnn_cli.engine.run import WEIGHTS_PACKAGE

    if importlib.util.find_spec(WEIGHTS_PACKAGE) is None:
        yield Fact("imagenet weights", "warn", "not installed; 'mrcnn train' starts from scratch", INSTALL)
        return
    try:
        lite0_weights()
    except UserError as error:
        yield Fact("imagenet weights", "fail", str(error), INSTALL)
    else:
        yield Fact("imagenet weights", "ok", f"EfficientNet-Lite0, {WEIGHTS_PACKAGE}")


def _recipes() -> Iterator[Fact]:
    known = recipes.recipes()
    if known:
        yield Fact("recipes", "ok", f"{len(known)}, listed by 'mrcnn config list'")
    else:
        yield Fact("recipes", "fail", "missing from the package", REBUILD)


def _run() -> Iterator[Fact]:
    from mrcnn_cli.engine.run import latest_run

    try:
        yield Fact("newest run", "ok", str(latest_run()))
    except UserError:
        yield Fact("newest run", "ok", "none below runs/ yet", "mrcnn train makes one")


EXAMINATIONS: dict[str, Callable[[], Iterator[Fact]]] = {
    "versions": _versions,
    "torch": _torch,
    "cpu": _processor,
    "memory": _memory,
    "operators": _operators,
    "gpu": _gpus,
    "self-check": _self_check,
    "recipes": _recipes,
    "sample": _sample,
    "imagenet weights": _pretrained,
    "newest run": _run,
}


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
