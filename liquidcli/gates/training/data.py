"""Training text as rows of token ids: where it comes from, in what shares, in an order fixed by a seed.

A source is `self:N[:greedy][:share=X]` (N tokens of the base's own text, sampled; greedy: answers alone, of the
likeliest tokens) or `FILE[:spaced][:chat][:lines=N][:share=X]`; a .jsonl file
holds `question` and `answer`, or `tokens` and perhaps `n_prompt`. `spaced` sets blanks around punctuation, as tokenised
corpora do. Knows nothing of models.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import NotFoundError, UsageError
from ...text_file import json_lines, read_text
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
        free = min(max(0, self.n_prompt - 1), len(self.tokens))
        return [0.0] * free + [1.0] * (len(self.tokens) - free)

    def teaches(self, n_ctx: int) -> bool:
        """Is there a prediction that counts in its first `n_ctx` tokens?"""
        return self.n_prompt < min(len(self.tokens), n_ctx)


_COUNT = re.compile(r"0*[1-9]\d{0,11}")


class _Value(NamedTuple):
    """An option of a source that has a value, above 0."""

    pattern: re.Pattern[str]
    example: str
    read: Callable[[str], Any]


_VALUES = {"lines": _Value(_COUNT, "N", int), "share": _Value(re.compile(r"\d+(\.\d+)?"), "X", float)}
_FLAGS = ("spaced", "chat", "greedy")


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
    def parse(cls, text: str, flag: str = "--data") -> Source:
        """UsageError or NotFoundError in the name of `flag`; held-out text has no shares and is no text of the base's
        own, a tenth of which is held out anyway."""
        head, *options = _path_and_options(text)
        allowed = {*_FLAGS, *_VALUES} - ({"share"} if flag == "--valid" else set())
        if head == "self":
            if flag == "--valid":
                raise UsageError(f"--valid {text}: a file was expected; a tenth of --data self:N is held out by itself")
            if not options or not _COUNT.fullmatch(options[0]):
                raise UsageError(f"--data {text}: a token count was expected, for example self:150000")
            return cls(None, n_tokens=int(options[0]), **_fields(flag, text, options[1:], {"greedy", "share"}))
        if not Path(head).is_file():
            raise NotFoundError(f"{flag} {text}: there is no file {head}")
        source = cls(Path(head), **_fields(flag, text, options, allowed - {"greedy"}))
        if source.chat and not source.holds_rows:
            raise UsageError(f"{flag} {text}: chats are questions and answers, in a .jsonl file")
        return source

    @property
    def name(self) -> str:
        return str(self.path or "self")

    @property
    def holds_rows(self) -> bool:
        """Whole rows, first tokens included, and no long text to cut up."""
        return self.path is None or self.path.suffix == ".jsonl"

    def own(self, sampled: Path) -> Path:
        """Where the base's own text lies, beside the file of what was sampled."""
        return sampled.with_name("own-greedy.jsonl") if self.greedy else sampled


def _path_and_options(text: str) -> list[str]:
    """`FILE:option:option` in its parts, where a file's name may hold colons itself."""
    parts = text.split(":")
    heads = (":".join(parts[:n]) for n in range(len(parts), 1, -1))
    head = next((head for head in heads if Path(head).is_file()), parts[0])
    return [head, *parts[head.count(":") + 1 :]]


def _fields(flag: str, text: str, options: list[str], allowed: set[str]) -> dict[str, Any]:
    fields = {}
    for option in options:
        name, _, value = option.partition("=")
        wanted = _VALUES.get(name)
        if name not in allowed or (wanted and not (wanted.pattern.fullmatch(value) and float(value))):
            words = sorted(f"{word}={_VALUES[word].example}" if word in _VALUES else word for word in allowed)
            raise UsageError(f"{flag} {text}: {option!r} is none of {', '.join(words)}")
        fields[name] = wanted.read(value) if wanted else True
    return fields


def spaced(text: str) -> str:
    """Blanks around punctuation: `Yes, sir.` becomes `Yes , sir . `."""
    text = _PUNCTUATION.sub(lambda m: f" {m[1]} ", text)
    return re.sub(r"(\w)-(\w)", r"\1 @-@ \2", text)


def _record(record: dict) -> Row:
    return Row(record["tokens"], 0 if record.get("kind") == "article" else record.get("n_prompt", 0))


def _json_documents(path: Path, source: Source, vocab: Vocabulary) -> Iterator[Row]:
    for number, record in json_lines(path, source.lines):
        _check(record, f"{path}, line {number}")
        if "tokens" in record:
            yield _record(record)
        elif source.chat:
            prompt = vocab.chat(record["question"])
            yield Row(vocab.chat(record["question"], record["answer"]), len(prompt))
        else:
            yield Row(vocab.document(f"Question: {record['question']}\nAnswer: {record['answer']}\n\n"))


def _check(record: Any, where: str) -> None:
    number = lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0  # noqa: E731
    if isinstance(record, dict) and "tokens" in record:
        tokens = record["tokens"]
        if not (isinstance(tokens, list) and all(map(number, tokens)) and number(record.get("n_prompt", 0))):
            raise UsageError(f"{where}: `tokens` is a list of token ids, `n_prompt` a count")
    elif not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in ("question", "answer")):
        raise UsageError(f"{where}: texts `question` and `answer`, or `tokens`, were expected")


def check_ids(rows: list[Row], n_vocab: int, name: str) -> None:
    """UsageError for tokens of another vocabulary."""
    if any(max(row.tokens, default=0) >= n_vocab for row in rows):
        raise UsageError(f"{name} holds token ids beyond the base's vocabulary of {n_vocab}: it is another model's")


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
        nth = i // HELD_OUT_EVERY if held_out else i
        record = json.loads(line)
        if distinct(record["tokens"]) < MIN_DISTINCT:
            continue
        if record["kind"] == "article" and nth % 2:
            rows.append(Row(vocab.document(spaced(vocab.spelled(record["tokens"])).lstrip())))
        else:
            rows.append(_record(record))
    return rows


def documents(source: Source, vocab: Vocabulary, own: Path | None = None) -> list[Row]:
    """All documents of one source; `own`: where the base's sampled text lies."""
    if source.path is None:
        assert own
        return own_answers(source.own(own), vocab, held_out=False)
    if source.holds_rows:
        return list(_json_documents(source.path, source, vocab))
    text = "\n".join(read_text(source.path).splitlines()[: source.lines])
    text = re.sub(r"\s*\n\s*", " \n ", text) if source.spaced else text
    return [Row(vocab.text(spaced(text) if source.spaced else text))]


class Rows:
    """An endless, seeded stream of rows of at most `n_ctx` tokens.

    A row of many documents would hold a chat template many times, and repeated templates teach gates that templates are
    free: so a document is a row of its own, and begins at position 0 as it does at run time. Long texts are cut up.
    """

    def __init__(self, sources: list[Source], vocab: Vocabulary, own: Path, n_ctx: int, seed: int) -> None:
        self.n_ctx = n_ctx
        self.shares = [source.share for source in sources]
        self.documents = [documents(source, vocab, own) for source in sources]
        for source, found in zip(sources, self.documents, strict=True):
            if not any(_is_long_enough(document, n_ctx) for document in found):
                raise UsageError(f"{source.path or 'self'} holds no text to train on")
        self.heads = [[] if source.holds_rows else vocab.opening() for source in sources]
        self._begin(seed)

    def _begin(self, seed: int) -> None:
        self.rng, self.n_rows = random.Random(seed), 0
        self.streams = [self._stream(*pair) for pair in zip(self.documents, self.heads, strict=True)]

    def anew(self, seed: int) -> Rows:
        """The same documents from the beginning, in the order of another seed."""
        rows = copy.copy(self)
        rows._begin(seed)
        return rows

    def _stream(self, found: list[Row], head: list[int]) -> Iterator[Row]:
        if len(found) == 1 and not found[0].n_prompt:
            text, step = found[0].tokens, self.n_ctx - len(head)
            starts = list(range(0, max(1, len(text) - step), step))
            while True:
                self.rng.shuffle(starts)
                yield from (Row(head + (text * (1 + step // len(text)))[s : s + step]) for s in starts)
        order = [i for i, document in enumerate(found) if _is_long_enough(document, self.n_ctx)]
        while True:
            self.rng.shuffle(order)
            yield from (Row(found[i].tokens[: self.n_ctx], found[i].n_prompt) for i in order)

    def words(self) -> list[int]:
        """Every token that the rows may hold."""
        documents = (row.tokens for found in self.documents for row in found)
        return sorted(set().union(*documents, *self.heads))

    def take(self, n: int) -> list[Row]:
        """The next `n` rows."""
        self.n_rows += n
        return [next(self.rng.choices(self.streams, self.shares)[0]) for _ in range(n)]

    def skip(self, n_rows: int) -> None:
        """Advance to where a stopped run was."""
        while self.n_rows < n_rows:
            self.take(1)


def _is_long_enough(row: Row, n_ctx: int) -> bool:
    return len(row.tokens) >= MIN_ROW and row.teaches(n_ctx)
