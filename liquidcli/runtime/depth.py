"""How deep each token goes: what a person may ask for, what the model can give, and what was run.

Knows policies, calibrations, gates and statistics. Does not know how a layer is skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import IntegrityError, UsageError

_WORDS = "auto, full, NN% (a share of the layers) or tau=0.NN (a gate threshold, higher runs fewer layers)"
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_TAU = re.compile(r"tau\s*=\s*(\d*\.?\d+)")
_NUMBER = re.compile(r"[-+]?\d*\.?\d+")
_ROUNDED = 5e-4  # a share as people write it, with a tenth of a percent


@dataclass(frozen=True)
class Calibration:
    """Measured pairs of a model: at `threshold[i]` the share `executed_fraction[i]` of the layers ran."""

    threshold: tuple[float, ...]
    executed_fraction: tuple[float, ...]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Calibration | None:
        keys = [f"liquid.depth.calibration.{name}" for name in ("threshold", "executed_fraction")]
        if not any(key in metadata for key in keys):
            return None
        columns: list[Any] = [metadata.get(key) for key in keys]
        if not all(_shares(column) for column in columns) or len(columns[0]) != len(columns[1]):
            raise IntegrityError("the depth calibration of this model is not two equally long lists of shares")
        return cls(tuple(columns[0]), tuple(columns[1]))

    def threshold_for(self, share: float) -> float:
        """Linear between measured pairs, clamped at both ends; a share rises as its threshold falls."""
        pairs = sorted(zip(self.executed_fraction, self.threshold, strict=True), key=lambda pair: (pair[0], -pair[1]))
        fractions, thresholds = zip(*pairs, strict=True)
        return float(np.interp(share, fractions, thresholds))

    def share_at(self, threshold: float) -> float:
        """The other way round."""
        pairs = sorted(zip(self.threshold, self.executed_fraction, strict=True))
        thresholds, fractions = zip(*pairs, strict=True)
        return float(np.interp(threshold, thresholds, fractions))

    @property
    def span(self) -> tuple[float, float]:
        return min(self.executed_fraction), max(self.executed_fraction)


@dataclass(frozen=True)
class DepthSetting:
    """A policy made concrete for one model; `note` is what a person should know about it, or empty."""

    mode: str  # auto, full, threshold
    threshold: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class DepthPolicy:
    """What was asked for: `kind` auto, full, share (`value` in 0..1) or threshold (`value` = tau)."""

    kind: str = "auto"
    value: float = 0.0
    text: str = "auto"

    @classmethod
    def parse(cls, text: str) -> DepthPolicy:
        """UsageError, with the choices, for anything else than the four forms."""
        word = text.strip().lower()
        if word in ("auto", "full"):
            return cls(word, 0.0, word)
        if match := _SHARE.fullmatch(word):
            return cls._share(float(match[1]) / 100, word.replace(" ", ""))
        if match := _TAU.fullmatch(word):
            return cls._tau(float(match[1]), word.replace(" ", ""))
        if _NUMBER.fullmatch(word):
            number = float(word)
            percent = number * 100 if number <= 1 else number
            meant = f"{percent:g}% or tau={number:g}" if 0 <= number <= 1 else f"{percent:g}%"
            raise UsageError(
                f"a depth of {word} could be a share or a threshold", hint=f"write {meant}; there are {_WORDS}"
            )
        raise UsageError(f"{text!r} is no depth", hint=f"there are {_WORDS}")

    @classmethod
    def _share(cls, share: float, text: str) -> DepthPolicy:
        if not 0 < share <= 1:
            raise UsageError(f"a depth of {text} is no share of the layers: more than 0% and at most 100% is")
        return cls("share", share, text)

    @classmethod
    def _tau(cls, tau: float, text: str) -> DepthPolicy:
        if not 0 <= tau <= 1:
            raise UsageError(f"a gate threshold lies between 0 and 1, {text} does not")
        return cls("threshold", tau, text)

    def resolve(
        self,
        calibration: Calibration | None,
        *,
        gated: bool = True,
        trained_at: float | None = None,
        scaled: bool = False,
    ) -> DepthSetting:
        """For a model with this calibration, the threshold `trained_at`, and gates that scale what they let through."""
        if self.kind in ("auto", "full"):
            return DepthSetting(self.kind)
        if not gated:
            raise UsageError(
                f"this model has no gates, so every layer runs and a depth of {self.text} has no meaning",
                hint="REF+gates is the model with the gates that belong to it, --gates PACK gives it others",
            )
        if self.kind == "threshold":
            return DepthSetting("threshold", self.value, _untrained(self.value, trained_at, scaled))
        if calibration is None:
            raise UsageError(
                f"this model has no depth calibration, so nobody knows which threshold runs {self.text} of its layers",
                hint="ask for a threshold: tau=0.NN",
            )
        threshold = calibration.threshold_for(self.value)
        notes = [self._clamped(calibration), _untrained(threshold, trained_at, scaled)]
        return DepthSetting("threshold", threshold, "; ".join(filter(None, notes)))

    def resolve_for(self, metadata: Mapping[str, Any]) -> DepthSetting:
        """For a model that is not loaded, by the keys of its file."""
        keys = {key.removeprefix("liquid.depth."): value for key, value in metadata.items()}
        spans = keys.get("gate_span")
        return self.resolve(
            Calibration.from_metadata(metadata),
            gated=isinstance(spans, list) and any(spans),
            trained_at=keys.get("threshold", 0.5),
            scaled=bool(keys.get("ffn_scaled_by_gate") or keys.get("adapter_scaled_by_gate")),
        )

    def _clamped(self, calibration: Calibration) -> str:
        low, high = calibration.span
        if low - _ROUNDED <= self.value <= high + _ROUNDED:
            return ""
        least, most, nearest = (f"{100 * share:.3g}%" for share in (low, high, low if self.value < low else high))
        return (
            f"a depth of {self.text} is out of reach: by its calibration, this model runs {least} to {most} of its "
            f"layers; {nearest} is used"
        )

    def __str__(self) -> str:
        return self.text


def _untrained(threshold: float, trained_at: float | None, scaled: bool) -> str:
    if not scaled or trained_at is None or math.isclose(threshold, trained_at, abs_tol=1e-6):
        return ""
    return (
        f"the gates of this model scale what they let through, and were trained at tau={trained_at:g} only: "
        f"answers at tau={threshold:.3g} are untrained"
    )


def _shares(column: object) -> bool:
    return (
        isinstance(column, Sequence)
        and len(column) > 0
        and all(isinstance(x, (int, float)) and 0 <= x <= 1.000001 for x in column)
    )


@dataclass(frozen=True)
class Span:
    """The layers one gate governs."""

    layer: int
    span: int
    scope: str = "layer"  # layer, attn, ffn
    is_exit: bool = False


class LayerMap:
    """From a gate's decisions to the layers that ran."""

    def __init__(self, layers_total: int, gates: Sequence[Span]) -> None:
        self.layers_total, self.gates = layers_total, gates

    def layers(self, run: np.ndarray) -> np.ndarray:  # [n_tokens, n_gate] bool -> [n_tokens, layers_total] bool
        """A gate over one half of a layer leaves the layer standing."""
        ran = np.ones((len(run), self.layers_total), bool)
        for i, gate in enumerate(self.gates):
            end = self.layers_total if gate.is_exit else gate.layer + gate.span
            if gate.scope == "layer":
                ran[~run[:, i], gate.layer : end] = False
        return ran


@dataclass(frozen=True)
class DepthStats:
    """Sums over evaluated tokens; subtract two to get what happened between them."""

    layers_total: int
    n_tokens: int = 0
    n_layer_runs: float = 0.0
    n_gate_evals: int = 0
    n_gate_runs: int = 0
    n_blocks_unread: int = 0
    n_expert: int = 0
    n_moe_layer: int = 0
    n_expert_hits: int = 0

    @property
    def executed_fraction(self) -> float:
        """Of (token, layer) pairs, the share that ran; 1 before any token."""
        return self.n_layer_runs / (self.n_tokens * self.layers_total) if self.n_tokens and self.layers_total else 1.0

    @property
    def layers_run_mean(self) -> float:
        return self.layers_total * self.executed_fraction

    def __sub__(self, earlier: DepthStats) -> DepthStats:
        return self._combined(earlier, -1)

    def __add__(self, other: DepthStats) -> DepthStats:
        return self._combined(other, 1)

    def _combined(self, other: DepthStats, sign: int) -> DepthStats:
        names = ("n_tokens", "n_layer_runs", "n_gate_evals", "n_gate_runs", "n_blocks_unread", "n_expert_hits")
        return replace(self, **{name: getattr(self, name) + sign * getattr(other, name) for name in names})

    def as_json(self, mode: object = "auto") -> dict[str, Any]:
        fields: dict[str, Any] = {
            "mode": str(mode),
            "layers_total": self.layers_total,
            "layers_run_mean": round(self.layers_run_mean, 4),
            "executed_fraction": round(self.executed_fraction, 9),
        }
        if self.n_expert and self.n_moe_layer:
            used = self.n_expert_hits / (self.n_tokens * self.n_moe_layer) if self.n_tokens else 0.0
            fields["experts"] = {"per_layer": self.n_expert, "used_mean": round(used, 4)}
        return fields
