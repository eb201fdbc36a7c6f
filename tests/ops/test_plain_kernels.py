"""The kernels for processors without AVX2 or without AVX-512, which any machine can be made to take."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent


@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        ("test_box_iou.py", "loop or torchvision"),
        ("test_box_voting.py", "loop"),
        ("test_conv3x3.py", "loop or pytorch"),
        ("test_deform_conv2d.py", "loop or gradients or torchvision"),
        ("test_match_anchors.py", "loop or torchvision"),
        ("test_nms.py", "loop or grid"),
        ("test_paste_masks.py", "loop or whole_images or any_size"),
        ("test_roi_align.py", "loop or same_gradients"),
        ("test_rpn_proposals.py", "candidates_equal_the_loop or nan or same or decode"),
        ("test_roi_pool.py", "loop or first_of_the_largest or bits"),
        ("test_ps_roi_align.py", "loop or gradients"),
        ("test_sigmoid_focal_loss.py", "loop or gradients or infinite"),
        ("test_soft_nms.py", "loop or bits"),
    ],
)
def test_the_plain_kernels_pass_too(file, chosen):
    command = [sys.executable, "-m", "pytest", FOLDER / file, "-q", "-k", chosen, "-m", "not gpu"]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        env={**os.environ, "MRCNN_PLAIN_KERNELS": "1"},
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 10


def test_the_plain_kernels_are_really_taken():
    # float32 sums with and without fused multiply-adds differ in their last bits
    program = """
import torch
from mrcnn_cli.ops import roi_align
map = torch.randn(1, 16, 20, 20, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
print(roi_align(map, torch.tensor([[0, 1.3, 2.7, 17.1, 18.9]]), 7).double().pow(2).sum().item())
"""
    sums = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MRCNN_PLAIN_KERNELS": plain},
        ).stdout
        for plain in ("0", "1")
    ]
    assert float(sums[0]) == pytest.approx(float(sums[1]), rel=1e-6)
    if "avx2" in Path("/proc/cpuinfo").read_text():
        assert sums[0] != sums[1]


BITS = {
    "conv3x3": """
from mrcnn_cli.ops import conv3x3
map, weight = torch.randn(2, 70, 13, 18, generator=random), torch.randn(50, 70, 3, 3, generator=random)
results = [conv3x3(map, weight, relu=True)]
""",
    # as many logits as fill vectors of either width and leave some over; some need the plain kernel
    "sigmoid_focal_loss": """
from mrcnn_cli.ops import sigmoid_focal_loss
results = []
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for count in (7, 8, 15, 16, 23, 5001):
        logits = torch.randn(count, generator=random) * 20
        logits[5::97] = math.inf
        targets = torch.rand(count, generator=random).to(dtype)
        logits = logits.to(dtype).requires_grad_()
        for gamma in (0.0, 1.0, 1.5, 2.0):
            for reduction in ("none", "sum"):
                loss = sigmoid_focal_loss(logits, targets, 0.25, gamma, reduction)
                results += [loss, *torch.autograd.grad(loss.nan_to_num(0, 0, 0).sum(), logits)]
""",
}


@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="this processor has no AVX-512")
@pytest.mark.parametrize("operator", BITS)
def test_vectors_of_both_widths_give_the_same_bits(operator):
    program = f"""
import hashlib, math, torch
random = torch.Generator().manual_seed(0)
{BITS[operator]}
bits = b"".join(result.detach().double().contiguous().numpy().tobytes() for result in results)
print(hashlib.sha256(bits).hexdigest())
"""

    def bits(**environment):
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=True).stdout

    assert bits(MRCNN_AVX512="0") == bits(MRCNN_AVX512="1")
    assert bits(MRCNN_PLAIN_KERNELS="1") != bits()  # without fused multiply-adds the last bits differ
