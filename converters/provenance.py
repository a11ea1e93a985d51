"""Where a model comes from: its name, size and licence, and how it likes to be sampled, as `general.*` keys.

Reads the folder's name, README front matter and generation_config.json; all of them are optional and none can stop a
conversion. Knows nothing of the model's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import gguf
from gguf import GGUFValueType as Type

from . import fields
from .checkpoint import Checkpoint
from .fields import Field
from .tensors import Output

MAX_CARD_BYTES = 1 << 20
# generation_config.json -> general.sampling.*
SAMPLING = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temperature": "temp",
    "repetition_penalty": "penalty_repeat",
}
INTEGERS = ("top_k",)


def provenance_fields(checkpoint: Checkpoint, outputs: Sequence[Output], name: str | None = None) -> list[Field]:
    total = sum(prod(output.shape) for output in outputs)
    title, _, basename, finetune, version, size = gguf.Metadata.get_model_id_components(
        name or checkpoint.folder.resolve().name, total
    )
    words = {
        "name": gguf.Metadata.id_to_title(title) if title else "model",
        "version": version,
        "finetune": finetune,
        "basename": basename,
        "size_label": size or _size_label(outputs, total),
    }
    found = _sampling(checkpoint) + [fields.string(f"general.{key}", value) for key, value in words.items() if value]
    return found + _card_fields(checkpoint)


def _size_label(outputs: Sequence[Output], total: int) -> str:
    experts = [output for output in outputs if "_exps." in output.name]
    n_expert = experts[0].shape[0] if experts else 0
    in_experts = sum(prod(output.shape) for output in experts)
    return gguf.size_label(total, total - in_experts, in_experts // max(n_expert, 1), n_expert)


def _sampling(checkpoint: Checkpoint) -> list[Field]:
    values = checkpoint.advice("generation_config.json")
    found = []
    for name, key in SAMPLING.items():
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e6:
            continue
        if name not in INTEGERS:
            found.append(fields.f32(f"general.sampling.{key}", value))
        elif isinstance(value, int):
            found.append(fields.i32(f"general.sampling.{key}", value))
    return found


def _card_fields(checkpoint: Checkpoint) -> list[Field]:
    card = _model_card(checkpoint)
    found = [
        fields.string(f"general.{key.replace('_', '.')}", card[key])
        for key in ("license", "license_name", "license_link")
        if isinstance(card.get(key), str) and card[key]
    ]
    tags = _words(card.get("tags")) + _words(card.get("pipeline_tag"))
    for key, values in (("tags", tags), ("languages", _words(card.get("language")))):
        if values:
            found.append(fields.array(f"general.{key}", values, Type.STRING))
    return found


def _model_card(checkpoint: Checkpoint) -> dict[str, Any]:
    """The YAML between the first two `---` lines of README.md; anything odd counts as no card."""
    path = checkpoint.folder / "README.md"
    if not path.is_file() or path.stat().st_size > MAX_CARD_BYTES:
        return {}
    import yaml  # type: ignore[import-untyped]

    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    text = "\n".join(lines[1 : lines.index("---", 1)]).replace("\t", "  ").replace("- no\n", '- "no"\n')
    try:
        card = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def _words(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [word for word in values if isinstance(word, str) and word]
