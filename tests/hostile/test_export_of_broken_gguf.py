"""Lying GGUF files at the way back: each ends in one sentence and its exit code, and leaves no folder behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from liquidcli import converters
from liquidcli.converters.export import plan_export, run_export
from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_file import open_gguf
from tests.hf_folders import write_llama
from tests.unit.test_converters_export import changed, key

Change = Callable[[dict, dict], None]
STRINGS, NUMBERS = gguf.GGUFValueType.STRING, gguf.GGUFValueType.INT32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return converters.run(converters.plan(write_llama(tmp_path / "m"), "f32"), tmp_path / "1.gguf").output


def refused(path: Path, kind: type[LiquidError], match: str) -> None:
    out = path.parent / "out"
    with pytest.raises(kind, match=match) as caught, open_gguf(path) as f:
        run_export(plan_export(f), out)
    assert type(caught.value) is kind and "\n" not in caught.value.message and len(caught.value.message) < 700
    assert not list(path.parent.glob("*out*")) and not list(path.parent.glob(".*"))


def tokens(change: Callable[[list[str]], list[str]]) -> Change:
    def apply(keys: dict, tensors: dict) -> None:
        words, kinds = keys["tokenizer.ggml.tokens"]
        keys["tokenizer.ggml.tokens"] = (change(words), kinds)

    return apply


def types(value: int) -> Change:
    return lambda keys, tensors: keys.update(
        {"tokenizer.ggml.token_type": ([value] * 300, (gguf.GGUFValueType.ARRAY, NUMBERS))}
    )


def reshaped(name: str, *shape: int) -> Change:
    return lambda keys, tensors: tensors.update({name: np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (tokens(lambda words: words[:-1]), "tokens"),
        (tokens(lambda words: [*words[:-1], words[5]]), "both"),
        (types(99), "type 99|token type"),
        (reshaped("token_embd.weight", 300, 16), "token_embd.weight"),
        (reshaped("blk.0.attn_norm.weight", 33), "attn_norm"),
        (reshaped("blk.0.ffn_up.weight", 64, 2, 16), "ffn_up"),
        (reshaped("rope_freqs.weight", 7), "rope_freqs"),
        (reshaped("rope_freqs.weight", 2, 2), "rope_freqs"),
        (key("llama.attention.head_count", 3), "head"),
        (key("llama.attention.head_count", 0), "head"),
        (key("llama.block_count", 100000), "block_count"),
        (key("llama.embedding_length", 1 << 30), "embedding_length"),
        (key("llama.context_length", "long"), "context_length"),
    ],
)
def test_what_a_file_says_of_itself_is_not_believed(change: Change, match: str, path: Path) -> None:
    refused(changed(path, change), IntegrityError, match)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(value: float, path: Path) -> None:
    def spoil(keys: dict, tensors: dict) -> None:
        tensors["output.weight"][299, 31] = value

    refused(changed(path, spoil), IntegrityError, "not finite")


def test_every_cut_of_a_file(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in range(0, len(data) - 1, len(data) // 23):
        cut.write_bytes(data[:size])
        refused(cut, IntegrityError, "cut.gguf")


def test_merges_that_name_no_tokens_are_left_out_and_told(path: Path, tmp_path: Path) -> None:
    merges = (["h e", "no such", "l l"], (gguf.GGUFValueType.ARRAY, STRINGS))
    odd = changed(path, lambda keys, tensors: keys.update({"tokenizer.ggml.merges": merges}))
    with open_gguf(odd) as f:
        plan = plan_export(f)
    assert plan.warnings == ("merges left out because they name tokens that are not in the vocabulary: 1",)
