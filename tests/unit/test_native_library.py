"""The right build or one sentence; its log is kept, not shown; Ctrl-C is noted while it computes."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from liquidcli.errors import LiquidError
from liquidcli.llama import library
from liquidcli.llama.interrupt import CtrlC

ROOT = Path(__file__).resolve().parents[2]


class Function:
    def __init__(self, value: object) -> None:
        self.value = value

    def __call__(self) -> object:
        return self.value


class Patched:
    def __init__(self, version: int, stamp: bytes) -> None:
        self.liquid_api_version = Function(version)
        self.liquid_build_stamp = Function(stamp)


def test_a_stock_library_is_reported_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    with pytest.raises(LiquidError) as failure:
        library._check_stamp(object())
    assert "stock" in failure.value.message
    assert "pip install" in failure.value.hint and "llamacpp" in failure.value.hint
    assert failure.value.exit_code == 1


def test_a_library_somebody_chose_is_not_blamed_on_the_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", "/nowhere")
    with pytest.raises(LiquidError, match="LLAMA_CPP_LIB_PATH is the stock build") as failure:
        library._check_stamp(object())
    assert "unset LLAMA_CPP_LIB_PATH (now /nowhere)" in failure.value.hint and "pip" not in failure.value.hint


@pytest.mark.parametrize(
    ("version", "stamp"),
    [
        (library.API_VERSION + 1, f"{library.PIN}-0123456789ab".encode()),
        (library.API_VERSION, b"000000000000-0123456789ab"),
        (library.API_VERSION, b""),
        (library.API_VERSION, f"{library.PIN}-".encode()),
    ],
)
def test_another_interface_or_other_sources_are_refused(version: int, stamp: bytes) -> None:
    with pytest.raises(LiquidError):
        library._check_stamp(Patched(version, stamp))


def test_the_right_build_passes() -> None:
    library._check_stamp(Patched(library.API_VERSION, f"{library.PIN}-0123456789ab".encode()))


def test_the_pin_is_the_one_of_the_sources() -> None:
    lines = (ROOT / "llamacpp" / "UPSTREAM").read_text().splitlines()
    sha256 = next(line.split("=")[1].strip() for line in lines if line.startswith("sha256"))
    assert sha256.startswith(library.PIN)


def test_the_log_is_kept_in_lines_and_the_first_error_is_quoted(capsys) -> None:
    log = library.NativeLog()
    log.show = False
    for level, text in [
        (2, b"loading"), (5, b" ..."), (5, b"\n"), (3, b"a warning\n"),
        (4, b"llama_model_load: error loading model: \x1b[31mno"), (5, b" key\n"), (4, b"llama_load: failed\n"),
    ]:  # fmt: skip
        log(level, text, None)
    assert log.complaint() == "error loading model: [31mno key"
    assert capsys.readouterr() == ("", "")
    log.reset()
    assert log.complaint() == ""


def test_the_log_is_shown_when_asked_for(capsys) -> None:
    log = library.NativeLog()
    log.show = True
    log(1, b"hello\x1b\n", None)
    assert capsys.readouterr().err == "hello\n"


def test_ctrl_c_is_noted_inside_and_raised_outside() -> None:
    watcher = CtrlC()
    with watcher, watcher:
        signal.raise_signal(signal.SIGINT)
        assert watcher.pressed
    assert watcher.pressed
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with watcher:
        assert not watcher.pressed


def test_a_second_ctrl_c_is_raised_unless_the_library_runs() -> None:
    watcher = CtrlC()
    with watcher:
        signal.raise_signal(signal.SIGINT)
        watcher.in_library = True
        signal.raise_signal(signal.SIGINT)
        watcher.in_library = False
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def terminated() -> Iterator[CtrlC]:
    """A watcher that SIGTERM asks to leave with 143."""
    watcher = CtrlC()
    before = signal.signal(signal.SIGTERM, lambda *_: watcher.leave(143))
    yield watcher
    signal.signal(signal.SIGTERM, before)


def test_a_request_to_leave_waits_until_the_library_has_returned(terminated: CtrlC, capfd) -> None:
    @ctypes.CFUNCTYPE(ctypes.c_bool)
    def called_back() -> bool:
        signal.raise_signal(signal.SIGTERM)
        return terminated.pressed

    with pytest.raises(SystemExit) as left, terminated.held():
        with terminated.held():
            assert called_back(), "the library is told to stop"
        assert terminated.pressed
    assert left.value.code == 143 and capfd.readouterr().err == ""
    with terminated.held():
        pass  # what is cleaned up on the way out may call the library again


def test_a_request_to_leave_is_followed_at_once_outside_of_the_library(terminated: CtrlC) -> None:
    with terminated, pytest.raises(SystemExit) as left:
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 143


def test_calls_of_other_threads_do_not_hold_the_signals_up(terminated: CtrlC) -> None:
    seen = []

    def call() -> None:
        with terminated.held():
            seen.append(terminated.in_library)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert seen == [False]
