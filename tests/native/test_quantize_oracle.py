"""Quantized files are byte for byte what the unpatched llama-quantize writes: tensors, types, keys, padding."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest

from liquidcli import quant
from liquidcli.gguf_file import GGUFFile, open_gguf
from tests import gguf_bytes
from tests.gguf_bytes import FLOAT32, STRING, UINT32
from tests.golden.test_recipes import MODELS
from tests.quant_models import SHAPES, write

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif("LIQUID_ORACLE_DIR" not in os.environ, reason="LIQUID_ORACLE_DIR names no unpatched tools"),
]
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "F16", "BF16", "F32"]


# [ 3/ 291]  blk.0.attn_k.weight - [ 4096, 1024, 1, 1], type = f16, size = 8.00 MiB -> 2.25 MiB (q4_K)
SAID = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) .*?type = +(\w+), (?:[^(\n]*\((\w+)\))?", re.MULTILINE)


def upstream(*args) -> str:
    """Run llama-quantize with our words."""
    tool = Path(os.environ["LIQUID_ORACLE_DIR"]) / "llama-quantize"
    done = subprocess.run([tool, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def assert_same_file(ours: Path, theirs: Path) -> None:
    if ours.read_bytes() == theirs.read_bytes():
        return
    with open_gguf(ours) as a, open_gguf(theirs) as b:
        types = {n: (a.tensors[n].type.name, b.tensors[n].type.name) for n in a.tensors if a.tensors[n] != b.tensors[n]}
        data = [n for n in a.tensors if n not in types and a.raw(n).tobytes() != b.raw(n).tobytes()]
        keys = [k for k in b.metadata if a.metadata.get(k) != b.metadata[k]]
    pytest.fail(f"types: {types}, data: {data[:8]}, keys: {keys}")


def both(tmp_path: Path, source: Path, kind: str, words: list, **options) -> None:
    plan = quant.plan(source, kind, **options)
    quant.run(plan, tmp_path / "ours.gguf", n_threads=2)
    upstream(*words, source, tmp_path / "theirs.gguf", kind, 2)
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> file, made when first asked for."""
    folder = tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        path = folder / f"{name}.gguf"
        return path if path.exists() else write(path, name)

    return find


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("kind", TYPES)
def test_every_type(models, name, kind, tmp_path):
    both(tmp_path, models(name), kind, [])


COUNTED = r"blk\.[13]\.(ffn_down|attn_v)=q4_1"  # the rules count the tensors that an override leaves to them
OPTIONS = {
    "pure": (["--pure"], {"pure": True}),
    "output": (["--output-tensor-type", "q5_0"], {"output_tensor_type": "q5_0"}),
    "embeddings": (["--token-embedding-type", "Q8_0"], {"token_embedding_type": "Q8_0"}),
    "leave": (["--leave-output-tensor"], {"leave_output_tensor": True}),
    "counted": (["--tensor-type", COUNTED], {"tensor_type": [COUNTED]}),
    "two": (
        ["--tensor-type", "FFN_UP=f16", "--tensor-type", "ffn=q6_k"],
        {"tensor_type": ["FFN_UP=f16", "ffn=q6_k"]},
    ),
}


@pytest.mark.parametrize("words", list(OPTIONS))
@pytest.mark.parametrize("name", ["gqa4-512", "experts8-256", "odd-320"])
def test_options(models, name, words, tmp_path):
    words, options = OPTIONS[words]
    both(tmp_path, models(name), "Q4_K_M", words, **options)


@pytest.mark.parametrize("source", ["Q8_0", "Q5_1", "Q6_K"])
def test_requantize(models, source, tmp_path):
    first = tmp_path / "first.gguf"
    quant.run(quant.plan(models("gqa4-512"), source), first)
    both(tmp_path, first, "Q4_K_M", ["--allow-requantize"], allow_requantize=True)


def write_header(path: Path, f: GGUFFile) -> Path:
    """The described model as a sparse file of its real size: enough for a dry run."""
    arch, head = f.architecture, gguf_bytes.GGUFBytes()
    head.keys = {key: (UINT32, value) for key, value in f.metadata.items() if isinstance(value, int)}
    head.keys["general.architecture"] = (STRING, arch)
    head.keys |= {f"{arch}.context_length": (UINT32, 64), f"{arch}.feed_forward_length": (UINT32, 64)}
    head.keys[f"{arch}.embedding_length"] = (UINT32, f.tensors["output_norm.weight"].shape[0])
    head.keys[f"{arch}.expert_used_count"] = (UINT32, 2 if f.metadata[f"{arch}.expert_count"] else 0)
    for norm in ("layer_norm_epsilon", "layer_norm_rms_epsilon"):
        head.keys[f"{arch}.attention.{norm}"] = (FLOAT32, 1e-5)
    end = 0
    for info in f.tensors.values():
        head.extra_tensors += gguf_bytes.describe(info.name, info.shape, int(info.type), end)
        end += -(-info.n_elements * (2 if len(info.shape) > 1 else 4) // 32) * 32
    head.n_tensors = len(f.tensors)
    path.write_bytes(head.build())
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size + end)
    return path


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("liquid")])
@pytest.mark.parametrize("kind", TYPES[:-3])
def test_types_of_large_models(name, kind, tmp_path):
    """Eighty layers, eight experts, falcon: rules that the small models above do not reach."""
    said = upstream("--dry-run", write_header(tmp_path / "m.gguf", MODELS[name]), kind)
    theirs = {match[1]: match[3] or match[2] for match in SAID.finditer(said)}
    plan = quant.plan_file(MODELS[name], quant.file_type(kind))
    assert {t.name: t.type.name.lower() for t in plan.tensors} == {n: t.lower() for n, t in theirs.items()}


def write_imatrix(path: Path, model: Path) -> Path:
    """Random importance for every matrix, one expert never asked."""
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a calibration text.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    with open_gguf(model) as f:
        for name, info in f.tensors.items():
            if not name.startswith("blk.") or len(info.shape) < 2:
                continue
            n_expert = info.shape[2] if len(info.shape) > 2 else 1
            counts = rng.integers(1, 4000, (n_expert, 1)).astype(np.float32)
            counts[n_expert // 2 :][1:2] = 0
            sums = (rng.random((n_expert, info.shape[0]), np.float32) ** 4) * counts
            writer.add_tensor(f"{name}.in_sum2", sums)
            writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("dense-256", kind) for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_S", "Q6_K", "Q8_0")),
        *(("experts8-256", kind) for kind in ("Q4_0", "Q4_K_S", "Q8_0")),
        ("odd-320", "Q5_K_M"),
    ],
)
def test_imatrix(models, name, kind, tmp_path):
    imatrix = write_imatrix(tmp_path / "i.gguf", models(name))
    both(tmp_path, models(name), kind, ["--imatrix", imatrix], imatrix=imatrix)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The default model's file: LIQUID_SMOLLM2, else what `liquid pull` brings."""
    from liquidcli.hub.default_model import ALIAS
    from liquidcli.hub.resolve import resolve_file

    return Path(os.environ.get("LIQUID_SMOLLM2") or resolve_file(ALIAS))


@pytest.mark.parametrize("kind", TYPES[:-1])
def test_smollm2(smollm2, kind, tmp_path):
    both(tmp_path, smollm2, kind, ["--allow-requantize"], allow_requantize=True)


def test_imatrix_of_the_real_tool(smollm2, tmp_path):
    text = Path(__file__).parents[1] / "data" / "lincoln.txt"
    tool = Path(os.environ["LIQUID_ORACLE_DIR"]) / "llama-imatrix"
    imatrix = tmp_path / "i.gguf"
    words = ["-m", smollm2, "-f", text, "-o", imatrix, "-c", "64", "--chunks", "2", "--no-ppl"]
    subprocess.run([tool, *words], capture_output=True, check=True)
    words = ["--allow-requantize", "--imatrix", imatrix]
    both(tmp_path, smollm2, "Q4_0", words, allow_requantize=True, imatrix=imatrix)
