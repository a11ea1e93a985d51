"""Upstream's converter on the same folders as ours: what a case is, one process for all of them, and the comparison.

Upstream tells a pre-tokenizer by the hash of one text's tokens, which a tiny vocabulary cannot have: it is told.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from liquidcli import converters
from liquidcli.gguf_file import GGUFFile, open_gguf
from tests.hf_folders import write_json
from tests.hf_models import make_config, save_random

MARKS = [
    pytest.mark.oracle,
    pytest.mark.skipif("LIQUID_ORACLE_DIR" not in os.environ, reason="LIQUID_ORACLE_DIR names no upstream converter"),
]
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import convert_hf_to_gguf
from conversion.base import TextModel
for folder, outtype, out, pre in json.load(open(sys.argv[2])):
    TextModel.get_vocab_base_pre = lambda self, tokenizer, pre=pre: pre
    sys.argv[1:] = [folder, "--outtype", outtype, "--outfile", out]
    convert_hf_to_gguf.main()
"""
# keys that may differ: where a file comes from, not what it is
PROVENANCE = ("general.name", "general.basename", "general.finetune", "general.version", "general.size_label")
# written always, because llama.cpp adds a bos by itself under some pre-tokenizers
NO_BOS = {"tokenizer.ggml.add_bos_token": False}


@dataclass(frozen=True)
class Case:
    """`config` changes the tiny configuration of `model_type`, `finish` the files of its folder.

    `extra`: keys that we write on purpose and upstream does not, with their values. `lacking`: the other way round.
    `changed`: keys whose values differ on purpose, with ours. `extra_tensors`, `other_bytes`: tensors likewise. Every
    entry has its reason beside it.
    """

    config: dict[str, Any] = field(default_factory=dict)
    outtype: str = "f16"
    dtype: str = "float32"
    model_type: str = "llama"
    pre: str = "gpt-2"
    name: str = "model"
    save: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[Path], None] = lambda folder: None
    extra: dict[str, Any] = field(default_factory=lambda: NO_BOS)
    lacking: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)
    extra_tensors: tuple[str, ...] = ()
    other_bytes: tuple[str, ...] = ()
    stock: bool = False
    kind: str | None = None  # the class in transformers, where AutoModelForCausalLM errs

    def write(self, folder: Path) -> Path:
        import transformers

        kind = getattr(transformers, self.kind) if self.kind else None
        save_random(make_config(self.model_type, **self.config), folder, dtype=self.dtype, kind=kind, **self.save)
        self.finish(folder)
        return folder


def run_upstream(cases: Mapping[str, Case], home: Path) -> Path:
    """A folder per case with the checkpoint and `theirs.gguf`; returns `home`."""
    jobs = []
    for name, case in cases.items():
        folder = case.write(home / name / case.name)
        jobs.append((str(folder), case.outtype, str(home / name / "theirs.gguf"), case.pre))
    (home / "driver.py").write_text(DRIVER)
    write_json(home / "jobs.json", jobs)
    command = [sys.executable, str(home / "driver.py"), os.environ["LIQUID_ORACLE_DIR"], str(home / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return home


def check_ours_is_theirs(case: Case, folder: Path, out: Path) -> None:
    """`folder` is the case's; ours is written to `out`."""
    ours = converters.run(converters.plan(folder / case.name, case.outtype, stock=case.stock), out).output
    with open_gguf(ours) as a, open_gguf(folder / "theirs.gguf") as b:
        shapes = [{key: (info.shape, info.type) for key, info in f.tensors.items()} for f in (a, b)]
        assert [name for name in shapes[0] if name not in shapes[1]] == list(case.extra_tensors)
        assert {name: shapes[0][name] for name in shapes[0] if name not in case.extra_tensors} == shapes[1]
        assert {key for key in b.tensors if a.raw(key).tobytes() != b.raw(key).tobytes()} == set(case.other_bytes)
        mine, others = _typed(a), _typed(b)
        assert {key: mine.pop(key)[0] for key in set(mine) - set(others)} == case.extra
        assert {key: others.pop(key)[0] for key in set(others) - set(mine)} == case.lacking
        assert {key: mine[key][0] for key in mine if mine[key] != others[key]} == case.changed


def _typed(f: GGUFFile) -> dict[str, tuple]:
    return {key: (value, f.metadata_types[key]) for key, value in f.metadata.items() if key not in PROVENANCE}
