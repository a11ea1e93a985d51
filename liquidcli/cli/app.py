"""Wiring: one line per command, and the only error handler.

Knows which verb lives where and which failure ends with which exit code. Does not know what any verb does.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated, NoReturn

import typer

from ..errors import UsageError
from ..ui.console import hush, out
from .bench import bench
from .chat import chat
from .compare import compare
from .convert import convert
from .cp import cp
from .doctor import doctor
from .export import export
from .failures import explain
from .fit import fit
from .gates import gates_app
from .imatrix import imatrix
from .list import list_
from .mistyped import one_dash_word
from .perplexity import perplexity
from .presets import Presets, presets
from .prune import prune
from .pull import pull
from .quantize import quantize
from .rm import rm
from .run import run
from .show import show
from .verify import verify

app = typer.Typer(
    name="liquid",
    help="Run language models at each token's own depth: pull, convert, quantize, chat and measure.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from .version import version_text

        out.data(version_text())
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        out.data(context.get_help())
        raise typer.Exit(UsageError.exit_code)


app.command()(pull)
app.command("list")(list_)
app.command("ls", hidden=True)(list_)
app.command()(show)
app.command()(run)
app.command()(chat)
app.command()(convert)
app.command()(export)
app.command()(quantize)
app.command()(imatrix)
app.add_typer(gates_app, name="gates")
app.command()(perplexity)
app.command()(bench)
app.command()(compare)
app.command()(doctor)
app.command()(fit)
app.command()(cp)
app.command()(rm)
app.command()(prune)
app.command()(verify)


def main(args: list[str] | None = None) -> NoReturn:
    """Run one command line and leave with its exit code."""
    args = sys.argv[1:] if args is None else args
    _leave_when_told()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    code = execute(args)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        hush()
    sys.exit(code)


def _leave_when_told() -> None:
    """SIGTERM and a closed terminal are ways to leave, with all that is cleaned up on the way; shells hang up twice."""

    def leave(number: int, _frame: object) -> None:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, leave)


def _open_closed_streams() -> None:
    """Give a stream that the caller closed (`>&-`) the null device, lest a file opened later get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def execute(args: list[str]) -> int:
    """One command line to an exit code; every failure becomes a sentence on stderr."""
    preset = Presets()
    try:
        command = typer.main.get_command(app)
        if error := one_dash_word(command, args):
            raise error
        verb, preset = presets(command, args)
        return command(args, prog_name="liquid", standalone_mode=False, default_map={verb: preset.values}) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("LIQUID_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        failure = explain(error)
        if source := preset.sources.get(getattr(getattr(error, "param", None), "name", "")):
            failure.hint = f"it comes from {source}"
        if failure.message.startswith("Usage: "):
            out.data(failure.message)
        else:
            out.error(failure)
        return failure.exit_code
