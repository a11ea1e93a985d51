"""What this machine has: cores and memory; and what a model asks of the memory.

Knows /proc, control groups and sysconf, and the sizes of KV caches. An estimate decides before a load; it bills nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..amounts import size_text
from ..errors import MemoryFitError

_CACHE_BITS = {  # bits per cached number, scales included
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5,
    "iq4_nl": 4.5,
}  # fmt: skip
_PROGRAM_BYTES = 60 << 20  # measured on Linux, as are those of a token
_BYTES_PER_TOKEN = 640
_REPACKED = ("Q4_0", "IQ4_NL", "MXFP4", "Q4_K", "Q2_K")  # x86; other processors repack other types too
_CPU = Path("/sys/devices/system/cpu")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores this process may use: a second thread per core does not help matrix products."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not on macOS and Windows
        return max(1, os.cpu_count() or 1)
    siblings = {_text(_CPU / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    return max(1, len(siblings))


def available_bytes() -> int | None:
    """Memory that new pages can come from, page cache included; None where nobody says."""
    limits = [limit for limit in (_meminfo_bytes(), _cgroup_bytes()) if limit is not None]
    if limits:
        return min(limits)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


class Stored(Protocol):
    """A tensor of a file, or of one that is planned."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> Any: ...  # a member of gguf's GGMLQuantizationType
    @property
    def size_bytes(self) -> int: ...


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes a model wants, by purpose."""

    weights_bytes: int  # the file, mapped
    repacked_bytes: int  # weights that llama.cpp holds in another order too
    kv_bytes: int
    compute_bytes: int
    program_bytes: int  # interpreter, libraries, vocabulary

    @property
    def total_bytes(self) -> int:
        """What a process is seen to take."""
        return self.least_bytes + self.repacked_bytes

    @property
    def least_bytes(self) -> int:
        """What it cannot do without: the file's pages of what was repacked may go when memory is short."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.program_bytes


def memory_need(
    metadata: Mapping[str, Any],
    weights_bytes: int,
    tensors: Iterable[Stored] = (),
    *,
    n_ctx: int,
    n_ubatch: int,
    n_outputs: int | None = None,
    type_k: str = "f16",
    type_v: str = "f16",
    kv_share: float = 1.0,
) -> MemoryNeed:
    """From the keys and tensors of a GGUF; `n_ctx` over all sequences, `kv_share` of their K and V kept.

    `n_outputs` of a micro-batch's rows give logits: 1 in a chat, by default all of them, as perplexity wants.
    """
    arch = str(metadata.get("general.architecture", ""))

    def number(key: str, default: int = 0) -> int:
        value = metadata.get(f"{arch}.{key}", default)
        return value if isinstance(value, int) else default

    n_embd, n_head = number("embedding_length"), max(number("attention.head_count"), 1)
    n_vocab = number("vocab_size") or len(metadata.get("tokenizer.ggml.tokens", ()))
    rows = min(n_ubatch, n_ctx)
    logits = 4 * n_vocab * (rows if n_outputs is None else min(n_outputs, rows))
    compute = max(logits, 8 * rows * number("feed_forward_length")) + 16 * rows * n_embd + 2 * rows * n_ctx
    bits = sum(
        heads * (number("attention.key_length", n_embd // n_head) * _bits(type_k)
                 + number("attention.value_length", n_embd // n_head) * _bits(type_v))
        for heads in _kv_heads(metadata, arch, n_head)
    )  # fmt: skip
    repacked = sum(t.size_bytes for t in tensors if t.type.name in _REPACKED and t.name.startswith("blk."))
    program = _PROGRAM_BYTES + _BYTES_PER_TOKEN * len(metadata.get("tokenizer.ggml.tokens", ()))
    return MemoryNeed(weights_bytes, repacked, int(kv_share * n_ctx * bits / 8), compute, program)


def check_memory(need: MemoryNeed, n_ctx: int) -> None:
    """MemoryFitError, with the numbers, when `need` is more than this machine can give."""
    available = available_bytes()
    if available is None or need.least_bytes <= available:
        return
    hint = "a smaller context: -c N" if need.kv_bytes > need.weights_bytes else "a smaller quantization of the model"
    weights, cache, computing = map(size_text, (need.weights_bytes, need.kv_bytes, need.compute_bytes))
    raise MemoryFitError(
        f"this needs {size_text(need.least_bytes)} (weights {weights}, cache for {n_ctx} tokens {cache}, "
        f"computing {computing}) and {size_text(available)} are available",
        hint=hint,
    )


def _kv_heads(metadata: Mapping[str, Any], arch: str, n_head: int) -> list[int]:
    heads = metadata.get(f"{arch}.attention.head_count_kv", n_head)
    n_layer = metadata.get(f"{arch}.block_count", 0)
    return list(heads) if isinstance(heads, (list, tuple)) else [heads] * n_layer


def _bits(cache_type: str) -> float:
    return _CACHE_BITS.get(cache_type.lower(), 16.0)


def _meminfo_bytes() -> int | None:
    for line in _text(_MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_bytes() -> int | None:
    limit, stat = _text(_CGROUP / "memory.max"), _text(_CGROUP / "memory.stat")
    if not limit.isdigit():
        return None
    held = dict(line.split(maxsplit=1) for line in stat.splitlines() if " " in line)
    return max(0, int(limit) - int(held.get("anon", 0)))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
