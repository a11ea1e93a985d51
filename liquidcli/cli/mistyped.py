"""Mistyped words with one dash: the parser reads `-nope` as `-n ope`, a person meant an option of that name.

Knows the options a command declares. Does not parse: a line without such a word is left alone.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from ..errors import UsageError

_ONE_DASH_WORD = re.compile(r"-[A-Za-z][A-Za-z-]+(=.*)?", re.DOTALL)  # -n5 and -fwiki.txt are values attached


def one_dash_word(command: Any, args: list[str]) -> UsageError | None:
    """The first one-dash word that is neither an option nor several flags in one word, as an error."""
    options, value_follows, path = _options(command), False, "liquid"
    for arg in args:
        if value_follows:
            value_follows = False
        elif arg == "--":
            return None
        elif arg in getattr(command, "commands", {}):
            command = command.commands[arg]
            options, path = _options(command), f"{path} {arg}"
        elif arg.partition("=")[0] in options:
            value_follows = "=" not in arg and _takes_value(options[arg.partition("=")[0]])
        elif _ONE_DASH_WORD.fullmatch(arg) and not _bundle(arg, options):
            return _error(arg, options, path)
    return None


def _options(command: Any) -> dict[str, Any]:
    return {
        name: parameter
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts, *command.context_settings.get("help_option_names", ()))
        if name.startswith("-")
    }


def _takes_value(parameter: Any) -> bool:
    return not getattr(parameter, "is_flag", False) and not getattr(parameter, "count", False)


def _bundle(word: str, options: dict[str, Any]) -> bool:
    """Several flags in one word, like -qv?"""
    return all(f"-{char}" in options and not _takes_value(options[f"-{char}"]) for char in word[1:])


def _nearest(word: str, options: dict[str, Any]) -> list[str]:
    """Options that read like the word: by name with either number of dashes, or by a likely slip of the finger."""
    bare = word.partition("=")[0].lstrip("-")
    names = {name.lstrip("-"): name for name in options if len(name.lstrip("-")) > 1}
    if bare in names:
        return [names[bare]]
    starts = [name for key, name in names.items() if min(map(len, (bare, key))) > 2 and _begins(key, bare)]
    return starts or [names[key] for key in difflib.get_close_matches(bare, names, n=2, cutoff=0.75)]


def _begins(a: str, b: str) -> bool:
    return a.startswith(b) or b.startswith(a)


def _error(word: str, options: dict[str, Any], path: str) -> UsageError:
    nearest = _nearest(word, options)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"{path} --help lists the options"
    if word[:2] in options and _takes_value(options[word[:2]]):
        hint += f" ({word[:2]} with the value {word[2:]} is written {word[:2]} {word[2:]})"
    return UsageError(f"no such option: {word}", hint=hint)
