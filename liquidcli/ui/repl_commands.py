"""The words after a slash: what there is, what was meant, what it does to a conversation.

Knows commands and parameters. Reads no keys and draws no prompt.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError
from .completion import Source, files
from .console import out
from .figures import answer_lines, layers_text
from .repl_depth import compare, depth
from .repl_sessions import load, save, sessions
from .repl_settings import PARAMETERS, SHOWN, SWITCHES, set_, show
from .repl_turns import context, edit, model, read, regen, undo

if TYPE_CHECKING:
    from .repl import Repl


@dataclass(frozen=True)
class Command:
    """One word of the REPL: how it is written, what it does, and the function that does it."""

    usage: str
    help: str
    run: Callable[[Repl, str], None]


def dispatch(repl: Repl, line: str) -> None:
    """Run `/word rest`; UsageError, with the nearest word, for one that does not exist."""
    word, _, rest = line.partition(" ")
    word = ALIASES.get(word.lower(), word.lower())
    command = COMMANDS.get(word)
    if command is None:
        nearest = difflib.get_close_matches(word, [*COMMANDS, *ALIASES], n=1, cutoff=0.6)
        hint = f"did you mean {nearest[0]}?" if nearest else "/help lists what there is"
        raise UsageError(f"no such command: {word}", hint=hint)
    command.run(repl, rest.strip())


def words() -> list[str]:
    """For completion: every command, with the first words after it where they are few."""
    second = {
        "/sessions": ("load", "delete"),
        "/depth": ("auto", "full", "map", "map layers", "map tokens"),
        "/set": ("parameter", "system", "format json", *SWITCHES),
        "/show": tuple(SHOWN),
    }
    return [*COMMANDS, *ALIASES, *(f"{word} {next_}" for word, choices in second.items() for next_ in choices)]


def sources() -> dict[str, Source]:
    """For completion: what follows a command where that is no fixed word; the models are the caller's to add."""
    return {
        "/read": files,
        "/glob": files,
        "/set format": files,
        "/set parameter": lambda begun: [name for name in PARAMETERS if name.startswith(begun)],
    }


def _help(_repl: Repl, _rest: str) -> None:
    for command in COMMANDS.values():
        out.data(f"  {command.usage:<31} {command.help}")
    out.data('\n  Several lines: between """ and """, or with \\ at the end, Ctrl-J, a paste.')
    out.data("  Ctrl-C stops an answer and keeps what was said. Ctrl-G opens an editor.")


def _bye(repl: Repl, _rest: str) -> None:
    repl.done = True


def _clear(repl: Repl, _rest: str) -> None:
    repl.keeper.start_new()
    repl.conversation.clear()
    repl.engine.clear()
    out.talk("forgotten: this is a new conversation")


def _stats(repl: Repl, _rest: str) -> None:
    summary = repl.conversation.last.summary
    if summary is None:
        raise UsageError("there is no answer yet", hint="say something first, then /stats")
    for line in answer_lines(summary):
        out.data(line)
    answers = "1 answer" if repl.n_answers == 1 else f"{repl.n_answers} answers"
    out.data(f"so far   {answers}, {layers_text(repl.engine.depth_stats())}")
    out.data(f"context  {repl.conversation.n_used()} of {repl.engine.info.n_ctx} tokens")


COMMANDS: dict[str, Command] = {
    "/depth": Command("/depth auto|full|NN%|tau=0.NN", "how deep; /depth map draws the last answer", depth),
    "/compare": Command("/compare", "the last answer beside that of every layer", compare),
    "/set": Command("/set parameter NAME VALUE", "also: system TEXT, format json, nohistory", set_),
    "/show": Command("/show info|parameters|system", "what is loaded and set; also: template", show),
    "/stats": Command("/stats", "what the last answer took", _stats),
    "/regen": Command("/regen", "the last answer once more", regen),
    "/undo": Command("/undo", "take the last turn back", undo),
    "/edit": Command("/edit [TEXT]", "the last question in other words", edit),
    "/read": Command("/read FILE", "a text file goes with the next question", read),
    "/context": Command("/context", "how full the context is", context),
    "/model": Command("/model [REF]", "go on with another model", model),
    "/sessions": Command("/sessions [load|delete NAME]", "conversations that were kept; /load NAME", sessions),
    "/save": Command("/save NAME", "name this conversation, keep it until deleted", save),
    "/load": Command("/load NAME", "go on with a saved conversation", load),
    "/clear": Command("/clear", "a new conversation", _clear),
    "/help": Command("/help, /?", "this list", _help),
    "/bye": Command("/bye, Ctrl-D", "leave", _bye),
}
ALIASES = {
    "/?": "/help", "/exit": "/bye", "/quit": "/bye", "/new": "/clear", "/retry": "/regen", "/forget": "/undo",
    "/glob": "/read",
}  # fmt: skip
