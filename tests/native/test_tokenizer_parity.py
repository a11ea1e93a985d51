"""Converted vocabularies split text in llama.cpp as the checkpoint's own tokenizer does, odd strings included."""

from __future__ import annotations

import ctypes
import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from liquidcli import converters
from liquidcli.converters.pretokenizers import KNOWN, PreTokenizer, as_json, named
from tests.hf_folders import (
    byte_alphabet,
    byte_level_tokenizer,
    sentencepiece_model,
    sentencepiece_tokenizer,
    write_llama,
)
from tests.nasty_text import CORPUS, NASTY, random_texts

N_VOCAB = 1200
TEXTS = NASTY + random_texts(300)


def is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "M"


def is_cased(letter: str) -> bool:
    return letter > "\x7f" and letter.lower() != letter.upper()


# letters of which llama.cpp's regexes know less than the checkpoint's: they are left out, for no name knows more
LEFT_OUT: dict[str, Callable[[str], bool]] = {
    "tekken": lambda letter: is_mark(letter) or is_cased(letter),
    "granite-embed-multi-97m": is_cased,
    "deepseek-llm": lambda letter: letter == "\u3000",
}


def trained(pre: PreTokenizer) -> dict[str, Any]:
    """A byte-level tokenizer.json trained on the corpus with this way to split."""
    words = byte_level_tokenizer(pre_tokenizer=as_json(pre.steps))
    if pre.normalizers:
        words["normalizer"] = {"type": pre.normalizers[0]}
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = Tokenizer.from_str(json.dumps(words)).pre_tokenizer
    options = {"special_tokens": ["<s>", "</s>"], "initial_alphabet": byte_alphabet(), "show_progress": False}
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=N_VOCAB, **options))
    model = json.loads(learner.to_str())["model"]
    return {**words, "model": {**model, "ignore_merges": pre.ignores_merges}}


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

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self.api.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, parse_special)
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


def differing(
    vocabulary: Vocabulary, tokenizer: Tokenizer, texts: list[str], *, parse_special: bool = True
) -> dict[str, tuple]:
    found = {}
    for text in texts:
        ours = vocabulary.encode(text, parse_special=parse_special)
        theirs = tokenizer.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            found[text] = (ours, theirs)
    return found


@pytest.mark.parametrize("pre", KNOWN, ids=lambda pre: pre.name)
def test_byte_level(pre: PreTokenizer, tmp_path: Path, load: Any) -> None:
    words = trained(pre)
    folder = write_llama(tmp_path / "m", {"vocab_size": N_VOCAB}, tokenizer=words)
    assert [one.value for one in converters.plan(folder).fields if one.key == "tokenizer.ggml.pre"] == [pre.name]
    texts = [unicodedata.normalize(pre.normalizers[0], text) for text in TEXTS] if pre.normalizers else TEXTS
    if left_out := LEFT_OUT.get(pre.name):
        texts = [text for text in texts if not any(map(left_out, text))]
        assert len(texts) > 120
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = load(folder)
    assert differing(vocabulary, own, texts) == {}
    own.encode_special_tokens = True
    assert differing(vocabulary, own, texts, parse_special=False) == {}


@pytest.mark.parametrize("add_bos", [False, True])
def test_a_bos_is_added_as_the_post_processor_says(add_bos: bool, tmp_path: Path, load: Any) -> None:
    words = trained(named("llama-bpe"))
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
