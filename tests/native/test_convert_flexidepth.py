"""Published FlexiDepth checkpoints, converted: the method in numpy, the reference and the library decide alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from liquidcli import converters
from tests.flexidepth import Outcome, Published, published_model, write_published
from tests.native.parity import Comparison, NativeModel, Rows, Setting, compare, reference_rows
from tests.tiny import random_tokens

LOGITS = 1e-3  # max |difference| / max |reference|
AGREEMENT = 0.9999
N_SEQUENCES, N_TOKENS = 32, 80
# router_force_mode: what the library is told, and whether its gates are evaluated
FORCED = {"run": ("forced", 1), "project": ("forced", 0), "base": ("full", None)}


def as_rows(outcome: Outcome) -> Rows:
    n_seq, n_tokens = outcome.run.shape[:2]
    return Rows(outcome.logits, outcome.w, outcome.run, np.zeros((n_seq, n_tokens, 0, 0), np.int32))


def agrees(native: Rows, expected: Rows) -> Comparison:
    """Every pair counts up to a sequence's first flip; what follows one differs for good reason."""
    found = Comparison("flexidepth", Setting())
    compare(native, expected, found, 0.5)
    flips = found.flips + found.near_flips
    assert found.pairs > 0.95 * expected.run.size and flips <= (1 - AGREEMENT) * found.pairs
    assert found.logit_diff <= LOGITS
    return found


@pytest.mark.parametrize("exact", [False, True], ids=["folded", "exact"])
@pytest.mark.parametrize("kind", ["ddllama", "ddqwen3"])
def test_decisions_are_those_of_the_published_model(kind: str, exact: bool, tmp_path: Path) -> None:
    model = published_model(kind)
    folder = write_published(kind, model, tmp_path / kind)
    path = converters.run(converters.plan(folder, "f32", exact_gate=exact), tmp_path / "dd.gguf").output
    native, published = NativeModel(path), Published(folder)
    tokens = random_tokens(model.config, N_SEQUENCES, N_TOKENS)
    found = native.run(tokens.numpy(), Setting("mixed"))
    told = agrees(found, as_rows(published.forward(tokens.numpy())))
    assert told.pairs >= 10_000 and 0.3 < told.ran / told.pairs < 0.7 and told.logit_diff > 0
    agrees(found, reference_rows(model, tokens, Setting("mixed"), None))
    for force, (depth, value) in FORCED.items():
        some = tokens[:4]
        expected = published.forward(some.numpy(), force)
        table = None if value is None else np.full(expected.run.shape, value, np.uint8)
        rows = native.run(some.numpy(), Setting("prompt", depth=depth), table)
        assert np.array_equal(rows.run, expected.run), force
        scale = np.abs(expected.logits).max()
        assert np.abs(rows.logits - expected.logits).max() <= LOGITS * scale, force
        if value is not None:
            np.testing.assert_allclose(rows.w, expected.w, atol=1e-4)
    native.close()


def test_the_controls_differ(tmp_path: Path) -> None:
    """What is compared above: run, skip and the base model are three different models."""
    model = published_model("ddllama")
    published = Published(write_published("ddllama", model, tmp_path / "m"))
    tokens = random_tokens(model.config, 1, 16).numpy()
    logits = [published.forward(tokens, force).logits for force in ("", *FORCED)]
    for one in range(len(logits)):
        for other in range(one):
            assert np.abs(logits[one] - logits[other]).max() > 0.05 * np.abs(logits[one]).max()


def test_the_reference_is_the_published_model(tmp_path: Path) -> None:
    for kind in ("ddllama", "ddqwen3"):
        model = published_model(kind)
        published = Published(write_published(kind, model, tmp_path / kind))
        tokens = random_tokens(model.config, 2, 24)
        told, out = published.forward(tokens.numpy()), model(tokens)
        assert np.array_equal(out.trace.run.numpy(), told.run)
        np.testing.assert_allclose(out.logits.numpy(), told.logits, atol=1e-3 * np.abs(told.logits).max())
        full, base = model(tokens, depth="full").logits.numpy(), published.forward(tokens.numpy(), "base").logits
        np.testing.assert_allclose(full, base, atol=1e-3 * np.abs(base).max())
