"""`liquid run`: one question, one answer; without a question, a chat."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import closing
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import Interrupted, UsageError
from ..ui.console import is_terminal, out
from . import answering as a
from . import options as o
from . import presets
from .conversing import takes_conversation_options

if TYPE_CHECKING:
    from ..runtime.chat import Conversation
    from ..runtime.engine import Engine
    from ..runtime.events import Event, Likelihood

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[REF] [PROMPT]", show_default=False, autocompletion=o.complete_refs),
]
JsonLines = Annotated[bool, o.option("--jsonl", help="Print a JSON object per token, and the result as the last one.")]

LogProbs = Annotated[
    int | None,
    o.option("--logprobs", metavar="N", min=0, max=100, help="With --json: each token's logprob, and the N likeliest."),
]


@takes_conversation_options
def run(
    words: Words = None,
    *,
    json: o.Json = False,
    jsonl: JsonLines = False,
    n_logprobs: LogProbs = None,
    **options: Any,
) -> None:
    """Answer one prompt: an argument, standard input, or both. With neither, on a terminal: a chat.

    REF is a file, an alias, a stored model, an address or owner/name[:TAG]; without one, the default model answers.
    """
    out.configure(json=json or jsonl, quiet=options["quiet"])
    ref, said = _ref_and_prompt(words or [], options["model"])
    ref = ref or presets.model("run")
    text = _prompt([options["prompt"], a.read_text(options["file"]) if options["file"] else None, said])
    if text is None:
        if json or jsonl:
            raise UsageError("there is no prompt to answer", hint='liquid run "a question"')
        from .chat import Start, talk

        return talk(options, ref, Start())
    if n_logprobs is not None and not (json or jsonl):
        raise UsageError("--logprobs are a part of the JSON", hint="add --json, or --jsonl")
    with a.conversation(options, ref) as conversation:
        conversation.settings.n_logprobs = -1 if n_logprobs is None else n_logprobs
        _answer(conversation, text, {**options, "jsonl": jsonl, "json": json})
    return None


def _ref_and_prompt(words: list[str], model: str | None) -> tuple[str | None, str | None]:
    """One word is a model only if it looks like one; of two, the first is the model; more are a prompt unless it is."""
    from ..hub.resolve import looks_like_ref

    if model is None and words and (len(words) == 2 or looks_like_ref(words[0])):
        model, words = words[0], words[1:]
    return model, " ".join(words) if words else None


def _prompt(parts: list[str | None]) -> str | None:
    """Everything that was said, joined; None when a terminal waits for somebody to say something."""
    said = [part for part in parts if part]
    if _stdin_speaks(bool(said)):
        said += [piped] if (piped := a.read_stdin().strip("\n")) else []
        if not said:
            hint = 'liquid run "a question"'
            raise UsageError("there is no prompt: no argument, and nothing on standard input", hint=hint)
    return "\n\n".join(said) if said else None


def _stdin_speaks(has_prompt: bool) -> bool:
    """A pipe or a file is read; with a prompt at hand, nothing else is waited for."""
    if sys.stdin is None or sys.stdin.isatty():
        return False
    mode = os.fstat(sys.stdin.fileno()).st_mode
    return not has_prompt or stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _answer(conversation: Conversation, text: str, options: dict[str, Any]) -> None:
    from ..ui.answer import AnswerView
    from ..ui.depth_words import draw_reply
    from ..ui.figures import reading_text
    from ..ui.waiting import said_until_first

    if not conversation.is_chat and options["conversation"] is None and is_terminal(sys.stderr):
        out.talk("this model has no chat template: it goes on with the text instead of answering")
    view = AnswerView()
    with closing(conversation.ask(text)) as events:
        for event in said_until_first(events, lambda: reading_text(conversation.engine)):
            if options["jsonl"] and event.summary is None:
                _line(_token(event, conversation.engine))
            elif not (options["json"] or options["jsonl"]):
                view.feed(event.text)
    if options["jsonl"]:
        _line(_result(conversation))
    elif options["json"]:
        out.json(_result(conversation))
    else:
        view.end()
    if options["depth_map"]:
        draw_reply(options["depth_map"], conversation)
    _comment(conversation, options["verbose"])


def _line(value: dict[str, Any]) -> None:
    out.data(dumps(value))


def _token(event: Event, engine: Engine) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "text": event.text,
        "token": event.token,
        "layers_run": event.layers_run,
        "layers_total": event.layers_total,
    }
    if event.likelihood and event.token is not None:
        fields["logprobs"] = _likely(event.token, event.likelihood, engine)
    return fields


def _likely(token: int, likely: Likelihood, engine: Engine) -> dict[str, Any]:
    return {
        **_named(token, likely.logprob, engine),
        "top_logprobs": [_named(other, logprob, engine) for other, logprob in likely.top],
    }


def _named(token: int, logprob: float, engine: Engine) -> dict[str, Any]:
    raw = engine.detokenize_piece(token, special=True)
    return {"token": raw.decode("utf-8", "replace"), "id": token, "bytes": list(raw), "logprob": round(logprob, 6)}


def _result(conversation: Conversation) -> dict[str, Any]:
    reply, summary = conversation.last, conversation.last.ended()
    result = {
        "text": conversation.last.text,
        "model": str(conversation.engine.info.path),
        "usage": {"prompt_tokens": summary.prompt_tokens, "completion_tokens": summary.completion_tokens},
        "depth": summary.depth.as_json(summary.policy),
        "timings": summary.timings.as_json(),
        "finish_reason": summary.finish_reason,
        "seed": summary.seed,
    }
    if reply.likelihoods:
        pairs = zip(reply.tokens, reply.likelihoods, strict=True)
        result["logprobs"] = {"content": [_likely(*pair, conversation.engine) for pair in pairs]}
    return result


def _comment(conversation: Conversation, verbose: bool) -> None:
    """What is to be said about the answer, on stderr."""
    from ..ui.figures import answer_lines

    summary, engine = conversation.last.ended(), conversation.engine
    if verbose:
        for line in answer_lines(summary):
            out.talk(line)
    if summary.finish_reason == "context":
        out.warn(f"the context of {engine.info.n_ctx} tokens is full, the answer stops here: -c N makes it larger")
    if summary.finish_reason == "interrupted":
        raise Interrupted("stopped")
