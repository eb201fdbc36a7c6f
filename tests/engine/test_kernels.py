import pytest
import torch

from mrcnn_cli.engine import kernels
from mrcnn_cli.engine.kernels import grid_anchors, nms, roi_align
from mrcnn_cli.errors import UserError


def test_every_kernel_passes_and_every_gradient_is_checked():
    rows = kernels.gradcheck()
    assert {row["op"] for row in rows} == {op for op, operator in kernels.OPERATORS.items() if operator.checks}
    assert [row for row in rows if not row["passed"]] == []
    differentiated = {row["op"] for row in rows if row["check"] == "gradient equals differences"}
    without = {row["op"] for row in rows} - differentiated
    assert without == {
        "batched_nms",
        "box_voting",
        "grid_anchors",
        "mask_targets",
        "match_anchors",
        "nms",
        "paste_masks",
        "paste_masks_dense",
        "rpn_candidates",
        "rpn_proposals",
        "soft_nms",
    }


def test_a_wrong_value_is_caught(monkeypatch):
    right = roi_align.roi_align
    monkeypatch.setattr(roi_align, "roi_align", lambda x, *rest: right(x, *rest) + 1e-4)
    rows = kernels.gradcheck(["roi_align"], dtype="float64")
    assert not any(row["passed"] for row in rows if row["check"] == "equals the loop")


def test_a_wrong_gradient_is_caught(monkeypatch):
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return 0.999 * gradient

    right = roi_align.roi_align
    monkeypatch.setattr(roi_align, "roi_align", lambda x, *rest: right(Halved.apply(x), *rest))
    rows = kernels.gradcheck(["roi_align"], dtype="float64")
    assert all(row["passed"] for row in rows if row["check"] == "equals the loop")
    assert not any(row["passed"] for row in rows if row["check"] == "gradient equals differences")


def test_a_wrong_box_is_caught(monkeypatch):
    right = nms.nms
    monkeypatch.setattr(nms, "nms", lambda *arguments: right(*arguments).flip(0))
    assert not any(row["passed"] for row in kernels.gradcheck(["nms"]))


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="roi_aling: unknown operator; did you mean 'roi_align'"):
        kernels.gradcheck(["roi_aling"])
    with pytest.raises(UserError, match="--dtype int8: unknown"):
        kernels.gradcheck(dtype="int8")
    with pytest.raises(UserError, match="box_coverage: unknown operator"):
        next(kernels.bench(["box_coverage"]))


def test_a_bench_row_names_the_case_and_the_ratio():
    threads = torch.get_num_threads()
    [row] = kernels.bench(["grid_anchors"], threads=1, seconds=0.0)
    assert row["op"] == "grid_anchors"
    assert row["threads"] == 1
    assert row["plain_ratio"] == pytest.approx(row["plain_ms"] / row["ms"])
    assert torch.get_num_threads() == threads


def test_nothing_is_timed_while_the_answers_differ(monkeypatch):
    right = grid_anchors.grid_anchors
    monkeypatch.setattr(grid_anchors, "grid_anchors", lambda *a, **k: right(*a, **k) + 1)
    with pytest.raises(UserError, match="our answer differs from plain's"):
        next(kernels.bench(["grid_anchors"]))
