"""Exit layers of plain models: from config.json, generation_config.json or the caller, as a note in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from liquidcli import converters
from liquidcli.errors import IntegrityError, UsageError
from liquidcli.gguf_file import open_gguf
from tests.hf_folders import write_json, write_llama

KEY = "liquid.exit_layers"
DEEP = {"num_hidden_layers": 6}


@pytest.mark.parametrize(
    ("words", "generation", "given", "expected"),
    [
        ({}, {}, None, None),
        ({"exit_layers": [4, 2]}, {}, None, [2, 4]),
        ({}, {"assistant_early_exit": 3}, None, [3]),
        ({}, {"assistant_early_exit": "all"}, None, None),
        ({}, {"assistant_early_exit": 6}, None, None),
        ({"exit_layers": [4]}, {"assistant_early_exit": 3}, None, [4]),
        ({"exit_layers": [4]}, {}, [1, 5, 5], [1, 5]),
    ],
)
def test_who_says_it(words: dict, generation: dict, given: list[int] | None, expected: object, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m", {**DEEP, **words})
    write_json(folder / "generation_config.json", generation)
    plan = converters.plan(folder, "f16", exit_layers=given)
    assert plan.warnings == () and plan.architecture == "llama"
    with open_gguf(converters.run(plan, tmp_path / "m.gguf").output) as f:
        assert f.metadata.get(KEY) == expected
        if expected:
            assert [kind.name for kind in f.metadata_types[KEY]] == ["ARRAY", "UINT32"]


@pytest.mark.parametrize("layers", [[0], [6], [2, 7], ["2"], [-1]])
def test_layers_that_are_not_there(layers: list, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="exit_layers"):
        converters.plan(write_llama(tmp_path / "m", {**DEEP, "exit_layers": layers}))


def test_an_option_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--exit-layers is 6; the model has 6 layers, so 1 to 5"):
        converters.plan(write_llama(tmp_path / "m", DEEP), exit_layers=[6])
