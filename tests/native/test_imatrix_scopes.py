"""Whose squares are summed in models whose gates skip halves, leave early or route: against the PyTorch reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from liquidcli.reference.progress import Progress
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.engine import Engine
from liquidcli.runtime.imatrix import Entry, measure_importance
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

AUTO, N_TOKENS = DepthPolicy.parse("auto"), 64
LETTERS = list("abcdefghijklmnopqrstuvwxyz ")
TEXT = "".join(np.random.default_rng(5).choice(LETTERS, 6 * N_TOKENS))
MATRICES = {"attn_output": "self_attn.o_proj", "ffn_down": "feed_forward.down_proj"}


class Reference:
    """What each layer's halves computed for the tokens: who ran them, and what went into their last matrix."""

    def __init__(self, model, tokens: list[int], monkeypatch) -> None:
        self.ran: list[dict[str, np.ndarray]] = []  # by layer: matrix -> [n_tokens] bool
        self.rows: dict[tuple[int, str], np.ndarray] = {}  # [n_tokens, n_per_row]
        whole, halves = Progress.layer_ran, Progress.halves_ran
        monkeypatch.setattr(Progress, "layer_ran", lambda p, ran, e: (self._ran(ran, ran), whole(p, ran, e)))
        monkeypatch.setattr(Progress, "halves_ran", lambda p, a, f, *more: (self._ran(a, f), halves(p, a, f, *more)))
        for layer, module in enumerate(model.model.layers):
            for name, place in MATRICES.items():
                if (matrix := _find(module, place)) is not None:
                    matrix.register_forward_pre_hook(self._keep(layer, name))
        with torch.no_grad():
            self.trace = model(torch.tensor([tokens])).trace

    def _ran(self, attention, feed) -> None:
        self.ran.append({"attn_output": attention.run[0].numpy(), "ffn_down": feed.run[0].numpy()})

    def _keep(self, layer: int, name: str):
        return lambda _module, given: self.rows.__setitem__((layer, name), given[0].detach()[0].numpy())


def _find(module, place: str):
    for part in place.split("."):
        module = getattr(module, part, None)
    return module if isinstance(module, torch.nn.Linear) else None


def _measured(family: str, folder: Path) -> tuple[Any, list[int], dict[str, Entry]]:
    """A model, the tokens of the one chunk it read, and what was counted meanwhile."""
    model = make_model(family)
    path = write_gguf(model, folder / "tiny.gguf")
    with Engine.load(path, n_ctx=N_TOKENS, n_threads=1) as engine:
        tokens = engine.tokenize(TEXT)[:N_TOKENS]
        if engine.model.add_bos:
            tokens[0] = engine.model.bos
    found = measure_importance(path, TEXT, AUTO, N_TOKENS, 1, N_TOKENS, n_threads=1).entries
    return model, tokens, found


@pytest.mark.parametrize(
    "family", ["attn", "ffn-adapter", "attn-ffn", "every-scope", "exit", "exit-around", "exit-halves"]
)
def test_tokens_count_for_the_half_that_they_ran(family, tmp_path, monkeypatch):
    model, tokens, found = _measured(family, tmp_path)
    reference = Reference(model, tokens, monkeypatch)
    assert len(reference.ran) == len(model.model.layers)
    for layer, ran in enumerate(reference.ran):
        for name, mask in ran.items():
            entry = found[f"blk.{layer}.{name}.weight"]
            assert entry.counts.tolist() == [mask.sum()], (layer, name)
            expected = np.square(reference.rows[layer, name][mask]).sum(axis=0)
            np.testing.assert_allclose(entry.sums[0], expected, rtol=1e-2)  # K and V are kept in F16
    assert any(0 < mask.sum() < N_TOKENS for ran in reference.ran for mask in ran.values())


@pytest.mark.parametrize("family", ["moe-attn-ffn-shared", "exit-moe"])
def test_experts_count_for_the_tokens_that_were_sent_to_them(family, tmp_path, monkeypatch):
    model, tokens, found = _measured(family, tmp_path)
    sent = Reference(model, tokens, monkeypatch).trace.experts[0].numpy()  # [n_tokens, n_moe_layer, k], -1: none
    counted = [found[name].counts for name in sorted(found) if name.endswith("ffn_down_exps.weight")]
    assert len(counted) == sent.shape[1] > 0
    for layer, counts in enumerate(counted):
        asked = sent[:, layer][sent[:, layer] >= 0]
        assert counts.tolist() == np.bincount(asked, minlength=len(counts)).tolist()
    assert (sent == -1).any()
