"""Any exception to one sentence, a hint and an exit code.

Knows what the parser, the operating system and Python raise. Prints nothing.
"""

from __future__ import annotations

import errno

import typer

from ..errors import DiskSpaceError, Interrupted, LiquidError, MemoryFitError, NotFoundError, UsageError

_BY_ERRNO: dict[int, tuple[type[LiquidError], str]] = {
    errno.ENOENT: (NotFoundError, "{file}: no such file or folder"),
    errno.EISDIR: (UsageError, "{file} is a folder, a file was expected"),
    errno.ENOTDIR: (UsageError, "{file}: a part of this path is a file, not a folder"),
    errno.EACCES: (LiquidError, "{file}: permission denied"),
    errno.EROFS: (LiquidError, "{file}: the file system is read-only"),
    errno.ENOSPC: (DiskSpaceError, "the disk is full ({file})"),
    errno.EDQUOT: (DiskSpaceError, "the disk quota is used up ({file})"),
    errno.ENOMEM: (MemoryFitError, "the system has no memory left"),
}
_EXTRAS = {"matplotlib": "plot", "torch": "train", "safetensors": "train"}  # package: what brings it


def explain(error: BaseException) -> LiquidError:
    """What to tell the person who typed the command."""
    if isinstance(error, LiquidError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, (typer.Abort, KeyboardInterrupt)):
        return Interrupted("stopped")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
        return DiskSpaceError("there is no room left for what is written", hint="df -h tells which disk is full")
    if isinstance(error, OSError) and error.errno == errno.EBADF and not error.filename:
        return LiquidError("standard output is closed: the result is lost", hint="> FILE keeps it")
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        kind, text = _BY_ERRNO[error.errno]
        return kind(text.format(file=error.filename or "a file"))
    if isinstance(error, OSError) and error.errno and error.strerror:
        return LiquidError(f"{error.filename or 'a file'!s:.300}: {error.strerror[:1].lower()}{error.strerror[1:]}")
    if isinstance(error, MemoryError):
        return MemoryFitError("this does not fit in memory")
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("liquidcli"):
        extra = _EXTRAS.get(str(error.name).partition(".")[0])
        hint = f"pip install 'liquid-depth[{extra}]'" if extra else None
        return LiquidError(f"this needs the package {error.name}, which is not installed", hint=hint)
    words = str(error).strip() or "no message"
    return LiquidError(
        f"internal error: {type(error).__name__}: {words[:300]}",
        hint="this is a bug; run with LIQUID_DEBUG=1 to see where it happened",
    )


def _usage(error: typer.TyperException) -> LiquidError:
    words = error.format_message().rstrip(".")
    if words.startswith("Usage: "):  # a group without a command: its help
        return UsageError(words)
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "liquid"
    failure = UsageError(words[:1].lower() + words[1:], hint=f"{path} --help")
    failure.exit_code = error.exit_code
    return failure
