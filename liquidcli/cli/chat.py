"""`liquid chat`: talk with a model at a terminal, or through a pipe, line by line."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..ui.console import is_terminal, out
from . import answering as a
from . import options as o
from . import presets, resuming
from .conversing import takes_conversation_options

if TYPE_CHECKING:
    from ..runtime.chat import Conversation
    from ..runtime.session import Session
    from ..ui.lineedit import Reader
    from ..ui.repl import Repl

SingleTurn = Annotated[bool, o.option("-st", "--single-turn", help="End after one answer.")]
Continue = Annotated[bool, o.option("--continue", help="Go on with the last session, of this model if one is named.")]
Resume = Annotated[
    str | None,
    o.option("--resume", metavar="NAME", autocompletion=resuming.names, help="Go on with this session (/sessions)."),
]
NoSave = Annotated[bool, o.option("--no-save", help="Keep nothing of this chat.")]

Raw = Annotated[bool, o.option("--raw", help="Show Markdown as it is written.")]


@dataclass(frozen=True)
class Start:
    """How a chat begins and whether it is kept."""

    first: str = ""  # asked before anything is read
    single_turn: bool = False
    latest: bool = False
    resume: str | None = None
    no_save: bool = False
    raw: bool = False


@takes_conversation_options
def chat(
    ref: o.Ref = None,
    *,
    continue_: Continue = False,
    resume: Resume = None,
    no_save: NoSave = False,
    raw: Raw = False,
    single_turn: SingleTurn = False,
    **options: Any,
) -> None:
    """Chat with a model; without a REF, with the default model. /help inside lists what there is.

    At a terminal the chat is saved as it goes on, and --continue takes it up where it was left. Without a terminal,
    every line of standard input is a turn, and the exit code is that of the first error.
    """
    out.configure(quiet=options["quiet"])
    if ref and options["model"]:
        raise UsageError(f"both {ref} and -m {options['model']} name a model", hint="give one of them")
    said = [options["prompt"], a.read_text(options["file"]) if options["file"] else None]
    first = "\n\n".join(filter(None, said))
    ref = options["model"] or ref or (None if continue_ or resume else presets.model("chat"))
    talk(options, ref, Start(first, single_turn, continue_, resume, no_save, raw))


def talk(options: Mapping[str, Any], ref: str | None, start: Start) -> None:
    """Load the model and go on until somebody leaves."""
    session = resuming.pick(ref, latest=start.latest, name=start.resume)
    if session:
        options, ref = resuming.brought_along(options, ref, session)
    reader = _reader()
    save = not start.no_save and (reader.interactive or session is not None)

    failures = []
    if start.no_save:
        reader.keep_history(False)
    with reader.session():
        repl = _one_model(reader, start, (options, ref, session), save=save)
        while repl.next_model:
            failures.append(repl.failure)
            before, start = repl.conversation, replace(start, first="")
            repl = _one_model(reader, start, ({**options, "gates": None}, repl.next_model, None), before, save=save)
    failure = next(filter(None, [*failures, repl.failure]), None)
    if failure and not reader.interactive:
        raise typer.Exit(failure.exit_code)


def _one_model(
    reader: Reader, start: Start, what: tuple[Mapping[str, Any], str | None, Session | None],
    before: Conversation | None = None, *, save: bool,
) -> Repl:  # fmt: skip
    """A chat until somebody leaves, or goes on with another model."""
    from ..ui.repl import Repl

    options, ref, session = what
    with (
        a.conversation(options, ref) as conversation,
        resuming.kept(conversation, options, ref, session, save=save) as keeper,
    ):
        if before:
            conversation.recall(before.turns, {})
            conversation.system = before.system
        repl = Repl(
            conversation, reader, keeper, verbose=options["verbose"], markdown=not start.raw,
            depth_map=options["depth_map"], find_model=partial(_find, options),
        )  # fmt: skip
        repl.run(start.first, single_turn=start.single_turn)
        return repl


def _find(options: Mapping[str, Any], ref: str) -> None:
    """Raises where there is no such model, or none for these options, before the one in use is given up."""
    from ..gguf_file import check_loadable, open_gguf
    from ..hub.resolve import resolve_model
    from ..runtime.depth import DepthPolicy

    with open_gguf(resolve_model(ref, offline=options["offline"]).path) as f:
        check_loadable(f)
        DepthPolicy.parse(options["depth"]).resolve_for(f.metadata)


def _reader() -> Reader:
    from ..hub.home import folder
    from ..ui import lineedit
    from ..ui.repl_commands import sources, words

    if sys.stdin.isatty() and is_terminal(sys.stdout):
        saved = dict.fromkeys(("/load", "/sessions load", "/sessions delete"), resuming.names)
        found = {**sources(), **saved, "/model": o.complete_refs}
        return lineedit.TerminalReader(folder(".") / "history", words(), found)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return lineedit.PipeReader()
