"""What people type to name a model, and which file of a repository that means."""

from __future__ import annotations

import pytest

from liquidcli.errors import NotFoundError, UsageError
from liquidcli.hub.choose import choose, model_files, quant_tag, shards
from liquidcli.hub.refs import is_spelled_like_ref, parse_ref, split_gates

COMMIT = "ab810cf68114990406fdf996510dd3d3c6adbdf5"


@pytest.mark.parametrize(("text", "repo_id", "revision", "tag", "file"), [
    ("owner/name", "owner/name", "main", None, None),
    ("owner/name:Q4_K_M", "owner/name", "main", "Q4_K_M", None),
    ("owner/name@v1.0:UD-Q4_K_XL", "owner/name", "v1.0", "UD-Q4_K_XL", None),
    ("owner/name@refs/pr/3", "owner/name", "refs/pr/3", None, None),
    ("owner/name/sub/model.gguf", "owner/name", "main", None, "sub/model.gguf"),
    ("owner/name:model.gguf", "owner/name", "main", None, "model.gguf"),
    ("hf.co/owner/name:Q8_0", "owner/name", "main", "Q8_0", None),
    ("huggingface.co/owner/name", "owner/name", "main", None, None),
    ("hf://owner/name@dev/sub/model.gguf", "owner/name", "dev", None, "sub/model.gguf"),
    ("hf://models/owner/name", "owner/name", "main", None, None),
    ("hf:owner/name:Q4_0", "owner/name", "main", "Q4_0", None),
    ("huggingface://owner/name/m.gguf", "owner/name", "main", None, "m.gguf"),
    ("https://huggingface.co/owner/name", "owner/name", "main", None, None),
    ("https://huggingface.co/owner/name/tree/v2", "owner/name", "v2", None, None),
    ("https://hf.co/owner/name:Q4_0", "owner/name", "main", "Q4_0", None),
    (f"https://huggingface.co/owner/name/resolve/{COMMIT}/a%20b.gguf?x=1", "owner/name", COMMIT, None, "a b.gguf"),
    ("https://huggingface.co/owner/name/blob/main/sub/x.gguf", "owner/name", "main", None, "sub/x.gguf"),
])  # fmt: skip
def test_hub_references(text: str, repo_id: str, revision: str, tag: str | None, file: str | None) -> None:
    ref = parse_ref(text)
    assert (ref.kind, ref.repo_id, ref.revision, ref.tag, ref.file) == ("hub", repo_id, revision, tag, file)
    assert ref.text == text


@pytest.mark.parametrize(
    "text", ["smollm2-135m", "model.gguf", "./a/b.gguf", "/abs/model.gguf", "dir/model.gguf", "~/m.gguf"]
)
def test_local_names(text: str) -> None:
    assert parse_ref(text).kind == "local"


def test_addresses() -> None:
    ref = parse_ref("https://example.org/files/some%20model.gguf?key=1")
    assert (ref.kind, ref.file) == ("url", "some model.gguf")
    assert parse_ref("http://127.0.0.1:8080/m.gguf").kind == "url"


@pytest.mark.parametrize("text", [
    "http://example.org/m.gguf", "ftp://example.org/m.gguf", "file:///etc/passwd", "https://example.org/page.html",
    "hf.co/nobody", "hf://datasets/a/b", "hf://owner/name/../../x.gguf", "https://hf.co/a/b/resolve/main/../x.gguf",
    "owner/name/../x/y.gguf",
])  # fmt: skip
def test_what_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ref(text)


@pytest.mark.parametrize(("text", "is_ref"), [
    ("owner/name", True), ("owner/name:Q4_K_M", True), ("hf.co/owner/name", True), ("hf://owner/name", True),
    ("https://x.org/m.gguf", True), ("./model.gguf", True), ("model.gguf", True), ("owner/name+gates", True),
    ("What is a/b?", False), ("hello", False), ("owner/name is good", False), ("", False), ("a/b/c", False),
    ("either/or?", False), ("/help", False), ("yes/", False), ("2+2", False),
])  # fmt: skip
def test_a_reference_or_a_prompt(text: str, is_ref: bool) -> None:
    assert is_spelled_like_ref(text) is is_ref


def test_the_gates_suffix() -> None:
    assert split_gates("owner/name:Q8_0+gates") == ("owner/name:Q8_0", True)
    assert split_gates("owner/name") == ("owner/name", False)


REPOSITORY = [
    "README.md", "config.json", "imatrix.gguf", "mmproj-model-f16.gguf", "model.BF16.gguf", "model.IQ4_XS.gguf",
    "model.Q2_K.gguf", "model.Q4_0.gguf", "model.Q4_K_M.gguf", "model.Q4_K_S.gguf", "model.Q8_0.gguf",
    "UD/model-UD-Q4_K_XL.gguf", "big/model-Q6_K-00001-of-00003.gguf", "big/model-Q6_K-00002-of-00003.gguf",
    "big/model-Q6_K-00003-of-00003.gguf",
]  # fmt: skip


@pytest.mark.parametrize(("tag", "chosen"), [
    (None, "model.Q4_K_M.gguf"), ("q8_0", "model.Q8_0.gguf"), ("Q4_K_XL", "UD/model-UD-Q4_K_XL.gguf"),
    ("UD-Q4_K_XL", "UD/model-UD-Q4_K_XL.gguf"), ("BF16", "model.BF16.gguf"), ("IQ4_XS", "model.IQ4_XS.gguf"),
    ("Q6_K", "big/model-Q6_K-00001-of-00003.gguf"),
])  # fmt: skip
def test_a_tag_chooses_a_file(tag: str | None, chosen: str) -> None:
    assert choose("r", REPOSITORY, tag)[0] == chosen


def test_the_order_without_a_tag() -> None:
    assert choose("r", ["b.Q5_0.gguf", "a.Q8_0.gguf"]) == ["a.Q8_0.gguf"]
    assert choose("r", ["b.Q5_0.gguf", "c.Q2_K.gguf"]) == ["b.Q5_0.gguf"]


def test_shards_belong_together() -> None:
    assert choose("r", REPOSITORY, "Q6_K") == [f"big/model-Q6_K-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    with pytest.raises(NotFoundError, match="00003-of-00003"):
        choose("r", REPOSITORY[:-1], "Q6_K")
    assert shards("plain.gguf") == ["plain.gguf"]


@pytest.mark.parametrize("tag", ["4_0", "K_M", "Q4", "Q9_0", "4_XS"])
def test_half_a_tag_is_no_tag(tag: str) -> None:
    with pytest.raises(NotFoundError, match=tag) as error:
        choose("owner/name", REPOSITORY, tag)
    assert "Q4_K_M" in error.value.hint


def test_named_files_and_sidecars() -> None:
    assert choose("r", REPOSITORY, file="model-UD-Q4_K_XL.gguf") == ["UD/model-UD-Q4_K_XL.gguf"]
    assert choose("r", REPOSITORY, file="mmproj-model-f16.gguf") == ["mmproj-model-f16.gguf"]
    assert not {"imatrix.gguf", "mmproj-model-f16.gguf"} & set(model_files(REPOSITORY))
    with pytest.raises(NotFoundError, match="no GGUF file"):
        choose("owner/name", ["config.json", "model.safetensors", "imatrix.gguf"])


@pytest.mark.parametrize(("path", "tag"), [
    ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"), ("m-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
    ("m-IQ3_XXS.gguf", "IQ3_XXS"), ("ggml_model_q4_0.gguf", "Q4_0"),
    ("sub/m.f16.gguf", "F16"), ("Q8_0/m.gguf", None), ("model.gguf", None), ("Qwen2-7B.Q2_K.gguf", "Q2_K"),
])  # fmt: skip
def test_tags_in_names(path: str, tag: str | None) -> None:
    assert quant_tag(path) == tag
