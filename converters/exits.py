"""Exit layers of models that were trained for early exits (LayerSkip): after how many layers norm and head can read.

Such a checkpoint is a plain model and usually says nothing; an option can. A note in the file, which no gate acts on.
Knows nothing of exit gates: those are in `depth`.
"""

from __future__ import annotations

from collections.abc import Sequence

from gguf import GGUFValueType as Type

from liquidcli.errors import IntegrityError, UsageError

from . import fields
from .checkpoint import Checkpoint
from .config import Config
from .fields import Field

KEY = "liquid.exit_layers"


def exit_fields(
    checkpoint: Checkpoint, config: Config, given: Sequence[int] | None, metadata: Sequence[Field]
) -> list[Field]:
    """`given` wins over config.json's exit_layers, and that over generation_config.json's assistant_early_exit."""
    n_layer = next((field.value for field in metadata if field.key.endswith(".block_count")), 0)
    layers, where = list(config.items("exit_layers", int, default=None) or ()), "config.json: exit_layers"
    if given:
        layers, where = list(given), "--exit-layers"
    if not all(0 < layer < n_layer for layer in layers):
        kind, found = UsageError if given else IntegrityError, ", ".join(map(str, layers[:10]))
        raise kind(f"{where} is {found}; the model has {n_layer} layers, so 1 to {n_layer - 1} were expected")
    layers = layers or _generation_layers(checkpoint, n_layer)
    return [fields.array(KEY, sorted(set(layers)), Type.UINT32)] if layers else []


def _generation_layers(checkpoint: Checkpoint, n_layer: int) -> list[int]:
    """That file is advice: what is odd in it is passed over."""
    layer = checkpoint.advice("generation_config.json").get("assistant_early_exit")
    return [layer] if type(layer) is int and 0 < layer < n_layer else []
