"""Training text as rows of token ids: where it comes from, in what shares, in an order fixed by a seed.

A source is `self:N[:greedy][:share=X]` (N tokens of the base's own text, sampled; greedy: answers alone, of the
likeliest tokens) or `FILE[:spaced][:chat][:lines=N][:share=X]`; a .jsonl file
holds `question` and `answer`, or `tokens` and perhaps `n_prompt`. `spaced` sets blanks around punctuation, as tokenised
corpora do. Knows nothing of models.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import NotFoundError, UsageError
from .vocab import Vocabulary

HELD_OUT_EVERY = 10
MIN_ROW = 16
MIN_DISTINCT = 0.6
_PUNCTUATION = re.compile(r"\s*([.,;:!?()\"]|'s\b)\s*")


@dataclass(frozen=True)
class Row:
    """One row: in a chat, only the predictions of the answer count; nobody asks a model for the prompt."""

    tokens: list[int]
    n_prompt: int = 0

    @property
    def counts(self) -> list[float]:
        """1 for each position whose prediction counts, 0 for the others."""
        free = max(0, self.n_prompt - 1)
        return [0.0] * free + [1.0] * (len(self.tokens) - free)


_NUMBER = re.compile(r"\d+(\.\d+)?")


def _yes(_: str) -> bool:
    return True


_READERS: dict[str, Callable[[str], Any]] = {
    "spaced": _yes, "chat": _yes, "greedy": _yes, "lines": int, "share": float,
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One `--data` argument, parsed."""

    path: Path | None
    n_tokens: int = 0
    spaced: bool = False
    chat: bool = False
    lines: int | None = None
    share: float = 1.0
    greedy: bool = False

    @classmethod
    def parse(cls, text: str) -> Source:
        head, *options = text.split(":")
        if head == "self":
            if not options or not options[0].isdigit():
                raise UsageError(f"--data {text}: a token count was expected, for example self:150000")
            return cls(None, n_tokens=int(options[0]), **_fields(text, options[1:], {"greedy", "share"}))
        if not Path(head).is_file():
            raise NotFoundError(f"--data {text}: there is no file {head}")
        return cls(Path(head), **_fields(text, options, set(_READERS) - {"greedy"}))

    def own(self, sampled: Path) -> Path:
        """Where the base's own text lies, beside the file of what was sampled."""
        return sampled.with_name("own-greedy.jsonl") if self.greedy else sampled


def _fields(text: str, options: list[str], allowed: set[str]) -> dict[str, Any]:
    fields = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in allowed or (_READERS[name] is not _yes and not _NUMBER.fullmatch(value)):
            raise UsageError(f"--data {text}: {option!r} is none of {', '.join(sorted(allowed))} (share=X, lines=N)")
        fields[name] = _READERS[name](value)
    return fields


def spaced(text: str) -> str:
    """Blanks around punctuation: `Yes, sir.` becomes `Yes , sir . `."""
    text = _PUNCTUATION.sub(lambda m: f" {m[1]} ", text)
    return re.sub(r"(\w)-(\w)", r"\1 @-@ \2", text)


def _record(record: dict) -> Row:
    return Row(record["tokens"], 0 if record.get("kind") == "article" else record.get("n_prompt", 0))


def _json_documents(path: Path, source: Source, vocab: Vocabulary) -> Iterator[Row]:
    for line in path.read_text().splitlines()[: source.lines]:
        record = json.loads(line)
        if "tokens" in record:
            yield _record(record)
        elif source.chat:
            prompt = vocab.chat(record["question"])
            yield Row(vocab.chat(record["question"], record["answer"]), len(prompt))
        else:
            yield Row(vocab.document(f"Question: {record['question']}\nAnswer: {record['answer']}\n\n"))


def distinct(tokens: list[int]) -> float:
    """Different runs of four tokens among all runs of four: near 1 in prose, low in a model's loops."""
    runs = [tuple(tokens[i : i + 4]) for i in range(max(1, len(tokens) - 3))]
    return len(set(runs)) / len(runs)


def own_answers(path: Path, vocab: Vocabulary, *, held_out: bool) -> list[Row]:
    """The records of `selftext` that do not run in a loop (loops are free to predict and teach gates nothing).

    Every tenth is held out; half of the articles are given the spaced style.
    """
    rows = []
    for i, line in enumerate(path.read_text().splitlines()):
        if (i % HELD_OUT_EVERY == 0) != held_out:
            continue
        record = json.loads(line)
        if distinct(record["tokens"]) < MIN_DISTINCT:
            continue
        if record["kind"] == "article" and i % 2:
            rows.append(Row(vocab.document(spaced(vocab.spelled(record["tokens"])).lstrip())))
        else:
            rows.append(_record(record))
    return rows


def documents(source: Source, vocab: Vocabulary, own: Path) -> list[Row]:
    """All documents of one source."""
    if source.path is None:
        return own_answers(source.own(own), vocab, held_out=False)
    if source.path.suffix == ".jsonl":
        return list(_json_documents(source.path, source, vocab))
    text = "\n".join(source.path.read_text(errors="replace").splitlines()[: source.lines])
    text = re.sub(r"\s*\n\s*", " \n ", text) if source.spaced else text
    return [Row(vocab.text(spaced(text) if source.spaced else text))]


class Rows:
    """An endless, seeded stream of rows of at most `n_ctx` tokens.

    A row of many documents would hold a chat template many times, and repeated templates teach gates that templates are
    free: so a document is a row of its own, and begins at position 0 as it does at run time. Long texts are cut up.
    """

    def __init__(self, sources: list[Source], vocab: Vocabulary, own: Path, n_ctx: int, seed: int) -> None:
        self.n_ctx, self.rng = n_ctx, random.Random(seed)
        self.shares = [source.share for source in sources]
        self.documents = [documents(source, vocab, own) for source in sources]
        for source, found in zip(sources, self.documents, strict=True):
            if not any(_teaches(document, n_ctx) for document in found):
                raise UsageError(f"{source.path or 'self'} holds no text to train on")
        self.heads = [[] if _in_rows(source) else vocab.opening() for source in sources]
        self.streams = [self._stream(*pair) for pair in zip(self.documents, self.heads, strict=True)]
        self.n_rows = 0

    def _stream(self, found: list[Row], head: list[int]) -> Iterator[Row]:
        if len(found) == 1 and not found[0].n_prompt:
            text, step = found[0].tokens, self.n_ctx - len(head)
            starts = list(range(0, max(1, len(text) - step), step))
            while True:
                self.rng.shuffle(starts)
                yield from (Row(head + (text * (1 + step // len(text)))[s : s + step]) for s in starts)
        order = [i for i, document in enumerate(found) if _teaches(document, self.n_ctx)]
        while True:
            self.rng.shuffle(order)
            yield from (Row(found[i].tokens[: self.n_ctx], found[i].n_prompt) for i in order)

    def take(self, n: int) -> list[Row]:
        """The next `n` rows."""
        self.n_rows += n
        return [next(self.rng.choices(self.streams, self.shares)[0]) for _ in range(n)]

    def skip(self, n_rows: int) -> None:
        """Advance to where a stopped run was."""
        while self.n_rows < n_rows:
            self.take(1)


def _in_rows(source: Source) -> bool:
    """Whether the source holds whole rows, first tokens included, and no long text to cut up."""
    return source.path is None or source.path.suffix == ".jsonl"


def _teaches(row: Row, n_ctx: int) -> bool:
    return len(row.tokens) >= MIN_ROW and row.n_prompt < min(len(row.tokens), n_ctx)
