"""What only a GPU can show: other streams, graphs, no waiting for the device, tensors of more than 2^31 elements."""

import math

import pytest
import torch

from mrcnn_cli import ops

pytestmark = pytest.mark.gpu


def boxes(count):
    random = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=random) * 90
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=random) * 40], 1).cuda()


def maps(channels, *sizes):
    random = torch.Generator().manual_seed(channels)
    return [
        torch.randn(2, channels, *size, generator=random).cuda().to(memory_format=torch.channels_last) for size in sizes
    ]


def rois(count):
    return torch.cat([(torch.arange(count).cuda() % 2)[:, None].float(), boxes(count)], 1)


def multilevel_roi_align():
    features, regions = maps(32, (32, 40), (16, 20)), rois(30)
    scales = torch.tensor([0.25, 0.125]).tolist()

    def call():
        wanted = [feature.detach().requires_grad_() for feature in features]
        pooled = ops.multilevel_roi_align(wanted, regions, 7, scales, 2, canonical_size=40, canonical_level=3)
        return [pooled, *torch.autograd.grad(pooled.sum(), wanted)]

    return call


def pooling(function, channels, *options):
    def make():
        (feature,), regions = maps(channels, (32, 40)), rois(30)

        def call():
            wanted = feature.detach().requires_grad_()
            pooled = function(wanted, regions, 2, 0.25, *options)
            return [pooled, *torch.autograd.grad(pooled.sum(), [wanted])]

        return call

    return make


def nms_sorted():
    regions, groups = boxes(500), torch.arange(500).cuda() % 3
    return lambda: [ops.nms_sorted(regions, 0.5, groups)]


def match_anchors():
    anchors, objects, crowds = boxes(5000), boxes(20), boxes(2)
    return lambda: [ops.match_anchors(anchors, objects, 0.3, 0.7, True, crowds)]


def rpn_proposals():
    logits, deltas = maps(3, (24, 30), (12, 15)), maps(12, (24, 30), (12, 15))
    arguments = ([(96, 120)] * 2, ((16.0,), (32.0,)), (0.5, 1.0, 2.0), (4, 8))
    return lambda: list(ops.rpn_proposals_padded(logits, deltas, *arguments, pre_nms_top_n=200, post_nms_top_n=50))


def overlaps():
    one, other = boxes(100), boxes(60)
    return lambda: [ops.box_iou(one, other), ops.generalized_box_iou(one, other)]


def box_coding():
    anchors, objects = boxes(100), boxes(100)
    return lambda: [ops.decode(ops.encode(objects, anchors), anchors)]


def paste_masks_dense():
    masks, regions = torch.rand(20, 28, 28, generator=torch.Generator().manual_seed(0)).cuda(), boxes(20)
    return lambda: [ops.paste_masks_dense(masks, regions, (150, 150))]


def sigmoid_focal_loss():
    logits = torch.randn(300, 11, generator=torch.Generator().manual_seed(0)).cuda()
    truth = (logits > 0.5).float()

    def call():
        wanted = logits.detach().requires_grad_()
        loss = ops.sigmoid_focal_loss(wanted, truth, reduction="sum")
        return [loss, *torch.autograd.grad(loss, [wanted])]

    return call


CALLS = {
    "box_coding": box_coding,
    "match_anchors": match_anchors,
    "multilevel_roi_align": multilevel_roi_align,
    "nms_sorted": nms_sorted,
    "overlaps": overlaps,
    "paste_masks_dense": paste_masks_dense,
    "ps_roi_align": pooling(ops.ps_roi_align, 16, 2),
    "ps_roi_pool": pooling(ops.ps_roi_pool, 16),
    "roi_pool": pooling(ops.roi_pool, 16),
    "rpn_proposals": rpn_proposals,
    "sigmoid_focal_loss": sigmoid_focal_loss,
}
every_call = pytest.mark.parametrize("make", CALLS.values(), ids=CALLS)


@every_call
def test_every_run_gives_the_same_bits(make):
    call = make()
    first = call()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(call(), first, strict=True))


@every_call
def test_work_goes_to_the_current_stream(make):
    call = make()
    expected = call()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # whatever runs on another stream would be done long before
        result = call()
        finished = torch.cuda.Event()
        finished.record(stream)
        assert not finished.query()
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@every_call
def test_nothing_waits_for_the_device(make):
    call = make()
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_call
def test_it_is_captured_in_a_graph_and_replayed(make):
    call = make()
    expected = call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def enough_memory(gigabytes):
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of free memory on the device, there are {free / 1e9:.0f}")


def test_a_map_of_more_than_two_to_the_31_elements_is_read_and_written_at_its_end():
    enough_memory(24)
    side = 2900  # 2900 * 2900 * 256 > 2^31
    feature = torch.zeros(1, 256, side, side, device="cuda", dtype=torch.float16).to(memory_format=torch.channels_last)
    assert feature.numel() > 2**31
    feature[:, :, -8:, -8:] = 3.0
    corner = torch.tensor([[0.0, side - 6, side - 6, side - 3, side - 3]], device="cuda")
    feature.requires_grad_()
    pooled = ops.roi_align(feature, corner, 2, 1.0, 2)
    assert torch.equal(pooled, torch.full_like(pooled, 3.0))
    (gradient,) = torch.autograd.grad(pooled.sum(), [feature])
    assert gradient[:, :, -8:, -8:].float().sum().item() == pytest.approx(256 * 4, rel=1e-3)
    assert gradient[:, :, :8].abs().max().item() == 0


def test_more_than_two_to_the_31_focal_losses():
    enough_memory(24)
    logits = torch.full((2**25 + 1, 64), -math.log(3.0), device="cuda", dtype=torch.float16)
    assert logits.numel() > 2**31
    labels = torch.full((len(logits),), 64, device="cuda")
    loss = ops.sigmoid_focal_loss_labels(logits, labels, reduction="mean")
    one = ops.sigmoid_focal_loss_labels(logits[:1], labels[:1], reduction="mean")
    assert loss.item() == pytest.approx(one.item(), rel=1e-3)
