"""How much of K and V a model keeps: all of it, or, under kv_policy drop, that of the layers that run.

Knows depth keys and calibrations; computes nothing with a model. An estimate before a load, a figure after a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .depth import Calibration, DepthPolicy

SAVED = 0.4  # share of a whole process's memory that is worth telling from which context on it is saved


def drops(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("liquid.depth.kv_policy") == "drop" and any(metadata.get("liquid.depth.gate_span", ()))


def expected_share(metadata: Mapping[str, Any], policy: DepthPolicy | None = None) -> float | None:
    """Of the layers expected to run, by the calibration; None: the file has none, or no gates."""
    policy = policy or DepthPolicy()
    if not any(metadata.get("liquid.depth.gate_span", ())):
        return None
    if policy.kind == "full":
        return 1.0
    calibration = Calibration.from_metadata(metadata)
    if calibration is None:
        return None
    own = metadata.get("liquid.depth.threshold", 0.5)
    return calibration.share_at(policy.resolve(calibration).threshold if policy.kind != "auto" else own)


def kept_share(metadata: Mapping[str, Any], policy: DepthPolicy | None = None) -> float:
    """Of K and V at full depth; 1 where nothing is dropped or nobody measured.

    A gate over a feed-forward network alone drops nothing, and a calibration does not tell what the others skip.
    """
    scopes = metadata.get("liquid.depth.gate_scope") or ()
    share = expected_share(metadata, policy)
    return 1.0 if share is None or "ffn" in scopes or not drops(metadata) else share


def context_that_saves(other_bytes: int, full_bytes: float, kept_bytes: float) -> int | None:
    """From how many tokens on a process needs 40 % less; `full_bytes` and `kept_bytes` are K and V of one token.

    other + kept * n <= 0.6 * (other + full * n). None: never.
    """
    gained = (1 - SAVED) * full_bytes - kept_bytes
    return math.ceil(SAVED * other_bytes / gained) if gained > 0 else None
