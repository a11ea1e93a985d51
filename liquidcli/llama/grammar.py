"""Grammars: GBNF as llama.cpp reads it, and JSON schemas turned into it.

Knows how a grammar is compiled and what is wrong with one that is not. Does not know when one is wanted.
"""

from __future__ import annotations

import json

from ..errors import UsageError
from . import library
from .model import Model

ANY_JSON = '{"type": "object"}'
_MAX_CHARS = 1 << 20


def from_json_schema(text: str) -> str:
    """GBNF for a JSON schema; nothing is fetched for it."""
    library.load()
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    if len(text) > _MAX_CHARS:
        raise UsageError(f"the JSON schema has {len(text)} characters, at most {_MAX_CHARS} are read")
    try:
        if not isinstance(json.loads(text), dict):
            raise ValueError("a schema is a JSON object")
        return json_schema_to_gbnf(text)
    except RecursionError:
        raise UsageError("the JSON schema nests too deeply") from None
    except Exception as error:  # the converter raises whatever it trips over
        said = " ".join(f"{error or type(error).__name__}".split())[:200]
        hint = """-j '{"type": "object"}' is any object"""
        raise UsageError(f"the JSON schema cannot be used: {said}", hint=hint) from None


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
    library.log.reset()
    sampler = library.load().llama_sampler_init_grammar(model.vocab, gbnf.encode("utf-8", "replace"), b"root")
    if not sampler:
        said = library.log.complaint()
        hint = "a grammar begins: root ::= ..."
        raise UsageError(f"the grammar cannot be used{f': {said}' if said else ''}", hint=hint)
    return sampler
