"""Values of options that are plainly right: Typer loads Pydantic to look at any, which takes longer than all its rest.

Knows the few types that our options have. What is not plain (another type, out of range, a path) is left to the parser,
which words the error.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

_NUMBERS = {int: re.compile(r"-?\d{1,18}", re.ASCII), float: re.compile(r"-?\d{1,18}(\.\d{1,18})?", re.ASCII)}
_UNCLEAR = object()


def let_through(command: Any, verb: str) -> None:
    """Let the parameters of a command, of its verb and of the verb's own commands take plain values as they are."""
    chosen = getattr(command, "commands", {}).get(verb)
    for one in (command, chosen, *getattr(chosen, "commands", {}).values()):
        if one:
            one.get_params = functools.partial(_params, one, one.get_params)


def _params(command: Any, parameters: Callable[[Any], list[Any]], context: Any) -> list[Any]:
    """What the command has, --help included, whose own check is put behind ours."""
    found = parameters(context)
    declared = inspect.signature(command.callback, eval_str=True).parameters if command.callback else {}
    for parameter in found:
        if "process_value" not in vars(parameter):
            kind, info = _declared(declared[parameter.name].annotation) if parameter.name in declared else (None, None)
            parameter.process_value = functools.partial(_process, parameter, parameter.process_value, kind, info)
    return found


def _declared(annotation: Any) -> tuple[Any, Any]:
    """`Annotated[int | None, info]` as (int, info)."""
    kind, *infos = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    return kind, infos[0] if infos else None


def _process(parameter: Any, parser: Callable[[Any, Any], Any], kind: Any, info: Any, context: Any, value: Any) -> Any:
    found = _UNCLEAR
    if value is None:
        found = () if parameter.multiple or parameter.nargs == -1 else None
    elif kind == list[str] and isinstance(value, (list, tuple)) and all(type(word) is str for word in value):
        found = list(value)
    elif kind in (str, int, float):
        found = _plain(value, kind, info)
    if found is _UNCLEAR or (parameter.required and parameter.value_is_missing(found)):
        return parser(context, value)
    return parameter.callback(context, parameter, found) if parameter.callback else found


def _plain(value: Any, kind: Any, info: Any) -> Any:
    if type(value) is str and kind in _NUMBERS and _NUMBERS[kind].fullmatch(value):
        value = kind(value)
    if type(value) is not kind or getattr(info, "parser", None):
        return _UNCLEAR
    low, high = getattr(info, "min", None), getattr(info, "max", None)
    return value if kind is str or ((low is None or value >= low) and (high is None or value <= high)) else _UNCLEAR
