"""Grammars: GBNF as llama.cpp reads it, and JSON schemas turned into it.

Knows how a grammar is compiled and what is wrong with one that is not. Does not know when one is wanted.
"""

from __future__ import annotations

import json
import re

from ..errors import UsageError
from . import library
from .model import Model

ANY_JSON = '{"type": "object"}'
_MAX_CHARS = 1 << 20
_MOST_NESTED = 1000  # llama.cpp overflows its stack at some tens of thousands
_ROOT = re.compile(r"^\s*root\s*::=", re.MULTILINE)


def from_json_schema(text: str) -> str:
    """GBNF for a JSON schema; nothing is fetched for it."""
    library.load()
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    if len(text) > _MAX_CHARS:
        raise UsageError(f"the JSON schema has {len(text)} characters, at most {_MAX_CHARS} are read")
    try:
        schema = json.loads(text)
        if not isinstance(schema, dict):
            raise ValueError("a schema is a JSON object")
        if remote := _remote(schema):
            raise ValueError(f"it refers to {remote}, and nothing is fetched for a schema; put that under $defs in it")
        return json_schema_to_gbnf(text)
    except RecursionError:
        raise UsageError("the JSON schema nests too deeply") from None
    except Exception as error:  # the converter raises whatever it trips over
        said = " ".join(f"{error or type(error).__name__}".split())[:200]
        hint = """-j '{"type": "object"}' is any object"""
        raise UsageError(f"the JSON schema cannot be used: {said}", hint=hint) from None


def _remote(schema: object) -> str:
    """The first reference that leaves the schema; empty if there is none."""
    if isinstance(schema, dict):
        found = schema.get("$ref")
        if isinstance(found, str) and not found.startswith("#"):
            return found
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return next(filter(None, map(_remote, parts)), "")


def check(model: Model, gbnf: str) -> str:
    """The grammar itself, once it is known to compile."""
    lib = library.load()
    sampler = compiled(model, gbnf)
    lib.llama_sampler_free(sampler)
    return gbnf


def compiled(model: Model, gbnf: str) -> int:
    """A sampler that lets through what the grammar allows; UsageError for one that does not compile."""
    if len(gbnf) > _MAX_CHARS or "\0" in gbnf:
        raise UsageError(f"a grammar has at most {_MAX_CHARS} characters and no NUL")
    if _nesting(gbnf) > _MOST_NESTED:
        raise UsageError(f"the grammar nests more than {_MOST_NESTED} brackets")
    if not gbnf.strip():
        raise UsageError("the grammar is empty", hint="a grammar begins: root ::= ...")
    lib = library.load()
    with library.heard() as heard:  # the parser speaks to stderr itself
        sampler = lib.llama_sampler_init_grammar(model.vocab, gbnf.encode("utf-8", "replace"), b"root")
    if not sampler:
        raise UsageError(f"the grammar cannot be used: {_reason(heard, gbnf)}", hint="a grammar begins: root ::= ...")
    return sampler


def _nesting(gbnf: str) -> int:
    """At least how deep its brackets go; the parser calls itself for each."""
    depth = most = 0
    for char in gbnf:
        depth += (char == "(") - (char == ")")
        most = max(most, depth)
    return most


def _reason(heard: list[str], gbnf: str) -> str:
    """What the parser said, whole: it names the place by what follows, which may be nothing, and no missing root."""
    said = next(filter(None, heard), "").removeprefix("parse: ").removeprefix("error parsing grammar: ").strip()
    if said:
        return f"{said} its end" if said.endswith(" at") else said
    return "no reason was given" if _ROOT.search(gbnf) else "it has no rule with the name root"
