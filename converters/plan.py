"""What a conversion would do, decided from config.json, the tokenizer's files and safetensors headers alone.

Cheap, printable, JSON-able: what `--dry-run` shows and what `run` executes. Reads no weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType as Type

from liquidcli.errors import LiquidError, UsageError

from . import fields
from .checkpoint import Checkpoint, open_checkpoint, stray_index
from .config import Config
from .exits import exit_fields
from .fields import Field
from .fp8 import dequantized
from .provenance import provenance_fields
from .registry import find
from .splits import split_fields, split_outputs
from .stock_or_liquid import stock_or_liquid
from .tensors import FILE_TYPES, OUTTYPES, Dropped, Output, guess_outtype, match
from .tokenizers import no_tokenizer_fields, tokenizer_fields
from .transforms import SAME
from .writer import data_bytes, header

F32 = gguf.GGMLQuantizationType.F32


@dataclass(frozen=True)
class Plan:
    source: Path
    architecture: str  # of the GGUF
    hf_architecture: str
    outtype: str
    fields: tuple[Field, ...]
    outputs: tuple[Output, ...]
    generated: dict[str, np.ndarray]
    dropped: tuple[Dropped, ...]
    warnings: tuple[str, ...]
    split_max_size: int | None = None  # bytes of tensors to a file
    stock: bool = False

    @functools.cached_property
    def files(self) -> list[tuple[Output, ...]]:
        """What lies in each file."""
        return split_outputs(self.outputs, self.split_max_size)

    @functools.cached_property
    def file_bytes(self) -> list[int]:
        files = self.files
        heads = (header(split_fields(self.fields, number, files), own) for number, own in enumerate(files))
        return [len(head) + data_bytes(own) for head, own in zip(heads, files, strict=True)]

    @property
    def size_bytes(self) -> int:
        return sum(self.file_bytes)

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(output.shape)) for output in self.outputs)

    def as_json(self) -> dict[str, Any]:
        return {
            "input": str(self.source),
            "architecture": self.architecture,
            "outtype": self.outtype,
            "stock": self.stock,
            "parameters": self.parameters,
            "size_bytes": self.size_bytes,
            **({"file_bytes": self.file_bytes} if len(self.files) > 1 else {}),
            "metadata": {one["key"]: one["value"] for one in (field.as_json() for field in self.fields)},
            "tensors": [output.as_json() for output in self.outputs],
            "dropped": [{"name": one.source.name, "reason": one.reason} for one in self.dropped],
            "warnings": list(self.warnings),
        }


def plan(
    src: Path | str,
    outtype: str = "auto",
    *,
    exact_gate: bool = False,
    stock: bool = False,
    exit_layers: Sequence[int] | None = None,
    split_max_size: int | None = None,
    tokenizer: bool = True,
    name: str | None = None,
) -> Plan:
    """What to write; the checkpoint's headers are read, its weights are not.

    `exact_gate` keeps a bottleneck gate's last two matrices apart. `stock` writes llama.cpp's own architecture even
    where its graph computes something else. `exit_layers`: after how many layers a head was trained to read.
    `split_max_size`: bytes of tensors to a file. `tokenizer=False` leaves the tokenizer out. `name` stands in for the
    folder's where that says nothing.
    """
    if outtype != "auto" and outtype not in OUTTYPES:
        raise UsageError(f"the output type is {outtype!r}, expected one of {', '.join([*OUTTYPES, 'auto'])}")
    checkpoint = dequantized(open_checkpoint(src))
    if outtype == "auto":
        outtype = guess_outtype(checkpoint.tensors.values())
    hf_name, maker = find(checkpoint.config, checkpoint.tensors.keys())
    config = Config(checkpoint.config)
    model = maker(config, checkpoint.tensors.keys(), exact_gate=exact_gate)
    model, told = stock_or_liquid(model, stock=stock)
    generated = model.generated()
    matched, dropped = match(checkpoint.tensors, model.rows(), model.dims, outtype)
    outputs = [Output(key, one.shape, F32, one.nbytes, (), SAME) for key, one in generated.items()] + matched
    words, warnings = tokenizer_fields(checkpoint, model.n_vocab) if tokenizer else (no_tokenizer_fields(), [])
    own = model.fields()
    own += exit_fields(checkpoint, config, exit_layers, own)
    return Plan(
        source=checkpoint.folder,
        architecture=model.gguf_name,
        hf_architecture=hf_name,
        outtype=outtype,
        fields=_fields(
            model.gguf_name,
            outtype,
            [*provenance_fields(checkpoint, outputs, name), *own],
            [*_role_fields(outputs), *words],
        ),
        outputs=tuple(outputs),
        generated=generated,
        dropped=tuple(dropped),
        warnings=(*stray_index(checkpoint.folder), *config.unknown(), *model.warnings(), *told, *warnings),
        split_max_size=split_max_size,
        stock=stock,
    )


def _role_fields(outputs: Sequence[Output]) -> list[Field]:
    """What the depth tensors are for, so that nobody has to guess it from their names."""
    roles = {output.name: output.role for output in outputs if output.role.startswith("depth_")}
    if not roles:
        return []
    return [
        fields.array("liquid.role.tensors", list(roles), Type.STRING),
        fields.array("liquid.role.names", list(roles.values()), Type.STRING),
    ]


def _fields(name: str, outtype: str, before: Sequence[Field], after: Sequence[Field]) -> tuple[Field, ...]:
    found = [
        fields.string("general.architecture", name),
        fields.string("general.type", "model"),
        *before,
        fields.u32("general.file_type", FILE_TYPES[outtype]),
        fields.u32("general.quantization_version", gguf.GGML_QUANT_VERSION),
        *after,
    ]
    keys = [field.key for field in found]
    if len(set(keys)) != len(keys):
        raise LiquidError(f"the key {max(keys, key=keys.count)} would be written twice")
    return tuple(found)


__all__ = ["Checkpoint", "Plan", "plan"]
