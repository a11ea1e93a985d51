"""Load llama.cpp through llama-cpp-python: make sure it is the patched build, keep its log off the terminal.

Knows the pin, the version of our C header and where the log goes. Knows nothing of models or contexts.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from ..errors import LiquidError

API_VERSION = 3  # LIQUID_API_VERSION of llamacpp/src/liquid.h
PIN = "832db0699007"  # sha256 of the archive in llamacpp/UPSTREAM, its first 12 digits: struct layouts depend on it
_STAMP = re.compile(r"^(?P<pin>[0-9a-f]{12})-[0-9a-f]{12}$")
_LEVELS = {0: "none", 1: "debug", 2: "info", 3: "warn", 4: "error", 5: "cont"}
_KEPT_LINES = 60
_MOST_HEARD_BYTES = 1 << 16


class NativeLog:
    """What the library says: the last lines are kept for error messages, and shown at once when asked for."""

    def __init__(self) -> None:
        self.show = os.environ.get("LIQUID_DEBUG") == "1"
        self._lines: collections.deque[tuple[str, str]] = collections.deque(maxlen=_KEPT_LINES)
        self._open = False  # the last line waits for more

    def __call__(self, level: int, text: bytes | None, _user_data: object) -> None:
        said = (text or b"").decode("utf-8", "replace")
        if self.show:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(_printable(said))
        name = _LEVELS.get(level, "info")
        if self._open and self._lines:
            earlier, before = self._lines.pop()
            self._lines.append((earlier, before + said))
        elif said.strip(" .\n"):
            self._lines.append((name, said))
        self._open = not said.endswith("\n")

    def reset(self) -> None:
        self._lines.clear()

    def complaint(self) -> str:
        """The first error since `reset`, without the C function's name; empty if there is none."""
        for level, said in self._lines:
            if level == "error":
                return re.sub(r"^[\w:~]+: ", "", _printable(said).strip())
        return ""


log = NativeLog()
_library: ModuleType | None = None
_kept_alive: list[object] = []  # callbacks the library holds on to


def load() -> ModuleType:
    """The bindings of the patched library; LiquidError, in one sentence, for any other."""
    global _library
    if _library is None:
        bindings = _import_bindings()
        _check_stamp(bindings._lib)
        _route_log(bindings)
        bindings.llama_backend_init()
        _library = bindings
    return _library


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """What C code writes to the process's stderr meanwhile, as lines, instead of letting it through."""
    lines: list[str] = []
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            lines += _printable(file.read(_MOST_HEARD_BYTES).decode("utf-8", "replace")).splitlines()


def build_stamp() -> str:
    """`<pin>-<patches and sources>` of the loaded library."""
    return load()._lib.liquid_build_stamp().decode("ascii", "replace")


def mending_command() -> str:
    """What puts the right build in place of a wrong one."""
    if chosen := os.environ.get("LLAMA_CPP_LIB_PATH"):
        return f"unset LLAMA_CPP_LIB_PATH (now {chosen}), which takes the place of the installed library"
    source = Path(__file__).resolve().parents[2] / "llamacpp"
    where = str(source) if (source / "pyproject.toml").is_file() else "./llamacpp"
    return f"{sys.executable} -m pip install --force-reinstall --no-deps {where}"


def _import_bindings() -> ModuleType:
    try:
        from llama_cpp import llama_cpp as bindings
    except ImportError as error:
        missing = getattr(error, "name", None) or "llama_cpp"
        raise LiquidError(
            f"the native library is not installed ({missing} is missing)", hint=mending_command()
        ) from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise LiquidError(f"the native library cannot be loaded: {_one_line(error)}", hint=mending_command()) from error
    return bindings


def _check_stamp(lib: ctypes.CDLL) -> None:
    if not hasattr(lib, "liquid_api_version"):
        found = "LLAMA_CPP_LIB_PATH" if os.environ.get("LLAMA_CPP_LIB_PATH") else "the installed llama-cpp-python"
        _refuse(f"{found} is the stock build, which cannot run layers by choice")
    lib.liquid_api_version.restype = ctypes.c_int32
    version = lib.liquid_api_version()
    if version != API_VERSION:
        _refuse(
            f"the native library speaks version {version} of the depth interface, this program speaks {API_VERSION}"
        )
    lib.liquid_build_stamp.restype = ctypes.c_char_p
    stamp = (lib.liquid_build_stamp() or b"").decode("ascii", "replace")
    match = _STAMP.match(stamp)
    if not match or match["pin"] != PIN:
        _refuse(f"the native library was built from other sources (stamp {stamp!r}, expected {PIN}-...)")


def _refuse(found: str) -> NoReturn:
    raise LiquidError(found, hint=mending_command())


def _route_log(bindings: ModuleType) -> None:
    callback = bindings.llama_log_callback(log)
    bindings.llama_log_set(callback, ctypes.c_void_p(0))
    _kept_alive.append(callback)
    with contextlib.suppress(AttributeError):  # not re-exported on every platform
        bindings._lib.ggml_set_abort_callback(ON_ABORT)


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def ON_ABORT(message: bytes) -> None:
    """A failed check inside ggml would end in abort(); leave with a sentence and the exit code of a failure instead."""
    reason = _one_line((message or b"").decode("utf-8", "replace"))
    os.write(2, f"error: the native library stopped: {reason}\n".encode())
    os._exit(LiquidError.exit_code)


def _one_line(reason: object) -> str:
    return " ".join(_printable(str(reason)).split())


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
