"""What a saved session brings along, and what it leaves to the command line."""

from __future__ import annotations

from typing import Any

import pytest

from liquidcli.cli.conversing import default
from liquidcli.cli.resuming import _CARRIED, brought_along
from liquidcli.runtime.session import Session

PLAIN: dict[str, Any] = {name: default(name) for name in _CARRIED}


def session(**options: Any) -> Session:
    return Session("talk", model={"ref": "m.gguf", "path": "/m.gguf"}, options={**PLAIN, **options})


def test_all_of_it_where_nothing_else_is_said() -> None:
    merged, ref = brought_along(PLAIN, None, session(gates="/p.gguf", depth="90%", n_ctx=256))
    assert (ref, merged["gates"], merged["depth"], merged["n_ctx"]) == ("m.gguf", "/p.gguf", "90%", 256)


def test_a_model_that_is_named_plain_has_no_gates_and_no_depth_of_theirs() -> None:
    merged, ref = brought_along(PLAIN, "m.gguf", session(gates="/p.gguf", depth="90%", n_ctx=256))
    assert (ref, merged["gates"], merged["depth"], merged["n_ctx"]) == ("m.gguf", None, "auto", 256)


def test_a_model_with_gates_of_its_own_keeps_the_depth() -> None:
    assert brought_along(PLAIN, "m.gguf", session(depth="90%"))[0]["depth"] == "90%"


@pytest.mark.parametrize("depth", ["full", "80%"])
def test_what_is_said_counts(depth: str) -> None:
    merged, _ = brought_along({**PLAIN, "depth": depth, "n_ctx": 64}, None, session(depth="90%", n_ctx=256))
    assert (merged["depth"], merged["n_ctx"]) == (depth, 64)


def test_another_model_brings_its_own() -> None:
    assert brought_along(PLAIN, "other.gguf", session(depth="90%", n_ctx=256)) == (PLAIN, "other.gguf")
