"""The engine on a tiny random model with gates: what is cached, saved, moved or interrupted says the same."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from liquidcli.errors import IntegrityError, Interrupted, LiquidError, MemoryFitError, UsageError
from liquidcli.gguf_file import open_gguf
from liquidcli.llama import library
from liquidcli.llama.context import Context
from liquidcli.llama.interrupt import ctrl_c
from liquidcli.runtime import fit, machine
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.engine import Engine
from liquidcli.runtime.events import Event, Summary
from liquidcli.runtime.machine import memory_need
from liquidcli.runtime.sampling import SamplingParams
from liquidcli.ui.figures import reading_text
from tests.gguf_bytes import BOOL, FLOAT32, UINT32, GGUFBytes, f32, llama
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

GREEDY = SamplingParams(temp=0)
TOKENS = [int(x) for x in np.random.default_rng(3).integers(2, 380, 60)]
EXACT = {"n_threads": 1, "type_k": "f32", "type_v": "f32", "flash_attn": "off"}
TOLERANCE = 1e-4  # of the largest logit; kernels differ by the number of rows


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(make_model("linear-adapter"), tmp_path_factory.mktemp("engine") / "tiny.gguf")


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with Engine.load(path, n_ctx=256, **EXACT) as engine:
        yield engine


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return float(np.abs(a - b).max()) <= TOLERANCE * float(np.abs(b).max())


def answer(engine: Engine, tokens: list[int], **options) -> tuple[list[int], Summary]:
    options = {"max_tokens": 12, "ignore_eos": True, **options}
    events = list(engine.generate(tokens, options.pop("sampling", GREEDY), **options))
    return [event.token for event in events if event.token is not None], events[-1].summary


def test_token_by_token_and_one_prompt_agree(engine: Engine) -> None:
    engine.set_trace(True)
    whole = engine.decode(TOKENS, logits="all")
    decided = engine.trace().run
    engine.clear()
    single, runs = [], []
    for token in TOKENS:
        single.append(engine.decode([token]))
        runs.append(engine.trace().run)
    assert np.array_equal(np.concatenate(runs), decided)
    assert 0.1 < decided.mean() < 0.9
    assert close(np.concatenate(single), whole)


def test_batches_longer_than_n_batch_are_split(path: Path, engine: Engine) -> None:
    whole = engine.decode(TOKENS, logits="all")
    with Engine.load(path, n_ctx=256, n_batch=16, n_ubatch=8, **EXACT) as small:
        small.set_trace(True)
        assert close(small.decode(TOKENS, logits="all"), whole)
        assert small.trace().pos.tolist() == list(range(60))
        assert small.trace().w.shape == (60, 6)


def test_marked_logits_are_those_rows(engine: Engine) -> None:
    whole = engine.decode(TOKENS, logits="all")
    engine.clear()
    marks = [i % 7 == 0 for i in range(60)]
    assert close(engine.decode(TOKENS, logits=marks), whole[marks])
    engine.clear()
    assert engine.decode(TOKENS, logits="none").shape == (0, engine.info.n_vocab)
    with pytest.raises(UsageError):
        engine.decode(TOKENS, logits="some")


def test_several_sequences_keep_apart(path: Path, engine: Engine) -> None:
    a, b = TOKENS[:20], TOKENS[20:40]
    expected = [engine.decode(part) for part in (a, b) if not engine.clear()]
    with Engine.load(path, n_ctx=256, n_seq=2, **EXACT) as pair:
        mixed = [token for both in zip(a, b, strict=True) for token in both]
        pos = np.repeat(np.arange(20), 2)
        logits = pair.decode(mixed, pos, [0, 1] * 20, [False] * 38 + [True] * 2)
        assert close(logits[:1], expected[0]) and close(logits[1:], expected[1])
        with pytest.raises(UsageError):
            pair.decode([1, 2], seq_id=[0, 1])


def test_after_removing_copying_and_restoring_the_next_token_is_the_same(path: Path, engine: Engine) -> None:
    engine.decode(TOKENS[:30])
    expected = engine.decode(TOKENS[30:31])
    engine.decode(TOKENS[31:])
    assert engine.seq_rm(0, 30, -1)
    assert close(engine.decode(TOKENS[30:31]), expected)
    with Engine.load(path, n_ctx=256, n_seq=2, **EXACT) as other:
        other.decode(TOKENS[:30])
        other.seq_cp(0, 1)
        other.seq_rm(0)
        assert close(other.decode(TOKENS[30:31], seq_id=1), expected)


def test_a_saved_state_continues_where_it_was(path: Path, engine: Engine, tmp_path: Path) -> None:
    engine.decode(TOKENS)
    engine.save_state(tmp_path / "state")
    expected = engine.decode([5])
    with Engine.load(path, n_ctx=256, **EXACT) as other:
        assert other.load_state(tmp_path / "state") == TOKENS
        assert np.array_equal(other.decode([5]), expected)
        assert other.held() == [*TOKENS, 5]


def test_a_state_of_another_context_or_model_is_refused(path: Path, engine: Engine, tmp_path: Path) -> None:
    engine.decode(TOKENS)
    engine.save_state(tmp_path / "state")
    with (
        Engine.load(path, n_ctx=256, n_threads=1, type_k="f16", type_v="f32", flash_attn="off") as other,
        pytest.raises(IntegrityError, match="K cache type"),
    ):
        other.load_state(tmp_path / "state")
    retrained = write_gguf(make_model("linear-adapter", seed=8), tmp_path / "tiny.gguf")
    with Engine.load(retrained, n_ctx=256, **EXACT) as other, pytest.raises(IntegrityError, match="another model"):
        other.load_state(tmp_path / "state")


def test_greedy_generation_is_the_argmax_of_what_decode_says(engine: Engine) -> None:
    tokens, summary = answer(engine, TOKENS)
    engine.clear()
    logits, expected = engine.decode(TOKENS), []
    for _ in range(12):
        expected.append(int(logits[-1].argmax()))
        logits = engine.decode(expected[-1:])
    assert tokens == expected
    assert (summary.finish_reason, summary.prompt_tokens, summary.completion_tokens) == ("length", 60, 12)


def test_only_new_tokens_are_computed_and_the_answer_is_the_same(engine: Engine) -> None:
    fresh, _ = answer(engine, TOKENS)
    again, summary = answer(engine, TOKENS)
    assert again == fresh
    assert (summary.timings.cache_n, summary.timings.prompt_n) == (59, 1)
    assert summary.depth.n_tokens == 12
    longer = [*TOKENS, *fresh[:6], 7, 8]
    _, summary = answer(engine, longer)
    reused, _ = answer(engine, longer)
    assert summary.timings.cache_n == 66
    engine.clear()
    assert answer(engine, longer)[0] == reused


def test_layers_of_a_token_are_those_of_the_evaluation_that_made_it(engine: Engine) -> None:
    events = list(engine.generate(TOKENS, GREEDY, max_tokens=5, ignore_eos=True))
    engine.clear()
    engine.set_trace(True)
    engine.decode(TOKENS)
    for event in events[:5]:
        ran = engine.trace().run[-1]
        assert event.layers.tolist() == ran.tolist()
        assert (event.layers_run, event.layers_total) == (ran.sum(), 6)
        engine.decode([event.token])


def test_statistics_agree_with_the_trace(engine: Engine) -> None:
    engine.set_trace(True)
    engine.reset_stats()
    engine.decode(TOKENS)
    stats = engine.depth_stats()
    assert stats.n_tokens == 60
    assert stats.n_layer_runs == engine.trace().run.sum()
    assert stats.executed_fraction == pytest.approx(engine.trace().run.mean())


def test_full_depth_evaluates_no_gate_and_forgets_shallow_memory(engine: Engine) -> None:
    shallow, _ = answer(engine, TOKENS)
    engine.set_depth(DepthPolicy.parse("full"))
    assert engine.held() == []
    _, summary = answer(engine, TOKENS)
    assert summary.depth.executed_fraction == 1.0
    assert summary.depth.n_gate_evals == 0
    assert summary.timings.cache_n == 0
    engine.set_depth(DepthPolicy.parse("auto"))
    assert answer(engine, TOKENS)[0] == shallow


def test_a_higher_threshold_runs_fewer_layers(engine: Engine) -> None:
    fractions = []
    for tau in ("0.1", "0.5", "0.9"):
        engine.set_depth(DepthPolicy.parse(f"tau={tau}"))
        fractions.append(answer(engine, TOKENS)[1].depth.executed_fraction)
    assert fractions[0] > fractions[1] > fractions[2]
    with pytest.raises(UsageError, match="calibration"):
        engine.set_depth(DepthPolicy.parse("75%"))


def test_seeds_repeat_and_differ(engine: Engine) -> None:
    hot = SamplingParams(temp=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=11)
    first, again = (answer(engine, TOKENS, sampling=hot)[0] for _ in range(2))
    assert first == again
    assert answer(engine, TOKENS, sampling=hot.updated(seed=12))[0] != first


def test_bias_penalties_and_end_tokens_reach_the_sampler(engine: Engine) -> None:
    tokens, _ = answer(engine, TOKENS, max_tokens=1)
    never = GREEDY.updated(logit_bias={tokens[0]: float("-inf")})
    assert answer(engine, TOKENS, max_tokens=1, sampling=never)[0] != tokens
    ended = GREEDY.updated(logit_bias={engine.model.eos: 1000.0})
    assert answer(engine, TOKENS, sampling=ended, ignore_eos=False)[1].finish_reason == "stop"
    assert engine.model.eos not in answer(engine, TOKENS, sampling=ended)[0]
    always = GREEDY.updated(logit_bias={9: 50.0})
    assert answer(engine, TOKENS, sampling=always)[0] == [9] * 12
    varied = always.updated(repeat_penalty=100.0)
    assert len(set(answer(engine, TOKENS, sampling=varied)[0])) > 1
    with pytest.raises(UsageError, match="vocabulary"):
        answer(engine, TOKENS, sampling=GREEDY.updated(logit_bias={10**6: 1.0}))


def test_a_full_context_ends_the_answer_and_says_so(engine: Engine) -> None:
    tokens, summary = answer(engine, TOKENS, max_tokens=-1)
    assert summary.finish_reason == "context"
    assert 60 + len(tokens) == 256
    with pytest.raises(UsageError, match="the context holds 256"):
        answer(engine, [5] * 256)
    for prompt in ([], [10**6], [-1]):
        with pytest.raises(UsageError):
            answer(engine, prompt)


def test_a_stop_string_ends_the_answer_before_it(engine: Engine) -> None:
    events: list[Event] = list(engine.generate(TOKENS, GREEDY, max_tokens=30, ignore_eos=True))
    text = "".join(event.text for event in events)
    stop = text[len(text) // 2 :][:4]
    events = list(engine.generate(TOKENS, GREEDY, max_tokens=30, ignore_eos=True, stop=[stop]))
    assert "".join(event.text for event in events) == text[: text.index(stop)]
    assert events[-1].summary.finish_reason == "stop"


def test_ctrl_c_between_tokens_keeps_what_was_said(engine: Engine) -> None:
    said, summary = [], None
    for event in engine.generate(TOKENS, GREEDY, ignore_eos=True):
        if event.token is not None:
            said.append(event.token)
        summary = event.summary
        if len(said) == 5 and summary is None:
            signal.raise_signal(signal.SIGINT)
    assert summary.finish_reason == "interrupted"
    assert len(said) == 5
    assert said == answer(engine, TOKENS, max_tokens=5)[0]


def test_ctrl_c_inside_a_prompt_leaves_the_memory_as_it_was(path: Path) -> None:
    calls = itertools.count()

    def press_at_the_hundredth_node(_data: object) -> bool:
        if next(calls) == 100:
            signal.raise_signal(signal.SIGINT)
        return ctrl_c.pressed

    with Engine.load(path, n_ctx=1024, n_ubatch=64, **EXACT) as engine:
        engine.decode(TOKENS)
        engine.context._abort = type(engine.context._abort)(press_at_the_hundredth_node)
        events = list(engine.generate([*TOKENS, *TOKENS, *TOKENS], GREEDY, max_tokens=3))
        assert events[-1].summary.finish_reason == "interrupted"
        assert events[-1].summary.completion_tokens == 0
        assert next(calls) < 200
        assert engine.held() == TOKENS
        assert engine.context.seq_range(0) == (0, 59)


def test_how_much_of_a_prompt_is_read_is_known_meanwhile(path: Path) -> None:
    prompt = [*TOKENS, *TOKENS, *TOKENS]
    with Engine.load(path, n_ctx=256, n_ubatch=64, **EXACT) as engine:
        original, shares = engine.context.decode, []

        def decode(*args) -> bool:
            shares.append(reading_text(engine))
            return original(*args)

        engine.context.decode = decode
        tokens = answer(engine, prompt, max_tokens=2)[0]
        assert shares == ["reading ...", "reading ... 36%", "reading ... 71%", "reading ..."]
    with Engine.load(path, n_ctx=256, **EXACT) as engine:
        assert answer(engine, prompt, max_tokens=2)[0] == tokens


def test_a_request_to_leave_inside_a_prompt_is_not_lost_in_a_callback(engine: Engine, monkeypatch, capfd) -> None:
    calls = itertools.count()

    def ask_at_the_tenth_node(_data: object) -> bool:
        if next(calls) == 10:
            ctrl_c.leave(143)
        return ctrl_c.pressed

    monkeypatch.setattr(engine.context, "_abort", type(engine.context._abort)(ask_at_the_tenth_node))
    with pytest.raises(SystemExit) as left:
        engine.decode(TOKENS)
    assert left.value.code == 143 and next(calls) < 100 and capfd.readouterr().err == ""
    engine.clear()
    assert len(engine.decode(TOKENS))


def test_ctrl_c_during_decode_is_raised_afterwards(engine: Engine) -> None:
    original = engine.context.decode

    def decode(*args) -> bool:
        signal.raise_signal(signal.SIGINT)
        return original(*args)

    engine.context.decode = decode
    with pytest.raises(Interrupted):
        engine.decode(TOKENS)


def test_what_does_not_fit_is_refused_before_it_is_loaded(path: Path) -> None:
    with pytest.raises(MemoryFitError, match="are available"):
        Engine.load(path, n_ctx=1 << 34)


def encoder() -> GGUFBytes:
    """A smallest BERT."""
    g, n_embd, n_ff = llama(arch="bert"), 32, 64
    g.keys |= {
        "bert.attention.layer_norm_epsilon": (FLOAT32, 1e-5), "bert.attention.causal": (BOOL, False),
        "bert.pooling_type": (UINT32, 1), "bert.attention.head_count_kv": (UINT32, 4),
        "tokenizer.ggml.token_type_count": (UINT32, 2),
    }  # fmt: skip
    shapes = {"token_embd.weight": (n_embd, 16), "token_types.weight": (n_embd, 2)}
    shapes["position_embd.weight"] = (n_embd, 64)
    norms = ["token_embd_norm"]
    for i in range(2):
        norms += [f"blk.{i}.attn_output_norm", f"blk.{i}.layer_output_norm"]
        sizes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (n_embd, n_embd))
        for name, (n_in, n_out) in (sizes | {"ffn_up": (n_embd, n_ff), "ffn_down": (n_ff, n_embd)}).items():
            shapes |= {f"blk.{i}.{name}.weight": (n_in, n_out), f"blk.{i}.{name}.bias": (n_out,)}
    shapes |= {f"{norm}.{part}": (n_embd,) for norm in norms for part in ("weight", "bias")}
    g.tensors = {name: f32(*shape) for name, shape in shapes.items()}
    return g


def test_a_model_that_makes_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LiquidError, match="no model that goes on with a text"):
        Engine.load(encoder().write(tmp_path / "bert.gguf"), n_ctx=64)


def test_a_chat_needs_less_memory_than_all_logits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `fit` promises a chat is what loading asks for."""
    with open_gguf(path) as f:
        need = partial(memory_need, f.metadata, f.size_bytes, list(f.tensors.values()), n_ctx=512, n_ubatch=512)
        least = need(n_outputs=1).least_bytes
        for module in (machine, fit):
            monkeypatch.setattr(module, "available_bytes", lambda: least)
        assert fit.estimate(f, n_ctx=512)["fits"] and need().least_bytes > least
    with Engine.load(path, n_ctx=512, n_outputs=1):
        pass
    with pytest.raises(MemoryFitError):
        Engine.load(path, n_ctx=512)


@pytest.mark.parametrize(("name", "value"), [("type_k", "f17"), ("flash_attn", "maybe"), ("n_gpu_layers", "some")])
def test_settings_that_do_not_exist_are_usage_errors(path: Path, name: str, value: str) -> None:
    with pytest.raises(UsageError):
        Engine.load(path, n_ctx=64, **{name: value})


@pytest.mark.parametrize("settings", [{"n_batch": 0}, {"n_batch": 2, "n_seq": 3}, {"n_threads": 100_000}])
def test_settings_that_the_library_would_die_of_are_usage_errors(path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"at (least|most)"):
        Engine.load(path, **{"n_ctx": 64, **settings})


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from liquidcli.errors import MemoryFitError
from liquidcli.runtime.engine import Engine

settings = {"n_batch": 64, "n_ubatch": 64, "n_threads": 1, "type_k": "f32", "type_v": "f32"}
with Engine.load(sys.argv[1], n_ctx=1 << 16, **settings) as engine:
    engine.decode([5] * 64, logits="none")
    held = int(next(x for x in open("/proc/self/status") if x.startswith("VmData")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (held + (2 << 20), -1))
    try:
        for _ in range(1000):
            n_held = len(engine.held())
            engine.decode([5] * 64, logits="none")
    except MemoryFitError:
        resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))
        assert engine.context.seq_range(0) == (0, n_held - 1)
        assert engine.decode([5], [n_held]).shape[0] == 1
        print("refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process as Linux does")
def test_memory_that_runs_out_between_tokens_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    path = write_gguf(make_model("drop"), tmp_path / "drop.gguf")
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr[-2000:]


def test_experts_are_reported_for_mixtures(tmp_path: Path) -> None:
    path = write_gguf(make_model("moe"), tmp_path / "moe.gguf")
    with Engine.load(path, n_ctx=128, **EXACT) as engine:
        engine.set_depth(DepthPolicy.parse("full"))
        assert answer(engine, TOKENS)[1].depth.as_json("full")["experts"] == {"per_layer": 6, "used_mean": 2.0}
        engine.set_depth(DepthPolicy.parse("auto"))
        assert 0 < answer(engine, TOKENS)[1].depth.as_json("auto")["experts"]["used_mean"] < 2.0


def test_a_failed_check_in_the_library_is_a_sentence_and_no_abort() -> None:
    abort = "library.load()._lib.ggml_abort(b'x.c', 7, b'GGML_ASSERT(n > 0) failed')"
    code = f"from liquidcli.llama import library; {abort}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert result.stderr == "error: the native library stopped: x.c:7: GGML_ASSERT(n > 0) failed\n"


def test_ctrl_c_while_a_context_is_set_up_is_not_lost_in_a_callback(engine: Engine, monkeypatch) -> None:
    pressed = []

    def said(self: library.NativeLog, level: int, text: bytes, data: object) -> None:
        if not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(library.NativeLog, "__call__", said)
    with pytest.raises(Interrupted):
        Context(engine.model, engine.context.params)
    assert pressed
