"""`liquid gates report`: whether a model with gates works harder where it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..text_file import json_lines, read_text
from ..ui.console import out
from .locate import locate
from .options import Depth, Json, Offline, Quiet, Threads, complete_refs, option
from .options import Gates as GatesPack

if TYPE_CHECKING:
    from ..runtime.depth import DepthPolicy
    from ..runtime.engine import Engine

Ref = Annotated[str | None, typer.Argument(metavar="[REF]", show_default=False, autocompletion=complete_refs)]
Texts = Annotated[
    list[str] | None, option("--text", metavar="KIND=FILE", help="A kind of text more, or in place of a bundled one.")
]
Chunks = Annotated[int, option("--chunks", metavar="N", min=1, help="Windows of each kind of text. Default: 4.")]
Prompts = Annotated[Path | None, option("--prompts", metavar="FILE", help="Chat prompts, one a line.")]
NPrompts = Annotated[int, option("--n-prompts", metavar="N", min=0, help="Of the prompts; 0: none. Default: 100.")]
NPredict = Annotated[int, option("-n", "--n-predict", metavar="N", min=1, help="Tokens of each answer. Default: 128.")]
Questions = Annotated[
    Path | None, option("--questions", metavar="FILE.jsonl", help="Objects of question and answer, as GSM8K's.")
]
NQuestions = Annotated[int, option("--n-questions", metavar="N", min=0, help="Of the questions; 0: none. Default: 40.")]
_N_CTX, _N_SEQ, _N_REASONS = 256, 8, 200
_CTX_SEQ = 768  # tokens of a prompt and its answer


def report(
    ref: Ref = None, gates: GatesPack = None, depth: Depth = "auto", texts: Texts = None, n_chunks: Chunks = 4,
    prompts: Prompts = None, n_prompts: NPrompts = 100, n_predict: NPredict = 128, questions: Questions = None,
    n_questions: NQuestions = 40, n_threads: Threads = None, offline: Offline = False, json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Show where a model with gates works hard: by kind of text, along its own full-depth answers, on questions.

    Everything is measured beside full depth. The texts, prompts and questions are bundled ones unless you bring yours.
    """
    from ..runtime.depth import DepthPolicy
    from ..runtime.engine import Engine

    out.configure(json=json, quiet=quiet)
    policy = DepthPolicy.parse(depth)
    kinds, asked, puzzles = _texts(texts or []), _prompts(prompts)[:n_prompts], _questions(questions, n_questions)
    if n_predict > _CTX_SEQ // 2:
        raise UsageError(f"-n {n_predict}: at most {_CTX_SEQ // 2} tokens were expected")
    path = locate(ref, gates, offline=offline, depths=[policy])
    with Engine.load(path, n_ctx=_N_SEQ * _CTX_SEQ, n_seq=_N_SEQ, kv_unified=False, n_threads=n_threads) as engine:
        if not engine.info.gates:
            raise UsageError(f"{path} has no gates, so every layer always runs", hint="--gates PACK gives it some")
        engine.set_depth(policy)
        found = _measured(engine, policy, kinds, n_chunks, asked, n_predict, puzzles)
    result = {"model": str(path), "depth": str(policy), **found}
    if json:
        out.json(result)
    else:
        _print(result)


def _texts(given: Sequence[str]) -> dict[str, str]:
    from ..gates import probes

    found = probes.texts(Path(__file__).parents[1])
    for word in given:
        kind, _, file = word.partition("=")
        if not kind or not file:
            raise UsageError(f"--text {word}: KIND=FILE was expected")
        found[kind] = _read(Path(file), "--text")
    return found


def _read(file: Path, option: str) -> str:
    """A text with something in it."""
    text = read_text(file)
    if not text.strip():
        raise UsageError(f"{option}: {file} is empty")
    return text


def _prompts(file: Path | None) -> list[str]:
    from ..gates import probes

    return [line for line in _read(file, "--prompts").splitlines() if line.strip()] if file else probes.chat_prompts()


def _questions(file: Path | None, n: int) -> list[tuple[str, str]]:
    from ..gates import probes
    from ..runtime.effort import last_number

    if file is None:
        return probes.questions(n)
    _read(file, "--questions")
    try:
        rows = [row for _, row in json_lines(file, n)]
        return [(str(row["question"]), last_number(str(row["answer"])) or "") for row in rows]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{file}: a JSON object with question and answer was expected on every line") from error


def _measured(
    engine: Engine, policy: DepthPolicy, kinds: dict[str, str], n_chunks: int, asked: list[str], n_predict: int,
    puzzles: list[tuple[str, str]],
) -> dict[str, Any]:  # fmt: skip
    from ..runtime import effort as e

    found: dict[str, Any] = {"kinds": []}
    for kind, tokens in _tokens(engine, kinds).items():
        out.talk(f"text: {kind}")
        found["kinds"].append(e.effort(engine, kind, tokens, policy, _N_CTX, n_chunks).as_json())
    if asked:
        chats = _rendered(engine, asked, n_predict)
        answers = e.greedy(engine, chats, n_predict, e.FULL, _N_SEQ, _tell)
        found["prompts"] = e.agreement(engine, chats, answers, policy, _tell)
    if puzzles:
        chats = _rendered(engine, [question for question, _ in puzzles], _N_REASONS)
        said = [_said(engine, e.greedy(engine, chats, _N_REASONS, p, _N_SEQ, _tell)) for p in (policy, e.FULL)]
        found["questions"] = e.solved(said[0], said[1], [answer for _, answer in puzzles])
    return found


def _tokens(engine: Engine, kinds: dict[str, str]) -> dict[str, list[int]]:
    from ..runtime.effort import FEWEST_TOKENS

    found = {kind: engine.tokenize(text) for kind, text in kinds.items()}
    for kind, tokens in found.items():
        if len(tokens) < FEWEST_TOKENS:
            raise UsageError(f"the text {kind!r} has {len(tokens)} tokens, at least {FEWEST_TOKENS} were expected")
    return found


def _rendered(engine: Engine, asked: Sequence[str], n_predict: int) -> list[list[int]]:
    """In the model's chat template, cut where no room would be left for the answer."""
    from ..runtime.agreement import chat_tokens

    return [tokens[: _CTX_SEQ - n_predict] for tokens in chat_tokens(engine, asked)]


def _said(engine: Engine, answers: Sequence[Sequence[int]]) -> list[str]:
    return [b"".join(map(engine.detokenize_piece, tokens)).decode("utf-8", "replace") for tokens in answers]


def _tell(done: int, total: int, what: str) -> None:
    if done % 20 == 0 or done == total:
        out.talk(f"{what}: {done}/{total}")


def _print(result: dict[str, Any]) -> None:
    shown: Callable[[dict[str, Any]], list[str]] = lambda row: [  # noqa: E731
        row["kind"], f"{row['executed_fraction']:.1%}", f"{row['surprisal_mean']:.2f}",
        "-" if row["rank_correlation"] is None else f"{row['rank_correlation']:+.2f}", f"{row['ppl_full']:.3f}",
        f"{row['ppl_ratio_to_full']:.4f}", f"{row['same_top_p']:.1%}",
    ]  # fmt: skip
    columns = ("text", ">run", ">surprisal, nats", ">rank corr.", ">PPL full", ">ratio", ">same top")
    out.table(columns, [shown(row) for row in result["kinds"]])
    if found := result.get("prompts"):
        out.data(
            f"\nalong full depth's answers to prompts ({found['n_prompts']}, {found['n_tokens']} tokens): the same "
            f"top token for {found['same_top_p']:.1%}, {found['executed_fraction']:.1%} of the layers run "
            f"({found['executed_min']:.1%} to {found['executed_max']:.1%})"
        )
    if found := result.get("questions"):
        out.data(
            f"{found['n_questions']} questions: {found['right']} right at {result['depth']}, {found['right_full']} "
            f"at full depth; the same number in {found['same_number']}"
        )
