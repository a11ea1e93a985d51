"""Bytes over the wire by the hub library's client: resumed, limited in time, its failures as our exceptions.

Knows HTTP codes and the library's exceptions. Does not know what is fetched nor where it belongs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from ..errors import DiskSpaceError, LiquidError, NetworkError, NotFoundError, UsageError

Result = TypeVar("Result")
Progress = Callable[[int, int, str], None]

_STEP_BYTES = 1 << 18  # what is lost at most when a download breaks off; the library would hold back 10 MiB
_AGAIN = "run the same command again: it goes on where it stopped"
_ONLINE = "is this machine online? --offline uses what is already here"
_LOGIN = "accept its terms on its page if it has any, then run: hf auth login (or set HF_TOKEN)"


def within(seconds: float, what: str, work: Callable[[], Result]) -> Result:
    """The result of `work`, or NetworkError after `seconds`: name look-ups know no limit of their own."""
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "result" not in outcome:
        raise NetworkError(f"{what} did not answer within {seconds:g} seconds", hint=_ONLINE)
    return outcome["result"]


def fetch_into(
    part: Path, url: str, size_bytes: int | None, what: str, headers: dict[str, str], progress: Progress | None
) -> None:
    """Append to `part` what is missing of `url`; on any failure what came stays, for the next try."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import disable_progress_bars, logging

    constants.DOWNLOAD_CHUNK_SIZE = _STEP_BYTES
    disable_progress_bars()
    logging.set_verbosity_error()
    if size_bytes is not None and part.exists() and part.stat().st_size > size_bytes:
        part.unlink()
    with part.open("ab") as handle:
        counted = _Counted(handle, lambda done: progress and progress(done, size_bytes or done, what))
        http_get(url, cast(BinaryIO, counted), resume_size=handle.tell(), headers=headers, expected_size=size_bytes)
        handle.flush()
        os.fsync(handle.fileno())


class _Counted:
    """A file that tells how far it got."""

    def __init__(self, handle: BinaryIO, tell: Callable[[int], object]) -> None:
        self._handle, self._tell = handle, tell

    def write(self, chunk: bytes) -> int:
        written = self._handle.write(chunk)
        self._tell(self._handle.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Inside, the hub library's exceptions about `what` become ours."""
    from huggingface_hub import errors

    try:
        yield
    except LiquidError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise NetworkError(f"{what} is not on this machine and HF_HUB_OFFLINE is set") from error
    except errors.HFValidationError as error:
        raise UsageError(f"{what} cannot be the name of a repository") from error
    except errors.HfHubHTTPError as error:
        raise refused(what, error.response.status_code) from error
    except errors.LocalEntryNotFoundError as error:
        raise NetworkError(f"the connection broke while {what} was fetched", hint=_AGAIN) from error
    except (errors.HTTPError, OSError) as error:
        raise _broken(what, error) from error


def refused(what: str, status: int) -> LiquidError:
    """An HTTP status, in words."""
    if status in (401, 403, 407):
        return NetworkError(f"access to {what} was refused ({status}): it is private, gated or misspelled", hint=_LOGIN)
    if status in (404, 410):
        return NotFoundError(f"there is no {what} there ({status})", hint="check the spelling of its owner and name")
    if status == 429:
        return NetworkError(f"too many requests (429) while asking for {what}", hint="wait a minute and run it again")
    return NetworkError(f"the other side failed ({status}) while asked for {what}", hint="run the command again later")


def _broken(what: str, error: Exception) -> LiquidError:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return DiskSpaceError(f"the disk became full while {what} was fetched; the part that came is kept")
    if number and not isinstance(error, ConnectionError):
        return LiquidError(f"{what} could not be kept: {error}")
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return NetworkError(f"the connection ended before {what} was whole", hint=_AGAIN)
    return NetworkError(f"{what} could not be fetched: {str(error) or type(error).__name__}", hint=_ONLINE)
