"""Rows to train on begin as `liquid chat` and `liquid run` begin what the model reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from liquidcli.errors import LiquidError
from liquidcli.gates.training.data import Row, Rows, Source, documents
from liquidcli.gates.training.result import held_out_rows
from liquidcli.gates.training.selftext import generate
from liquidcli.gates.training.vocab import Vocabulary
from liquidcli.llama import library
from liquidcli.llama.model import Model
from liquidcli.runtime.chat import Conversation, ReplySettings
from liquidcli.runtime.engine import Engine
from liquidcli.runtime.sampling import SamplingParams
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
BOS, EOS, N_CTX = 0, 1, 64
ASKED, SAID = "How long is the river <|eos|> there?", "The river, it says, is long and cold in winter."
TEXT = "Nine stones lay in the river. " * 60


@pytest.fixture(scope="module", params=[False, True], ids=["no BOS", "BOS"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rows") / "tiny.gguf"
    return write_gguf(make_model("linear"), out, chat_template=TEMPLATE, add_bos=request.param)


@pytest.fixture(scope="module")
def vocab(path: Path) -> Iterator[Vocabulary]:
    vocab = Vocabulary(path)
    yield vocab
    vocab.close()


def test_a_question_is_what_the_chat_reads(path: Path, vocab: Vocabulary) -> None:
    with Engine.load(path, n_ctx=256, n_threads=1) as engine:
        never_ends = SamplingParams(temp=0, logit_bias={EOS: float("-inf")})
        talk = Conversation(engine, ReplySettings(never_ends, max_tokens=3))
        list(talk.ask(ASKED))
        talk.close()
        read = engine.held()[: talk.last.summary.prompt_tokens]
    asked = vocab.chat(ASKED)
    assert asked == read and asked.count(BOS) == 1 and asked.count(EOS) == 1  # the user's own EOS is plain text
    answered = vocab.chat(ASKED, SAID)
    assert answered[: len(asked)] == asked and answered[-1] == EOS


def test_every_row_begins_as_the_vocabulary_wants(path: Path, vocab: Vocabulary, tmp_path: Path) -> None:
    def source(name: str, *lines: str, options: str = "") -> Source:
        (tmp_path / name).write_text("\n".join(lines))
        return Source.parse(f"{tmp_path / name}{options}")

    qa = json.dumps({"question": ASKED, "answer": SAID})
    article = {"kind": "article", "tokens": vocab.document("Some stones, it says, are cold; others, in winter, not."),
               "n_prompt": 3}  # fmt: skip
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join([json.dumps(article)] * 4))
    sources = [source("qa.jsonl", qa), source("chat.jsonl", qa, options=":chat"), source("prose.txt", TEXT)]
    head = vocab.opening()
    assert head == ([BOS] if vocab.model.add_bos else [])
    rows = Rows([*sources, Source.parse("self:9")], vocab, own, N_CTX, 1).take(40)
    heads = {tuple(row.tokens[: len(head)]) for row in rows}
    if head:
        assert heads == {tuple(head)} and all(BOS not in row.tokens[1:] for row in rows)
    found = held_out_rows(sources, vocab, {}, N_CTX, 3)
    assert set(found) == {"qa.jsonl", "chat.jsonl", "prose.txt"} and len(found["prose.txt"]) == 3
    assert all(row.tokens[: len(head)] == head and len(row.tokens) <= N_CTX for rows in found.values() for row in rows)


def test_the_model_itself_answers_what_the_chat_would_ask(path: Path, vocab: Vocabulary, tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    generate(path, out, 300, n_parallel=4, n_predict=12, n_threads=1)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    for record in records:
        prompt = record["tokens"][: record["n_prompt"]]
        asked = vocab.document(record["prompt"]) if record["kind"] == "article" else vocab.chat(record["prompt"])
        assert prompt == asked


def test_spaced_articles_keep_their_words(vocab: Vocabulary, tmp_path: Path) -> None:
    tokens = vocab.document("Some stones, it says, are cold; others are not.")
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps({"kind": "article", "tokens": tokens}) for _ in range(2)))
    (row,) = documents(Source.parse("self:9"), vocab, tmp_path / "own.jsonl")
    assert row == Row(vocab.document("Some stones , it says , are cold ; others are not . "))


def test_errors_are_still_heard_afterwards(path: Path, vocab: Vocabulary, tmp_path: Path) -> None:
    """One log for the whole process: training must not take it away."""
    vocab.chat(ASKED)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    with pytest.raises(LiquidError) as error:
        Model(tmp_path / "broken.gguf")
    assert "it gave no reason" not in str(error.value) and library.log.complaint()
