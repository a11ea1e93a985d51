"""Rewinds, copies, saves and loads in any order leave what a fresh run computes."""

from __future__ import annotations

import pytest

from tests.native.endurance import live


@pytest.mark.parametrize("family", ["span2-adapter", "every-scope", "exit-halves", "drop-span2", "drop-exit-halves"])
def test_a_long_life_equals_a_fresh_run(family):
    found = live(family, 400, n_ctx=256, checkpoints=3)
    assert found.n_compared > 100 and found.n_pairs > found.n_compared
    assert found.n_flips == 0
    assert found.logit_diff <= 1e-3
