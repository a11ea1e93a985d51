"""A model converted into several files runs as the one file does, in our library and in upstream's tools."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.gguf_file import open_gguf
from liquidcli.runtime.engine import Engine
from tests.hf_folders import write_llama


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The model whole, and the first of its several files."""
    folder = write_llama(tmp_path / "m", {"hidden_size": 64, "intermediate_size": 96})
    whole = converters.run(converters.plan(folder, "f16"), tmp_path / "whole.gguf")
    parts = converters.run(converters.plan(folder, "f16", split_max_size=30_000), tmp_path / "parts.gguf")
    assert len(parts.files) > 3
    return whole.output, parts.output


def test_the_library_reads_them(pair: tuple[Path, Path]) -> None:
    logits = []
    for path in pair:
        with Engine.load(path, n_ctx=128, n_threads=1) as engine:
            logits.append(np.array(engine.decode(list(range(2, 40)), logits="all")))
    np.testing.assert_array_equal(*logits)


@pytest.mark.oracle
@pytest.mark.skipif("LIQUID_ORACLE_DIR" not in os.environ, reason="LIQUID_ORACLE_DIR names no upstream tools")
def test_upstreams_tools_read_them(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tool = str(Path(os.environ["LIQUID_ORACLE_DIR"]) / "llama-quantize")
    for number, path in enumerate(pair):
        command = [tool, str(path), str(tmp_path / f"{number}.gguf"), "Q8_0", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    with open_gguf(tmp_path / "0.gguf") as a, open_gguf(tmp_path / "1.gguf") as b:
        assert list(a.tensors) and set(a.tensors) == set(b.tensors)
        for name in a.tensors:
            assert a.raw(name).tobytes() == b.raw(name).tobytes()
