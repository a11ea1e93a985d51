"""Logprobs are those of the whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from liquidcli.runtime.events import likelihood


def test_logprobs_sum_to_one_and_come_likeliest_first() -> None:
    logits = np.array([1.0, 900.0, -np.inf, 899.0], np.float32)
    found = likelihood(logits, 3, 2)
    assert found.logprob == pytest.approx(-1 - np.log1p(np.exp(-1)))
    assert [token for token, _ in found.top] == [1, 3]
    assert sum(np.exp(logprob) for _, logprob in likelihood(logits, 0, 4).top) == pytest.approx(1)
    assert likelihood(logits, 0, 0).top == ()
