"""The numbers of `perplexity` are those of the unpatched llama-perplexity, to the printed digit."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from liquidcli.hub import default_model
from liquidcli.runtime import hellaswag
from liquidcli.runtime.bench import BUNDLED_TEXT
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.perplexity import measure
from tests import random_models

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif("LIQUID_ORACLE_DIR" not in os.environ, reason="LIQUID_ORACLE_DIR names no unpatched tools"),
]
FULL = DepthPolicy.parse("full")
TEXT = random_models.TEXT.read_text().removesuffix("\n")


def upstream(model: Path, text: Path, *args: object, last: str = "Final estimate") -> str:
    """Run llama-perplexity until its output is whole: now and then it exits before its log has written `last`."""
    for _ in range(40):
        said = run_upstream(model, text, *args)
        if re.search(last, said):
            return said
    raise AssertionError(f"llama-perplexity never came to {last!r}: {said[-500:]}")


def run_upstream(model: Path, text: Path, *args: object) -> str:
    """With its own library, not the patched one."""
    folder = Path(os.environ["LIQUID_ORACLE_DIR"])
    command = [folder / "llama-perplexity", "-m", model, "-f", text, "-t", 1, *args]
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def chunks(said: str) -> list[float]:
    return [float(ppl) for ppl in re.findall(r"\[\d+\]([\d.]+),", said)]


def near(values: list[float]) -> object:
    """As printed, but for the last digit: sums of rounded numbers end on either side of a half."""
    return pytest.approx(values, abs=1.01e-4, rel=0)


def estimate(said: str) -> list[float]:
    return [float(x) for x in re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", said).groups()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def stock(folder) -> Path:
    return random_models.stock(folder)


@pytest.mark.parametrize(
    ("n_ctx", "n_chunks", "n_batch"), [(64, 6, 2048), (64, -1, 64), (96, 5, 192), (128, 4, 32), (512, 2, 2048)]
)
def test_every_chunk_and_the_estimate(stock, n_ctx, n_chunks, n_batch):
    said = upstream(stock, random_models.TEXT, "-c", n_ctx, "--chunks", n_chunks, "-b", n_batch)
    (run,) = measure(stock, TEXT, [FULL], n_ctx, n_chunks, n_batch, n_threads=1)
    assert run.chunk_ppl == near(chunks(said)) and len(run.chunk_ppl) > 1
    assert list(run.ppl()) == near(estimate(said))


def test_strided_windows(stock):
    said = upstream(stock, random_models.TEXT, "-c", 256, "-b", 256, "--ppl-stride", 128, "--chunks", 3, last=r"\[3\]")
    (run,) = measure(stock, TEXT, [FULL], 256, 3, 256, 128, n_threads=1)
    assert run.chunk_ppl == near(chunks(said)) and len(run.chunk_ppl) == 3


def test_the_gated_model_at_full_depth(folder, stock):
    said = upstream(stock, random_models.TEXT, "-c", 64, "--chunks", 6)
    (run,) = measure(random_models.gated(folder), TEXT, [FULL], 64, 6, n_threads=1)
    assert run.chunk_ppl == near(chunks(said))


def test_divergence_from_a_base(folder, stock):
    base, logits = random_models.stock(folder, seed=2), folder / "base.logits"
    settings = ("-c", 64, "--chunks", 6, "--kl-divergence-base", logits)
    upstream(base, random_models.TEXT, *settings)
    said = upstream(stock, random_models.TEXT, *settings, "--kl-divergence", last="Same top p:")
    (run,) = measure(stock, TEXT, [FULL], 64, 6, base_path=base, n_threads=1)
    result = run.as_json()
    for title, name, factor in (
        ("Mean    KLD", "kld_mean", 1), ("Maximum KLD", "kld_max", 1), ("99.0%   KLD", "kld_p99", 1),
        ("Median  KLD", "kld_median", 1), ("Minimum KLD", "kld_min", 1), ("Mean PPL(Q)/PPL(base)", "ppl_ratio", 1),
        ("Mean PPL(base)", "base_ppl", 1), ("Same top p", "same_top_p", 100),
    ):  # fmt: skip
        theirs = float(re.search(re.escape(title) + r"\s*:\s*([\d.]+)", said)[1])
        assert result[name] * factor == pytest.approx(theirs, rel=2e-5, abs=2e-6), title  # theirs rounds to 16 bits


def test_hellaswag_tasks_in_the_same_order_with_the_same_verdicts(stock, tmp_path):
    words = BUNDLED_TEXT.read_text().split()
    tasks = []
    for at in range(20, 20 * 13, 20):
        endings = [" ".join(words[at + 12 + j : at + 17 + j]) for j in range(4)]
        tasks.append("\n".join([" ".join(words[at : at + 12]), str(at // 20 % 4), *endings]))
    file = tmp_path / "tasks.txt"
    file.write_text("\n".join(tasks))
    said = upstream(stock, file, "--hellaswag", "--hellaswag-tasks", 10, "-c", 256, last=r"\n10\t")
    theirs = [float(x) for x in re.findall(r"^\d+\t([\d.]+)%", said, re.MULTILINE)]
    ours: list[float] = []
    hellaswag.measure(
        stock, hellaswag.read_tasks(file.read_text(), 10), [FULL], 256,
        on_progress=lambda _, __, accuracy: ours.append(100 * accuracy), n_threads=1,
    )  # fmt: skip
    assert ours == pytest.approx(theirs, abs=1e-6) and len(ours) == 10


def test_the_default_model_on_prose():
    model = default_model.stored()
    if model is None:
        pytest.skip("the default model is not on this machine")
    said = upstream(model, BUNDLED_TEXT, "-c", 256, "--chunks", 4)
    (run,) = measure(model, BUNDLED_TEXT.read_text().removesuffix("\n"), [FULL], 256, 4, n_threads=1)
    assert run.chunk_ppl == near(chunks(said)) and run.ppl()[0] < 40
    assert list(run.ppl()) == near(estimate(said))
