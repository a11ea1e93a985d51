"""What `run` and `chat` share: the way from options to a conversation.

Knows which option goes where. Heavy imports happen inside, when a model is about to be loaded.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import text_file
from ..errors import UsageError
from ..ui.console import out

if TYPE_CHECKING:
    from ..runtime.chat import Conversation
    from ..runtime.engine import Engine

_ENGINE = (
    "n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "n_gpu_layers", "type_k", "type_v", "flash_attn",
)  # fmt: skip
_SAMPLING = (
    "temp", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty",
    "seed",
)  # fmt: skip
_MAX_TEXT_BYTES = 1 << 26
_PATIENCE_SECONDS = 0.7


@contextlib.contextmanager
def conversation(words: Mapping[str, Any], ref: str | None) -> Iterator[Conversation]:
    """A loaded model, ready to be talked to, from the options of a verb by the library's names."""
    from ..hub import default_model
    from ..llama import library
    from ..runtime.chat import Conversation, ReplySettings
    from ..runtime.depth import DepthPolicy
    from ..runtime.sampling import SamplingParams, parse_logit_bias
    from ..ui.depth_words import check_map

    policy = DepthPolicy.parse(words["depth"])
    if words["depth_map"]:
        check_map(words["depth_map"])
    recommended: dict[str, Any] = default_model.SAMPLING if ref is None else {}
    sampling = SamplingParams(**recommended, logit_bias=parse_logit_bias(words["logit_bias"] or []))
    settings = ReplySettings(
        sampling.updated(**{name: words[name] for name in _SAMPLING}),
        words["max_tokens"],
        tuple(words["reverse_prompt"] or ()),
        words["ignore_eos"],
    )
    system = _text_or_file(words["system_prompt"], words["system_prompt_file"], "-sys", "-sysf")
    template = _text_or_file(
        words["chat_template"], words["chat_template_file"], "--chat-template", "--chat-template-file"
    )
    library.log.show = library.log.show or words["logs"]
    with _engine(words, ref) as engine:
        note = engine.set_depth(policy).note
        if note:
            out.warn(note)
        talk = Conversation(engine, settings, system=system, template=template, plain=words["conversation"] is False)
        settings.grammar = _grammar(words, engine)
        talk.format.variables.update(_variables(words["chat_template_kwargs"]))
        if words["conversation"] and not talk.is_chat:
            raise UsageError("this model has no chat template", hint="--chat-template chatml gives it one")
        try:
            yield talk
        finally:
            talk.close()


def _variables(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise UsageError(f"--chat-template-kwargs is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError("--chat-template-kwargs is no JSON object", hint='as in {"enable_thinking": false}')
    return found


def _grammar(words: Mapping[str, Any], engine: Engine) -> str:
    from ..llama import grammar

    given = _text_or_file(words["grammar"], words["grammar_file"], "--grammar", "--grammar-file")
    schema = _text_or_file(words["json_schema"], words["json_schema_file"], "-j", "-jf")
    if given is not None and schema is not None:
        raise UsageError("a grammar and a JSON schema both say what answers look like", hint="give one of them")
    if schema is not None:
        given = grammar.from_json_schema(grammar.ANY_JSON if schema.strip() == "{}" else schema)
    return "" if given is None else grammar.check(engine.model, given)


def read_text(path: Path) -> str:
    """A text file of bounded size; bytes that are no UTF-8 become replacement characters."""
    return text_file.read_text(path, _MAX_TEXT_BYTES)


def read_stdin() -> str:
    return text_file.bounded(sys.stdin.buffer.read(_MAX_TEXT_BYTES + 1), "the input", _MAX_TEXT_BYTES)


@contextlib.contextmanager
def _engine(words: Mapping[str, Any], ref: str | None) -> Iterator[Engine]:
    from ..hub.resolve import resolve_model
    from ..runtime.engine import Engine
    from ..runtime.info import raised_context, untrained_context

    with _slow_progress(ref or "default model") as progress:
        model = resolve_model(ref, gates=words["gates"], offline=words["offline"], progress=progress)
    for note in model.notes:
        out.talk(note)
    with _slow_progress("loading") as progress:
        engine = Engine.load(model.path, **{name: words[name] for name in _ENGINE}, n_outputs=1, progress=progress)
    with engine:
        if note := untrained_context(words["n_ctx"], engine.info.n_ctx_train):
            out.warn(note)
        if note := raised_context(words["n_ctx"], engine.info.n_ctx):
            out.warn(note)
        yield engine


@contextlib.contextmanager
def _slow_progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar that appears only for what takes long enough to wonder about."""
    started = time.monotonic()
    bars: list[Any] = []
    with contextlib.ExitStack() as stack:

        def update(done: int, total: int | None = None, now: str | None = None) -> None:
            if not bars and time.monotonic() - started > _PATIENCE_SECONDS:
                bars.append(stack.enter_context(out.progress(now or what, total)))
            for bar in bars:
                bar.update(done, total, now)

        yield update


def _text_or_file(text: str | None, path: Path | None, text_flag: str, file_flag: str) -> str | None:
    if text is not None and path is not None:
        raise UsageError(f"{text_flag} and {file_flag} both name a text", hint="give one of them")
    return read_text(path) if path is not None else text
