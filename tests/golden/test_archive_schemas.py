"""Types of large published models, as the pinned archive's own snapshots list them; read at test time, none is kept.

A snapshot names only tensors that differ from a type's default. What the model is follows from it: MXFP4_MOE lists
every matrix that is no stack of experts, Q6_K every matrix whose rows do not divide into blocks of 256.
"""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from liquidbuild.archive import ENV_ARCHIVE, kept_archive
from liquidbuild.pin import read_pin

from liquidcli.gguf_file import GGUFFile, TensorInfo
from liquidcli.gguf_parse import Shard
from liquidcli.quant import FILE_TYPES, plan_file

FOLDER = "vendor/llama.cpp/tests/snapshots/"
ARCHITECTURES = {"meta-llama-3.1-70b-instruct": "llama"}  # the others have no rules of their own
LAYERED = re.compile(r"blk\.\d+\.")


def snapshots() -> dict[str, str]:
    if "LIQUID_ORACLE_DIR" not in os.environ:
        return {}  # unpacking takes seconds, which other runs need not spend
    path = Path(os.environ[ENV_ARCHIVE]) if ENV_ARCHIVE in os.environ else kept_archive(read_pin())
    if path is None:
        return {}
    with tarfile.open(path) as archive:
        members = [m for m in archive.getmembers() if FOLDER in m.name and m.name.endswith(".schema")]
        return {Path(m.name).stem: archive.extractfile(m).read().decode() for m in members}


FOUND = snapshots()
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not FOUND, reason="LIQUID_ORACLE_DIR is not set, or no archive is kept"),
]


class Snapshot:
    def __init__(self, name: str, text: str) -> None:
        self.arch = ARCHITECTURES.get(name, "other")
        self.sizes = {key: int(value) for key, value in re.findall(r"(n_\w+)=(\d+)", text.splitlines()[1])}
        self.sections: dict[str, dict[str, str]] = {}
        for line in text.splitlines():
            if match := re.fullmatch(r"\[(\w+)\] (\w+)", line):
                self.sections[match[1]] = listed = {}
            elif line and not line.startswith("#"):
                listed.__setitem__(*line.rsplit(" ", 1))

    def tensors(self) -> dict[str, TensorInfo]:
        single, odd = self.sections["MXFP4_MOE"], self.sections["Q6_K"]
        stacks = {name for listed in self.sections.values() for name in listed} - set(single)
        dims = {name: (256,) * 2 for name in single} | {name: (256, 256, 2) for name in stacks}
        is_odd = {name: odd.get(name) in ("q8_0", "f16") for name in dims}
        is_odd["output.weight"] = self.sections["IQ2_XXS"].get("output.weight") == "q8_0"
        shapes = {name: (288 if is_odd[name] else 256, *dims[name][1:]) for name in dims}
        return {name: TensorInfo(name, shape, T.F32, 0, 0) for name, shape in shapes.items()}

    def model(self) -> GGUFFile:
        names = {"block_count": "n_layer", "expert_count": "n_expert"}
        names |= {"attention.head_count": "n_head", "attention.head_count_kv": "n_head_kv"}
        metadata = {f"{self.arch}.{key}": self.sizes.get(name, 0) for key, name in names.items()}
        metadata["general.architecture"] = self.arch
        spans = dict.fromkeys(metadata, (0, 0))
        shard = Shard(Path("m.gguf"), np.zeros(1, np.uint8), 3, 32, 0, metadata, {}, spans, self.tensors())
        return GGUFFile([shard])


@pytest.mark.parametrize("name", sorted(FOUND))
def test_types_are_those_of_the_archive(name):
    snapshot = Snapshot(name, FOUND[name])
    model = snapshot.model()
    for kind in snapshot.sections.keys() & FILE_TYPES.keys():
        plan = plan_file(model, FILE_TYPES[kind])
        usual = FILE_TYPES[kind].default.name.lower()
        chosen = {t.name: t.type.name.lower() for t in plan.tensors if t.type.name.lower() != usual}
        theirs = {tensor: chosen_type.lower() for tensor, chosen_type in snapshot.sections[kind].items()}
        differing = [n for n in chosen.keys() | theirs if chosen.get(n) != theirs.get(n)]
        assert not differing, f"[{kind}] {[(n, chosen.get(n), theirs.get(n)) for n in differing[:5]]}"
    assert len(snapshot.sections.keys() & FILE_TYPES.keys()) > 30
