"""Several processes that train one model together: who is who, what they exchange, and what ends with whom.

Each process is started with the variables that torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
They exchange tensors by gloo on CPUs and by NCCL between GPUs, everything else through gloo as JSON text: nothing that
comes from another process is unpickled. The first one, of rank 0, alone reads a run's folder, writes and speaks.
"""

import fcntl
import hashlib
import json
import os
import signal
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mrcnn_cli.engine.watch import Watch, connect
from mrcnn_cli.errors import UserError
from mrcnn_cli.structures import at_least_one

JOIN_SECONDS = 120.0  # until all processes have met
# For one exchange: as long as the first process may take for an evaluation. Who is lost is noticed by the `Watch`.
EXCHANGE_TIME = timedelta(hours=12)
SIOCGIFADDR = 0x8915  # from <linux/sockios.h>: the address of an interface


class EndedByOther(Exception):
    """This process ends because another one failed, which says why itself."""


@dataclass(frozen=True, eq=False)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: 0..size - 1.
        size: how many there are.
        local_rank: the rank among those of this machine: the number of its GPU.
        restartable: whether all are started again when one fails.
        store: what they have met in; None of one alone.
        watch: over the others; None of one alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restartable: bool = False
    store: Any = None
    watch: Watch | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def at(self, step: int) -> None:
        """Remember that this process works on this step; for messages, here and from the others."""
        if self.watch is not None:
            self.watch.step = step

    def at_work(self) -> None:
        """Remember that this process has read what it needs, for work that has no steps."""
        if self.watch is not None:
            self.watch.step, self.watch.has_steps = 1, False

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in each of them; the tensor itself is changed."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def denominator(self, count: Any) -> Any:
        """What a loss is divided by where each process has its share of the batch (see `structures.Denominator`)."""
        if self.size == 1:
            return at_least_one(count)
        return self.sum(torch.as_tensor(count).clone()).clamp(min=1)

    def largest(self, *numbers: int) -> list[int]:
        """The largest of all processes' numbers, place by place."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return bool(self.largest(flag)[0])

    def tell(self, value: Any) -> Any:
        """What the first process has: anything that JSON can hold."""
        if self.size == 1:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        [length] = self.largest(len(text) if self.is_first else 0)
        text = text if self.is_first else torch.empty(length, dtype=torch.uint8)
        dist.broadcast(text, 0)
        return json.loads(text.numpy().tobytes())

    def gather(self, value: Any) -> Iterator[Any]:
        """In the first process what each has, by rank, one after the other; in the others nothing."""
        if self.is_first:
            yield value
            for rank in range(1, self.size):
                length = torch.empty(1, dtype=torch.int64)
                dist.recv(length, rank)
                text = torch.empty(int(length), dtype=torch.uint8)
                dist.recv(text, rank)
                yield json.loads(text.numpy().tobytes())
        else:
            text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
            dist.send(torch.tensor([len(text)]), 0)
            dist.send(text, 0)

    def spread(self, read: Callable[[], tuple[dict[str, Tensor], dict[str, str]]]) -> tuple[dict[str, Tensor], Any]:
        """Tensors and what is said of them, read by the first process alone, for the others may not have its disk."""
        tensors, about = read() if self.is_first else ({}, {})
        if self.size == 1:
            return tensors, about
        shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
        shapes, about = self.tell([shapes, about])
        for name, (dtype, shape) in shapes.items():
            if not self.is_first:
                tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
            dist.broadcast(tensors[name], 0)
        return tensors, about

    def align(self, model: nn.Module) -> None:
        """Take over the first process's buffers: each has batch norms' running statistics of its own images."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model for training: whose gradients are the means over all processes.

        So the losses are multiplied by their number: each is a share of the whole batch's.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.size == 1 or not parameters:
            return model
        network = DistributedDataParallel(_Shared(model), broadcast_buffers=False)
        network().backward()
        model.zero_grad(set_to_none=True)
        return network

    def speaks_first(self, message: str) -> bool:
        """Whether no other process has said this yet."""
        if self.store is None or self.watch is None or not self.watch.is_answered:
            return True
        key = f"said/{hashlib.blake2b(message.encode(), digest_size=8).hexdigest()}"
        try:
            return self.store.add(key, 1) == 1
        except RuntimeError:
            return True


ALONE = World()


class _Shared(nn.Module):
    """A model as it is given to PyTorch, which groups gradients anew in the order in which the first step gives them.

    So a run that goes on would add them up in another order than the one that was never stopped, and end in other bits.
    The first step is therefore this one without images: its order is always the weights' own, the last ones first.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *batch: Any) -> Any:
        if batch:
            return self.model(*batch)
        return torch.stack([0.0 * weight.sum() for weight in self.model.parameters() if weight.requires_grad]).sum()


@contextmanager
def joined(
    device: str = "auto", say: Callable[[str], None] = lambda message: None, seconds: float = JOIN_SECONDS
) -> Iterator[World]:
    """The processes that were started with this one; ALONE where it was started by itself.

    What ends one of them ends all. An exception that leaves this says in which process and step it happened; what
    several of them meet alike is said once.

    Args:
        device: as `choose_device` takes it.
        say: shows a person why this process ends, when it is stuck in an exchange with one that is lost.
        seconds: how long to wait for the others.

    Raises:
        UserError: the others cannot be reached; whatever is raised inside; a process was lost.
        EndedByOther: another one failed and has said why.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    world = _join(device, say, seconds)
    assert world.watch is not None
    try:
        yield world
    except UserError as error:
        world.watch.failed()
        if not world.is_first:
            time.sleep(1)  # what all meet alike is the first one's to say
        if not world.speaks_first(str(error)):
            raise EndedByOther from None
        place = ", ".join(filter(None, (f"rank {world.rank}", world.watch.place)))
        where = f"{place}: " if world.size > 1 and world.watch.step else ""
        if world.is_first and str(error).startswith("step "):
            where = ""
        raise UserError(f"{where}{error}") from None
    except RuntimeError as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it at once, before it is known who is lost
        lost = world.watch.explain() if world.size > 1 else None
        if lost is None:
            world.watch.failed()
            error.add_note(", ".join(filter(None, (f"in rank {world.rank}", world.watch.place))))
            raise
        if lost == "" or not world.speaks_first(lost):
            raise EndedByOther from None
        raise UserError(lost) from None
    except BaseException:
        world.watch.failed()
        raise
    finally:
        world.watch.finish()
    dist.destroy_process_group()


def _join(device: str, say: Callable[[str], None], seconds: float) -> World:
    """This process's world, once all have met, and its watch set."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the variables of a start in several processes are incomplete ({error}): start with --processes N "
            "or with torchrun"
        ) from None
    if device != "cpu" and torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"rank {rank}: this machine has {torch.cuda.device_count()} GPUs, fewer than processes; start one for "
                "each GPU"
            )
        torch.cuda.set_device(local_rank)
    watch: Watch | None = None
    try:
        if rank > 0:
            _wait_for(host, port, seconds)
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))
        start = _start_name(store, rank, seconds)
        watch = Watch(connect(host, port, f"{start}/watch"), rank, size, socket.gethostname())
        restartable = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
        world = World(rank, size, local_rank, restartable, connect(host, port, f"{start}/run"), watch)
        watch.start(lambda message: say(message) if world.speaks_first(message) else None)
        _choose_interface(host)
        backend = "cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore(f"{start}/group", store), rank=rank, world_size=size, timeout=EXCHANGE_TIME
        )
    except (RuntimeError, ValueError, OSError) as error:
        if watch is not None:
            watch.failed()
            watch.finish()
        reason = str(error).splitlines()[0]
        if "EADDRINUSE" in reason:
            raise UserError(
                f"{host}:{port}: the port is taken by another program; choose another one (torchrun --master-port)"
            ) from None
        raise UserError(
            f"{host}:{port}: rank {rank} of {size} did not meet the others within {seconds:g} s; see that all "
            f"are started, with the same address, and that they reach it (MASTER_ADDR, MASTER_PORT): {reason}"
        ) from None
    return world


def _choose_interface(host: str) -> None:
    """Lets gloo use the network interface that leads to the master, unless a person has chosen one.

    By itself it takes the address that this machine's name has, which for many machines is 127.0.0.1.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            mine = socket.inet_aton(probe.getsockname()[0])
            together = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
            if mine[0] == 127 and not together:
                return
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # an interface without an address
                    found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
                    if found[20:24] == mine:
                        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
                        return
    except OSError:
        pass  # as with IPv6 alone: gloo chooses


def _wait_for(host: str, port: int, seconds: float) -> None:
    """Returns once somebody listens there; PyTorch's own attempts fill the screen when they fail."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.1)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _start_name(store: Any, rank: int, seconds: float) -> str:
    """A name for this start of all processes, chosen by the first one.

    After an elastic restart the store still holds what the processes before have left there, this name among it: so
    each waits for another one than the last that it has seen.
    """
    seen = f"start/{rank}"
    before = store.get(seen) if store.check([seen]) else b""
    if rank == 0:
        store.set("start", uuid.uuid4().hex)
    deadline = time.monotonic() + seconds
    while (name := store.get("start")) == before:
        if time.monotonic() > deadline:
            raise RuntimeError("the process of rank 0 is missing")
        time.sleep(0.1)
    store.set(seen, name)
    return name.decode()


def local_device(world: World, device: str) -> str:
    """The device of this process: each has a GPU of its own."""
    if world.size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{world.local_rank}"
    if world.size > 1 and device.startswith("cuda:"):
        raise UserError(f"--device {device}: names one GPU for {world.size} processes; give cuda: each takes its own")
    return device


def check_shares(world: World, batch_size: int, accumulate: int) -> None:
    """UserError if there are fewer images in a step than processes and parts."""
    needed = world.size * accumulate
    if batch_size < needed:
        parts = f" in {accumulate} parts each (train.accumulate)" if accumulate > 1 else ""
        raise UserError(
            f"train.batch_size = {batch_size} images for {world.size} processes{parts}: each needs one; take a batch "
            f"of at least {needed} or fewer processes"
        )
