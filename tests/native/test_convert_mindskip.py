"""Published Router-Tuning checkpoints, converted: the method in numpy and the library decide alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from liquidcli import converters
from tests.mindskip import Routed, routed_model, write_routed
from tests.native.parity import NativeModel, Setting
from tests.native.test_convert_flexidepth import agrees, as_rows
from tests.tiny import random_tokens


@pytest.mark.parametrize("base", ["Llama", "Qwen3"])
@pytest.mark.parametrize("granularity", ["attn_token", "block_token"])
def test_decisions_are_those_of_the_published_code(base: str, granularity: str, tmp_path: Path) -> None:
    folder = write_routed(base, tmp_path / "mod", granularity)
    native = NativeModel(converters.run(converters.plan(folder, "f32"), tmp_path / "mod.gguf").output)
    tokens = random_tokens(routed_model(base, granularity).config, 32, 80).numpy()
    told = agrees(native.run(tokens, Setting("mixed")), as_rows(Routed(folder).forward(tokens)))
    native.close()
    assert told.pairs >= 9_500 and 0.3 < told.ran / told.pairs < 0.7
