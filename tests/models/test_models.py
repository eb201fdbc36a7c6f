import os
import subprocess
import sys

import pytest
import torch

from mrcnn_cli.config import dumps, loads, read, recipes, validate
from mrcnn_cli.models import FasterRCNNConfig, MaskRCNNConfig, build_model
from mrcnn_cli.models.backbones import build_backbone
from mrcnn_cli.models.backbones.efficientnet_lite import EfficientNetLiteConfig
from mrcnn_cli.models.backbones.resnet import ResNetConfig
from mrcnn_cli.models.convolution import ConvNorm
from mrcnn_cli.structures import ImageBatch, Masks, Targets

SMALL = {
    "backbone": {"name": "resnet18", "width": 8, "norm": "batch_norm"},
    "fpn": {"channels": 16},
    "box_head": {"fc_channels": 32},
}


def mask_rcnn(num_classes=2, **changes):
    torch.manual_seed(0)
    table = {"name": "mask_rcnn", **SMALL, "mask_head": {"conv_channels": 16}, **changes}
    return build_model(MaskRCNNConfig.model_validate(table), num_classes)


def faster_rcnn(num_classes=2):
    torch.manual_seed(0)
    return build_model(FasterRCNNConfig.model_validate({"name": "faster_rcnn", **SMALL}), num_classes)


def images(count=2):
    random = torch.Generator().manual_seed(1)
    return ImageBatch.collate(
        [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=random) for _ in range(count)]
    )


def targets_of(boxes, labels, seed=0):
    squares = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes]
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.zeros(0, 4),
        Masks(squares, torch.eye(2, 3, dtype=torch.float64)),
        seed=seed,
    )


NOTHING = targets_of([], [])
SOMETHING = targets_of([[10.0, 10.0, 40.0, 50.0], [50.0, 5.0, 90.0, 30.0]], [0, 1])


@pytest.mark.parametrize("batch", [[SOMETHING, NOTHING], [NOTHING, NOTHING]])
@pytest.mark.parametrize("build", [mask_rcnn, faster_rcnn])
def test_images_without_objects_are_trained_on_and_every_parameter_takes_part(build, batch):
    model = build().train()
    losses = model(images(), batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    if not any(len(targets) for targets in batch):
        assert losses["loss_box"] == 0
        assert losses.get("loss_mask", torch.tensor(0.0)) == 0
        assert losses["loss_rpn_objectness"] > 0


def test_the_same_image_draws_the_same_samples_in_any_batch():
    model = mask_rcnn(rpn={"samples_per_image": 16}).eval().train(False)
    alone = model(images(1), [SOMETHING])
    pair = ImageBatch.collate([images(1).pixels[0], images(1).pixels[0]])
    twice = model(pair, [SOMETHING, SOMETHING])
    for name, loss in alone.items():
        torch.testing.assert_close(twice[name], loss, rtol=1e-4, atol=1e-6)


def test_predictions_lie_in_the_original_picture():
    model = mask_rcnn(box_head={"fc_channels": 32, "score_threshold": 0.0}).eval()
    batch = ImageBatch(images(1).pixels, [(60, 90)], [(30, 180)])
    with torch.inference_mode():
        [found] = model.predict(batch)
    assert 0 < len(found) <= 100
    assert found.size == (30, 180)
    assert (found.boxes[:, :2] >= 0).all()
    assert (found.boxes[:, 2:] <= torch.tensor([180.0, 30.0])).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert len(found.masks) == len(found)
    assert all(mask["size"] == [30, 180] for mask in found.masks)


def test_nothing_found_is_an_empty_result():
    model = mask_rcnn(box_head={"fc_channels": 32, "score_threshold": 0.999}).eval()
    with torch.inference_mode():
        found = model.predict(images())
    assert [len(f) for f in found] == [0, 0]
    assert [f.masks for f in found] == [[], []]


@pytest.mark.parametrize("agnostic", [True, False])
def test_class_agnostic_heads_have_one_box_and_one_mask(agnostic):
    model = mask_rcnn(
        3,
        box_head={"fc_channels": 32, "class_agnostic": agnostic},
        mask_head={"conv_channels": 16, "class_agnostic": agnostic},
    )
    assert model.box_head.deltas.out_features == (4 if agnostic else 12)
    assert model.mask_head.logits.out_channels == (1 if agnostic else 3)
    assert all(torch.isfinite(loss) for loss in model.train()(images(), [SOMETHING, SOMETHING]).values())
    with torch.inference_mode():
        model.eval().predict(images())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_lite0"])
def test_backbones_have_the_channels_and_strides_that_they_state(name):
    schema = EfficientNetLiteConfig if name.startswith("efficientnet") else ResNetConfig
    extra = {"weights": "none", "norm": "batch_norm"} if name.startswith("efficientnet") else {}
    with torch.device("meta"):
        backbone = build_backbone(schema.model_validate({"name": name, **extra}))
        features = backbone(torch.empty(2, 3, 64, 96))
    assert [f.shape[1] for f in features] == list(backbone.channels)
    assert [64 // f.shape[2] for f in features] == list(backbone.strides)
    assert [96 // f.shape[3] for f in features] == list(backbone.strides)


@pytest.mark.parametrize("size", [(64, 96), (72, 88)])  # maps of exactly twice the next one's size, and others
def test_pyramids_are_the_same_with_and_without_gradients(size):
    model = mask_rcnn().eval()
    maps = [feature.detach() for feature in model.backbone(torch.randn(2, 3, *size))]
    expected = model.fpn(maps)
    with torch.no_grad():
        for found, wanted in zip(model.fpn(maps), expected, strict=True):
            torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stages", [0, 1, 2, 5])
def test_frozen_stages_have_no_gradient_and_the_rest_has(stages):
    config = ResNetConfig(name="resnet18", width=8, frozen_stages=stages)
    backbone = build_backbone(config).train()
    features = backbone(torch.randn(1, 3, 64, 64))
    if stages < 5:
        sum(f.sum() for f in features).backward()
    parts = [backbone.stem, *backbone.stages]
    for index, part in enumerate(parts):
        has = [p.grad is not None for p in part.parameters()]
        assert not any(has) if index < stages else all(has)


def test_frozen_batch_norm_folds_to_the_same_values_as_batch_norm():
    torch.manual_seed(0)
    frozen, plain = ConvNorm(3, 8, 3, norm="frozen_batch_norm"), ConvNorm(3, 8, 3, norm="batch_norm")
    for tensor in (plain.norm.weight, plain.norm.bias, plain.norm.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(plain.norm.running_var, 0.5, 2.0)
    frozen.load_state_dict({k: v for k, v in plain.state_dict().items() if not k.endswith("num_batches_tracked")})
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(frozen(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", [3, 8, 16])
def test_a_convolution_of_one_pixel_with_a_stride_is_what_torch_says_with_few_channels_too(inputs):
    ours = ConvNorm(inputs, 6, 1, 2)
    x = torch.randn(2, inputs, 9, 14, requires_grad=True)
    found, expected = ours(x), torch.nn.functional.conv2d(x, ours.weight, ours.bias, stride=2)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(found)
    one, other = (torch.autograd.grad(y, (x, ours.weight, ours.bias), grad) for y in (found, expected))
    torch.testing.assert_close(one, other)


NARROW = """
import torch
from mrcnn_cli.models.backbones import build_backbone
from mrcnn_cli.models.backbones.resnet import ResNetConfig
backbone = build_backbone(ResNetConfig(name="resnet18", width=8, norm="batch_norm"), 3)
backbone.to(memory_format=torch.channels_last).train()
x = torch.randn(2, 3, 256, 256).contiguous(memory_format=torch.channels_last)
for _ in range(8):
    sum(level.sum() for level in backbone(x)).backward()
"""


def test_the_backward_pass_of_a_narrow_backbone_stays_within_its_memory():
    checked = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}  # of glibc; elsewhere without effect
    done = subprocess.run([sys.executable, "-c", NARROW], env={**os.environ, **checked}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("kernel", "length"), [(3, 8), (3, 9), (5, 8), (5, 9), (5, 10)])
def test_same_padding_puts_the_odd_pixel_at_the_end_as_tensorflow_does(kernel, length):
    conv = ConvNorm(1, 1, kernel, 2, same_padding=True)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        output = conv(torch.ones(1, 1, length, length))
    assert output.shape[-1] == -(-length // 2)
    total = max((output.shape[-1] - 1) * 2 + kernel - length, 0)
    first, last = kernel - total // 2, kernel - (total - total // 2)
    assert output[0, 0, 0, 0].item() == first * first
    assert output[0, 0, -1, -1].item() == last * last


def test_padding_is_set_after_normalisation():
    model = mask_rcnn()
    batch = ImageBatch(images(1).pixels, [(40, 50)], [(40, 50)])
    pixels = model.preprocess(batch)
    assert pixels[:, :, 40:].abs().sum() == 0
    assert pixels[:, :, :, 50:].abs().sum() == 0
    assert pixels[:, :, :40, :50].abs().min() >= 0
    assert pixels[:, :, :40, :50].std() > 0.5


def test_bgr_models_get_bgr():
    rgb, bgr = mask_rcnn(), mask_rcnn(pixels={"channels": "bgr", "mean": [0, 0, 0], "deviation": [1, 1, 1]})
    expected = images(1).pixels.flip(1).float()
    assert torch.equal(bgr.preprocess(images(1)), expected)
    assert not torch.equal(rgb.preprocess(images(1)), expected)


def test_levels_of_anchors_must_fit_the_pyramid():
    with pytest.raises(ValueError, match=r"anchors.sizes has 2 levels, fpn has 5"):
        mask_rcnn(anchors={"sizes": [[32], [64]]})


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_builds_and_survives_a_round_trip(name):
    from mrcnn_cli.engine.run import RunConfig

    config = validate(RunConfig, read(recipes()[name]), name)
    assert validate(RunConfig, loads(dumps(config)), name) == config
    with torch.device("meta"):
        model = build_model(config.model, 5)
    assert sum(p.numel() for p in model.parameters()) > 1_000_000


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_begins_with_what_it_is_and_the_command(name):
    lines = recipes()[name].read_text().splitlines()
    comment = [line for line in lines[: lines.index("")] if line.startswith("# ")]
    assert len(comment) == lines.index("") >= 2
    assert any(line.startswith(f"# mrcnn train {name}") for line in comment)
