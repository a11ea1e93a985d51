"""HellaSwag scoring: the file, the draw of tasks, shared beginnings, the choice of an ending."""

from __future__ import annotations

import numpy as np
import pytest

from liquidcli.errors import UsageError
from liquidcli.runtime.hellaswag import Task, common_prefix, draw_order, ending_scores, read_tasks, wilson

N_VOCAB = 20


class TableModel:
    """Predicts from the last token; keeps what each sequence holds, to see that the memory is used rightly."""

    def __init__(self) -> None:
        self.table = np.random.default_rng(0).standard_normal((N_VOCAB, N_VOCAB)).astype(np.float32) * 2
        self.held: dict[int, list[int]] = {}
        self.n_computed = 0

    def clear(self):
        self.held = {}

    def seq_cp(self, source, target):
        self.held[target] = list(self.held[source])

    def decode(self, tokens, pos, seq_id, logits):
        seqs = np.broadcast_to(seq_id, len(tokens)).tolist()
        for token, at, seq in zip(tokens, pos, seqs, strict=True):
            held = self.held.setdefault(seq, [])
            assert at == len(held)
            held.append(token)
        self.n_computed += len(tokens)
        rows = self.table[list(tokens)]
        return rows[-1:] if logits == "last" else rows


def plain_scores(table: np.ndarray, sequences: list[list[int]]) -> list[float]:
    """Each sequence on its own, without sharing."""
    log_p = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    shared = common_prefix(sequences)
    return [float(np.mean([log_p[s[i - 1], s[i]] for i in range(shared, len(s))])) for s in sequences]


@pytest.mark.parametrize(
    "sequences",
    [
        [[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 7, 8, 9, 10], [1, 2, 3, 4, 6]],
        [[1, 5], [1, 6], [1, 7], [1, 8]],
        [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]],
        [[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 5], [1, 2, 3, 4, 4]],
    ],
)
def test_sharing_the_beginning_changes_no_score(sequences):
    model = TableModel()
    assert ending_scores(model, sequences) == pytest.approx(plain_scores(model.table, sequences), abs=1e-5)
    assert model.n_computed < sum(map(len, sequences))


def test_tasks_are_drawn_as_by_the_reference_tool():
    # std::mt19937 rng(1) with std::uniform_int_distribution over what is left, compiled with g++ 12
    assert draw_order(10042, 3) == [4187, 10013, 7233]
    assert sorted(draw_order(50, 50)) == list(range(50))


def test_a_file_of_six_line_tasks_is_read():
    text = "\n".join(f"context {i}\n{i % 4}\na{i}\nb{i}\nc{i}\nd{i}" for i in range(8))
    tasks = read_tasks(text, 400)
    assert sorted(task.context for task in tasks) == [f"context {i}" for i in range(8)]
    assert tasks[0] in [Task(f"context {i}", i % 4, (f"a{i}", f"b{i}", f"c{i}", f"d{i}")) for i in range(8)]
    assert len(read_tasks(text + "\n", 3)) == 3


@pytest.mark.parametrize("text", ["", "one\n2\nthree", "c\n7\na\nb\nc\nd", "c\nx\na\nb\nc\nd"])
def test_a_file_that_holds_no_tasks_is_refused(text):
    with pytest.raises(UsageError, match="HellaSwag"):
        read_tasks(text, 10)


def test_the_interval_is_wilsons():
    low, high = wilson(0.5, 100)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson(0.0, 10)[0] == pytest.approx(0.0, abs=1e-12) and wilson(1.0, 10)[1] == pytest.approx(1.0)
