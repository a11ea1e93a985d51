"""Wiring: one line per command, and the only error handler.

Knows which verb lives where and which failure ends with which exit code. Does not know what any verb does.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from ..errors import UsageError
from ..lazy_package import put_off
from ..llama.interrupt import ctrl_c
from ..ui.console import hush, out
from .failures import explain
from .mistyped import one_dash_word
from .plain_values import let_through
from .presets import Presets, presets

VERBS = {  # in the order of --help, each the name of its module: how its own help begins
    "pull": "Fetch models and print where they lie.",
    "list": "List the models on this machine.",
    "show": "Show what is in a model file.",
    "run": "Answer one prompt: an argument, standard input, or both.",
    "chat": "Chat with a model.",
    "convert": "Convert a Hugging Face checkpoint to GGUF.",
    "export": "Write a GGUF as a Hugging Face checkpoint folder.",
    "quantize": "Make a model file smaller.",
    "imatrix": "Measure how much each input of each matrix matters over a text.",
    "gates": "Make a model adaptive: train, apply and inspect depth gates.",
    "perplexity": "Measure how well a model predicts a text.",
    "bench": "Measure speed, as llama-bench does.",
    "compare": "Measure models side by side: size, perplexity, divergence, answers, speed and memory.",
    "doctor": "Tell what runs where and why.",
    "fit": "Estimate the memory a stored model needs.",
    "cp": "Give a model another name.",
    "rm": "Delete stored models, downloads broken off, or aliases.",
    "prune": "Delete files nobody needs any more.",
    "verify": "Check the sha256 of stored models.",
}
_NAMES = {"list": "list_", "gates": "gates_app"}  # in the module, where it is not the verb's own
HIDDEN = {"ls": "list"}


def application(*chosen: str) -> typer.Typer:
    """Verbs that are not chosen have a name and a sentence: to import and build them all takes a while."""
    app = typer.Typer(
        name="liquid",
        help="Run language models at each token's own depth: pull, convert, quantize, chat and measure.",
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(root)
    for name, verb in [*zip(VERBS, VERBS, strict=True), *HIDDEN.items()]:
        if name in chosen:
            _add(app, name, verb)
        else:
            app.command(name, hidden=name in HIDDEN, help=VERBS[verb])(_elsewhere)
    return app


def _add(app: typer.Typer, name: str, verb: str) -> None:
    found = getattr(importlib.import_module(f".{verb}", __package__), _NAMES.get(verb, verb))
    if isinstance(found, typer.Typer):
        app.add_typer(found, name=name)
    else:
        app.command(name, hidden=name in HIDDEN)(found)


def _elsewhere() -> None:
    raise RuntimeError("this verb was not chosen")


def command_for(args: list[str]) -> Any:
    """What parses this line: the verb it begins with, and all of them for the shell's completion."""
    verb = next((arg for arg in args if not arg.startswith("-")), "")
    chosen = (*VERBS, *HIDDEN) if "_LIQUID_COMPLETE" in os.environ else (verb,)
    return typer.main.get_command(application(*chosen))


def _show_version(wanted: bool) -> None:
    if wanted:
        from .version import version_text

        out.data(version_text())
        raise typer.Exit()


def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        out.data(context.get_help())
        raise typer.Exit(UsageError.exit_code)


def main(args: list[str] | None = None) -> NoReturn:
    """Run one command line and leave with its exit code."""
    args = sys.argv[1:] if args is None else args
    put_off("llama_cpp")
    put_off("gguf", "constants")
    _leave_when_told()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    code = execute(args)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except OSError:
        hush()
    sys.exit(code)


def _leave_when_told() -> None:
    """SIGTERM and a closed terminal are ways to leave, with all that is cleaned up on the way; shells hang up twice."""

    def leave(number: int, _frame: object) -> None:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
        ctrl_c.leave(128 + number)

    signal.signal(signal.SIGTERM, leave)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, leave)


def _open_closed_streams() -> None:
    """Give a stream that the caller closed (`>&-`) the null device, lest a file opened later get its number.

    What is said may be lost so; a result may not: the device that stands for stdout refuses to be written.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def execute(args: list[str]) -> int:
    """One command line to an exit code; every failure becomes a sentence on stderr."""
    command, preset = None, Presets()
    try:
        command = command_for(args)
        if error := one_dash_word(command, args):
            raise error
        verb, preset = presets(command, args)
        let_through(command, verb)
        return command(args, prog_name="liquid", standalone_mode=False, default_map={verb: preset.values}) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("LIQUID_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        failure = explain(error)
        if failure.exit_code == UsageError.exit_code and not failure.hint:
            failure.hint = f"{' '.join(['liquid', *_verbs(command, args)])} --help"
        if source := preset.sources.get(getattr(getattr(error, "param", None), "name", "")):
            failure.hint = f"it comes from {source}"
        if failure.message.startswith("Usage: "):
            out.data(failure.message)
        else:
            out.error(failure)
        return failure.exit_code


def _verbs(command: Any, args: list[str]) -> list[str]:
    """The words of a line that choose what runs: a verb, and what a group of verbs has under that name."""
    found: list[str] = []
    for word in args:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        found.append(word)
    return found
