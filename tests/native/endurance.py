"""A long life of one context: tokens, rewinds, copies, saves and loads in any order, then compared with a fresh run.

    python -m tests.native.endurance --family span2-adapter --tokens 10000

Two sequences are continued in turns. Decisions and logits of a token are kept beside it for as long as it stays in its
sequence; at each checkpoint the sequences are computed anew in an empty context and compared. Weights and
K, V are F32: with less, other row counts mean other kernels and other last bits. Knows no tolerance.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from liquidcli.runtime.engine import Engine
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

N_SEQ = 2
OPERATIONS = ("decode", "decode", "decode", "rewind", "copy", "state")


@dataclass(frozen=True)
class Token:
    """One token in a sequence, with what the model said when it was computed."""

    id: int
    run: np.ndarray  # bool [n_gate]
    logits: np.ndarray  # [n_vocab]


@dataclass
class Findings:
    """Sums over all checkpoints."""

    n_tokens: int = 0  # computed in the long run
    n_compared: int = 0
    n_pairs: int = 0  # (token, gate), up to a sequence's first flip
    n_flips: int = 0
    logit_diff: float = 0.0  # max |difference| / max |fresh|
    rss_bytes: list[int] = field(default_factory=list)  # at the checkpoints

    @property
    def growth(self) -> float:
        """Of the process, from the checkpoint a quarter through to the last."""
        return self.rss_bytes[-1] / self.rss_bytes[len(self.rss_bytes) // 4] - 1


class LongRun:
    """The context that lives long, and what should be in it."""

    def __init__(self, path: Path, folder: Path, n_ctx: int) -> None:
        self.path, self.state, self.n_ctx = path, folder / "state.bin", n_ctx
        self.engine = self._open()
        self.random = np.random.default_rng(17)
        self.sequences: list[list[Token]] = [[] for _ in range(N_SEQ)]
        self.found = Findings()

    def _open(self) -> Engine:
        engine = Engine.load(
            self.path, n_ctx=self.n_ctx, n_batch=64, n_ubatch=64, n_seq=N_SEQ, n_threads=1, type_k="f32", type_v="f32",
            flash_attn="off",
        )  # fmt: skip
        engine.set_trace(True)
        return engine

    def step(self) -> None:
        seq = int(self.random.integers(N_SEQ))
        tokens = self.sequences[seq]
        what = self.random.choice(OPERATIONS)
        if what == "rewind" and len(tokens) > 1:
            self._cut(seq, len(tokens) - int(self.random.integers(1, min(len(tokens), 40))))
        elif what == "copy" and tokens:
            other = (seq + 1) % N_SEQ
            self.engine.seq_rm(other)
            self.engine.seq_cp(seq, other)
            self.sequences[other] = list(tokens)
        elif what == "state":
            self.engine.save_state(self.state)
            self.engine.clear()
            self.engine.load_state(self.state)
        if sum(map(len, self.sequences)) > self.n_ctx - 64:
            self._cut(seq, 0)
        self._extend(seq, int(self.random.choice([1, 1, 1, 3, 12])))

    def _cut(self, seq: int, length: int) -> None:
        self.engine.seq_rm(seq, length)
        del self.sequences[seq][length:]

    def _extend(self, seq: int, n: int) -> None:
        ids = self.random.integers(3, self.engine.info.n_vocab, n, np.int32)
        self.sequences[seq] += compute(self.engine, ids, len(self.sequences[seq]), seq)
        self.found.n_tokens += n

    def check(self) -> None:
        """Both sequences anew."""
        with self._open() as fresh:
            for tokens in filter(None, self.sequences):
                fresh.clear()
                ids = np.array([token.id for token in tokens], np.int32)
                self._compare(tokens, compute(fresh, ids, 0, 0))
        self.found.rss_bytes.append(rss_bytes())

    def _compare(self, tokens: list[Token], fresh: list[Token]) -> None:
        for old, new in zip(tokens, fresh, strict=True):
            self.found.n_compared += 1
            self.found.n_pairs += old.run.size
            if not np.array_equal(old.run, new.run):
                self.found.n_flips += 1  # what follows differs for good reason
                return
            diff = float(np.abs(old.logits - new.logits).max() / np.abs(new.logits).max())
            self.found.logit_diff = max(self.found.logit_diff, diff)


def compute(engine: Engine, ids: np.ndarray, first: int, seq: int) -> list[Token]:
    found = []
    for at in range(0, len(ids), engine.context.n_batch):
        part = ids[at : at + engine.context.n_batch]
        positions = first + at + np.arange(len(part), dtype=np.int32)
        logits = engine.decode(part, positions, np.full(len(part), seq, np.int32), logits="all")
        trace = engine.trace()
        run = trace.run if trace else np.ones((len(part), 0), bool)
        found += [Token(int(part[i]), run[i], logits[i].astype(np.float32)) for i in range(len(part))]
    return found


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def live(family: str, n_tokens: int, *, n_ctx: int = 512, checkpoints: int = 8) -> Findings:
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(make_model(family), Path(folder) / "tiny.gguf")
        run = LongRun(path, Path(folder), n_ctx)
        for number in range(1, checkpoints + 1):
            while run.found.n_tokens < n_tokens * number // checkpoints:
                run.step()
            run.check()
        run.engine.close()
    return run.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", required=True)
    parser.add_argument("--tokens", type=int, default=10_000)
    args = parser.parse_args()
    found = live(args.family, args.tokens)
    print(
        f"{found.n_tokens} tokens lived, {found.n_compared} compared with a fresh run: {found.n_flips} flips in "
        f"{found.n_pairs} pairs, logits within {found.logit_diff:.1e}, memory {found.growth:+.2%}"
    )


if __name__ == "__main__":
    main()
