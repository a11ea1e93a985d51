"""The base's own answers as training text: several sequences decoded side by side, sampled, kept as token ids.

Knows llama_cpp's plain batch calls and the prompts of this package. Knows nothing of gates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import LiquidError
from ...llama import library
from .prompts import Prompt, prompts
from .vocab import Vocabulary

TEMPERATURES = (0.3, 0.7, 0.9, 1.0)
TOP_K, TOP_P = 100, 0.95
N_CTX_SEQ, N_BATCH = 640, 512
MIN_ANSWER = 8  # tokens that an answer has in the mean at the very least


@dataclass
class _Slot:
    seq_id: int
    prompt: Prompt
    temperature: float
    tokens: list[int]
    n_prompt: int
    pending: list[int] = field(default_factory=list)
    logits_row: int = -1

    @property
    def n_decoded(self) -> int:
        return len(self.tokens) - len(self.pending)


def sample_row(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    """One token from the nucleus (top-k, then top-p) of one row of logits; the likeliest at temperature 0."""
    if not temperature:
        return int(logits.argmax())
    top = np.argpartition(logits, -TOP_K)[-TOP_K:]
    top = top[np.argsort(logits[top])[::-1]]
    scaled = (logits[top] - logits[top[0]]) / temperature
    p = np.exp(scaled.astype(np.float64))
    p /= p.sum()
    keep = int(np.searchsorted(np.cumsum(p), TOP_P)) + 1
    return int(top[rng.choice(keep, p=p[:keep] / p[:keep].sum())])


class _Model:
    """The few llama.cpp calls that batched sampling needs."""

    def __init__(self, base: Path, n_parallel: int, n_threads: int) -> None:
        self.words = Vocabulary(base, weights=True)
        model = self.words.model
        self.api = library.load()
        params = self.api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = N_CTX_SEQ * n_parallel, N_BATCH, N_BATCH
        params.n_seq_max, params.n_threads, params.n_threads_batch = n_parallel, n_threads, n_threads
        self.context = self.api.llama_init_from_model(model.pointer, params)
        if not self.context:
            raise LiquidError(f"llama.cpp could not make a context for {n_parallel} sequences of {N_CTX_SEQ} tokens")
        self.n_vocab, self.is_eog = model.n_vocab, model.is_eog
        self.memory = self.api.llama_get_memory(self.context)
        self.batch = self.api.llama_batch_init(N_BATCH, 0, 1)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        return self.words.chat(prompt.text) if prompt.is_chat else self.words.document(prompt.text)

    def forget(self, seq_id: int) -> None:
        self.api.llama_memory_seq_rm(self.memory, seq_id, -1, -1)

    def decode(self, slots: list[_Slot]) -> None:
        """Evaluate what is pending of each slot, as far as the batch holds it; ask for logits at each slot's end."""
        batch, n = self.batch, 0
        for slot in slots:
            slot.logits_row = -1
            if n + len(slot.pending) > N_BATCH:
                continue
            start = slot.n_decoded
            for i, token in enumerate(slot.pending):
                batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, start + i, 1
                batch.seq_id[n][0], batch.logits[n] = slot.seq_id, i == len(slot.pending) - 1
                n += 1
            slot.pending, slot.logits_row = [], n - 1
        batch.n_tokens = n
        if self.api.llama_decode(self.context, batch):
            raise LiquidError("llama.cpp could not evaluate a batch of training text")

    def row(self, slot: _Slot) -> np.ndarray:
        pointer = self.api.llama_get_logits_ith(self.context, slot.logits_row)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def close(self) -> None:
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)
        self.words.close()


def _records(
    model: _Model,
    queue: Iterator[Prompt],
    n_parallel: int,
    n_predict: int,
    seed: int,
    temperatures: Sequence[float],
    tell: Callable[[int], None] = lambda n_begun: None,
) -> Iterator[dict]:
    """Each as it is finished; `tell` is told, a step at a time, how many tokens those under way have."""
    rng = np.random.default_rng(seed)

    def fresh(seq_id: int) -> _Slot:
        prompt = next(queue)
        tokens = model.prompt_tokens(prompt)[: N_CTX_SEQ - n_predict - 1]
        return _Slot(seq_id, prompt, float(rng.choice(temperatures)), list(tokens), len(tokens), list(tokens))

    slots = [fresh(i) for i in range(n_parallel)]
    while True:
        model.decode(slots)
        for i, slot in enumerate(slots):
            if slot.logits_row < 0:
                continue
            token = sample_row(model.row(slot), slot.temperature, rng)
            slot.tokens.append(token)
            slot.pending = [token]
            if model.is_eog(token) or len(slot.tokens) - slot.n_prompt >= n_predict:
                yield {
                    "kind": slot.prompt.kind,
                    "prompt": slot.prompt.text,
                    "n_prompt": slot.n_prompt,
                    "temperature": slot.temperature,
                    "tokens": slot.tokens,
                }
                model.forget(slot.seq_id)
                slots[i] = fresh(slot.seq_id)
        tell(sum(slot.n_decoded for slot in slots))


def _once(asked: list[Prompt]) -> Iterator[Prompt]:
    """Each prompt before any is repeated: a greedy answer is the same the second time."""
    yield from dict.fromkeys(asked)
    yield from asked


def generate(
    base: Path,
    out: Path,
    n_tokens: int,
    *,
    seed: int = 1,
    greedy: bool = False,
    n_parallel: int = 24,
    n_predict: int = 448,
    n_threads: int = 2,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Append the base's own answers to `out` (one JSON record per line) until `n_tokens` are there; the count written.

    A file that already holds enough is left as it is; one that holds less is continued with other prompts. `greedy`:
    answers to chat prompts alone, of the likeliest tokens, as `--temp 0` writes them.
    """
    _drop_torn(out)
    done, answered = _held(out)
    n_records = len(answered)
    if done >= n_tokens:
        return done
    model = _Model(base, n_parallel, n_threads)
    asked = prompts(seed + n_records, n_parallel + 2 * n_tokens // MIN_ANSWER)
    used = set(answered) if greedy else set()
    queue = (prompt for prompt in _once(asked) if not greedy or (prompt.is_chat and prompt.text not in used))
    temperatures = (0.0,) if greedy else TEMPERATURES

    def tell(n_begun: int) -> None:
        if progress:
            progress(min(done + n_begun, n_tokens), n_tokens, "writing the base's own answers")

    try:
        with out.open("a") as file:
            for record in _records(model, queue, n_parallel, n_predict, seed + n_records, temperatures, tell):
                file.write(json.dumps(record) + "\n")
                file.flush()
                done += len(record["tokens"])
                if done >= n_tokens:
                    tell(0)
                    return done
    finally:
        model.close()
    return done


def _drop_torn(path: Path) -> None:
    """A run that was killed, or a full disk, may have left half a record."""
    if path.exists() and not (raw := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, raw.rfind(b"\n") + 1)


def _held(path: Path) -> tuple[int, list[str]]:
    """Tokens, and what was asked."""
    if not path.exists():
        return 0, []
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return sum(len(record["tokens"]) for record in records), [record.get("prompt", "") for record in records]
