"""How this process asks the system for memory, and how much it could have."""

import ctypes
import platform
import resource
import sys
from pathlib import Path

import torch

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


def free_memory_mb(device: torch.device) -> float:
    """What a process could have: on a GPU all that is free, else what the system or its container allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e6
    text = Path("/proc/meminfo").read_text()
    available = int(text.split("MemAvailable:")[1].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            available = min(available, int(limit) - int(used))
    except OSError:  # no second version of control groups, so no limit of that kind
        pass
    return available / 1e6


def peak_memory_mb() -> float:
    """The most that this process has held so far, resident."""
    try:
        # Not what getrusage says: that begins with what the process held that started this one.
        text = Path("/proc/self/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
