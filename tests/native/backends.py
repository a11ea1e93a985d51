"""Offloaded layers against the CPU's, same decisions: a library compiled with a GPU backend compared with itself.

    GGML_VK_VISIBLE_DEVICES=0 python -m tests.native.backends --family linear-adapter --family every-scope
    python -m tests.native.backends --rpc --family drop-span2

--rpc starts the server that was compiled with the library (-DGGML_RPC=ON) on this machine, and makes it the device.
Everything on the device, and half of the layers. Decisions are forced, half of them runs: a prompt, then single tokens.
Without flash attention memory is F32, with it F16. Knows no tolerance.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from liquidcli.llama import depth, library
from liquidcli.runtime.engine import Engine
from tests.tiny import make_model, random_tokens
from tests.tiny_families import FAMILIES
from tests.tiny_gguf import write_gguf

N_PROMPT, N_SINGLE = 40, 8
MEMORY = {"off": "f32", "on": "f16"}  # by flash attention


def logits(path: Path, tokens: np.ndarray, n_gpu_layers: int, flash: str) -> tuple[np.ndarray, float]:
    """Of all tokens [N_PROMPT + N_SINGLE, n_vocab], and the executed fraction."""
    kinds = {"type_k": MEMORY[flash], "type_v": MEMORY[flash], "flash_attn": flash}
    with Engine.load(path, n_ctx=256, n_threads=1, n_gpu_layers=n_gpu_layers, **kinds) as engine:
        if engine.info.gates:
            table = np.random.default_rng(4).random((1, len(tokens), len(engine.info.gates))) < 0.5
            depth.set_forced(engine.context.pointer, table)
            depth.set_depth(engine.context.pointer, depth.Mode.FORCED)
        rows = [engine.decode(tokens[:N_PROMPT], logits="all")]
        rows += [engine.decode(tokens[i : i + 1], logits="all") for i in range(N_PROMPT, len(tokens))]
        return np.concatenate(rows), engine.depth_stats().executed_fraction


def compare(family: str) -> list[str]:
    """One line per setting: max |difference| / max |CPU|."""
    model = make_model(family)
    tokens = random_tokens(model.config, 1, N_PROMPT + N_SINGLE, seed=3)[0].numpy().astype(np.int32)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(model, Path(folder) / "tiny.gguf")
        for flash in MEMORY:
            cpu, executed = logits(path, tokens, 0, flash)
            for layers in (99, model.config.num_hidden_layers // 2):
                found, share = logits(path, tokens, layers, flash)
                worst = np.abs(found - cpu).max() / np.abs(cpu).max()
                same = "same decisions" if share == executed else f"executed {share:.4f}, CPU {executed:.4f}"
                lines.append(f"{family:24} flash {flash:3} {layers:2} layers offloaded: {worst:.1e}, {same}")
    return lines


def server() -> Path | None:
    """The RPC server beside the library."""
    path = Path(library.load()._lib._name).parent / "ggml-rpc-server"
    return path if path.is_file() else None


@contextlib.contextmanager
def remote_device() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([server(), "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL)
    try:
        _wait(port)
        folder = server().parent
        rpc, ggml = ctypes.CDLL(str(folder / "libggml-rpc.so")), ctypes.CDLL(str(folder / "libggml.so"))
        rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
        ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
        ggml.ggml_backend_register(rpc.ggml_backend_rpc_add_server(f"127.0.0.1:{port}".encode()))
        yield
        assert process.poll() is None, "the server is gone"
    finally:
        process.kill()
        process.wait()


def _wait(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError("the RPC server does not answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", required=True, help="name, or all")
    parser.add_argument("--rpc", action="store_true")
    args = parser.parse_args()
    with remote_device() if args.rpc else contextlib.nullcontext():
        for family in list(FAMILIES) if "all" in args.family else args.family:
            print("\n".join(compare(family)), flush=True)


if __name__ == "__main__":
    main()
