"""The kernels held against slow Python and against other implementations: what `gradcheck` and `bench kernels` show.

One file for each operator says on what it is checked and on what it is timed.
"""

import difflib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from mrcnn_cli.engine.kernels import (
    box_coding,
    box_iou,
    box_voting,
    conv3x3,
    deform_conv2d,
    grid_anchors,
    mask_targets,
    match_anchors,
    nms,
    paste_masks,
    roi_align,
    roi_pool,
    rpn_proposals,
    sigmoid_focal_loss,
    soft_nms,
)
from mrcnn_cli.engine.kernels.check import TOLERANCE, Check, Row, examined
from mrcnn_cli.engine.kernels.race import Race, measured_limits, timed
from mrcnn_cli.engine.run import choose_device
from mrcnn_cli.errors import UserError


@dataclass(frozen=True)
class Operator:
    """What an operator is checked and timed on; None: it is not."""

    checks: Callable[[], Iterator[Check]] | None = None
    races: Callable[[torch.device], Iterator[Race]] | None = None


OPERATORS = {
    "batched_nms": Operator(nms.batched_checks, nms.batched_races),
    "box_coverage": Operator(box_iou.checks_of("box_coverage")),
    "box_iou": Operator(box_iou.checks_of("box_iou"), box_iou.races_of("box_iou")),
    "box_voting": Operator(box_voting.checks, box_voting.races),
    "clip_boxes": Operator(box_coding.clip_checks, box_coding.clip_races),
    "conv3x3": Operator(conv3x3.checks, conv3x3.races),
    "decode": Operator(box_coding.decode_checks, box_coding.decode_races),
    "deform_conv2d": Operator(deform_conv2d.checks, deform_conv2d.races),
    "encode": Operator(box_coding.encode_checks, box_coding.encode_races),
    "generalized_box_iou": Operator(box_iou.checks_of("generalized_box_iou"), box_iou.races_of("generalized_box_iou")),
    "generalized_box_iou_loss": Operator(
        box_iou.checks_of("generalized_box_iou_loss"), box_iou.races_of("generalized_box_iou_loss")
    ),
    "grid_anchors": Operator(grid_anchors.checks, grid_anchors.races),
    "match_anchors": Operator(match_anchors.checks, match_anchors.races),
    "multilevel_roi_align": Operator(roi_align.multilevel_checks, roi_align.multilevel_races),
    "nms": Operator(nms.checks, nms.races),
    "paired_box_iou": Operator(box_iou.checks_of("paired_box_iou")),
    "paired_generalized_box_iou": Operator(box_iou.checks_of("paired_generalized_box_iou")),
    "mask_targets": Operator(mask_targets.checks, mask_targets.races),
    "paste_masks": Operator(paste_masks.checks, paste_masks.races),
    "paste_masks_dense": Operator(paste_masks.dense_checks, paste_masks.dense_races),
    "roi_align": Operator(roi_align.checks, roi_align.races),
    "rpn_candidates": Operator(rpn_proposals.candidates_checks),
    "rpn_proposals": Operator(rpn_proposals.checks, rpn_proposals.races),
    "ps_roi_align": Operator(roi_pool.ps_roi_align_checks, roi_pool.ps_roi_align_races),
    "ps_roi_pool": Operator(roi_pool.ps_roi_pool_checks, roi_pool.ps_roi_pool_races),
    "roi_pool": Operator(roi_pool.checks, roi_pool.races),
    "sigmoid_focal_loss": Operator(sigmoid_focal_loss.checks, sigmoid_focal_loss.races),
    "sigmoid_focal_loss_labels": Operator(sigmoid_focal_loss.labels_checks, sigmoid_focal_loss.labels_races),
    "soft_nms": Operator(soft_nms.checks, soft_nms.races),
}


def gradcheck(ops: Sequence[str] | None = None, device: str = "cpu", dtype: str | None = None) -> list[Row]:
    """Every operator against its loop in float64, and its gradient against central differences.

    Args:
        ops: names, see OPERATORS; None: all.
        device: cpu, cuda, cuda:N.
        dtype: float64, float32, float16 or bfloat16; None: all that the operator takes.

    Returns:
        Rows with op, case, check, dtype, error (largest difference), tolerance and passed.

    Raises:
        UserError: an unknown operator or type, or a device that is not there.
    """
    if dtype is not None and dtype not in TOLERANCE:
        raise UserError(f"--dtype {dtype}: unknown; known: {', '.join(TOLERANCE)}")
    place = choose_device(device)
    checked = {op: operator.checks for op, operator in OPERATORS.items() if operator.checks}
    return [row for op in _known(ops, checked) for check in checked[op]() for row in examined(op, check, place, dtype)]


def bench(
    ops: Sequence[str] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    seconds: float = 0.5,
    against: str | None = None,
    fresh_process: bool = False,
) -> Iterator[Row]:
    """Times of the kernels beside plain PyTorch and, where it is installed, torchvision; answers are compared first.

    Args:
        ops: names, see OPERATORS; None: all.
        device: cpu, cuda, cuda:N.
        threads: of PyTorch on the CPU; None: as they are.
        seconds: at least so long, and at least three rounds, for each case.
        against: the one peer to time: "torchvision" or "plain"; None: all there are. Cases without it are left out.
        fresh_process: time everything in a second process too, whose allocator is as PyTorch leaves it.

    Yields:
        Rows with op, case, device, threads, ms, ms_low, ms_high, rounds, and for each peer `<peer>_ms` and
        `<peer>_ratio` (its time by ours), with fresh_process `<peer>_ratio_fresh` too; where they are stated,
        gigabytes_per_second, share_of_copy (of the measured copy bandwidth) and share_of_peak (of the measured peak
        of float32 multiplications and additions).

    Raises:
        UserError: an unknown operator, a device that is not there, or answers that differ.
    """
    place = choose_device(device)
    raced = {op: operator.races for op, operator in OPERATORS.items() if operator.races}
    chosen = _known(ops, raced)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with ExitStack() as stack:
            pool = stack.enter_context(_one_process()) if fresh_process else None
            limits = measured_limits(place)
            for op in chosen:
                elsewhere: dict[str, Row] = {}
                if pool is not None:
                    arguments = (op, device, torch.get_num_threads(), seconds, against)
                    elsewhere = {row["case"]: row for row in pool.submit(_rows, *arguments).result()}
                for race in raced[op](place):
                    peers = {name: work for name, work in race.peers.items() if against in (None, name)}
                    if against is not None and not peers:
                        continue
                    row = {"op": op, "case": race.case, "device": str(place), "threads": torch.get_num_threads()}
                    row |= timed(op, replace(race, peers=peers), place, seconds, limits)
                    if pool is not None:
                        other = elsewhere[race.case]
                        row |= {f"{peer}_ratio_fresh": other[f"{peer}_ratio"] for peer in peers}
                    yield row
    finally:
        torch.set_num_threads(before)


def _one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _rows(op: str, device: str, threads: int, seconds: float, against: str | None) -> list[Row]:
    return list(bench([op], device, threads, seconds, against))


def _known(ops: Iterable[str] | None, names: Iterable[str]) -> list[str]:
    names = list(names)
    chosen = list(ops or names)
    for op in chosen:
        if op not in names:
            close = difflib.get_close_matches(op, names, n=1)
            raise UserError(
                f"{op}: unknown operator; " + (f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}")
            )
    return chosen
