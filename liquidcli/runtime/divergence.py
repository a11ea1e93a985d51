"""How far a model's next-token distributions are from a base's: KL divergence, token probabilities, same top token.

Knows rows of logits and statistics over them, those of llama-perplexity's --kl-divergence. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

_PERCENTILES = {
    "kld_p999": 0.999, "kld_p99": 0.99, "kld_p95": 0.95, "kld_p90": 0.9, "kld_median": 0.5, "kld_p10": 0.1,
    "kld_p05": 0.05, "kld_p01": 0.01, "kld_min": 0.0,
}  # fmt: skip


@dataclass
class Comparison:
    """Per scored token; all arrays have one shape."""

    kld: np.ndarray  # KL(base || model), nats
    nll_base: np.ndarray
    p_diff: np.ndarray  # p(model) - p(base) of the token that follows
    same_top: np.ndarray  # 1.0 where both find the same token likeliest

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Comparison:
        return cls(*(np.zeros(shape) for _ in fields(cls)))

    def put(self, where: Any, rows: Comparison) -> None:
        for f in fields(self):
            getattr(self, f.name)[where] = getattr(rows, f.name)


def compare_rows(logits: np.ndarray, base_logits: np.ndarray, targets: np.ndarray) -> Comparison:
    """Two sets of logits [n, n_vocab] float32 and the tokens that follow [n]."""
    log_p, log_base = _log_softmax(logits), _log_softmax(base_logits)
    rows = np.arange(len(targets))
    nll, nll_base = -log_p[rows, targets].astype(np.float64), -log_base[rows, targets].astype(np.float64)
    return Comparison(
        kld=(np.exp(log_base) * (log_base - log_p)).sum(axis=1, dtype=np.float64),
        nll_base=nll_base,
        p_diff=np.exp(-nll) - np.exp(-nll_base),
        same_top=(logits.argmax(axis=1) == base_logits.argmax(axis=1)).astype(np.float64),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:  # [n, n_vocab] float32
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64))
    return shifted - log_sum.astype(np.float32)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error; 0 of a single value."""
    mean = float(values.mean())
    variance = float((values * values).mean()) - mean * mean
    return mean, float(np.sqrt(max(variance, 0.0) / max(values.size - 1, 1)))


def comparison_json(comparison: Comparison, nll: np.ndarray, n_chunks: int) -> dict[str, Any]:
    """All figures of a comparison over its first `n_chunks` chunks; percentages as fractions of 1."""
    kld = comparison.kld[:n_chunks].reshape(-1)
    p_diff = comparison.p_diff[:n_chunks].reshape(-1)
    kld_mean, kld_error = mean_and_error(kld)
    p_diff_mean, p_diff_error = mean_and_error(p_diff)
    same_top, same_top_error = mean_and_error(comparison.same_top[:n_chunks].reshape(-1))
    return {
        **_ppl_ratio(nll[:n_chunks].reshape(-1), comparison.nll_base[:n_chunks].reshape(-1)),
        "kld_mean": kld_mean,
        "kld_error": kld_error,
        "kld_max": float(kld.max()),
        **{name: float(np.quantile(kld, share)) for name, share in _PERCENTILES.items()},
        "p_diff_mean": p_diff_mean,
        "p_diff_error": p_diff_error,
        "p_diff_rms": float(np.sqrt((p_diff * p_diff).mean())),
        "same_top_p": same_top,
        "same_top_p_error": same_top_error,
    }


def _ppl_ratio(nll: np.ndarray, nll_base: np.ndarray) -> dict[str, float]:
    """Perplexity of the base and the ratio to it; errors take into account that both saw the same tokens."""
    base_mean, base_error = mean_and_error(nll_base)
    ln_ratio, ln_ratio_error = mean_and_error(nll - nll_base)
    base_ppl, ratio = float(np.exp(base_mean)), float(np.exp(ln_ratio))
    return {
        "base_ppl": base_ppl,
        "base_ppl_error": base_ppl * base_error,
        "ln_ppl_ratio": ln_ratio,
        "ln_ppl_ratio_error": ln_ratio_error,
        "ppl_ratio": ratio,
        "ppl_ratio_error": ratio * ln_ratio_error,
    }
