"""Several downloads at once, told as one; the first failure ends all, and so does Ctrl-C.

Knows threads. Does not know what is fetched.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .download import Stopped
from .transport import Progress

AT_ONCE = 4
_LEFT_S = 2.0  # a thread that hangs in the network for longer is left to the end of the process
Job = Callable[[Progress, threading.Event], Any]


def together(jobs: Sequence[Job], total_bytes: int, what: str, progress: Progress | None) -> list[Any]:
    """The jobs' results in their order; `progress` is told the sum of what they tell."""
    stop, outcomes = threading.Event(), queue.SimpleQueue[tuple[int, Any, BaseException | None]]()
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done_bytes, telling = [0] * len(jobs), threading.Lock()
    for i in range(len(jobs)):
        waiting.put(i)

    def tell(i: int, name: str) -> Progress:
        def told(done: int, total: int, said: str) -> None:
            with telling:
                done_bytes[i] = done
                if progress:
                    progress(sum(done_bytes), max(total_bytes, total), name or said)

        return told

    def work() -> None:
        while not stop.is_set():
            try:
                i = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                outcomes.put((i, jobs[i](tell(i, what if len(jobs) > 1 else ""), stop), None))
            except BaseException as error:
                outcomes.put((i, None, error))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(AT_ONCE, len(jobs)))]
    try:
        for thread in threads:
            thread.start()
        return _collected(outcomes, len(jobs))
    finally:
        stop.set()
        deadline = time.monotonic() + _LEFT_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))


def _collected(outcomes: queue.SimpleQueue, n: int) -> list[Any]:
    results: list[Any] = [None] * n
    for _ in range(n):
        i, result, error = _next(outcomes)
        if error and not isinstance(error, Stopped):
            raise error
        results[i] = result
    return results


def _next(outcomes: queue.SimpleQueue) -> tuple[int, Any, BaseException | None]:
    while True:
        try:
            return outcomes.get(timeout=0.2)  # in steps, so that Ctrl-C is heard everywhere
        except queue.Empty:
            continue
