"""Tokenizer files to `tokenizer.*` keys: the right family, pre-tokenizer, types, merges, scores and special tokens."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from liquidcli.converters.checkpoint import Checkpoint
from liquidcli.converters.pretokenizers import KNOWN, PreTokenizer, as_json, identify, named
from liquidcli.converters.tokenizers import tokenizer_fields
from liquidcli.errors import IntegrityError, LiquidError, NotFoundError
from tests.hf_folders import (
    byte_level_tokenizer,
    sentencepiece_model,
    sentencepiece_tokenizer,
    split_step,
    write_json,
)

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = (
    gguf.TokenType[name] for name in ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "UNUSED", "BYTE")
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = TEKKEN.replace("+|[^", "+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^", 1).replace(
    r"*|\p{N}|", r"*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
)
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def keys(
    folder: Path, tokenizer: dict | None, settings: dict | None = None, config: dict | None = None, n_vocab: int = 300
) -> tuple[dict[str, Any], list[str]]:
    folder.mkdir(exist_ok=True)
    for name, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        if value is not None:
            write_json(folder / name, value)
    found, warnings = tokenizer_fields(Checkpoint(folder, config or {}, {}), n_vocab)
    return {field.key.removeprefix("tokenizer."): field.value for field in found}, warnings


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        (LEVEL, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, LEVEL]}, "smollm"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [DIGITS]}, LEVEL]}, "smollm"),
        (split_step(LLAMA3), "llama-bpe"),
        (split_step(LLAMA3.replace("{1,3}", "")), "qwen2"),
        (split_step(TEKKEN), "tekken"),
        (split_step(GPT4O), "granite-embed-multi-97m"),
    ],
)
def test_pre_tokenizers_are_told_by_their_structure(pre: dict, name: str) -> None:
    ignores_merges = name in ("llama-bpe", "tekken")
    assert identify({"pre_tokenizer": pre, "model": {"ignore_merges": ignores_merges}}).name == name


def test_what_shares_its_steps_is_told_by_merges_and_normalizer() -> None:
    llama3, nfc = split_step(LLAMA3), {"type": "NFC"}
    assert identify({"pre_tokenizer": llama3, "model": {"ignore_merges": True}}).name == "llama-bpe"
    assert identify({"pre_tokenizer": llama3, "model": {"ignore_merges": False}}).name == "dbrx"
    assert identify({"pre_tokenizer": LEVEL, "normalizer": nfc}).name == "olmo"
    digits = {"type": "Sequence", "pretokenizers": [DIGITS, LEVEL]}
    assert identify({"pre_tokenizer": digits, "normalizer": nfc}).name == "command-r"


def test_removing_what_a_regex_leaves_is_keeping_what_it_finds() -> None:
    pre = split_step(LLAMA3)
    pre["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    assert identify({"pre_tokenizer": pre}).name == "dbrx"
    pre["pretokenizers"][0]["pattern"]["Regex"] = LLAMA3.removesuffix(r"|\s+")  # leaves white space out
    with pytest.raises(LiquidError, match="splits text by"):
        identify({"pre_tokenizer": pre})


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_every_known_way_is_found_again_in_its_own_json(known: PreTokenizer) -> None:
    normalizers = [{"type": name} for name in known.normalizers]
    tokenizer = {
        "pre_tokenizer": as_json(known.steps),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "model": {"ignore_merges": known.ignores_merges},
    }
    assert identify(json.loads(json.dumps(tokenizer))) is known
    assert all(named(name) is known for name in (known.name, *known.also))


@pytest.mark.parametrize(
    "pre",
    [
        None,
        {**LEVEL, "add_prefix_space": True},
        {"type": "Sequence", "pretokenizers": [LEVEL, DIGITS]},
        {"type": "Sequence", "pretokenizers": [{**DIGITS, "individual_digits": False}, LEVEL]},
        split_step(LLAMA3.replace("{1,3}", "{1,2}")),
        {"type": "Sequence", "pretokenizers": [{**split_step(LLAMA3)["pretokenizers"][0], "invert": True}, LEVEL]},
        {"type": "Whitespace"},
    ],
)
def test_an_unknown_way_to_split_is_refused_and_shown(pre: dict | None) -> None:
    with pytest.raises(LiquidError, match=r"splits text by .*gpt-2, olmo, smollm") as caught:
        identify({"pre_tokenizer": pre})
    first = (pre or {}).get("pretokenizers", [pre])[0]
    assert f"by {first['type'] if first else 'nothing'}" in str(caught.value)


def test_normalizers_that_llama_cpp_lacks_are_refused() -> None:
    nfc = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    assert identify({"pre_tokenizer": split_step(LLAMA3.replace("{1,3}", "")), "normalizer": nfc}).name == "qwen2"
    with pytest.raises(LiquidError, match="normalizes text by NFC"):
        identify({"pre_tokenizer": split_step(TEKKEN), "normalizer": {"type": "NFC"}})


def test_byte_level_bpe(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    n_base = len(tokenizer["model"]["vocab"])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    tokenizer["added_tokens"] += [
        {"id": n_base, "content": "<tool>", "special": False, **plain},
        {"id": n_base + 1, "content": "<|end|>", "special": False, **plain},
    ]
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<tool>", "add_prefix_space": False}
    found, warnings = keys(tmp_path / "t", tokenizer, settings, {"unk_token_id": 1, "eos_token_id": [5, 6]})
    assert found["ggml.model"] == "gpt2" and found["ggml.pre"] == "gpt-2" and not warnings
    assert found["ggml.tokens"][:3] == ["<s>", "</s>", "!"] and len(found["ggml.tokens"]) == 300
    assert found["ggml.tokens"][n_base + 2] == f"[PAD{n_base + 2}]"
    types = found["ggml.token_type"]
    assert types[:3] == [CONTROL, CONTROL, NORMAL]
    assert types[n_base : n_base + 3] == [USER, CONTROL, UNUSED]
    assert found["ggml.merges"][:2] == ["h e", "l l"]
    ids = {name: found[f"ggml.{name}_token_id"] for name in ("bos", "eos", "padding", "unknown")}
    assert ids == {"bos": 0, "eos": 1, "padding": n_base, "unknown": 1}
    assert found["ggml.add_bos_token"] is False and found["ggml.add_space_prefix"] is False
    assert "ggml.scores" not in found


def test_merges_in_pairs_may_hold_spaces(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(merges=("h e",))
    tokenizer["model"]["merges"] = [["h", "e"], ["a b", "c"]]
    tokenizer["model"]["vocab"] |= {"a b": 280, "a bc": 281}
    assert keys(tmp_path / "t", tokenizer)[0]["ggml.merges"] == ["h e", "a\u0120b c"]


@pytest.mark.parametrize(
    ("merges", "match"),
    [
        (["h e x"], "two texts"),
        ([["h"]], "two texts"),
        ([3], "two texts"),
        ([["", "h"]], "two texts"),
        (["h zz"], "needs the token 'zz'"),
        (["h l"], "needs the token 'hl'"),
        ([], "no model.merges"),
        ({"a": 1}, "no model.merges"),
    ],
)
def test_broken_merges(tmp_path: Path, merges: Any, match: str) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer["model"]["merges"] = merges
    with pytest.raises(IntegrityError, match=match):
        keys(tmp_path / "t", tokenizer)


@pytest.mark.parametrize("number", [300, -1, "7", 2.5, True, 1 << 80])
def test_token_numbers_outside_of_the_model(tmp_path: Path, number: Any) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer["model"]["vocab"]["extra"] = number
    with pytest.raises(IntegrityError, match="extra"):
        keys(tmp_path / "t", tokenizer)


def test_two_tokens_of_one_number(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer["model"]["vocab"]["extra"] = 2
    with pytest.raises(IntegrityError, match="the number 2"):
        keys(tmp_path / "t", tokenizer)


@pytest.mark.parametrize("name", ["dropout", "continuing_subword_prefix", "end_of_word_suffix"])
def test_bpe_settings_that_llama_cpp_lacks(tmp_path: Path, name: str) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer["model"][name] = 0.1 if name == "dropout" else "@@"
    with pytest.raises(LiquidError, match=name):
        keys(tmp_path / "t", tokenizer)


def test_other_kinds_of_models(tmp_path: Path) -> None:
    with pytest.raises(LiquidError, match="'Unigram' model"):
        keys(tmp_path / "a", byte_level_tokenizer(model={"type": "Unigram", "vocab": []}))
    with pytest.raises(NotFoundError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        keys(tmp_path / "b", None)


def test_ignored_merges_that_differ_are_told(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(pre_tokenizer=split_step(TEKKEN))
    assert "ignore_merges" in keys(tmp_path / "t", tokenizer)[1][0]
    tokenizer["model"]["ignore_merges"] = True
    assert not keys(tmp_path / "t", tokenizer)[1]


def test_text_that_is_no_unicode_is_refused_when_packed(tmp_path: Path) -> None:
    from liquidcli.converters import fields

    with pytest.raises(IntegrityError, match="no valid Unicode"):
        fields.pack_field(fields.array("tokenizer.ggml.tokens", ["\ud800"], gguf.GGUFValueType.STRING))


def template(*pieces: str) -> list[dict]:
    return [
        {"Sequence" if piece in "AB" else "SpecialToken": {"id": piece, "type_id": 0}} for piece in pieces
    ]


@pytest.mark.parametrize(
    ("single", "pair", "added", "ids"),
    [
        (("<s>", "A"), ("<s>", "A", "<s>", "B"), {"bos": True, "sep": False}, {"bos": 0, "eos": 1}),
        (("<s>", "A", "</s>"), ("<s>", "A", "B", "</s>"), {"bos": True, "eos": True}, {"bos": 0, "eos": 1}),
        (("A", "</s>"), ("A", "</s>", "B", "</s>"), {"bos": False, "eos": True, "sep": False}, {"bos": 0, "eos": 1}),
        (("A", "!"), ("A", "B"), {"bos": False, "eos": True}, {"bos": 0, "eos": 2, "eot": 1}),
        (("A",), ("A", "B"), {"bos": False}, {"bos": 0, "eos": 1}),
    ],
)
def test_what_is_put_around_a_text(tmp_path: Path, single: tuple, pair: tuple, added: dict, ids: dict) -> None:
    processor = {"type": "TemplateProcessing", "single": template(*single), "pair": template(*pair)}
    tokenizer = byte_level_tokenizer(post_processor={"type": "Sequence", "processors": [processor]})
    tokenizer["added_tokens"].append({"id": 2, "content": "!", "special": True})
    found, _ = keys(tmp_path / "t", tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "add_eos_token": None})
    assert {kind: found[key] for kind in ("bos", "eos", "sep") if (key := f"ggml.add_{kind}_token") in found} == added
    assert {kind: found[key] for kind in ("bos", "eos", "eot") if (key := f"ggml.{kind}_token_id") in found} == ids


def test_a_special_token_outside_of_the_vocabulary_is_left_out_and_told(tmp_path: Path) -> None:
    found, warnings = keys(tmp_path / "t", byte_level_tokenizer(), {}, {"pad_token_id": 300, "bos_token_id": -1})
    assert not [key for key in found if key.endswith("_token_id")]
    assert len(warnings) == 2 and "pad_token_id 300" in " ".join(warnings)


def test_chat_templates(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text("{{ file }}")
    assert keys(folder, byte_level_tokenizer(), {})[0]["chat_template"] == "{{ file }}"
    assert keys(folder, byte_level_tokenizer(), {"chat_template": "{{ own }}"})[0]["chat_template"] == "{{ file }}"
    (folder / "chat_template.jinja").unlink()
    assert keys(folder, byte_level_tokenizer(), {"chat_template": "{{ own }}"})[0]["chat_template"] == "{{ own }}"
    several = [{"name": "default", "template": "{{ a }}"}, {"name": "tool use", "template": "{{ b }}"}, {"x": 1}]
    found, _ = keys(folder, byte_level_tokenizer(), {"chat_template": several})
    assert found["chat_template"] == "{{ a }}" and found["chat_template.tool_use"] == "{{ b }}"
    assert found["chat_templates"] == ["tool_use"]
    (folder / "chat_template.jinja").write_text("{{ file }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ rag }}")
    found, _ = keys(folder, byte_level_tokenizer(), {})
    assert found["chat_template"] == "{{ file }}" and found["chat_template.rag"] == "{{ rag }}"


def test_chat_templates_without_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ file }}")
    assert keys(tmp_path, byte_level_tokenizer())[0]["chat_template"] == "{{ file }}"
    (tmp_path / "chat_template.jinja").unlink()
    write_json(tmp_path / "chat_template.json", {"chat_template": "{{ json }}"})
    assert keys(tmp_path, byte_level_tokenizer())[0]["chat_template"] == "{{ json }}"


@pytest.mark.parametrize(
    ("ends", "eot", "told"),
    [
        ([1], None, ""),
        ([1, 3], 3, ""),
        (3, 3, ""),
        ([1, 265], None, ""),  # a word that llama.cpp knows
        ([3, 4], 3, "texts at '#' too"),
        ([999, True, "x"], None, ""),
    ],
)
def test_several_tokens_that_end_a_text(tmp_path: Path, ends: Any, eot: int | None, told: str) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer["added_tokens"].append({"id": 265, "content": "<|eom_id|>", "special": True})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": ends})
    found, warnings = keys(tmp_path, tokenizer, {"bos_token": "<s>", "eos_token": "</s>"})
    assert found["ggml.eos_token_id"] == 1 and found.get("ggml.eot_token_id") == eot
    assert (told in " ".join(warnings)) if told else not warnings


def test_the_first_of_several_ends_in_config_json(tmp_path: Path) -> None:
    assert keys(tmp_path, byte_level_tokenizer(), None, {"eos_token_id": [7, 8]})[0]["ggml.eos_token_id"] == 7


def test_added_tokens_that_only_tokenizer_config_lists(tmp_path: Path) -> None:
    decoder = {"290": {"content": "<extra>", "special": True}, "2": {"content": "other", "special": True}, "x": {}}
    found, _ = keys(tmp_path / "t", byte_level_tokenizer(), {"added_tokens_decoder": decoder})
    assert found["ggml.tokens"][290] == "<extra>" and found["ggml.token_type"][290] == CONTROL
    assert found["ggml.tokens"][2] == "!" and found["ggml.token_type"][2] == NORMAL


def test_tokens_that_strip_their_surroundings_are_told(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer["added_tokens"][1]["lstrip"] = True
    assert "strips its surroundings" in keys(tmp_path / "t", tokenizer)[1][0]


def tekken(**changes: Any) -> dict[str, Any]:
    pieces = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b" h", b"left out"]
    vocab = [{"rank": i, "token_bytes": base64.b64encode(one).decode(), "token_str": None} for i, one in
             enumerate(pieces)]  # fmt: skip
    config = {"pattern": TEKKEN, "default_vocab_size": 280, "default_num_special_tokens": 20}
    return {"config": {**config, **changes.pop("config", {})}, "vocab": vocab, **changes}


def test_mistrals_own_file(tmp_path: Path) -> None:
    write_json(tmp_path / "tekken.json", tekken())
    found, warnings = keys(tmp_path, None, None, {"eos_token_id": 2}, 290)
    assert found["ggml.pre"] == "tekken" and not warnings
    assert found["ggml.tokens"][:4] == ["<unk>", "<s>", "</s>", "[INST]"]
    assert found["ggml.tokens"][20 + ord("h")] == "h" and found["ggml.tokens"][20 + 32] == "\u0120"
    assert found["ggml.tokens"][276:281] == ["he", "ll", "hell", "\u0120h", "[PAD280]"]
    assert found["ggml.merges"] == ["h e", "l l", "he ll", "\u0120 h"]
    assert found["ggml.bos_token_id"] == 1 and found["ggml.eos_token_id"] == 2 and found["ggml.add_bos_token"] is True


def test_mistrals_own_file_may_list_its_special_words(tmp_path: Path) -> None:
    listed = [{"rank": 1, "token_str": "<s>", "is_control": True}, {"rank": 5, "token_str": "[THINK]"}]
    write_json(tmp_path / "tekken.json", tekken(special_tokens=listed))
    tokens = keys(tmp_path, None, None, {}, 290)[0]["ggml.tokens"]
    assert tokens[:6] == ["<SPECIAL_0>", "<s>", "<SPECIAL_2>", "<SPECIAL_3>", "<SPECIAL_4>", "[THINK]"]


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"pattern": None}},
        {"config": {"default_vocab_size": "x"}},
        {"config": {"default_vocab_size": 10}},
        {"config": {"default_num_special_tokens": -1}},
        {"config": {"default_vocab_size": 30}},
        {"vocab": [{"rank": 0, "token_bytes": "?"}]},
        {"vocab": [{"rank": 1, "token_bytes": "AA=="}]},
        {"vocab": [7]},
        {"vocab": None},
        {"special_tokens": [{"rank": 99, "token_str": "x"}]},
        {"special_tokens": [{"rank": 0, "token_str": "x"}, {"rank": 0, "token_str": "y"}]},
        {"special_tokens": [3]},
    ],
)
def test_a_broken_tekken_file(changes: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "tekken.json", tekken(**changes))
    with pytest.raises(IntegrityError, match=r"tekken\.json"):
        keys(tmp_path, None)


# SentencePiece


def test_scores_come_from_the_order_of_merges(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer()
    found, warnings = keys(tmp_path / "t", tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    assert found["ggml.model"] == "llama" and found["ggml.pre"] == "default" and not warnings
    vocab = tokenizer["model"]["vocab"]
    made = [found["ggml.scores"][vocab[word]] for word in ("he", "ll", "hell", "hello", "\u2581w", "\u2581wo")]
    assert made == sorted(made, reverse=True) and len(set(made)) == len(made)
    types = found["ggml.token_type"]
    assert types[:4] == [CONTROL, CONTROL, CONTROL, BYTE] and types[vocab["he"]] == NORMAL
    assert types[299] == UNUSED and found["ggml.scores"][299] == -10000.0
    assert found["ggml.add_bos_token"] is True and "ggml.add_space_prefix" not in found
    assert found["ggml.unknown_token_id"] == 0 and "ggml.merges" not in found


def test_merges_that_scores_cannot_express_are_told(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer["model"]["vocab"] |= {"hel": 290, "ell": 291}  # h + ell could be merged, and no merge says so
    tokenizer["model"]["merges"].append(["hel", "l"])  # long after he + ll made the same token
    _, warnings = keys(tmp_path / "t", tokenizer)
    assert "without tokenizer.model" in warnings[0] and "(1 out of order, 1 that llama.cpp makes" in warnings[0]


@pytest.mark.parametrize(
    ("changes", "adds"),
    [
        ({}, None),
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}}, False),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"}}, None),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "add_prefix_space": True}}, None),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "add_prefix_space": False}}, False),
    ],
)
def test_whether_a_space_is_put_first(tmp_path: Path, changes: dict, adds: bool | None) -> None:
    assert keys(tmp_path / "t", sentencepiece_tokenizer(**changes))[0].get("ggml.add_space_prefix") is adds


def test_a_space_only_at_the_very_beginning_is_told(tmp_path: Path) -> None:
    changes = {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}
    found, warnings = keys(tmp_path / "t", sentencepiece_tokenizer(**changes))
    assert "ggml.add_space_prefix" not in found and "after a special token" in warnings[0]


@pytest.mark.parametrize("step", [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": "x"}, "content": "y"}])
def test_other_preparation_is_refused(tmp_path: Path, step: dict) -> None:
    with pytest.raises(LiquidError, match="prepares text by"):
        keys(tmp_path / "t", sentencepiece_tokenizer(normalizer=step))


def test_tokenizer_model_is_read_without_its_library(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": 290}))
    decoder = {"291": {"content": "<|x|>", "special": False}}
    found, warnings = keys(folder, None, {"added_tokens_decoder": decoder}, {"bos_token_id": 1, "eos_token_id": 2})
    texts = [one.decode() if isinstance(one, bytes) else one for one in found["ggml.tokens"]]
    assert texts[:4] == ["<unk>", "<s>", "</s>", "<0x00>"] and not warnings
    assert found["ggml.token_type"][:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert texts[290:292] == ["<tool>", "<|x|>"] and found["ggml.token_type"][290:292] == [USER, CONTROL]
    vocab = sentencepiece_tokenizer()["model"]["vocab"]
    assert found["ggml.scores"][vocab["hello"]] == -(vocab["hello"] - 259)
    assert found["ggml.bos_token_id"] == 1 and found["ggml.scores"][290] == -1000.0


def test_added_tokens_beyond_the_model_are_left_out_and_told(tmp_path: Path) -> None:
    """Many fine-tunes name a pad token for which the embedding has no row."""
    tokenizer = sentencepiece_tokenizer()
    n_vocab = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append({"id": n_vocab, "content": "<pad>", "special": True})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": n_vocab}))
    for given in (tokenizer, None):
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
        found, warnings = keys(tmp_path, given, None, {"pad_token_id": n_vocab}, n_vocab=n_vocab)
        assert len(found["ggml.tokens"]) == n_vocab and "ggml.padding_token_id" not in found
        assert any(f"1 added tokens lie beyond the model's {n_vocab}" in one and "'<pad>'" in one for one in warnings)


def test_a_tokenizer_model_alone_still_knows_its_special_words(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    found, _ = keys(tmp_path, None, {"bos_token": "</s>", "eos_token": "<s>"})
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"]) == (2, 1)


def test_symbols_that_a_tokenizer_model_defines(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(defined=("\u2581\u2581", "<tool>")))
    found, _ = keys(tmp_path, None)
    places = [i for i, kind in enumerate(found["ggml.token_type"]) if kind == USER]
    assert [found["ggml.tokens"][i] for i in places] == [b"  ", b"<tool>"]


def test_gemmas_split_never_splits(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    found, warnings = keys(tmp_path, sentencepiece_tokenizer(normalizer=replace, pre_tokenizer=split))
    assert found["ggml.add_space_prefix"] is False and not warnings


def test_a_unigram_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(kind=1))
    with pytest.raises(LiquidError, match="kind 1, expected BPE"):
        keys(tmp_path, None)


def test_every_cut_of_tokenizer_model_is_an_error_or_a_shorter_vocabulary(tmp_path: Path) -> None:
    data = sentencepiece_model()
    for size in range(0, len(data), 37):
        (tmp_path / "tokenizer.model").write_bytes(data[:size])
        with pytest.raises(LiquidError):
            keys(tmp_path, None)
    (tmp_path / "tokenizer.model").write_bytes(b"\xff" * 40)
    with pytest.raises(IntegrityError, match="no SentencePiece model"):
        keys(tmp_path, None)
