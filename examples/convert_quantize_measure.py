#!/usr/bin/env python3
"""From a Hugging Face checkpoint to quantized files, and what each of them costs in quality.

    python examples/convert_quantize_measure.py path/to/SmolLM2-135M-Instruct
    python examples/convert_quantize_measure.py checkpoint --types Q8_0 Q4_0 --text some.txt --ctx-size 512

Converts to F16, quantizes, and measures each file beside the F16 one: perplexity, and the KL divergence between the two
models' predictions, live. The text is a bundled one unless --text names another. Nothing is kept without --out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from liquidcli import converters, quant
from liquidcli.errors import LiquidError
from liquidcli.runtime.bench import BUNDLED_TEXT
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.perplexity import measure
from liquidcli.ui.console import out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a folder with config.json and safetensors")
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q4_K_M", "Q4_0"])
    parser.add_argument("--text", type=Path, default=BUNDLED_TEXT)
    parser.add_argument("--ctx-size", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--out", type=Path, default=None, help="keep the files in this folder")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = run(options, options.out or Path(folder))
        out.table(("file", ">MB", ">PPL", ">+/-", ">KLD mean", ">same top"), rows)
    except LiquidError as error:
        out.error(error)
        return error.exit_code
    return 0


def run(options: argparse.Namespace, folder: Path) -> list[list[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    name = options.checkpoint.resolve().name
    base = folder / f"{name}-F16.gguf"
    converters.run(converters.plan(options.checkpoint, outtype="f16"), base)
    rows = [row(base, base, options)]
    for kind in options.types:
        path = folder / f"{name}-{kind}.gguf"
        quant.run(quant.plan(base, kind), path)
        rows.append(row(path, base, options))
    return rows


def row(path: Path, base: Path, options: argparse.Namespace) -> list[str]:
    out.talk(f"measuring {path.name}")
    text = options.text.read_text("utf-8")
    full = DepthPolicy.parse("full")
    n_batch = 4 * options.ctx_size
    (found,) = measure(path, text, [full], options.ctx_size, options.chunks, n_batch, base_path=base)
    result = found.as_json()
    figures = [f"{path.stat().st_size / 1e6:.1f}", f"{result['ppl']:.4f}", f"{result['ppl_error']:.4f}"]
    return [path.name, *figures, f"{result['kld_mean']:.6f}", f"{result['same_top_p']:.1%}"]


if __name__ == "__main__":
    sys.exit(main())
