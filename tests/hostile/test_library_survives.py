"""Models with one key or tensor wrong: what `check_loadable` lets pass never stops the native library.

A child process loads them, so that an abort() would be seen. The wrong files are the same in every run.
"""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from pathlib import Path

from liquidcli.errors import LiquidError
from liquidcli.gguf_file import check_loadable, open_gguf
from tests.gguf_bytes import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT16, UINT32, GGUFBytes, f32, liquid, llama

N_FILES = 400
CHILD = """
import sys
from liquidcli.errors import LiquidError
from liquidcli.runtime.engine import Engine
for line in sys.stdin:
    try:
        with Engine.load(line.strip(), n_ctx=32, n_batch=32, n_ubatch=32, n_threads=1) as engine:
            engine.decode(engine.tokenize("t1 t2")[:8] or [1, 2])
        print("ran")
    except LiquidError as error:
        print("refused", error.exit_code)
"""
NUMBERS = [0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 64, 255, 512, 513, 1 << 16, 1 << 24, (1 << 31) - 1, (1 << 32) - 1]
FLOATS = [0.0, -1.0, 0.5, 1e-30, 1e30, float("inf"), float("nan")]
TEXTS = ["", "x", "llama", "bert", "gpt2", "t5", "rwkv", "none", "yarn", "longrope", "neox", "head", "l2", "chunked"]
ODD = [
    (INT32, -1), (STRING, "x"), (FLOAT32, 2.0), (BOOL, True), (UINT16, 3), (ARRAY, (UINT32, [1, 2])),
    (ARRAY, (STRING, [])),
]  # fmt: skip


def bases() -> list[GGUFBytes]:
    """One plain model, and one with a value at every key."""
    rich, key = liquid(kind="bottleneck"), "liquid."
    rich.keys |= {
        key + "rope.type": (STRING, "norm"),
        key + "rope.dimension_count": (UINT32, 8),
        key + "rope.scaling.type": (STRING, "yarn"),
        key + "rope.scaling.factor": (FLOAT32, 2.0),
        key + "attention.qk_norm": (STRING, "none"),
        key + "attention.window_type": (STRING, "sliding"),
        key + "attention.sliding_window": (UINT32, 8),
        key + "attention.sliding_window_pattern": (ARRAY, (BOOL, [True, False] * 2)),
        key + "attention.temperature_length": (UINT32, 16),
        key + "attention.clamp_kqv": (FLOAT32, 8.0),
        key + "depth.min_layers": (UINT32, 1),
        key + "depth.adapter_scaled_by_gate": (BOOL, True),
        "tokenizer.ggml.bos_token_id": (UINT32, 1),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
    }
    return [llama(), rich]


def mutate(g: GGUFBytes, rng: random.Random) -> None:
    if rng.random() < 0.2:
        name = rng.choice(list(g.tensors))
        shape = [max(1, dim * rng.choice((1, 1, 2)) // rng.choice((1, 2))) for dim in g.tensors[name].shape]
        g.tensors[name] = f32(*shape)
        return
    key = rng.choice(list(g.keys))
    kind, content = g.keys[key]
    if rng.random() < 0.3:
        g.keys[key] = rng.choice(ODD)
    elif kind == ARRAY:
        items = list(content[1])
        items[rng.randrange(len(items))] = other(content[0], rng)
        g.keys[key] = (ARRAY, (content[0], items[rng.choice((0, 0, 1)) :]))
    else:
        g.keys[key] = (kind, other(kind, rng))


def other(kind: int, rng: random.Random):
    values = {STRING: TEXTS, FLOAT32: FLOATS, BOOL: [True, False], UINT32: NUMBERS, INT32: NUMBERS[:17]}
    return rng.choice(values[kind])


def passing(folder: Path) -> list[Path]:
    rng, paths, models = random.Random(1), [], bases()
    for i in range(N_FILES):
        g = copy.deepcopy(models[i % len(models)])
        mutate(g, rng)
        path = g.write(folder / f"{i}.gguf")
        try:
            with open_gguf(path) as f:
                check_loadable(f)
            paths.append(path)
        except LiquidError:
            path.unlink()
    return paths


def test_the_library_survives_what_the_checks_let_pass(tmp_path):
    paths = passing(tmp_path)
    assert len(paths) > N_FILES // 20
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input="\n".join(map(str, paths)), capture_output=True, text=True, timeout=300,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"}, check=False,
    )  # fmt: skip
    answers = done.stdout.splitlines()
    assert (done.returncode, len(answers)) == (0, len(paths)), (paths[len(answers) :][:1], done.stderr[-500:])
    assert answers.count("ran") > len(answers) // 2
