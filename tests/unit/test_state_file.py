"""A state file is read back by the build, model and context it came from, and by nothing else."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from liquidcli.errors import IntegrityError, NotFoundError
from liquidcli.runtime.state import MAGIC, Origin, State, read_state, write_state

ORIGIN = Origin("build", "model", "project", "f16", "f16", 64, 1)
STATE = State([1, 2, 3], "auto", bytes(range(256)) * 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_state(tmp_path / "chat.state", ORIGIN, STATE)
    return tmp_path / "chat.state"


def test_what_was_written_is_read(path: Path) -> None:
    assert read_state(path, ORIGIN) == STATE


@pytest.mark.parametrize("name", ["build", "model", "kv_policy", "type_k", "type_v", "n_ctx", "n_seq"])
def test_another_origin_is_refused_by_name(path: Path, name: str) -> None:
    other = replace(ORIGIN, **{name: 65 if isinstance(getattr(ORIGIN, name), int) else "other"})
    with pytest.raises(IntegrityError, match="of another"):
        read_state(path, other)


def test_every_cut_and_every_flipped_byte_is_noticed(path: Path) -> None:
    raw = path.read_bytes()
    for n in (0, 7, 15, 16, 40, len(raw) - 1):
        path.write_bytes(raw[:n])
        with pytest.raises(IntegrityError):
            read_state(path, ORIGIN)
    for at in [*range(0, 16), *range(16, len(raw), 7)]:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :])
        try:
            assert read_state(path, ORIGIN).payload == STATE.payload
        except IntegrityError:
            continue
    path.write_bytes(raw + b"\0")
    with pytest.raises(IntegrityError):
        read_state(path, ORIGIN)


@pytest.mark.parametrize("tokens", [[-1], ["1"], [True], list(range(65)), None, [1 << 31]])
def test_tokens_that_make_no_sense_are_refused(path: Path, tokens: object) -> None:
    raw = path.read_bytes()
    n = struct.unpack_from("<I", raw, 12)[0]
    header = json.loads(raw[16 : 16 + n]) | {"tokens": tokens}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<8sII", MAGIC, 1, len(text)) + text + raw[16 + n :])
    with pytest.raises(IntegrityError, match="tokens"):
        read_state(path, ORIGIN)


def test_absurd_lengths_and_other_layouts_end_in_a_sentence(path: Path) -> None:
    path.write_bytes(struct.pack("<8sII", MAGIC, 1, 0xFFFFFFFF) + b"{}")
    with pytest.raises(IntegrityError, match="header"):
        read_state(path, ORIGIN)
    path.write_bytes(struct.pack("<8sII", MAGIC, 2, 2) + b"{}")
    with pytest.raises(IntegrityError, match="layout 2"):
        read_state(path, ORIGIN)
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(IntegrityError, match="no state file"):
        read_state(path, ORIGIN)


def test_a_missing_file_and_a_folder_are_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError):
            read_state(path, ORIGIN)
