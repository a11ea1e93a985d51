"""A long life with cells removed, moved, copied, saved and loaded, beside another side that does the same.

    python -m tests.native.shifting twin --kv drop --cache q8_0 --tokens 10000
    python -m tests.native.shifting reference --family drop-span2 --tokens 10000

twin: a liquid file at full depth beside the stock architecture with the same weights. reference: a tiny model beside
the PyTorch reference with an editable memory, weights and cache F32; behind a flip both start anew. Knows no tolerance.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from random_model import write_model
from shapes import SHAPES, Gates

from liquidcli.llama import depth as depth_api
from tests.cached import END, CachedReference, Cell, Cells
from tests.native.endurance import rss_bytes
from tests.native.parity import N_PARALLEL, Setting
from tests.native.rearranged import Life, NativeSide
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

N_CHECKPOINTS = 8


@dataclass
class Findings:
    n_tokens: int = 0
    n_pairs: int = 0  # (token, gate), up to a flip
    n_skipped: int = 0
    n_flips: int = 0
    n_different: int = 0  # tokens whose logits are not the same bits
    logit_diff: float = 0.0  # max |difference| / max |other side's|
    rss_bytes: list[int] = field(default_factory=list)
    operations: dict[str, int] = field(default_factory=dict)

    @property
    def growth(self) -> float:
        """Of the process, from a quarter through to the end."""
        return self.rss_bytes[-1] / self.rss_bytes[len(self.rss_bytes) // 4] - 1

    def compare(self, found: np.ndarray, expected: np.ndarray) -> None:  # [n_tokens, n_vocab] each
        self.n_different += int((found != expected).any(-1).sum())
        diff = np.abs(found - expected).max(-1) / np.abs(expected).max(-1)
        self.logit_diff = max(self.logit_diff, float(diff.max(initial=0.0)))


def _live(life: Life, n_tokens: int, n_vocab: int, compute: Callable[[int, list[int], Findings], None]) -> Findings:
    found = Findings(operations=life.counts)
    while found.n_tokens < n_tokens:
        seq, n = life.step()
        compute(seq, life.random.integers(3, n_vocab, n).tolist(), found)
        found.n_tokens += n
        if found.n_tokens * N_CHECKPOINTS >= n_tokens * (len(found.rss_bytes) + 1):
            found.rss_bytes.append(rss_bytes())
    for side in life.natives:
        side.close()
    return found


def beside_twin(
    n_tokens: int, *, kv_policy: str, cache: str = "f16", flash: bool = True, head_dim: int = 32
) -> Findings:
    """States are saved only when no key waits for its rotation: the stock architecture forgets that it does."""
    setting = Setting(flash=flash, n_ubatch=16)
    gates = Gates((0, 3, 7), adapter=32, kv_policy=kv_policy)
    shape = replace(SHAPES["tiny"], n_head=256 // head_dim, n_head_kv=128 // head_dim)
    with tempfile.TemporaryDirectory() as folder:
        files = [write_model(Path(folder) / f"{i}.gguf", shape, gates=g) for i, g in enumerate((gates, None))]
        liquid, stock = (NativeSide(file, setting, cache=cache, full=file == files[0]) for file in files)
    life = Life(Cells(), [liquid, stock], save_moved=False)

    def compute(seq: int, tokens: list[int], found: Findings) -> None:
        first = life.cells.next_position(seq)
        found.compare(liquid.decode(seq, first, tokens), stock.decode(seq, first, tokens))
        life.cells.cells.setdefault(seq, []).extend(Cell(first + i) for i in range(len(tokens)))

    return _live(life, n_tokens, liquid.native.n_vocab, compute)


def beside_reference(n_tokens: int, *, family: str, setting: Setting | None = None) -> Findings:
    torch.set_num_threads(1)
    setting = setting or Setting(n_ubatch=16)
    model = make_model(family)
    drops = model.config.depth.kv_policy == "drop"
    reference = CachedReference(model, shared=setting.kv_unified or drops)
    with tempfile.TemporaryDirectory() as folder:
        native = NativeSide(write_gguf(model, Path(folder) / "tiny.gguf"), setting)
    depth_api.set_trace(native.ctx, True)
    life = Life(reference, [native], forgetful=model.config.window_type != "none" and not drops)

    def compute(seq: int, tokens: list[int], found: Findings) -> None:
        first = reference.next_position(seq)
        logits = native.decode(seq, first, tokens)
        trace = depth_api.trace(native.ctx, native.native.info)
        for i, token in enumerate(tokens):
            expected, runs = reference.decode(seq, token)
            found.n_pairs += len(runs)
            found.n_skipped += runs.count(False)
            if trace.run[int((trace.pos == first + i).argmax())].tolist() != runs:
                found.n_flips += 1
                for other in range(N_PARALLEL):
                    life.remove(other, 0, END)
                return
            found.compare(logits[i : i + 1], expected.numpy()[None])

    return _live(life, n_tokens, native.native.n_vocab, compute)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("beside", choices=("twin", "reference"))
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--kv", choices=("project", "drop"), default="project", help="twin")
    parser.add_argument("--cache", default="f16", help="twin: type of K and V")
    parser.add_argument("--flash", choices=("on", "off"), default="on", help="twin")
    parser.add_argument(
        "--head-dim", type=int, default=32, help="twin: keys of 64 are spread before they are quantized"
    )
    parser.add_argument("--family", default="span2-adapter", help="reference")
    args = parser.parse_args()
    if args.beside == "twin":
        flash = args.flash == "on"
        found = beside_twin(args.tokens, kv_policy=args.kv, cache=args.cache, flash=flash, head_dim=args.head_dim)
    else:
        found = beside_reference(args.tokens, family=args.family)
    print(", ".join(f"{name} {count}" for name, count in sorted(found.operations.items())))
    print(
        f"{found.n_tokens} tokens: {found.n_flips} flips in {found.n_pairs} pairs ({found.n_skipped} skipped), "
        f"{found.n_different} tokens with other bits, logits within {found.logit_diff:.1e}, memory {found.growth:+.2%}"
    )


if __name__ == "__main__":
    main()
