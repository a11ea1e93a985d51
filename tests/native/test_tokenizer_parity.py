"""Converted vocabularies split text in llama.cpp as the checkpoint's own tokenizer does, odd strings included."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from liquidcli import converters
from tests.hf_folders import (
    byte_alphabet,
    byte_level_tokenizer,
    sentencepiece_model,
    sentencepiece_tokenizer,
    split_step,
    write_llama,
)
from tests.unit.test_converters_tokenizers import DIGITS, LEVEL, LLAMA3, TEKKEN

N_VOCAB = 1200
CORPUS = [
    "The river runs deeper where the stones are hard; it's slow, isn't it? We've seen 1234 of 56789 stones, I'd say.",
    "def main(args):\n    if args:\n        return {'a': 1, 'b': [2, 3]}\n\n\treturn None  # nothing\r\n",
    "Größe, naïve café, señor; Ёлка и ёж, нещо на Български; 日本語のテキスト、한국어 텍스트; ภาษาไทย; مرحبا بالعالم",
    "THE QUICK Brown fOX. HTMLParser getElementById x1y2 http://a.b/c?d=e&f=%20 ½ ² ① 🚀 😶\u200d🌫️ ✅",
]
STRINGS = [
    *CORPUS, "", " ", "  ", "   three", "a   12", "tabs\t\tand\n\n\nlines \n x", "\r\n\r\n", "end ", "word\n", "\nword",
    "don't DON'T Don'T we'LL 's 'S", "1", "12", "123", "1234", "12345678", "3.14159e-10", "x" * 70, " \n \n ",
    "\u00a0nbsp\u3000wide\u2009thin", "\u200bzero\u200d", "e\u0301 combining", "mixedCASEWords ABCdef", "!!??...---===",
    " !a ?b", "/a/b//c/", "'''''``````\"\"\"", "\x00\x01\x7f", "កាន់តែពិសេសអាច😁", "我想在apple工作1314151天～",
    "🦙🦙 3 33 333 3333", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "ﬁ ﬂ Ⅷ", "a<s>b</s>c",
]  # fmt: skip
GPT4O = TEKKEN.replace("+|[^", "+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^", 1).replace(
    r"*|\p{N}|", r"*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
)
SPLITS: dict[str, tuple[dict, bool]] = {
    "gpt-2": (LEVEL, False),
    "smollm": ({"type": "Sequence", "pretokenizers": [DIGITS, LEVEL]}, False),
    "llama-bpe": (split_step(LLAMA3), True),
    "qwen2": (split_step(LLAMA3.replace("{1,3}", "")), False),
    "tekken": (split_step(TEKKEN), True),
    "llama4": (split_step(GPT4O), False),
}


def trained(split: dict[str, Any], ignore_merges: bool) -> dict[str, Any]:
    """A byte-level tokenizer.json trained on the corpus with this way to split."""
    words = byte_level_tokenizer(pre_tokenizer=split)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = Tokenizer.from_str(json.dumps(words)).pre_tokenizer
    options = {"special_tokens": ["<s>", "</s>"], "initial_alphabet": byte_alphabet(), "show_progress": False}
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=N_VOCAB, **options))
    model = json.loads(learner.to_str())["model"]
    return {**words, "model": {**model, "ignore_merges": ignore_merges}}


class Vocabulary:
    """llama.cpp's tokenizer of a file, without its weights."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        assert self.model, path
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self.api.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, True)
        assert count >= 0
        return list(ids[:count])

    def close(self) -> None:
        self.api.llama_model_free(self.model)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Any]:
    opened: list[Vocabulary] = []

    def convert_and_load(folder: Path) -> Vocabulary:
        what = converters.plan(folder, "f16")
        converters.run(what, tmp_path / "out.gguf")
        opened.append(Vocabulary(tmp_path / "out.gguf"))
        return opened[-1]

    yield convert_and_load
    for one in opened:
        one.close()


def differing(vocabulary: Vocabulary, tokenizer: Tokenizer, strings: list[str]) -> dict[str, tuple]:
    pairs = {text: (vocabulary.encode(text), tokenizer.encode(text, add_special_tokens=False).ids) for text in strings}
    return {text: pair for text, pair in pairs.items() if pair[0] != pair[1]}


@pytest.mark.parametrize("name", SPLITS)
def test_byte_level(name: str, tmp_path: Path, load: Any) -> None:
    words = trained(*SPLITS[name])
    folder = write_llama(tmp_path / "m", {"vocab_size": N_VOCAB}, tokenizer=words)
    assert [one.value for one in converters.plan(folder).fields if one.key == "tokenizer.ggml.pre"] == [name]
    assert differing(load(folder), Tokenizer.from_file(str(folder / "tokenizer.json")), STRINGS) == {}


@pytest.mark.parametrize("add_bos", [False, True])
def test_a_bos_is_added_as_the_post_processor_says(add_bos: bool, tmp_path: Path, load: Any) -> None:
    words = trained(*SPLITS["llama-bpe"])
    if add_bos:
        single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        tokens = {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
        words["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens}
    folder = write_llama(tmp_path / "m", {"vocab_size": N_VOCAB}, tokenizer=words)
    wanted = [0] * add_bos + Tokenizer.from_str(json.dumps(words)).encode("stones", add_special_tokens=False).ids
    assert load(folder).encode("stones", add_special=True) == wanted


SENTENCES = ["hello", "hello world", " hello", "  hello  ", "wow", "held", "helloworld", "zebra", "日本 ß", "\n\t", ""]


@pytest.mark.parametrize("with_model", [False, True])
def test_sentencepiece(with_model: bool, tmp_path: Path, load: Any) -> None:
    """Scores from tokenizer.model and scores made from the merges give the tokens of tokenizer.json."""
    words = sentencepiece_tokenizer()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = write_llama(tmp_path / "m", {"vocab_size": 300}, tokenizer=words, tokenizer_config=settings)
    if with_model:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = load(folder)
    assert differing(vocabulary, own, SENTENCES) == {}
    assert vocabulary.encode("hello", add_special=True) == own.encode("hello").ids


def test_the_alphabet_of_the_helpers_is_the_librarys() -> None:
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
