"""Work done ahead in forked processes, given back in order."""

import io
import multiprocessing
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrcnn_cli.errors import UserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def in_workers(function: Callable[[int], Any], numbers: range, workers: int) -> Generator[Any, None, None]:
    """`function` of each number, in order; closing the iterator ends the processes at once.

    Each worker computes one result ahead and waits with it until it is taken. The processes are forked, so they share
    the memory of what `function` holds. Results travel through pipes as plain bytes: torch's own way, a piece of shared
    memory for each tensor, is slower for small ones, runs out of file descriptors, and is tiny in containers.

    Args:
        function: its results may hold CPU tensors.
        numbers: what it is called with.
        workers: processes; 0: all in this one.

    Raises:
        UserError: as `function` raised it; or a process was killed.
        RuntimeError: any other exception of `function`, with its traceback as text.
    """
    if workers == 0:
        for number in numbers:
            yield function(number)
        return
    count = min(workers, len(numbers))
    pipes: list[Connection] = []
    processes: list[Any] = []
    try:
        for worker in range(count):
            _start(function, numbers[worker::count], pipes, processes)
        for place in range(len(numbers)):
            yield _take(pipes[place % count])
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        for pipe in pipes:
            pipe.close()


def _start(function: Callable[[int], Any], numbers: range, pipes: list[Connection], processes: list[Any]) -> None:
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    pipes.append(receiving)
    process = context.Process(target=_work, args=(function, numbers, sending, list(pipes)), daemon=True)
    # Held back until the process has its own answer to them: else Ctrl-C in this moment prints a traceback from there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with warnings.catch_warnings():
            # Newer Pythons warn of forking beside other threads. These processes take no lock that one could hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        processes.append(process)
    finally:
        sending.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(function: Callable[[int], Any], numbers: range, sending: Connection, others: list[Connection]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends these
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for pipe in others:  # while any process can still read, a writer would not notice that the main one is gone
        pipe.close()
    torch.set_num_threads(1)
    with suppress(BrokenPipeError, ConnectionResetError):
        for number in numbers:
            try:
                result = True, function(number)
            except UserError as error:
                result = False, error
            except Exception:
                result = False, RuntimeError(f"in a process that prepares data:\n{traceback.format_exc()}")
            sending.send_bytes(_packed(result))


def _take(pipe: Connection) -> Any:
    try:
        worked, result = pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionResetError):
        raise UserError(
            "a process that prepares batches was killed, most likely for want of memory; set data.workers=0, or a "
            "smaller data.cache_mb"
        ) from None
    if not worked:
        raise result
    return result


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        # Channels last is an order of memory, which must arrive as it was.
        strides = value.stride()
        order = sorted(range(value.dim()), key=lambda axis: -strides[axis])
        return _tensor, (value.permute(order).numpy(), np.argsort(order).tolist())


def _tensor(array: np.ndarray, order: list[int]) -> Tensor:
    return torch.from_numpy(array).permute(order)


def _packed(result: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(result)
    return buffer.getvalue()
