"""encode and decode: checked with the weights of Fast R-CNN's box head."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.ops import decode, encode, reference

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def _boxes() -> tuple[Tensor, Tensor]:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 35.0, 25.0]], dtype=torch.float64)
    return anchors + torch.tensor([[1.0, -2.0, 3.0, 4.0]], dtype=torch.float64), anchors


def encode_checks() -> Iterator[Check]:
    boxes, anchors = _boxes()
    yield Check(
        "weights 10, 10, 5, 5",
        lambda x: encode(x, anchors.to(x), WEIGHTS),
        lambda x: reference.encode(x, anchors, WEIGHTS),
        (boxes,),
        differentiable=True,
        dtypes=("float64", "float32"),
    )


def decode_checks() -> Iterator[Check]:
    boxes, anchors = _boxes()
    yield Check(
        "weights 10, 10, 5, 5",
        lambda x: decode(x, anchors.to(x), WEIGHTS),
        lambda x: reference.decode(x, anchors, WEIGHTS),
        (reference.encode(boxes, anchors, WEIGHTS),),
        differentiable=True,
        dtypes=("float64", "float32"),
    )
