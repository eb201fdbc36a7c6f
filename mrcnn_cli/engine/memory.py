"""How this process asks the system for memory."""

import ctypes
import platform

# Options of glibc's mallopt, from <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Large blocks that are freed stay with the process, so that the next step does not pay for fresh, zeroed pages.

    For commands that compute, at their start: it changes the allocator of the whole process, so never at the import of
    the library. Elsewhere than on Linux with glibc it does nothing.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    allocator = ctypes.CDLL(None)
    allocator.mallopt(M_MMAP_MAX, 0)
    allocator.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
