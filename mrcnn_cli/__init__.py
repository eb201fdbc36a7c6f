"""mrcnn: an R-CNN toolkit you can trust bit by bit.

import mrcnn_cli as mrcnn

for step in mrcnn.train("nuclei", {"train.steps": 300}, out="runs/mine"): ...
model = mrcnn.load("runs/mine")
detections = mrcnn.predict(model, ["a.jpg", array])
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrcnn_cli.engine.library import load, predict, train
    from mrcnn_cli.errors import UserError

__all__ = ["UserError", "__version__", "load", "predict", "train"]

try:
    __version__ = version("mrcnn-cli")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

# Where each name lives; imported on first use, so that `mrcnn --help` does not load torch.
_HOMES = {
    "UserError": "mrcnn_cli.errors",
    "load": "mrcnn_cli.engine.library",
    "predict": "mrcnn_cli.engine.library",
    "train": "mrcnn_cli.engine.library",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mrcnn_cli' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
