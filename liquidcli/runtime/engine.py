"""A model ready to answer: load, compute, generate, remember.

Knows tokens, logits, depth and time. Does not know chats, commands or terminals, and touches the library only through
`liquidcli.llama`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import Interrupted, PromptTooLong, UsageError
from ..gguf_file import check_loadable, open_gguf
from ..llama import depth as native
from ..llama import library
from ..llama.context import Context, ContextParams
from ..llama.interrupt import ctrl_c
from ..llama.model import Model
from .depth import DepthPolicy, DepthSetting, DepthStats, LayerMap
from .events import Event
from .generation import Generation, Request
from .info import DEFAULT_CTX, EngineInfo, describe, trained_context
from .kv_share import kept_share
from .machine import check_memory, memory_need, usable_cores
from .sampling import SamplingParams
from .state import Origin, State, model_hash, read_state, write_state

_OFFLOAD = {"auto": -1, "all": -1}


class Engine:
    """One model with one context. Made by `Engine.load`, closed by `close` or `with`."""

    def __init__(self, info: EngineInfo, model: Model, context: Context) -> None:
        self.info, self.model, self.context = info, model, context
        self.policy = DepthPolicy()
        self.layer_map = LayerMap(info.n_layer, info.gates)
        self._n_plain_tokens = 0  # evaluated, for architectures that count nothing themselves
        self._held: list[int] | None = []  # tokens of sequence 0; None: somebody changed the memory by hand
        self._last_trace: list[native.Trace] = []
        self.share_read = 1.0  # of what is computed now, for who waits in another thread

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        n_ctx: int = 0,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        n_gpu_layers: int | str = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        n_seq: int = 1,
        n_outputs: int | None = None,
        flash_attn: str = "auto",
        kv_unified: bool = True,
        on_node: object | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Engine:
        """`n_ctx` 0: the model's own, at most DEFAULT_CTX; `n_outputs`: rows of a micro-batch that will give logits.
        File and memory are checked before llama.cpp sees either."""
        with open_gguf(path) as f:
            check_loadable(f)
            metadata, size_bytes, tensors = f.metadata, f.size_bytes, f.tensors
        n_ctx = n_ctx or min(trained_context(metadata), DEFAULT_CTX)
        need = memory_need(
            metadata, size_bytes, tensors.values(), n_ctx=n_ctx, n_ubatch=n_ubatch, n_outputs=n_outputs, type_k=type_k,
            type_v=type_v, kv_share=kept_share(metadata),
        )  # fmt: skip
        check_memory(need, n_ctx)
        threads = n_threads or usable_cores()
        params = ContextParams(
            n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch, n_seq=n_seq, n_threads=threads,
            n_threads_batch=n_threads_batch or threads, type_k=type_k, type_v=type_v, flash_attn=flash_attn,
            kv_unified=kv_unified, on_node=on_node,
        )  # fmt: skip
        loading = (lambda share: progress(int(share * size_bytes), size_bytes, "loading")) if progress else None
        model = Model(Path(path), n_gpu_layers=gpu_layers(n_gpu_layers), progress=loading)
        try:
            context = Context(model, params)
        except BaseException:
            model.close()
            raise
        return cls(describe(Path(path), metadata, size_bytes, need, model, context), model, context)

    def close(self) -> None:
        self.context.close()
        self.model.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # text and tokens

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return self.model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize_piece(self, token: int, special: bool = False) -> bytes:
        return self.model.piece(token, special=special)

    # depth

    def set_depth(self, policy: DepthPolicy) -> DepthSetting:
        """Takes effect at once; what was computed at another depth is forgotten. UsageError if the model cannot."""
        setting = policy.resolve(
            self.info.calibration, gated=bool(self.info.gates), trained_at=self.info.threshold, scaled=self.info.scaled
        )
        if self.info.gates:
            self.context.set_depth(native.Mode[setting.mode.upper()], setting.threshold)
            if policy != self.policy:
                self.clear()
        self.policy = policy
        return setting

    def depth_stats(self) -> DepthStats:
        """Sums since the load or the last `reset_stats`."""
        info = self.info
        experts = {"n_expert": info.n_expert, "n_moe_layer": info.n_moe_layer}
        if not self.model.depth:
            n, hits = self._n_plain_tokens, self._n_plain_tokens * info.n_moe_layer * info.n_expert_used
            return DepthStats(info.n_layer, n, n * info.n_layer, n_expert_hits=hits, **experts)
        sums = self.context.stats()
        return DepthStats(
            info.n_layer, sums.n_tokens, sums.n_layer_runs, sums.n_gate_evals, sums.n_gate_runs, sums.n_blocks_unread,
            n_expert_hits=sums.n_expert_hits, **experts,
        )  # fmt: skip

    def reset_stats(self) -> None:
        self._n_plain_tokens = 0
        self.context.reset_stats()

    def set_trace(self, on: bool) -> None:
        self.context.set_trace(on)

    def trace(self) -> native.Trace | None:
        """Of the last `decode`, all its batches together; None where nothing was traced."""
        parts = self._last_trace
        if not parts:
            return None
        experts = np.concatenate([part.experts for part in parts]) if parts[0].experts is not None else None
        pos, seq, w, run = (np.concatenate([getattr(p, name) for p in parts]) for name in ("pos", "seq", "w", "run"))
        return native.Trace(pos, seq, w, run, experts)

    # memory

    def clear(self) -> None:
        self.context.clear()
        self._held = []

    def kv_bytes(self) -> int | None:
        """Of the tokens in memory now; None where the memory is no cache of K and V."""
        return self.context.kv_bytes()

    def seq_rm(self, seq_id: int, start: int = -1, end: int = -1) -> bool:
        self._held = None
        return self.context.seq_rm(seq_id, start, end)

    def seq_cp(self, source: int, target: int, start: int = -1, end: int = -1) -> None:
        self._held = None
        self.context.seq_cp(source, target, start, end)

    def seq_keep(self, seq_id: int) -> None:
        self._held = None
        self.context.seq_keep(seq_id)

    def seq_add(self, seq_id: int, start: int, end: int, delta: int) -> None:
        self._held = None
        self.context.seq_add(seq_id, start, end, delta)

    def save_state(self, path: Path | str) -> None:
        write_state(Path(path), self._origin(), State(self._held or [], self._depth_of_memory(), self.context.state()))

    def load_state(self, path: Path | str) -> list[int]:
        """Tokens of sequence 0 that are remembered again; IntegrityError for a file from elsewhere."""
        state = read_state(Path(path), self._origin(), self._depth_of_memory())
        self._held = None
        self.context.restore(state.payload)
        self._held = list(state.tokens) if self.context.seq_range(0)[1] + 1 == len(state.tokens) else None
        return state.tokens

    def _depth_of_memory(self) -> str:
        """What was asked for as K and V were computed; empty where nothing can be skipped."""
        if not self.info.gates:
            return ""
        mode, threshold = native.get_depth(self.context.pointer) or (native.Mode.AUTO, 0.0)
        if mode == native.Mode.AUTO:
            mode, threshold = native.Mode.THRESHOLD, self.info.threshold or 0.0
        return f"tau={threshold:.6g}" if mode == native.Mode.THRESHOLD else mode.name.lower()

    def identity(self) -> str:
        """A hash that tells this model from every other one."""
        with open_gguf(self.info.path) as f:
            return model_hash(f)

    def _origin(self) -> Origin:
        params = self.context.params
        return Origin(
            library.build_stamp(), self.identity(), self.info.kv_policy, params.type_k, params.type_v,
            self.context.n_ctx, params.n_seq,
        )  # fmt: skip

    # computing

    def decode(
        self,
        tokens: Sequence[int] | np.ndarray,
        pos: Sequence[int] | np.ndarray | None = None,
        seq_id: int | Sequence[int] | np.ndarray = 0,
        logits: str | Sequence[bool] = "last",
    ) -> np.ndarray:  # [n_out, n_vocab] float32
        """Compute any number of tokens; `logits` is last, all, none, or one truth per token. Interrupted on Ctrl-C."""
        ids = np.asarray(tokens, np.int32)
        seq = np.asarray(seq_id, np.int32)
        if pos is None:
            if seq.ndim:
                raise UsageError("tokens of several sequences need their positions")
            pos = self.context.seq_range(int(seq))[1] + 1 + np.arange(len(ids))
        at, seq = np.asarray(pos, np.int32), np.broadcast_to(seq, ids.shape)
        held, self._held = self._held, None
        with ctrl_c:
            found = self._compute(ids, at, seq, _wanted(logits, len(ids)))
            if found is None or ctrl_c.pressed:
                raise Interrupted("stopped")
        if held is not None and not seq.any() and np.array_equal(at, len(held) + np.arange(len(ids))):
            held.extend(ids.tolist())
            self._held = held
        return found

    def _compute(
        self, tokens: np.ndarray, pos: np.ndarray, seq: np.ndarray, wanted: np.ndarray, step: int = 0
    ) -> np.ndarray | None:
        """`step` tokens at once; None when Ctrl-C came in between: the memory is then the caller's to mend."""
        self._last_trace, rows = [], []
        step = step or self.context.n_batch
        for start in range(0, len(tokens), step):
            self.share_read = start / len(tokens)
            part = slice(start, start + step)
            if ctrl_c.pressed or not self.context.decode(tokens[part], pos[part], seq[part], wanted[part]):
                return None
            self._n_plain_tokens += len(tokens[part])
            if trace := self.context.trace():
                self._last_trace.append(trace)
            rows.append(self.context.logits(int(wanted[part].sum())))
        if len(rows) == 1:
            return rows[0]
        return np.concatenate(rows) if rows else np.zeros((0, self.info.n_vocab), np.float32)

    # answering

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        max_tokens: int = -1,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        grammar: str = "",
        n_logprobs: int = -1,
    ) -> Iterator[Event]:
        """Continue `prompt` in sequence 0, keeping what the memory already holds of it. The last event has a summary.

        Ctrl-C ends it with finish_reason "interrupted" and everything said so far; it is not raised.
        """
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        self._check_prompt(tokens)
        sampling = (sampling or SamplingParams()).seeded()
        with ctrl_c:
            request = Request(tokens, sampling, max_tokens, stop, ignore_eos, grammar, n_logprobs)
            yield from Generation(self, request).events()

    def held(self) -> list[int]:
        """Tokens of sequence 0 in the memory, as far as they are known."""
        return list(self._held or [])

    def room_left(self) -> int:
        """Tokens sequence 0 can still take."""
        return self.context.n_ctx - len(self._held or ())

    def _check_prompt(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise UsageError("the prompt is empty")
        if len(tokens) >= self.context.n_ctx:
            most, wanted = self.model.n_ctx_train, 1 << (len(tokens) + 256).bit_length()
            larger = f"a larger context: -c {min(wanted, most)}, or a shorter prompt"
            raise PromptTooLong(
                f"the prompt has {len(tokens)} tokens and the context holds {self.context.n_ctx}, the answer included",
                hint=larger if len(tokens) < most else f"the model was trained on {most} tokens; a shorter prompt",
            )
        if min(tokens) < 0 or max(tokens) >= self.info.n_vocab:
            raise UsageError(f"a token of the prompt is not in the vocabulary of {self.info.n_vocab}")

    def reuse(self, tokens: list[int]) -> int:
        """Cut the memory back to the longest common beginning, at least one token short; its length."""
        held = self._held
        if held is None:
            self.clear()
            return 0
        n = common_length(held, tokens[:-1])
        if n == len(held):
            return n
        low = self.context.seq_range(0)[0]
        if n == 0 or low > 0 or not self.context.seq_rm(0, n, -1):
            self.clear()
            return 0
        self._held = held[:n]
        return n

    def extend(self, tokens: Sequence[int]) -> bool:
        """Compute more of sequence 0, keeping the last logits in the context; False: Ctrl-C, and nothing was added."""
        held, self._held = self._held or [], None
        start = len(held)
        pos = np.arange(start, start + len(tokens), dtype=np.int32)
        seq = np.zeros(len(tokens), np.int32)
        step = min(self.context.params.n_ubatch, self.context.n_batch)  # often enough to tell how far it is
        if self._compute(np.asarray(tokens, np.int32), pos, seq, _wanted("last", len(tokens)), step) is None:
            if not self.context.seq_rm(0, start, -1):
                self.context.clear()
                held = []
            self._held = held
            return False
        held.extend(tokens)
        self._held = held
        return True

    def last_layers(self) -> np.ndarray:  # [n_layer] bool, of the last token computed
        if not self._last_trace or not len(self._last_trace[-1].pos):
            return np.ones(self.info.n_layer, bool)
        trace = self._last_trace[-1]
        return self.layer_map.layers(trace.run[[int(np.argmax(trace.pos))]])[0]


def gpu_layers(wanted: int | str) -> int:
    """A number, auto or all; as llama.cpp, both words mean as many as there are where there is a GPU."""
    word = str(wanted).strip().lower()
    if word in _OFFLOAD:
        return _OFFLOAD[word]
    if not word.lstrip("-").isdigit():
        raise UsageError(f"{wanted!r} is no number of layers", hint="-ngl takes a number, auto or all")
    return int(word)


def _wanted(logits: str | Sequence[bool], n: int) -> np.ndarray:  # [n] int8
    marks = np.zeros(n, np.int8)
    if logits == "all":
        marks[:] = 1
    elif logits == "last":
        marks[-1:] = 1
    elif not isinstance(logits, str):
        marks[:] = np.asarray(logits, bool)
    elif logits != "none":
        raise UsageError(f"logits is last, all, none or one truth per token, not {logits!r}")
    return marks


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
