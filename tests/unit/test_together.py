"""Several downloads as one: at once, summed, and all over when one fails."""

from __future__ import annotations

import threading
import time

import pytest

from liquidcli.hub.together import AT_ONCE, together


def test_jobs_run_at_once_and_are_told_as_a_sum() -> None:
    meeting, told = threading.Barrier(AT_ONCE, timeout=10), []

    def job(number: int):
        def run(progress, stop) -> int:
            meeting.wait()
            for done in (5, 10):
                progress(done, 10, f"file {number}")
            return number

        return run

    results = together([job(i) for i in range(AT_ONCE)], 10 * AT_ONCE, "all", lambda *step: told.append(step))
    assert results == list(range(AT_ONCE)) and told[-1] == (10 * AT_ONCE, 10 * AT_ONCE, "all")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    together([lambda progress, stop: progress(1, 10, "its own name")], 10, "all", lambda *step: told.append(step))
    assert told[-1] == (1, 10, "its own name")


def test_the_first_failure_ends_the_others() -> None:
    stopped, begun = [], []

    def fails(progress, stop) -> None:
        raise ValueError("no")

    def lasts(progress, stop) -> None:
        stopped.append(stop.wait(10))

    def never(progress, stop) -> None:
        begun.append(1)
        time.sleep(0.1)

    with pytest.raises(ValueError, match="no"):
        together([lasts, lasts, lasts, fails, *[never] * 50], 0, "all", None)
    time.sleep(0.1)
    assert stopped == [True] * 3 and len(begun) < 50


def test_what_hangs_is_left_behind() -> None:
    hanging = threading.Event()

    def fails(progress, stop) -> None:
        raise ValueError("no")

    begun = time.monotonic()
    with pytest.raises(ValueError, match="no"):
        together([*[lambda progress, stop: hanging.wait(30)] * (AT_ONCE - 1), fails], 0, "all", None)
    assert time.monotonic() - begun < 15
    hanging.set()
