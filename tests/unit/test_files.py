"""Output files are whole or absent, and take the place of nothing but a file."""

from __future__ import annotations

import os

import pytest

from liquidcli.errors import UsageError
from liquidcli.files import atomic_output


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
