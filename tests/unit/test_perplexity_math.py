"""Windows and statistics of `perplexity`, against a language model of a few lines whose probabilities are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from liquidcli.errors import UsageError
from liquidcli.runtime.perplexity import evaluate
from liquidcli.runtime.windows import plan_windows

N_VOCAB = 37


@dataclass
class Stats:
    n_tokens: int = 0

    def __add__(self, other: Stats) -> Stats:
        return Stats(self.n_tokens + other.n_tokens)

    def as_json(self, policy: object) -> dict[str, object]:
        return {"mode": str(policy), "n_tokens": self.n_tokens}


@dataclass
class TableModel:
    """Predicts from the last token alone: logits are a row of a table, scaled by the depth setting."""

    table: np.ndarray  # [N_VOCAB, N_VOCAB]
    add_bos: bool = True
    scale: float = 1.0
    seen: list[np.ndarray] = field(default_factory=list)
    first_tokens: list[int] = field(default_factory=list)
    n_cleared: int = 0
    n_tokens: int = 0

    @property
    def model(self) -> SimpleNamespace:
        return SimpleNamespace(add_bos=self.add_bos, bos=1)

    def set_depth(self, policy: float) -> None:
        self.scale = policy

    def clear(self) -> None:
        self.n_cleared += 1

    def reset_stats(self) -> None:
        self.n_tokens = 0

    def depth_stats(self) -> Stats:
        return Stats(self.n_tokens)

    def decode(self, tokens, pos, seq_ids, want):
        assert len(tokens) == len(pos) == len(seq_ids) == len(want)
        self.n_tokens += len(tokens)
        self.first_tokens += [int(t) for t in tokens[pos == 0]]
        self.seen.append(np.stack([tokens, pos, seq_ids]))
        return (self.table[tokens[np.asarray(want)]] * self.scale).astype(np.float32)


@pytest.fixture
def text() -> list[int]:
    return np.random.default_rng(0).integers(2, N_VOCAB, 700).tolist()


@pytest.fixture
def table() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((N_VOCAB, N_VOCAB)) * 2


def expected_nll(table: np.ndarray, text: list[int], windows, scale: float = 1.0) -> np.ndarray:
    """The definition, token by token."""
    out = []
    for chunk in range(windows.n_chunks):
        start = chunk * windows.step
        for p in range(windows.first, windows.length - 1):
            logits = table[text[start + p]] * scale
            probabilities = np.exp(logits) / np.exp(logits).sum()
            out.append(-np.log(probabilities[text[start + p + 1]]))
    return np.array(out)


@pytest.mark.parametrize(
    ("n_ctx", "n_batch", "n_seq"),
    [(64, 256, 4), (64, 64, 1), (64, 40, 1), (64, 16, 1), (64, 100, 1), (51, 200, 3)],
)
def test_every_way_to_batch_scores_the_same_second_halves(text, table, n_ctx, n_batch, n_seq):
    windows = plan_windows(len(text), n_ctx, -1, n_batch)
    model = TableModel(table)
    (run,) = evaluate(model, text, windows, [1.0])
    nll = expected_nll(table, text, windows)
    mean = nll.mean()
    assert windows.n_seq == n_seq and windows.n_chunks == len(text) // n_ctx
    assert run.ppl()[0] == pytest.approx(np.exp(mean), rel=1e-6)
    assert run.ppl()[1] == pytest.approx(np.exp(mean) * nll.std() / np.sqrt(len(nll) - 1), rel=1e-6)
    assert run.chunk_ppl[0] == pytest.approx(np.exp(nll[: windows.n_scored].mean()), rel=1e-6)
    assert run.chunk_ppl[-1] == pytest.approx(run.ppl()[0])
    assert run.stats.n_tokens == windows.n_chunks * n_ctx


def test_memory_is_cleared_before_each_batch_and_a_call_never_exceeds_n_batch(text, table):
    windows = plan_windows(len(text), 64, 5, 128)
    model = TableModel(table)
    evaluate(model, text, windows, [1.0])
    assert model.n_cleared == 3
    assert [call.shape[1] for call in model.seen] == [128, 128, 64]
    assert sorted({int(seq) for call in model.seen for seq in call[2]}) == [0, 1]


@pytest.mark.parametrize("add_bos", [True, False])
def test_bos_replaces_the_first_token_of_each_window_only_where_the_vocabulary_wants_it(text, table, add_bos):
    model = TableModel(table, add_bos=add_bos)
    evaluate(model, text, plan_windows(len(text), 64, 3, 128), [1.0])
    assert model.first_tokens == ([1, 1, 1] if add_bos else [text[0], text[64], text[128]])


def test_too_short_a_text_says_how_many_tokens_are_needed():
    assert plan_windows(1024, 512).n_chunks == 2
    assert plan_windows(1024, 4, n_batch=2048).n_seq == 256  # more a context cannot have
    with pytest.raises(UsageError, match=r"1023 tokens.*at least 1024"):
        plan_windows(1023, 512)
    with pytest.raises(UsageError, match="0 chunks"):
        plan_windows(1024, 512, 0)


def test_chunks_is_a_ceiling():
    assert plan_windows(5000, 512, 3).n_chunks == 3
    assert plan_windows(5000, 512, 300).n_chunks == 9


def test_stride_scores_every_token_once_after_a_full_context(table):
    text = np.random.default_rng(2).integers(2, N_VOCAB, 1500).tolist()
    windows = plan_windows(len(text), 64, -1, 2048, ppl_stride=32)
    assert (windows.length, windows.n_scored, windows.n_seq) == (256, 32, 1)
    assert windows.n_chunks == -(-(1500 - 256) // 32)
    model = TableModel(table)
    (run,) = evaluate(model, text, windows, [1.0])
    assert run.ppl()[0] == pytest.approx(np.exp(expected_nll(table, text, windows).mean()), rel=1e-6)
    assert model.first_tokens == [text[i * 32] for i in range(windows.n_chunks)]


@pytest.mark.parametrize("ppl_stride", [768, 1000])
def test_a_stride_beyond_the_window_is_refused(ppl_stride):
    with pytest.raises(UsageError, match=f"a stride of {ppl_stride} tokens leaves some between windows of"):
        plan_windows(20000, 100, -1, 2048, ppl_stride)


def test_a_single_scored_token_has_no_error(table):
    text = np.random.default_rng(2).integers(2, N_VOCAB, 8).tolist()
    (run,) = evaluate(TableModel(table), text, plan_windows(8, 4, 1), [0.7], base=TableModel(table))
    result = run.as_json()
    assert result["n_scored"] == 1 and result["ppl_error"] == result["kld_error"] == 0
    assert result["ppl"] == pytest.approx(np.exp(run.nll[0, 0]))


def test_several_depths_are_scored_apart_and_in_order(text, table):
    windows = plan_windows(len(text), 64, -1, 128)
    runs = evaluate(TableModel(table), text, windows, [1.0, 0.5])
    for run, scale in zip(runs, (1.0, 0.5), strict=True):
        assert run.ppl()[0] == pytest.approx(np.exp(expected_nll(table, text, windows, scale).mean()), rel=1e-6)
    assert runs[0].ppl()[0] != pytest.approx(runs[1].ppl()[0], rel=1e-3)


@pytest.mark.parametrize("n_batch", [128, 24])
def test_divergence_from_a_base_is_the_definition(text, table, n_batch):
    windows = plan_windows(len(text), 64, -1, n_batch)
    (run,) = evaluate(TableModel(table), text, windows, [0.7], base=TableModel(table))
    result = run.as_json()
    kld, top, p_diff = [], [], []
    for chunk in range(windows.n_chunks):
        for p in range(windows.first, windows.length - 1):
            token, target = text[chunk * 64 + p], text[chunk * 64 + p + 1]
            base, model = table[token], table[token] * 0.7
            p_base, p_model = np.exp(base) / np.exp(base).sum(), np.exp(model) / np.exp(model).sum()
            kld.append((p_base * np.log(p_base / p_model)).sum())
            top.append(p_base.argmax() == p_model.argmax())
            p_diff.append(p_model[target] - p_base[target])
    assert result["kld_mean"] == pytest.approx(np.mean(kld), rel=1e-4)
    assert result["kld_p99"] == pytest.approx(np.quantile(kld, 0.99), rel=1e-4)
    assert result["kld_max"] == pytest.approx(np.max(kld), rel=1e-4)
    assert result["same_top_p"] == pytest.approx(np.mean(top))
    assert result["p_diff_rms"] == pytest.approx(np.sqrt(np.mean(np.square(p_diff))), rel=1e-4)
    assert result["base_ppl"] == pytest.approx(np.exp(expected_nll(table, text, windows).mean()), rel=1e-5)
    assert result["ppl_ratio"] == pytest.approx(result["ppl"] / result["base_ppl"], rel=1e-6)


def test_a_model_does_not_differ_from_itself(text, table):
    windows = plan_windows(len(text), 64, 2, 128)
    (run,) = evaluate(TableModel(table), text, windows, [1.0], base=TableModel(table))
    result = run.as_json()
    assert result["kld_mean"] == 0.0 and result["same_top_p"] == 1.0 and result["p_diff_rms"] == 0.0
    assert result["ppl"] == pytest.approx(result["base_ppl"], rel=1e-6)


def test_huge_logits_do_not_overflow(text):
    table = np.zeros((N_VOCAB, N_VOCAB))
    table[:, 5] = 1e4
    (run,) = evaluate(TableModel(table), text, plan_windows(len(text), 64, 2, 128), [1.0])
    assert np.isfinite(run.nll).all() and run.nll.max() == pytest.approx(1e4, rel=1e-5)
