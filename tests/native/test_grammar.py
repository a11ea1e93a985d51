"""Answers keep to a grammar or a JSON schema, and what is neither is refused before a model says anything."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from liquidcli.errors import UsageError
from liquidcli.llama import grammar
from liquidcli.runtime.engine import Engine
from liquidcli.runtime.sampling import SamplingParams
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

PROMPT = [5, 9, 14]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_gguf(make_model("linear"), tmp_path_factory.mktemp("grammar") / "tiny.gguf")
    with Engine.load(path, n_ctx=256, n_threads=1) as engine:
        yield engine


def said(engine: Engine, gbnf: str, n: int = 60, **options) -> tuple[str, str]:
    sampling = SamplingParams(temp=1.0, seed=3, repeat_penalty=1.3, repeat_last_n=64)
    events = list(engine.generate(PROMPT, sampling, max_tokens=n, grammar=gbnf, **options))
    return "".join(event.text for event in events), events[-1].summary.finish_reason


def test_an_answer_is_what_the_grammar_allows_and_ends_with_it(engine: Engine) -> None:
    assert said(engine, 'root ::= "a" "b" "a"') == ("aba", "stop")
    assert said(engine, 'root ::= "a" "b"', ignore_eos=True) == ("ab", "stop")
    text, _ = said(engine, "root ::= [ab]+", n=20)
    assert re.fullmatch("[ab]+", text)


def test_an_answer_is_json_of_its_schema(engine: Engine) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    text, reason = said(engine, grammar.from_json_schema(json.dumps(schema)))
    assert reason == "stop" and isinstance(json.loads(text)["ok"], bool)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"$ref": "http://example.org/x"}', '{"$ref": "#/nowhere"}',
                                  '{"type": "nonsense"}', '{"items":' * 5000])  # fmt: skip
def test_schemas_that_cannot_be_meant_are_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="JSON schema"):
        grammar.from_json_schema(text)


@pytest.mark.parametrize(("gbnf", "reason"), [
    ('foo ::= "a"', "it has no rule with the name root"), ("root ::= (", "expecting ')' at its end"),
    ("root ::= nothing", "Undefined rule identifier 'nothing'"),
])  # fmt: skip
def test_what_is_wrong_with_a_grammar_is_said_whole(engine: Engine, gbnf: str, reason: str) -> None:
    with pytest.raises(UsageError) as failure:
        grammar.check(engine.model, gbnf)
    assert failure.value.message == f"the grammar cannot be used: {reason}"


@pytest.mark.parametrize(
    "gbnf",
    ["root = 1", "root ::= nothing", "other ::= [a]", "root ::= root [a]", "root ::= (", "\0",
     "root ::= " + "(" * 30_000],
    ids=lambda gbnf: gbnf[:20],
)  # fmt: skip
def test_grammars_that_do_not_compile_are_one_sentence(engine: Engine, gbnf: str, capfd) -> None:
    with pytest.raises(UsageError, match="grammar"):
        grammar.check(engine.model, gbnf)
    assert capfd.readouterr().err == "", "llama.cpp's parser speaks to the terminal itself"


def test_what_is_wrong_with_a_grammar_is_told(engine: Engine) -> None:
    with pytest.raises(UsageError, match="expecting ::= at = 1"):
        grammar.check(engine.model, "root = 1")
    with pytest.raises(UsageError, match="is empty"):
        grammar.check(engine.model, " ")


@pytest.mark.parametrize(
    "text", ['{"$ref": "https://example.org/x"}', '{"items": [{"$ref": "https://example.org/x"}]}']
)
def test_nothing_is_fetched_for_a_schema(text: str) -> None:
    with pytest.raises(UsageError, match=r"https://example.org/x, and nothing is fetched") as refused:
        grammar.from_json_schema(text)
    assert "allow-fetch" not in f"{refused.value} {refused.value.hint}"


def test_a_grammar_that_a_bias_forbids_is_a_sentence_and_no_crash(engine: Engine) -> None:
    never_ends = SamplingParams(temp=0, logit_bias=dict.fromkeys(engine.model.eog_tokens, float("-inf")))
    with pytest.raises(UsageError, match="forbids"):
        list(engine.generate(PROMPT, never_ends, grammar='root ::= "a"'))
