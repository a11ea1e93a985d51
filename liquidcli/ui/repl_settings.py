"""/set and /show: what can be changed while a conversation runs, under ollama's and llama.cpp's names.

Knows parameters, switches and what can be shown. Reads no keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import NotFoundError, UsageError
from .completion import typed_path
from .console import out
from .figures import engine_lines

if TYPE_CHECKING:
    from .repl import Repl


def set_(repl: Repl, rest: str) -> None:
    word, _, value = rest.partition(" ")
    if word == "parameter":
        _set_parameter(repl, *value.partition(" ")[::2])
    elif word == "system":
        repl.conversation.system = value.strip().strip('"') or None
        out.talk("the system prompt is set" if repl.conversation.system else "no system prompt of our own any more")
    elif word == "format":
        _set_format(repl, value.strip())
    elif word in SWITCHES:
        SWITCHES[word](repl)
    elif _parameter_name(word) in _AT_START:
        _set_parameter(repl, word, value)
    elif _parameter_name(word) in PARAMETERS:
        raise UsageError(f"{word} is a parameter", hint=f"/set parameter {_first_name(word)} {value}".rstrip())
    else:
        choices = ("parameter", "system", "format", *SWITCHES)
        nearest = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
        hint = f"did you mean /set {nearest[0]}?" if nearest else f"/set knows {', '.join(choices)}"
        raise UsageError(f"/set {word} is not known" if word else "set what?", hint=hint)


def _set_format(repl: Repl, value: str) -> None:
    """`json`, or a file with a JSON schema."""
    from ..llama import grammar

    if not value:
        raise UsageError("which format?", hint="/set format json, /set format SCHEMA.json, /set noformat")
    path = typed_path(value)
    if value != "json" and not path.is_file():
        raise NotFoundError(f"there is no file {value}", hint="/set format json, or a file with a JSON schema")
    schema = grammar.ANY_JSON if value == "json" else path.read_text(errors="replace")
    repl.conversation.settings.grammar = grammar.check(repl.engine.model, grammar.from_json_schema(schema))
    out.talk(f"answers are JSON{'' if value == 'json' else f' of the schema {value}'}; /set noformat ends that")


def _noformat(repl: Repl) -> None:
    repl.conversation.settings.grammar = ""
    out.talk("answers have any form")


def _think(on: bool) -> Callable[[Repl], None]:
    def switch(repl: Repl) -> None:
        form = repl.conversation.format
        if "enable_thinking" not in form.source:
            raise UsageError("the template of this model knows no thinking that could be switched")
        form.variables["enable_thinking"] = on
        out.talk("the model is asked to think first" if on else "the model is asked to answer at once")

    return switch


def _markdown(on: bool) -> Callable[[Repl], None]:
    def switch(repl: Repl) -> None:
        repl.markdown = on
        out.talk("Markdown is drawn" if on else "Markdown is shown as it is written")

    return switch


def _verbose(on: bool) -> Callable[[Repl], None]:
    def switch(repl: Repl) -> None:
        repl.verbose = on
        out.talk("figures after every answer" if on else "no figures after answers")

    return switch


def _wordwrap(on: bool) -> Callable[[Repl], None]:
    def switch(repl: Repl) -> None:
        repl.wordwrap = on
        out.talk("lines break between words" if on else "lines break where the terminal breaks them")

    return switch


def _history(keep: bool) -> Callable[[Repl], None]:
    def switch(repl: Repl) -> None:
        repl.reader.keep_history(keep)
        repl.keeper.pause(not keep)
        out.talk("what you type is kept" if keep else "what you type is not kept, nor this conversation")

    return switch


SWITCHES: dict[str, Callable[[Repl], None]] = {
    "verbose": _verbose(True), "quiet": _verbose(False), "history": _history(True), "nohistory": _history(False),
    "think": _think(True), "nothink": _think(False), "noformat": _noformat,
    "markdown": _markdown(True), "nomarkdown": _markdown(False),
    "wordwrap": _wordwrap(True), "nowordwrap": _wordwrap(False),
}  # fmt: skip

PARAMETERS: dict[str, tuple[str, type]] = {  # ollama's and llama.cpp's names: (ours, type)
    "temperature": ("temp", float), "temp": ("temp", float), "top_k": ("top_k", int), "top_p": ("top_p", float),
    "min_p": ("min_p", float), "seed": ("seed", int), "repeat_penalty": ("repeat_penalty", float),
    "repeat_last_n": ("repeat_last_n", int), "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float), "num_predict": ("max_tokens", int), "n": ("max_tokens", int),
    "predict": ("max_tokens", int), "stop": ("stop", str), "num_thread": ("n_threads", int),
    "threads": ("n_threads", int),
}  # fmt: skip
_AT_START = {"num_ctx": "-c N", "ctx": "-c N", "num_gpu": "-ngl N", "num_batch": "-b N"}


def _set_parameter(repl: Repl, name: str, value: str) -> None:
    name = _parameter_name(name)
    if name in _AT_START:
        raise UsageError(f"{name} is fixed when the model is loaded", hint=f"start again with {_AT_START[name]}")
    if name not in PARAMETERS:
        nearest = difflib.get_close_matches(name, PARAMETERS, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(PARAMETERS)}"
        raise UsageError(f"no such parameter: {name}" if name else "which parameter?", hint=hint)
    ours, kind = PARAMETERS[name]
    try:
        number = kind(value.strip())
    except ValueError:
        raise UsageError(f"{name} takes {'a whole number' if kind is int else 'a number'}, not {value!r}") from None
    _apply(repl, ours, number)
    out.talk(f"{name} is {number}" if number != "" else "no text ends an answer any more")


def _parameter_name(word: str) -> str:
    return word.lower().replace("-", "_")


def _first_name(word: str) -> str:
    """The name that /show lists a parameter under in ollama."""
    ours = PARAMETERS[_parameter_name(word)][0]
    return next(name for name, (other, _) in PARAMETERS.items() if other == ours)


def _apply(repl: Repl, name: str, value: float | int | str) -> None:
    settings = repl.conversation.settings
    if name == "stop":
        settings.stop = (*settings.stop, str(value)) if value else ()
    elif name == "max_tokens":
        if int(value) < -1:
            raise UsageError(f"a number of tokens is at least 0, or -1 for no limit; {value} is neither")
        settings.max_tokens = int(value)
    elif name == "n_threads":
        if not 1 <= int(value) <= 512:
            raise UsageError("threads are at least 1 and at most 512")
        repl.engine.context.set_threads(int(value), int(value))
    else:
        settings.sampling = settings.sampling.updated(**{name: value})


def show(repl: Repl, rest: str) -> None:
    if rest not in SHOWN:
        raise UsageError(f"/show {rest} is not known" if rest else "show what?", hint=f"there are {', '.join(SHOWN)}")
    for line in SHOWN[rest](repl):
        out.data(line)


def _parameters(repl: Repl) -> list[str]:
    settings = repl.conversation.settings
    rows = {**vars(settings.sampling), "num_predict": settings.max_tokens, "stop": list(settings.stop) or "-"}
    return [f"{name:<18} {value}" for name, value in rows.items() if name != "logit_bias"]


def _license(repl: Repl) -> list[str]:
    found = (repl.engine.info.metadata.get(f"general.license{part}") for part in ("", ".name", ".link"))
    return [str(text) for text in found if text] or ["the file names no license"]


SHOWN: dict[str, Callable[[Repl], list[str]]] = {
    "info": lambda repl: engine_lines(repl.engine),
    "parameters": _parameters,
    "system": lambda repl: [repl.conversation.system or "no system prompt of our own; the template may have one"],
    "license": _license,
    "template": lambda repl: [repl.conversation.format.source or "this model has no chat template"],
}
