"""Checkpoint folders that lie, where the files themselves are odd: links, pipes, pointers, names and sizes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from liquidcli import converters
from liquidcli.cli.failures import explain
from liquidcli.errors import IntegrityError, LiquidError, UsageError
from tests.hf_folders import llama_tensors, safetensors_bytes, write_json, write_llama

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
FILES = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "added_tokens.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja",
)  # fmt: skip
ODD: dict[str, Callable[[Path], None]] = {
    "a link to nothing": lambda path: path.symlink_to("gone"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


def refusal(folder: Path) -> LiquidError:
    with pytest.raises(IntegrityError) as caught:
        converters.plan(folder)
    assert len(caught.value.message) < 1000 + len(str(folder))
    return caught.value


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", FILES)
def test_what_lies_there_and_is_no_file_does_not_count_as_absent(tmp_path: Path, name: str, kind: str) -> None:
    path = write_llama(tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    ODD[kind](path)
    assert path.name in refusal(tmp_path).message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_called_that(tmp_path: Path, name: str) -> None:
    (write_llama(tmp_path) / name).write_bytes(POINTER)
    error = refusal(tmp_path)
    assert "git-lfs" in error.message
    assert error.hint
    assert "lfs pull" in error.hint


def test_a_template_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = write_llama(tmp_path) / "chat_template.jinja"
    path.touch()
    os.truncate(path, 1 << 30)
    assert "more than any such file needs" in refusal(tmp_path).message


def test_windows_line_ends_of_a_template_are_read_as_transformers_does(tmp_path: Path) -> None:
    (write_llama(tmp_path) / "chat_template.jinja").write_bytes(b"a\r\nb")
    fields = {field.key: field.value for field in converters.plan(tmp_path).fields}
    assert fields["tokenizer.chat_template"] == "a\nb"


def test_a_name_of_a_megabyte_is_not_repeated(tmp_path: Path) -> None:
    tensors = llama_tensors()
    write_llama(tmp_path, tensors={"x" * 1_000_000: tensors.pop("model.norm.weight"), **tensors})
    assert "1000000 letters" in refusal(tmp_path).message


@pytest.mark.parametrize("shard", ["x" * 300 + ".safetensors", "a\0b.safetensors", "\ud800" * 300 + ".safetensors"])
def test_an_index_with_names_that_no_file_can_have(tmp_path: Path, shard: str) -> None:
    index = write_llama(tmp_path, n_shards=2) / "model.safetensors.index.json"
    write_json(index, {"weight_map": {**json.loads(index.read_text())["weight_map"], "model.norm.weight": shard}})
    assert "a .safetensors file name was expected" in refusal(tmp_path).message


@pytest.mark.parametrize("number", [[1], {"a": 1}, "x", None])
def test_added_tokens_whose_number_is_none(tmp_path: Path, number: object) -> None:
    write_json(write_llama(tmp_path) / "added_tokens.json", {"word": number})
    assert "has no number" in refusal(tmp_path).message


def test_a_number_of_a_thousand_digits_is_cut_in_the_warning(tmp_path: Path) -> None:
    write_llama(tmp_path, {"pad_token_id": 10**1000})
    (warning,) = converters.plan(tmp_path).warnings
    assert len(warning) < 200


def test_the_header_begins_like_a_pointer_but_is_none(tmp_path: Path) -> None:
    (write_llama(tmp_path) / "model.safetensors").write_bytes(safetensors_bytes(llama_tensors())[:1])
    assert "cut short" in refusal(tmp_path).message


def test_any_failure_of_the_system_is_a_sentence() -> None:
    error = explain(OSError(errno.EIO, "Input/output error", "/model"))
    assert error.message == "/model: input/output error"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "link.json"])
def test_the_output_takes_the_place_of_no_file_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    (write_llama(tmp_path) / "link.json").symlink_to("config.json")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(UsageError, match="one of the files that are converted"):
        converters.run(converters.plan(tmp_path), tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


def test_a_gguf_in_the_folder_is_written_again(tmp_path: Path) -> None:
    plan = converters.plan(write_llama(tmp_path))
    first = converters.run(plan, tmp_path / "model.gguf")
    assert converters.run(plan, tmp_path / "model.gguf").sha256 == first.sha256
