"""Who of the processes of a run still lives: each says so every second, and each looks at all others.

An exchange of tensors waits for a process that is stopped, or whose machine has gone, for as long as it is allowed to.
So a thread beside the training leaves a mark in the store in which the processes have met, and ends this process when
another one's marks have not changed for a while.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 20.0  # after which a process is taken for lost
SETUP_SECONDS = 600.0  # the same before the first step: while it reads a large file a process gives no sign
QUICK_SECONDS = 6.0  # the same, where an exchange with another one has failed already
ANSWER_SECONDS = 15.0  # until a connection to the store is there
DONE, FAILED = "done", "failed"


def connect(host: str, port: int, prefix: str) -> Any:
    """A connection of its own to the store in which the processes have met, for keys with this prefix."""
    client = dist.TCPStore(
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=ANSWER_SECONDS)
    )
    return dist.PrefixStore(prefix, client)


class Watch:
    """The marks of one process, and what it sees of the others'.

    Args:
        store: from `connect`.
        rank: of this process.
        size: of all.
        host: the name of this machine.
    """

    def __init__(self, store: Any, rank: int, size: int, host: str):
        self.store, self.rank, self.size, self.host = store, rank, size, host
        self.step = 0  # that this process works on; 0: it still reads
        self.has_steps = True  # else they are no news to a person
        self.count = 0
        self.status = ""
        self.seen: dict[int, tuple[str, int]] = {}  # rank -> its last mark, and how often it was looked at in vain
        self.unanswered = 0  # beats since the store has answered
        self.ended = threading.Event()
        self.talking = threading.Thread(target=self._talk, daemon=True)
        self._mark()

    def start(self, say: Callable[[str], Any]) -> None:
        """Begin to watch.

        Args:
            say: shows a person why the process ends, right before it does.
        """
        self.talking.start()
        threading.Thread(target=self._judge, args=(say,), daemon=True).start()

    @property
    def place(self) -> str:
        """Where this process is, in words; empty where there is nothing to say."""
        return f"step {self.step}" if self.step and self.has_steps else ""

    @property
    def is_answered(self) -> bool:
        """Whether the store answers."""
        return self.unanswered * BEAT_SECONDS < QUICK_SECONDS / 2

    def failed(self) -> None:
        """This process ends by an error that it says itself."""
        self.status = self.status or FAILED

    def finish(self) -> None:
        """No one has to wait for this process any more."""
        self.status = self.status or DONE
        self.ended.set()
        self.talking.join(QUICK_SECONDS)
        if not self.talking.is_alive():  # else it waits for an answer, and nobody can talk but it
            with suppress(RuntimeError):  # where nobody is left to read it
                self._mark()

    def explain(self) -> str | None:
        """Why an exchange has failed: which process is lost, "" where one failed that says so itself, None: neither."""
        deadline = time.monotonic() + 2 * QUICK_SECONDS
        while time.monotonic() < deadline:
            if any(mark.startswith(FAILED) for mark, _ in self.seen.values()):
                return ""
            lost = self._lost(QUICK_SECONDS, QUICK_SECONDS)
            if lost is not None:
                return lost
            time.sleep(BEAT_SECONDS / 4)
        return None

    def _talk(self) -> None:
        """Marks and looks, until the store has gone: a connection that has broken, or waits for ever, stays so."""
        with suppress(RuntimeError):
            while not self.ended.wait(BEAT_SECONDS):
                self._mark()
                self._look()
                self.unanswered = 0

    def _judge(self, say: Callable[[str], Any]) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            self.unanswered += 1
            lost = self._lost(SILENCE_SECONDS, SETUP_SECONDS)
            failed = any(
                mark.startswith(FAILED) and looks * BEAT_SECONDS >= SILENCE_SECONDS
                for mark, looks in self.seen.values()
            )
            if (lost or failed) and not self.ended.is_set():
                if lost:  # one that failed has said why
                    say(lost)
                os._exit(1)

    def _mark(self) -> None:
        self.count += 1
        self.store.set(str(self.rank), f"{self.status} {self.count} {self.step} {self.host}")

    def _look(self) -> None:
        others = [rank for rank in range(self.size) if rank != self.rank]
        come = [rank for rank in others if rank in self.seen or self.store.check([str(rank)])]
        marks = [mark.decode() for mark in self.store.multi_get([str(rank) for rank in come])] if come else []
        for rank, mark in zip(come, marks, strict=True):
            before, looks = self.seen.get(rank, ("", 0))
            self.seen[rank] = (mark, looks + 1 if mark == before else 0)

    def _lost(self, seconds: float, setup_seconds: float) -> str | None:
        """Who has not been heard of for so long, in words."""
        at = f"{self.place}: " if self.place else ""
        if self.unanswered * BEAT_SECONDS >= seconds:
            return f"{at}rank {self.rank} on {self.host} no longer reaches the process that the run was started by"
        for rank, (mark, looks) in self.seen.items():
            status, _, step, host = mark.split(" ", 3)
            # Its last mark may be older than its first step, which it has done where this one is beyond it.
            patience = seconds if int(step) or self.step > 1 else setup_seconds
            # Counted in looks, for time passes too while all are suspended or the store does not answer.
            if not status and looks * BEAT_SECONDS >= patience:
                return f"{at}rank {rank} on {host} is lost: no sign of it for {looks * BEAT_SECONDS:.0f} s"
        return None
