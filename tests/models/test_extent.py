"""A network on maps with room to spare gives what it gives without: values, gradients and statistics, in double."""

import pytest
import torch
from torch import nn

from mrcnn_cli.engine.run import read_config
from mrcnn_cli.models import build_model
from mrcnn_cli.models.extent import Extent, cut, enlarged, entered, mean, normalised

FROM_SCRATCH = {"model.backbone.norm": "batch_norm", "model.backbone.weights": "none"}
NETWORKS = {
    "resnet, group norms": (
        "nuclei_scratch",
        {
            "model.backbone": {"name": "resnet18", "width": 8, "norm": "group_norm"},
            "model.fpn": {"channels": 16, "norm": "group_norm"},
            "model.rpn.norm": "group_norm",
        },
    ),
    "resnet, batch norms": (
        "nuclei_scratch",
        {
            "model.backbone": {"name": "resnet18", "width": 8, "norm": "batch_norm"},
            "model.fpn": {"channels": 16, "norm": "batch_norm"},
        },
    ),
    "bottlenecks, P3 to P7": ("retinanet_r50_fpn_1x", {"model.fpn.channels": 16, "model.backbone.width": 8}),
    "the last map alone": ("faster_rcnn_r50_c4_1x", {"model.backbone.width": 8}),
    "dilated": ("faster_rcnn_r50_dc5_1x", {"model.backbone.width": 8}),
    "deformable": ("mask_rcnn_r50_fpn_3x_dconv", {"model.backbone.width": 8, "model.fpn.channels": 16}),
    "squeezed": ("faster_rcnn_mobilenet_v3_large_fpn", {**FROM_SCRATCH, "model.fpn.channels": 16}),
    "uneven padding": ("mask_rcnn_lite0_fpn", {**FROM_SCRATCH, "model.fpn.channels": 16}),
}


def network(name):
    recipe, overrides = NETWORKS[name]
    torch.manual_seed(0)
    return build_model(read_config(recipe, overrides).model, 3).double().train()


def run(model, pixels, crop=lambda map: map):
    """Maps of pyramid and head, the gradients of a function of them, and the buffers afterwards."""
    model.zero_grad(set_to_none=True)
    pyramid = model.fpn(model.backbone(pixels))
    logits, deltas = (model.rpn if hasattr(model, "rpn") else model.retina_head)(pyramid)
    maps = [crop(map) for map in (*pyramid, *logits, *deltas)]
    sum(place * map.sin().square().sum() for place, map in enumerate(maps, 1)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return maps, gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("size", [(96, 160), (128, 224), (224, 128)])
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_notices_the_padding(name, size):
    model, padded = network(name), (256, 256)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pixels = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    maps, gradients, buffers = run(model, pixels)
    model.load_state_dict(before)

    def crop(map):
        return map[..., : -(-size[0] * map.shape[-2] // padded[0]), : -(-size[1] * map.shape[-1] // padded[1])]

    with entered(Extent(torch.tensor(size), padded)):
        found, found_gradients, found_buffers = run(model, enlarged(pixels, padded), crop)
    torch.testing.assert_close(found, maps, rtol=1e-9, atol=1e-10)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    torch.testing.assert_close(found_gradients, gradients, rtol=1e-7, atol=1e-10 * largest)
    torch.testing.assert_close(found_buffers, buffers, rtol=1e-9, atol=1e-10)
    if "norms" in name:  # else there are no statistics to compare
        assert ("batch" in name) == any(not torch.equal(buffers[key], before[key]) for key in buffers if key in before)


def test_norms_that_keep_their_statistics_use_them():
    norm = nn.BatchNorm2d(3).double().eval()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    with entered(Extent(torch.tensor([2, 3]), (4, 6))):
        assert torch.equal(normalised(norm, x), norm(x))


def test_an_odd_number_of_cells_is_halved_upwards():
    with entered(Extent(torch.tensor([96, 160]), (128, 256))):
        for cells, rows, columns in (((32, 64), 24, 40), ((4, 8), 3, 5), ((2, 4), 2, 3), ((1, 2), 1, 2)):
            kept = cut(torch.ones(1, 1, *cells))
            assert kept.sum() == kept[..., :rows, :columns].sum() == rows * columns
            assert mean(kept).item() == 1.0
    x = torch.ones(1, 1, 4, 8)
    assert cut(x) is x  # left again
