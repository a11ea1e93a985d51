"""Parameters of the sampler, and text that is held back while a stop string may be coming."""

from __future__ import annotations

import pytest

from liquidcli.errors import UsageError
from liquidcli.runtime.sampling import SamplingParams, StopStrings, parse_logit_bias


def test_defaults_are_those_of_llama_cpp() -> None:
    params = SamplingParams()
    assert (params.temp, params.top_k, params.top_p, params.min_p) == (0.8, 40, 0.95, 0.05)
    assert (params.repeat_penalty, params.repeat_last_n, params.seed) == (1.0, 64, -1)


def test_updating_ignores_what_was_not_given() -> None:
    params = SamplingParams(temp=0.5).updated(temp=None, top_k=7)
    assert (params.temp, params.top_k) == (0.5, 7)


@pytest.mark.parametrize(
    "values",
    [{"temp": -1}, {"top_p": 1.1}, {"min_p": float("nan")}, {"repeat_penalty": 0}, {"seed": -2}, {"seed": 0xFFFFFFFF}],
)
def test_values_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(UsageError):
        SamplingParams(**values)


def test_a_seed_is_drawn_once_and_can_be_given_again() -> None:
    drawn = SamplingParams().seeded()
    assert drawn.seed >= 0
    assert drawn.seeded() == drawn
    assert SamplingParams(seed=5).seeded().seed == 5


def test_logit_bias_is_written_as_llama_cpp_writes_it() -> None:
    assert parse_logit_bias(["15043+1.5", "7-inf"]) == {15043: 1.5, 7: float("-inf")}
    for word in ("15043", "+1", "a+1", "1*2"):
        with pytest.raises(UsageError):
            parse_logit_bias([word])


def feed(stops: list[str], *pieces: str) -> tuple[list[str], bool]:
    watcher = StopStrings(stops)
    shown = [watcher.feed(piece) for piece in pieces]
    return [*shown, watcher.end()], watcher.hit


def test_text_flows_when_no_stop_string_can_be_coming() -> None:
    assert feed(["\nUser:"], "Hello", " there") == (["Hello", " there", ""], False)
    assert feed([], "a", "b") == (["a", "b", ""], False)
    assert feed([""], "a") == (["a", ""], False)


def test_a_stop_string_split_over_pieces_is_never_shown() -> None:
    assert feed(["\nUser:"], "Hi\n", "Us", "er", ": x", "more") == (["Hi", "", "", "", "", ""], True)


def test_a_false_alarm_is_shown_after_all() -> None:
    assert feed(["\nUser:"], "Hi\n", "Us", "a!") == (["Hi", "", "\nUsa!", ""], False)
    assert feed(["END"], "the EN") == (["the ", "EN"], False)


def test_the_earliest_of_several_stop_strings_counts() -> None:
    assert feed(["bb", "a"], "xxabb") == (["xx", ""], True)
    assert feed(["aab"], "aaa", "b") == (["a", "", ""], True)
