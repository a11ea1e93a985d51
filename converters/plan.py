"""What a conversion would do, decided from config.json, the tokenizer's files and safetensors headers alone.

Cheap, printable, JSON-able: what `--dry-run` shows and what `run` executes. Reads no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType as Type

from liquidcli.errors import LiquidError, UsageError

from . import fields
from .checkpoint import Checkpoint, open_checkpoint
from .config import Config
from .fields import Field
from .provenance import provenance_fields
from .registry import Architecture, find
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

    @property
    def size_bytes(self) -> int:
        return len(header(self.fields, self.outputs)) + data_bytes(self.outputs)

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(output.shape)) for output in self.outputs)

    def as_json(self) -> dict[str, Any]:
        return {
            "input": str(self.source),
            "architecture": self.architecture,
            "outtype": self.outtype,
            "parameters": self.parameters,
            "size_bytes": self.size_bytes,
            "metadata": {one["key"]: one["value"] for one in (field.as_json() for field in self.fields)},
            "tensors": [output.as_json() for output in self.outputs],
            "dropped": [{"name": one.source.name, "reason": one.reason} for one in self.dropped],
            "warnings": list(self.warnings),
        }


def plan(
    src: Path | str, outtype: str = "auto", *, exact_gate: bool = False, tokenizer: bool = True, name: str | None = None
) -> Plan:
    """`exact_gate` keeps a bottleneck gate's last two matrices apart; `tokenizer=False` leaves the tokenizer out.

    `name` stands in for the folder's where that says nothing.
    """
    if outtype != "auto" and outtype not in OUTTYPES:
        raise UsageError(f"the output type is {outtype!r}, expected one of {', '.join([*OUTTYPES, 'auto'])}")
    checkpoint = open_checkpoint(src)
    if outtype == "auto":
        outtype = guess_outtype(checkpoint.tensors.values())
    hf_name, maker = find(checkpoint.config, checkpoint.tensors.keys())
    config = Config(checkpoint.config)
    model = maker(config, checkpoint.tensors.keys(), fold_gates=not exact_gate)
    generated = model.generated()
    matched, dropped = match(checkpoint.tensors, model.rows(), model.dims, outtype)
    outputs = [Output(key, one.shape, F32, one.nbytes, (), SAME) for key, one in generated.items()] + matched
    words, warnings = tokenizer_fields(checkpoint, model.n_vocab) if tokenizer else (no_tokenizer_fields(), [])
    return Plan(
        source=checkpoint.folder,
        architecture=model.gguf_name,
        hf_architecture=hf_name,
        outtype=outtype,
        fields=_fields(model, outtype, provenance_fields(checkpoint, outputs, name), [*_role_fields(outputs), *words]),
        outputs=tuple(outputs),
        generated=generated,
        dropped=tuple(dropped),
        warnings=(*config.unknown(), *model.warnings(), *warnings),
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


def _fields(
    model: Architecture, outtype: str, provenance: Sequence[Field], words: Sequence[Field]
) -> tuple[Field, ...]:
    found = [
        fields.string("general.architecture", model.gguf_name),
        fields.string("general.type", "model"),
        *provenance,
        *model.fields(),
        fields.u32("general.file_type", FILE_TYPES[outtype]),
        fields.u32("general.quantization_version", gguf.GGML_QUANT_VERSION),
        *words,
    ]
    keys = [field.key for field in found]
    if len(set(keys)) != len(keys):
        raise LiquidError(f"the key {max(keys, key=keys.count)} would be written twice")
    return tuple(found)


__all__ = ["Checkpoint", "Plan", "plan"]
