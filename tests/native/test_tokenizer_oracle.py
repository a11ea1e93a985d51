"""Vocabularies of published models, out of the pinned archive: GGUF to folder to GGUF, ids as upstream wrote them.

Each comes with texts (.inp) and the ids that the model's own tokenizer gave (.out); nothing of it is kept here.
"""

from __future__ import annotations

import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from liquidbuild import archive
from liquidbuild.pin import read_pin
from tokenizers import Tokenizer

from liquidcli import converters
from liquidcli.converters.export.tokenizer import tokenizer_files
from liquidcli.converters.export.vocab import read_words
from liquidcli.gguf_file import open_gguf
from tests.hf_folders import write_llama
from tests.nasty_text import NASTY, random_texts
from tests.native.test_tokenizer_parity import Vocabulary

pytestmark = pytest.mark.oracle
SEPARATOR = "\n__ggml_vocab_test__\n"
BPE = ("command-r", "deepseek-coder", "deepseek-llm", "gpt-2", "llama-bpe", "mpt", "qwen2", "qwen35", "refact",
       "starcoder")  # fmt: skip
NAMES = (*BPE, "llama-spm", "phi-3")
TEXTS = NASTY + random_texts(300)
# words that the loader marks anew, by the model's name or by their looks
MARKED_ANEW = {"phi-3": "</s>", "deepseek-coder": "<pad>"}


@dataclass(frozen=True)
class Published:
    gguf: Path
    texts: list[str]
    ids: list[list[int]]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's ggml-vocab files."""
    pin = read_pin()
    packed = archive.kept_archive(pin)
    if packed is None:
        pytest.skip(f"{pin.archive} is not in the cache")
    folder = tmp_path_factory.mktemp("vocabularies")
    wanted = {f"ggml-vocab-{name}.gguf{end}" for name in NAMES for end in ("", ".inp", ".out")}
    with tarfile.open(packed, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.parent.name == "models" and path.name in wanted and (source := tar.extractfile(member)):
                (folder / path.name).write_bytes(source.read())
    return folder


def published(models: Path, name: str) -> Published:
    path = models / f"ggml-vocab-{name}.gguf"
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split(SEPARATOR)
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    ids = [[int(number) for number in line.split()] for line in lines[: len(texts)]]
    assert len(texts) == len(ids) > 40
    return Published(path, texts, ids)


def exported(one: Published, folder: Path) -> Path:
    """A folder with the vocabulary's files and weights that nobody reads."""
    with open_gguf(one.gguf) as f:
        words = read_words(f, len(f.metadata["tokenizer.ggml.tokens"]))
    assert words is not None and words.warnings == []
    small = {"num_hidden_layers": 1, "tie_word_embeddings": True}
    write_llama(folder, {"vocab_size": len(words.tokens), **small}, dtype="F16")
    for name, data in tokenizer_files(words, 128).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def opened() -> Iterator[list[Vocabulary]]:
    found: list[Vocabulary] = []
    yield found
    for one in found:
        one.close()


@pytest.mark.parametrize("name", NAMES)
def test_published_vocabularies(name: str, models: Path, tmp_path: Path, opened: list[Vocabulary]) -> None:
    one = published(models, name)
    folder = exported(one, tmp_path / "m")
    again = converters.run(converters.plan(folder, "f16"), tmp_path / "again.gguf").output
    ours, theirs = Vocabulary(again), Vocabulary(one.gguf)
    opened += [ours, theirs]
    assert [ours.encode(text, parse_special=False) for text in one.texts] == one.ids

    texts = [text for text in TEXTS if MARKED_ANEW.get(name, "\0\0") not in text]
    for special in (False, True):
        options = {"add_special": special, "parse_special": special}
        assert [ours.encode(text, **options) for text in texts] == [theirs.encode(text, **options) for text in texts]

    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.encode_special_tokens = True
    for text, ids in zip(one.texts, one.ids, strict=True):
        if unicodedata.is_normalized("NFC", text):  # the library leaves the normalizer out
            assert own.encode(text, add_special_tokens=False).ids == ids, text
