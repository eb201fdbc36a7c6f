import ctypes

import pytest

from tests.emulator.emulation import compiled


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The launchers of all kernels, run by the emulator."""
    return ctypes.CDLL(str(compiled(tmp_path_factory.mktemp("emulated"), ["-shared"], "emulated.so")))
