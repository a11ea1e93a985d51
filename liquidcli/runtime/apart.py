"""A function in a fresh process, so that its peak memory is its own: what came before it left nothing there.

Knows processes. The function and what it takes and gives must be known by name and picklable; Ctrl-C is the caller's.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from typing import Any

from ..errors import LiquidError


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """What `function` returns or raises. The process is gone afterwards, also where the caller is interrupted."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, args), daemon=True)
    process.start()
    theirs.close()
    try:
        is_done, found = mine.recv()
    except EOFError:
        process.join()
        raise LiquidError(
            f"the process that measured ended early (exit code {process.exitcode})",
            hint="less memory in use may help; LIQUID_DEBUG=1 shows more",
        ) from None
    finally:
        process.terminate()
        process.join()
    if not is_done:
        raise found
    return found


def _answer(pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        message = (True, function(*args))
    except LiquidError as error:
        message = (False, error)
    pipe.send(message)
