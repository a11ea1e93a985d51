#!/usr/bin/env python3
"""What does converting a checkpoint cost? Peak memory and time, beside upstream's converter where one is given.

    python benchmarks/convert.py --shape llama-3-8b --gated
    python benchmarks/convert.py --shape llama-3.2-1b --tokenizer FOLDER --upstream FOLDER --outtype f16 --outtype q8_0

The checkpoint has random weights in shards of 5 GB and is removed afterwards. Each conversion is a process of its own;
the two converters take turns, and the median of the rounds counts. Memory is to stay below three times the largest
tensor and 500 MB. `--upstream`: the folder with convert_hf_to_gguf.py, which needs PyTorch and transformers.

Knows checkpoints, processes and figures. Knows no converter from within.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from program import Figures, leave, show
from shapes import SHAPES, Shape
from whole_command import Run, cells, measure

from liquidcli.errors import UsageError
from liquidcli.files import check_space
from liquidcli.ui.console import out

OUTTYPES = ("f32", "f16", "bf16", "q8_0")
SOURCE_TYPES = {"bf16": "BF16", "f16": "F16"}
SHARD_BYTES, PATTERN_ITEMS = 5_000_000_000, 1 << 20  # few items: a child begins with its parent's peak
REDUCTION = 16  # of FlexiDepth's gates and adapters
ALLOWED_BYTES = 500_000_000  # beside three times the largest tensor
COLUMNS = ("type", "converter", ">s", ">CPU s", ">peak MB", ">of allowed", ">s of upstream's", ">CPU of upstream's")
RATIOS = ("over_upstream", "cpu_over_upstream")


def tensor_shapes(shape: Shape, gated: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """transformers' names, and FlexiDepth's for the upper half of the layers."""
    d, f, k = shape.n_embd, shape.n_ff, shape.n_embd_kv
    yield "model.embed_tokens.weight", (shape.n_vocab, d)
    for layer in range(shape.n_layer):
        parts = {
            "input_layernorm": (d,), "post_attention_layernorm": (d,), "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (k, d), "self_attn.v_proj": (k, d), "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
        }  # fmt: skip
        if gated and layer >= shape.n_layer // 2:
            r, m = d // REDUCTION, f // REDUCTION
            parts |= {
                "router.router_enc": (r, d), "router.router_norm": (r,), "router.router_dec": (d, r),
                "router.router_head": (1, d), "router_proj.gate_proj": (m, d), "router_proj.down_proj": (m, d),
                "router_proj.up_proj": (d, m),
            }  # fmt: skip
        yield from ((f"model.layers.{layer}.{name}.weight", size) for name, size in parts.items())
    yield "model.norm.weight", (d,)
    if not shape.tied:
        yield "lm_head.weight", (shape.n_vocab, d)


def config(shape: Shape, gated: bool, dtype: str) -> dict[str, Any]:
    kind = "DDLlama" if gated else "Llama"
    words = {
        "architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower(), "hidden_size": shape.n_embd,
        "intermediate_size": shape.n_ff, "num_hidden_layers": shape.n_layer, "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head_kv, "vocab_size": shape.n_vocab, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": shape.rope_base, "tie_word_embeddings": shape.tied, "hidden_act": "silu",
        "torch_dtype": {"bf16": "bfloat16", "f16": "float16"}[dtype],
    }  # fmt: skip
    routed = {"routing_layers": list(range(shape.n_layer // 2, shape.n_layer)), "router_reduction_factor": REDUCTION}
    return {**words, **(routed if gated else {})}


def write_checkpoint(folder: Path, shape: Shape, gated: bool, dtype: str, sparse: bool) -> int:
    """The folder's size; its numbers are a run of random ones over and over, or zeros that take no room."""
    table = list(tensor_shapes(shape, gated))
    total = sum(2 * int(np.prod(size)) for _, size in table)
    check_space(folder, 0 if sparse else total)
    (folder / "config.json").write_text(json.dumps(config(shape, gated, dtype)))
    values = (np.random.default_rng(1).standard_normal(PATTERN_ITEMS, np.float32) * 0.02).astype(np.float32)
    pattern = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else values.astype(np.float16)
    data, shards = pattern.tobytes(), [[]]
    for name, size in table:
        if sum(2 * int(np.prod(one)) for _, one in shards[-1]) > SHARD_BYTES:
            shards.append([])
        shards[-1].append((name, size))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / file, shard, SOURCE_TYPES[dtype], b"" if sparse else data)
        weight_map |= dict.fromkeys((name for name, _ in shard), file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


def _write_shard(path: Path, table: list[tuple[str, tuple[int, ...]]], dtype: str, data: bytes) -> None:
    header, end = {}, 0
    for name, size in table:
        n_bytes = 2 * int(np.prod(size))
        header[name] = {"dtype": dtype, "shape": size, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for first in range(0, end if data else 0, len(data) or 1):
            file.write(memoryview(data)[: min(len(data), end - first)])
        file.truncate(8 + len(text) + end)


def child(folder: Path, outtype: str, target: Path) -> dict[str, Any]:
    """In a process of its own: convert, and tell the peak of the resident size."""
    from liquidcli import converters
    from liquidcli.runtime.bench import peak_rss_bytes

    tokenizer = (folder / "tokenizer.json").is_file()
    result = converters.run(converters.plan(folder, outtype, tokenizer=tokenizer), target)
    return {"peak_bytes": peak_rss_bytes(), "size_bytes": result.size_bytes}


def commands(options: argparse.Namespace, folder: Path, outtype: str, target: Path) -> dict[str, list[str]]:
    own = [sys.executable, str(Path(__file__)), "--child", str(folder), outtype, str(target)]
    found = {"ours": own}
    if options.upstream:
        script = str(options.upstream / "convert_hf_to_gguf.py")
        found["upstream"] = [sys.executable, script, str(folder), "--outtype", outtype, "--outfile", str(target)]
    return found


def run_all(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[Run]]]:
    """By type and converter; each is told as it ends."""
    target = folder.parent / "out.gguf"
    runs: dict[str, dict[str, list[Run]]] = {outtype: {} for outtype in options.outtype}
    for number in range(options.rounds):
        for outtype, found in runs.items():
            for name, command in commands(options, folder, outtype, target).items():
                found.setdefault(name, []).append(run := measure(command))
                target.unlink()
                out.talk(f"round {number + 1}, {outtype}, {name}: {run.seconds:.1f} s, CPU {run.cpu_seconds:.1f} s")
    return runs


def summary(outtype: str, found: dict[str, list[Run]], allowed: int) -> Iterator[dict[str, Any]]:
    seconds = {name: statistics.median(run.seconds for run in runs) for name, runs in found.items()}
    cpu = {name: statistics.median(run.cpu_seconds for run in runs) for name, runs in found.items()}
    for name, runs in found.items():
        yield {
            "outtype": outtype, "converter": name, "seconds": round(seconds[name], 2),
            "all_seconds": [round(run.seconds, 2) for run in runs], "cpu_seconds": round(cpu[name], 2),
            "peak_bytes": max(run.peak_bytes for run in runs), "allowed_bytes": allowed,
            "over_upstream": round(seconds["ours"] / seconds["upstream"], 3) if "upstream" in seconds else None,
            "cpu_over_upstream": round(cpu["ours"] / cpu["upstream"], 3) if "upstream" in cpu else None,
        }  # fmt: skip


def parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    dense = sorted(name for name, shape in SHAPES.items() if not shape.n_expert)
    add("--shape", choices=dense, default="llama-3.2-1b")
    add("--gated", action="store_true", help="FlexiDepth's gates and adapters in the upper half of the layers")
    add("--dtype", choices=sorted(SOURCE_TYPES), default="bf16", help="of the checkpoint (default: bf16)")
    add("--sparse", action="store_true", help="zeros, which take no room on the disk, instead of random weights")
    add("--outtype", choices=OUTTYPES, action="append", help="(default: f16)")
    add("--rounds", type=int, default=1)
    add("--upstream", type=Path, help="folder with convert_hf_to_gguf.py")
    add("--tokenizer", type=Path, help="folder whose tokenizer files the checkpoint gets")
    add("--dir", type=Path, help="where everything is written (default: the system's temporary folder)")
    add("--json", action="store_true")
    options = parser.parse_args(args)
    options.outtype = options.outtype or ["f16"]
    if options.upstream and (options.gated or not options.tokenizer):
        raise UsageError("upstream's converter needs a tokenizer and knows no gates", hint="--tokenizer FOLDER")
    return options


def main(args: list[str]) -> None:
    options = parse(args)
    out.configure(json=options.json)
    shape = SHAPES[options.shape]
    with tempfile.TemporaryDirectory(dir=options.dir) as home:
        folder = Path(home) / shape.name
        folder.mkdir()
        for path in sorted(options.tokenizer.glob("*token*")) if options.tokenizer else ():
            shutil.copy(path, folder)
        size_bytes = write_checkpoint(folder, shape, options.gated, options.dtype, options.sparse)
        largest = max(2 * int(np.prod(size)) for _, size in tensor_shapes(shape, options.gated))
        out.talk(f"{shape.name}: {size_bytes / 1e9:.1f} GB {options.dtype}, largest tensor {largest / 1e6:.0f} MB")
        runs = run_all(options, folder)
    allowed = 3 * largest + ALLOWED_BYTES
    found = [one for outtype, by_name in runs.items() for one in summary(outtype, by_name, allowed)]
    show(found, COLUMNS, row)


def row(one: Figures) -> list[str]:
    allowed = f"{one['peak_bytes'] / one['allowed_bytes']:.0%}"
    ratios = [f"{one[key]:.2f}" if one[key] and one["converter"] == "ours" else "" for key in RATIOS]
    return [one["outtype"], one["converter"], *cells(one), allowed, *ratios]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        leave(lambda: print(json.dumps(child(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))))
    leave(lambda: main(sys.argv[1:]))
