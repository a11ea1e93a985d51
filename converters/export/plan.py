"""What an export would do, decided from a GGUF's keys and tensor descriptions alone, rope factors excepted.

Cheap, printable, JSON-able: what `--dry-run` shows and what `run` executes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquidcli.errors import LiquidError, UsageError
from liquidcli.gguf_file import GGUFFile, check_loadable

from ..checkpoint import INDEX
from ..config import Config
from ..provenance import SAMPLING
from ..registry import find
from .configs import TORCH_DTYPES, read_target
from .keys import Keys
from .rope import CLOSE, FACTORS
from .shards import Shard, index_text, into_shards
from .tensors import DTYPES, Export, guess_dtype, match_back
from .tokenizer import generation_settings, token_ids, tokenizer_files
from .vocab import Words, read_words

MAX_SHARD_BYTES = 5_000_000_000
_CARD = {"license": "license", "license_name": "license.name", "license_link": "license.link", "tags": "tags"}


@dataclass(frozen=True)
class ExportPlan:
    source: Path
    architecture: str  # of the GGUF
    hf_architecture: str
    dtype: str
    file: GGUFFile
    shards: tuple[Shard, ...]
    files: dict[str, bytes]  # everything but the weights
    warnings: tuple[str, ...]

    @property
    def tensors(self) -> tuple[Export, ...]:
        return tuple(one for shard in self.shards for one in shard.tensors)

    @property
    def size_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards) + sum(map(len, self.files.values()))

    def as_json(self) -> dict[str, Any]:
        return {
            "input": str(self.source),
            "architecture": self.hf_architecture,
            "dtype": self.dtype,
            "size_bytes": self.size_bytes,
            "config": json.loads(self.files["config.json"]),
            "files": [*self.files, *(shard.name for shard in self.shards)],
            "tensors": [one.as_json() for one in self.tensors],
            "warnings": list(self.warnings),
        }


def plan_export(f: GGUFFile, dtype: str = "auto", max_shard_bytes: int = MAX_SHARD_BYTES) -> ExportPlan:
    """`f` stays open until the plan has been carried out."""
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"the type is {dtype!r}, expected one of {', '.join([*DTYPES, 'auto'])}")
    check_loadable(f, need_tokenizer=False)
    dtype = guess_dtype(f) if dtype == "auto" else dtype
    keys = Keys(f)
    target = read_target(f, keys)
    config = {**target.config, "dtype": TORCH_DTYPES[dtype]}
    hf_name, make = find(config)
    model = make(Config(config), target.present, exact_gate=target.exact_gate)
    if model.gguf_name != f.architecture:
        raise LiquidError(f"{f.path} is a {f.architecture} model that {hf_name} has no config.json for")
    generated = model.generated()
    _check_generated(f, generated)
    tensors = match_back(f, model.rows(), model.dims, {*generated, FACTORS}, dtype)
    words = read_words(f, model.n_vocab)
    shards = into_shards(tensors, max_shard_bytes)
    return ExportPlan(
        source=f.path,
        architecture=f.architecture,
        hf_architecture=hf_name,
        dtype=dtype,
        file=f,
        shards=tuple(shards),
        files=_files(f, config, words, shards),
        warnings=(*keys.unknown(), *(words.warnings if words else ["there is no tokenizer in the file"])),
    )


def _check_generated(f: GGUFFile, generated: dict[str, Any]) -> None:
    """What a checkpoint has no tensor for must follow from its configuration."""
    for name, made in generated.items():
        if name in f.tensors and not np.allclose(f.array(name), made, rtol=CLOSE, atol=0):
            raise LiquidError(f"{f.path}: {name} does not follow from its keys, so config.json cannot say it")


def _files(f: GGUFFile, config: dict[str, Any], words: Words | None, shards: list[Shard]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    if words:
        config = config | token_ids(words)
        files |= tokenizer_files(words, config["max_position_embeddings"])
    files["config.json"] = _json(config)
    if generation := generation_settings(words, _sampling(f)):
        files["generation_config.json"] = _json(generation)
    if card := _card(f):
        files["README.md"] = card
    if len(shards) > 1:
        files[INDEX] = index_text(shards).encode()
    return files


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _sampling(f: GGUFFile) -> dict[str, Any]:
    found = {name: f.metadata.get(f"general.sampling.{key}") for name, key in SAMPLING.items()}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def _card(f: GGUFFile) -> bytes:
    """README.md's front matter: what the file says of licence, tags and languages, as JSON, which YAML takes."""
    card = {name: f.metadata.get(f"general.{key}") for name, key in _CARD.items()}
    card["language"] = f.metadata.get("general.languages")
    lines = [f"{name}: {json.dumps(value)}" for name, value in card.items() if isinstance(value, (str, list)) and value]
    return "\n".join(["---", *lines, "---", ""]).encode() if lines else b""
