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
from liquidcli.errors import UsageError
from liquidcli.gguf_file import GGUFFile, open_gguf
from liquidcli.quant.types import FILE_TYPES, TENSOR_TYPES
from tests import gguf_bytes
from tests.gguf_bytes import FLOAT32, INT32, STRING, UINT16, UINT32, GGUFBytes
from tests.golden.test_recipes import MODELS
from tests.quant_models import SHAPES, Shape, make, write

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif("LIQUID_ORACLE_DIR" not in os.environ, reason="LIQUID_ORACLE_DIR names no unpatched tools"),
]
TYPES = list(FILE_TYPES)
NO_BLOCKS_OF_128 = ("experts4-512", "odd-320", "tied-320", "smollm2-135m", "falcon-7b")  # rows of odd lengths
BLIND = [name for name in TYPES if name.startswith(("IQ1", "IQ2"))] + ["Q2_K_S", "IQ3_XXS", "IQ3_XS"]


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


def cases(names, kinds) -> list[tuple[str, str]]:
    """Models with types, but for the pairs that llama-quantize refuses: see test_types_without_a_fallback."""
    return [(name, kind) for name in names for kind in kinds if kind != "Q1_0" or name not in NO_BLOCKS_OF_128]


@pytest.mark.parametrize(("name", "kind"), cases(SHAPES, [name for name in TYPES if name not in BLIND]))
def test_every_type(models, name, kind, tmp_path):
    both(tmp_path, models(name), kind, [])


@pytest.mark.parametrize("name", ["experts4-512", "odd-320", "tied-320"])
def test_types_without_a_fallback(models, name, tmp_path):
    """Rows that do not divide into Q1_0's blocks of 128: llama-quantize gives up, ours leaves them in F16."""
    tool = Path(os.environ["LIQUID_ORACLE_DIR"]) / "llama-quantize"
    done = subprocess.run(
        [tool, models(name), tmp_path / "theirs.gguf", "Q1_0"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "no tensor type fallback" in done.stdout + done.stderr
    plan = quant.plan(models(name), "Q1_0")
    odd = {t.type.name for t in plan.tensors if len(t.shape) > 1 and t.shape[0] % 128}
    assert odd <= {"F16", "Q8_0"} and "F16" in odd  # Q8_0: the output tensor
    assert quant.run(plan, tmp_path / "ours.gguf").outputs


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["dense-256", "experts8-256"])
def test_every_type_with_importance(models, importances, name, kind, tmp_path):
    both(tmp_path, models(name), kind, ["--imatrix", importances(name)], imatrix=importances(name))


@pytest.mark.parametrize("kind", BLIND)
def test_types_that_need_importance(models, kind, tmp_path):
    """Where the tool refuses, so do we."""
    source = models("dense-256")
    tool = Path(os.environ["LIQUID_ORACLE_DIR"]) / "llama-quantize"
    done = subprocess.run([tool, source, tmp_path / "theirs.gguf", kind], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "importance matrix" in done.stdout + done.stderr
    with pytest.raises(UsageError, match="without an importance matrix"):
        quant.run(quant.plan(source, kind), tmp_path / "ours.gguf")


def test_every_tensor_type_is_used_with_its_recipe(models, importances):
    """What the comparisons above would otherwise not reach."""
    used = {
        tensor.type
        for kind in TYPES
        for name in ("dense-256", "experts8-256", "gqa4-512")
        for tensor in quant.plan(models(name), kind, imatrix=importances(name)).tensors
    }
    assert used == set(TENSOR_TYPES.values()) - {TENSOR_TYPES["NVFP4"]}


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


@pytest.mark.parametrize("kind", [kind for kind in TENSOR_TYPES if kind not in ("F32", "NVFP4")])
def test_every_tensor_type_by_name(models, importances, kind, tmp_path):
    """NVFP4 is left out: llama-quantize makes it of nothing but a tensor that is NVFP4 already."""
    words, imatrix = ["--tensor-type", f"ffn_down={kind}"], importances("dense-256")
    both(tmp_path, models("dense-256"), "Q8_0", ["--imatrix", imatrix, *words], imatrix=imatrix, tensor_type=words[1:])


def test_types_from_a_file_and_keys(models, tmp_path):
    (tmp_path / "types.txt").write_text("attn_q=q8_0\n  ffn_up=q5_k\tblk\\.1\\.=f16\n")
    keys = ["llama.context_length=int:77", "general.name=str:other", "llama.rope.scale=float:0.1", "liquid.x=bool:true"]
    words = ["--tensor-type-file", tmp_path / "types.txt", *(word for key in keys for word in ("--override-kv", key))]
    types = quant.words_of_file(tmp_path / "types.txt")
    both(tmp_path, models("gqa4-512"), "Q4_K_S", words, tensor_type=types, override_kv=keys)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--include-weights", "ffn_down", "--include-weights", "attn_v"], {"include_weights": ["ffn_down", "attn_v"]}),
        (["--exclude-weights", "blk.0."], {"exclude_weights": ["blk.0."]}),
    ],
)
@pytest.mark.parametrize("kind", ["Q4_0", "IQ4_XS"])
def test_importance_of_some_tensors(models, importances, kind, words, options, tmp_path):
    imatrix = importances("experts8-256")
    both(tmp_path, models("experts8-256"), kind, ["--imatrix", imatrix, *words], imatrix=imatrix, **options)


@pytest.mark.parametrize("name", ["gqa4-512", "experts8-256"])
def test_copies(models, name, tmp_path):
    first = tmp_path / "first.gguf"
    quant.run(quant.plan(models(name), "Q4_K_S"), first)
    both(tmp_path, first, "COPY", ["--override-kv", "liquid.x=int:3"], override_kv=["liquid.x=int:3"])


def test_copies_of_a_split_model(tmp_path):
    first = write_shards(tmp_path, 3)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    quant.run(quant.plan(first, "COPY"), ours)
    upstream(first, theirs, "COPY")
    with open_gguf(ours) as a, open_gguf(theirs) as b:
        assert a.tensors == b.tensors and all(a.raw(name).tobytes() == b.raw(name).tobytes() for name in a.tensors)


@pytest.mark.parametrize("kind", ["Q4_K_M", "IQ3_M"])
def test_files_of_a_split_model(models, kind, tmp_path):
    first = write_shards(tmp_path, 3)
    plan = quant.plan(first, kind, keep_split=True)
    result = quant.run(plan, tmp_path / "ours.gguf")
    upstream("--keep-split", first, tmp_path / "theirs.gguf", kind)
    theirs = sorted(tmp_path.glob("theirs-*.gguf"))
    assert [path.name.replace("theirs", "ours") for path in theirs] == [path.name for path in result.outputs]
    for path in theirs:
        assert path.read_bytes() == path.with_name(path.name.replace("theirs", "ours")).read_bytes()
    assert sum(path.stat().st_size for path in theirs) == plan.size_bytes


def write_shards(folder: Path, n: int) -> Path:
    """The dense model in n files, its tensors dealt out as they come."""
    whole = make(SHAPES["dense-256"])
    names = list(whole.tensors)
    for no in range(n):
        part = names[no * len(names) // n : (no + 1) * len(names) // n]
        split = {"split.no": (UINT16, no), "split.count": (UINT16, n), "split.tensors.count": (INT32, len(names))}
        keys = {**(whole.keys if no == 0 else {}), **split}
        GGUFBytes(keys, {name: whole.tensors[name] for name in part}).write(folder / f"m-{no + 1:05d}-of-{n:05d}.gguf")
    return folder / f"m-00001-of-{n:05d}.gguf"


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


@pytest.mark.parametrize(("name", "kind"), cases([n for n in MODELS if not n.startswith("liquid")], TYPES))
def test_types_of_large_models(name, kind, tmp_path):
    """Eighty layers, eight experts, falcon: rules that the small models above do not reach."""
    said = upstream("--dry-run", write_header(tmp_path / "m.gguf", MODELS[name]), kind)
    theirs = {match[1]: match[3] or match[2] for match in SAID.finditer(said)}
    plan = quant.plan_file(MODELS[name], quant.file_type(kind))
    assert {t.name: t.type.name.lower() for t in plan.tensors} == {n: t.lower() for n, t in theirs.items()}


SIXTEEN_LAYERS = [
    Shape(n_layer=16, n_embd=width, n_head=8, n_head_kv=heads_kv, n_ff=width, n_expert=experts, tied=tied)
    for width, heads_kv in ((256, 8), (512, 2))
    for experts in (0, 4, 8)
    for tied in (False, True)
]


@pytest.mark.parametrize("shape", SIXTEEN_LAYERS, ids=lambda s: f"{s.n_embd}-{s.n_expert}-{s.tied}")
def test_types_of_sixteen_layers(shape, tmp_path):
    """Every rule about layers, experts and shared heads, with and without importance; nothing is written."""
    source = make(shape, seed=None).write(tmp_path / "m.gguf")
    imatrix = write_imatrix(tmp_path / "i.gguf", source)
    for kind in TYPES:
        for given in (None, imatrix):
            words = ["--imatrix", given] if given else []
            theirs = {m[1]: m[3] or m[2] for m in SAID.finditer(upstream("--dry-run", *words, source, kind))}
            plan = quant.plan(source, kind, imatrix=given)
            ours = {t.name: t.type.name.lower() for t in plan.tensors}
            assert ours == {name: told.lower() for name, told in theirs.items()}, (kind, given)


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


@pytest.fixture(scope="module")
def importances(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("importances")

    def find(name: str) -> Path:
        path = folder / f"{name}.gguf"
        return path if path.exists() else write_imatrix(path, models(name))

    return find


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The default model's file: LIQUID_SMOLLM2, else what `liquid pull` brings."""
    from liquidcli.hub.default_model import ALIAS
    from liquidcli.hub.resolve import resolve_file

    return Path(os.environ.get("LIQUID_SMOLLM2") or resolve_file(ALIAS))


@pytest.mark.parametrize("kind", [name for name in TYPES if name not in [*BLIND, "Q1_0"]])
def test_smollm2(smollm2, kind, tmp_path):
    both(tmp_path, smollm2, kind, ["--allow-requantize"], allow_requantize=True)


@pytest.fixture(scope="module")
def measured(smollm2, tmp_path_factory):
    """What the real tool measured over a short text, in both of its forms."""
    text = Path(__file__).parents[1] / "data" / "lincoln.txt"
    folder = tmp_path_factory.mktemp("measured")
    for form in ("gguf", "dat"):
        words = ["-m", smollm2, "-f", text, "-c", "64", "--chunks", "2", "--no-ppl", "-o", folder / f"i.{form}"]
        tool = Path(os.environ["LIQUID_ORACLE_DIR"]) / "llama-imatrix"
        subprocess.run([tool, *words, "--output-format", form], capture_output=True, check=True)
    return folder


IMPORTANT = [("gguf", kind) for kind in TYPES[:-3] if kind != "Q1_0"]
IMPORTANT += [("dat", kind) for kind in ("Q4_0", "IQ2_M", "Q4_K_M")]  # the same numbers but for rounding


@pytest.mark.parametrize(("form", "kind"), IMPORTANT)
def test_smollm2_with_the_importance_of_the_real_tool(smollm2, measured, form, kind, tmp_path):
    imatrix = measured / f"i.{form}"
    words = ["--allow-requantize", "--imatrix", imatrix]
    both(tmp_path, smollm2, kind, words, allow_requantize=True, imatrix=imatrix)
