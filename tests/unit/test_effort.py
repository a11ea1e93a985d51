"""Rank correlation, the number an answer ends with, and probes that no training prompt contains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import liquidcli
from liquidcli.gates import probes
from liquidcli.gates.training.prompts import prompts
from liquidcli.runtime.effort import last_number, rank_correlation, solved


def test_ranks_correlate_whatever_the_scale_and_ties_share_theirs():
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(a, np.exp(5 * a)) == pytest.approx(1)
    assert rank_correlation(a, -(a**3)) == pytest.approx(-1)
    # ties: ranks 1.5 1.5 3.5 3.5 against 1 2 3 4
    assert rank_correlation(np.array([0, 0, 1, 1.0]), a) == pytest.approx(2 / np.sqrt(5))
    assert rank_correlation(np.ones(4), a) is None


@pytest.mark.parametrize(("text", "number"), [
    ("48 / 2 = 24.\n#### 1,024", "1024"), ("So it is 7.0 miles.", "7"), ("about -3.50 dollars", "-3.50"),
    ("The answer is 12.", "12"), ("none", None),
])  # fmt: skip
def test_the_last_number_counts(text, number):
    assert last_number(text) == number


def test_right_answers_are_counted_at_both_depths():
    found = solved(["it is 4", "9", "no idea"], ["4", "it is 8", "none"], ["4", "8", "1"])
    assert found == {"n_questions": 3, "right": 1, "right_full": 2, "same_number": 1}


def test_a_hundred_prompts_of_which_none_is_trained_on():
    asked = probes.chat_prompts()
    assert len(set(asked)) == 100
    assert not set(asked) & {prompt.text for prompt in prompts(1, 20000)}


def test_questions_have_the_number_that_their_steps_end_with():
    texts = probes.texts(Path(liquidcli.__file__).parent)
    assert set(texts) == {"repetition", "prose", "code", "arithmetic"} and min(map(len, texts.values())) > 5000
    for question, answer in probes.questions(40):
        assert question.endswith("?") and int(answer) > 0
    for line in texts["arithmetic"].splitlines():
        for left, right in (step.split(" = ") for step in line.split("? ")[1].rstrip(".").split(". ")):
            assert eval(left.replace("x", "*")) == float(right)
