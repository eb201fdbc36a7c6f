import pytest

from mrcnn_cli.ops import ps_roi_pool
from tests.emulator.emulation import ORDERS
from tests.emulator.position_sensitive import CASES, equals_the_cpu, gathers_in_order, gives_zeros_for_no_image


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("dtype", "out", "size"), CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_values_and_gradients_equal_the_cpus(emulated, dtype, out, size, channels_last, order):
    emulated.set_order(order, 3)
    equals_the_cpu(emulated.ps_roi_pool, ps_roi_pool, dtype, out, size, channels_last)


def test_more_regions_than_one_round_of_a_block_are_gathered_in_their_order(emulated):
    gathers_in_order(emulated, emulated.ps_roi_pool, ps_roi_pool)


def test_a_region_of_no_image_gives_zeros_and_no_gradient(emulated):
    emulated.set_order(0, 1)
    gives_zeros_for_no_image(emulated.ps_roi_pool)
