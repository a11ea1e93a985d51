"""`liquid chat`: talk with a model at a terminal, or through a pipe, line by line."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..ui.console import is_terminal, out
from . import answering as a
from . import options as o
from . import resuming
from .conversing import takes_conversation_options

if TYPE_CHECKING:
    from ..ui.lineedit import Reader

SingleTurn = Annotated[bool, o.option("-st", "--single-turn", help="End after one answer.")]
Continue = Annotated[bool, o.option("--continue", help="Go on with the last session, of this model if one is named.")]
Resume = Annotated[
    str | None,
    o.option("--resume", metavar="NAME", autocompletion=resuming.names, help="Go on with this session (/sessions)."),
]
NoSave = Annotated[bool, o.option("--no-save", help="Keep nothing of this chat.")]


@dataclass(frozen=True)
class Start:
    """How a chat begins and whether it is kept."""

    first: str = ""  # asked before anything is read
    single_turn: bool = False
    latest: bool = False
    resume: str | None = None
    no_save: bool = False


@takes_conversation_options
def chat(
    ref: o.Ref = None,
    *,
    continue_: Continue = False,
    resume: Resume = None,
    no_save: NoSave = False,
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
    talk(options, options["model"] or ref, Start(first, single_turn, continue_, resume, no_save))


def talk(options: Mapping[str, Any], ref: str | None, start: Start) -> None:
    """Load the model and go on until somebody leaves."""
    from ..ui.repl import Repl

    session = resuming.pick(ref, latest=start.latest, name=start.resume)
    if session:
        options, ref = resuming.brought_along(options, ref, session)
    reader = _reader()
    save = not start.no_save and (reader.interactive or session is not None)
    _leave_when_hung_up()
    with (
        reader.session(),
        a.conversation(options, ref) as conversation,
        resuming.kept(conversation, options, ref, session, save=save) as keeper,
    ):
        repl = Repl(conversation, reader, keeper, verbose=options["verbose"])
        repl.run(start.first, single_turn=start.single_turn)
    if repl.failure and not reader.interactive:
        raise typer.Exit(repl.failure.exit_code)


def _leave_when_hung_up() -> None:
    """A closed terminal is a way to leave: what was said is kept."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))


def _reader() -> Reader:
    from ..hub.home import folder
    from ..ui import lineedit
    from ..ui.repl_commands import words

    if sys.stdin.isatty() and is_terminal(sys.stdout):
        return lineedit.TerminalReader(folder(".") / "history", words())
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return lineedit.PipeReader()
