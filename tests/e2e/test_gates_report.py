"""`liquid gates report` as a user types it."""

from __future__ import annotations

import json

import pytest

from tests.command import failed

FEW = ("--chunks", "1", "--n-prompts", "3", "-n", "6", "--n-questions", "1", "-t", "1")


def test_every_kind_of_text_prompts_and_questions_are_told(liquid, models, tmp_path):
    (tmp_path / "more.txt").write_text("one two three four five six seven " * 40)
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"}) + "\n")
    more = ("--text", "numbers=more.txt", "--questions", "q.jsonl")
    found = json.loads(liquid("gates", "report", models["gated"], *FEW, *more, "--json").stdout)
    kinds = {row["kind"]: row for row in found["kinds"]}
    assert list(kinds) == ["repetition", "prose", "code", "arithmetic", "numbers"]
    for row in kinds.values():
        assert 0 < row["executed_fraction"] < 1 and -1 <= row["rank_correlation"] <= 1 and row["n_tokens"] == 256
        assert row["ppl_ratio_to_full"] == pytest.approx(row["ppl"] / row["ppl_full"])
    assert found["prompts"]["n_prompts"] == 3 and 3 <= found["prompts"]["n_tokens"] <= 18
    assert 0 <= found["prompts"]["same_top_p"] < 1  # half of the layers of a random model are missed
    assert found["questions"]["n_questions"] == 1
    shown = liquid("gates", "report", models["gated"], *FEW, "--n-questions", "0", "-q").stdout
    assert "rank corr." in shown and "repetition" in shown and "questions" not in shown
    assert "answers to prompts (3, " in shown


def test_at_full_depth_nothing_differs(liquid, models):
    told = liquid("gates", "report", models["gated"], *FEW, "--depth", "full", "--json")
    found = json.loads(told.stdout)
    for row in [*found["kinds"], found["prompts"]]:
        assert row["executed_fraction"] == 1 and row["same_top_p"] == 1
    assert found["kinds"][0]["rank_correlation"] is None and found["kinds"][0]["ppl"] == found["kinds"][0]["ppl_full"]
    assert found["questions"]["right"] == found["questions"]["right_full"]


def test_what_cannot_be_reported_is_one_sentence(liquid, models, tmp_path):
    failed(liquid("gates", "report", models["stock"], *FEW), 2, "no gates")
    failed(liquid("gates", "report", models["gated"], "--text", "more.txt"), 2, "KIND=FILE")
    failed(liquid("gates", "report", models["gated"], "--prompts", "none.txt"), 3, "none.txt")
    (tmp_path / "q.jsonl").write_text("[1]\n")
    failed(liquid("gates", "report", models["gated"], "--questions", "q.jsonl"), 2, "question and answer")
    failed(liquid("gates", "report", models["gated"], "--depth", "80%"), 2, "calibration")


def test_texts_without_words_are_refused_before_anything_is_measured(liquid, models, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "short.txt").write_text("few words")
    report = ("gates", "report", models["gated"], *FEW)
    for words in (("--text", "empty=empty.txt"), ("--prompts", "empty.txt"), ("--questions", "empty.txt")):
        refused = liquid(*report, *words)
        failed(refused, 2, f"{words[0]}: empty.txt is empty", "hint: liquid gates report --help")
        assert len(refused.stderr.splitlines()) == 2
    for word in ("=short.txt", "more="):
        failed(liquid(*report, "--text", word), 2, f"--text {word}: KIND=FILE was expected")
    refused = liquid(*report, "--text", "short=short.txt", "--json", "-q")
    failed(refused, 2, "'short' has 15 tokens, at least 18")
    assert len(refused.stderr.splitlines()) == 2
