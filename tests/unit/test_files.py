"""Output files are whole or absent, and take the place of nothing but a file."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from liquidcli.errors import UsageError
from liquidcli.files import atomic_output, check_apart, signals_wait
from liquidcli.folders import atomic_folder


def test_a_pipe_or_device_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for target in (pipe, tmp_path / "link"):
        with pytest.raises(UsageError, match="no regular file"), atomic_output(target):
            pass
    assert pipe.is_fifo() and sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere/file")
    for text in ("first", "second"):
        with atomic_output(link) as part:
            part.write_text(text)
        assert link.is_symlink() and (tmp_path / "elsewhere/file").read_text() == text
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["file"]


def test_parts_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    target = tmp_path / "m[1].gguf"
    dead, other = tmp_path / ".m[1].gguf.abcd1234.part", tmp_path / ".other.gguf.abcd1234.part"
    for left in (dead, other):
        left.write_bytes(b"GG")
        os.utime(left, (0, 0))
    with atomic_output(target) as living:
        os.utime(living, (0, 0))
        with atomic_output(target) as second:
            assert living.exists() and second != living and not dead.exists() and other.exists()
            second.write_bytes(b"2")
        living.write_bytes(b"1")
    assert target.read_bytes() == b"1" and sorted(tmp_path.iterdir()) == [other, target]


@pytest.mark.parametrize(("made_by", "output"), [("mkstemp", atomic_output), ("mkdtemp", atomic_folder)])
def test_ctrl_c_in_the_moment_a_part_is_made(tmp_path, monkeypatch, made_by, output):
    make = getattr(tempfile, made_by)

    def made_and_stopped(**settings: object) -> object:
        made = make(**settings)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(tempfile, made_by, made_and_stopped)
    with pytest.raises(KeyboardInterrupt), output(tmp_path / "m"):
        pytest.fail("the signal is lost")
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_wait_for_the_end_and_none_is_lost() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), signals_wait():
        signal.raise_signal(signal.SIGINT)
        steps.append("went on")
    assert steps == ["went on"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_output_is_told_from_its_inputs_by_the_file(tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes(b"GGUF")
    os.link(source, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(source)
    for name in ("m.gguf", "hard", "soft"):
        with pytest.raises(UsageError, match=f"{name} is also the input"):
            check_apart(tmp_path / name, None, tmp_path / "gone", source)
    check_apart(tmp_path / "new", source)
    check_apart(source, None, tmp_path / "gone")


def test_the_part_of_another_file_of_a_longer_name_stays(tmp_path: Path) -> None:
    other = tmp_path / ".m.gguf.part"  # a stopped quantization's, of m.gguf
    other.write_bytes(b"hours")
    os.utime(other, (0, 0))
    with atomic_output(tmp_path / "m") as part:
        part.write_bytes(b"1")
    assert other.read_bytes() == b"hours"


def test_folders_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = tmp_path / ".m.abcd1234.part"
    dead.mkdir()
    (dead / "weights").write_bytes(b"1")
    os.utime(dead, (0, 0))
    with atomic_folder(tmp_path / "m") as living:
        assert not dead.exists()
        os.utime(living, (0, 0))
        with atomic_folder(tmp_path / "m") as second:
            assert living.exists()
            (second / "x").write_bytes(b"2")
        assert (tmp_path / "m" / "x").read_bytes() == b"2"
        (tmp_path / "m" / "x").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", str(tmp_path)):
        with pytest.raises(UsageError, match="the current folder"), atomic_folder(name):
            pytest.fail("it is written")
