"""A training run: what it refuses before it computes anything, and what it goes on from."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from liquidcli.cli.gates import parse_layers
from liquidcli.errors import IntegrityError, LiquidError, NotFoundError, UsageError
from liquidcli.gates.pack import read_pack
from liquidcli.gates.training import train as training
from liquidcli.gates.training.data import Source
from liquidcli.gates.training.options import FROM_INIT, Options, layers_text
from liquidcli.gates.training.selftext import _drop_torn
from liquidcli.gates.training.state import CONVERTED, load
from liquidcli.gates.training.train import train
from liquidcli.text_file import json_lines
from tests.gate_packs import write_base
from tests.gguf_bytes import f32, llama


def rows_file(path: Path, n: int = 40, length: int = 50) -> str:
    rng = np.random.default_rng(len(path.name))
    path.write_text("\n".join(json.dumps({"tokens": rng.integers(0, 16, length).tolist()}) for _ in range(n)))
    return str(path)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(
        data=(rows_file(tmp_path / "a.jsonl"),), target=0.8, n_gates=1, adapter_size=32, harvest_tokens=128, epochs=1,
        tune_tokens=64, batch_tokens=32, n_ctx=32, threads=1, always_run_tokens=2, layers=(1, 2), balance=0,
    )  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base.gguf")


def stopped_at(what: str):
    def progress(done: int, total: int, said: str) -> None:
        if what in said:
            raise KeyboardInterrupt

    return progress


def stop_at(what: str, base: Path, out: Path, options: Options) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(base, out, options, progress=stopped_at(what))


@pytest.mark.parametrize("which", ["base", "data", "valid"])
def test_a_pack_never_takes_the_place_of_what_it_is_made_from(tmp_path, base, options, which):
    valid = rows_file(tmp_path / "v.jsonl")
    out = {"base": base, "data": Path(options.data[0]), "valid": Path(valid)}[which]
    before = out.read_bytes()
    with pytest.raises(UsageError, match="also the input"):
        train(base, out, replace(options, valid=(valid,)))
    assert out.read_bytes() == before and not Path(f"{out}.state").exists()


def test_a_run_belongs_to_its_base(tmp_path, base, options):
    stop_at("end to end", base, tmp_path / "p.gguf", options)
    tuned = llama(4)
    tuned.tensors["blk.1.attn_norm.weight"] = f32(32, seed=99)
    other = tuned.write(tmp_path / "other.gguf")
    with pytest.raises(UsageError, match="another base"):
        train(other, tmp_path / "p.gguf", options, resume=True)
    train(base, tmp_path / "p.gguf", options, resume=True)


def test_a_run_belongs_to_its_weights_and_texts(tmp_path, base, options):
    """The same norms in other weights are another quantization; a text may change under its name."""
    stop_at("end to end", base, tmp_path / "p.gguf", options)
    whole = base.read_bytes()
    base.write_bytes(whole[:-4] + bytes(b ^ 1 for b in whole[-4:]))
    with pytest.raises(UsageError, match="another base"):
        train(base, tmp_path / "p.gguf", options, resume=True)
    base.write_bytes(whole)
    text = Path(options.data[0])
    rows = text.read_text()
    text.write_text(rows.replace("[1", "[2", 1) if "[1" in rows else rows.replace("[", "[1, ", 1))
    with pytest.raises(UsageError, match="other contents of --data"):
        train(base, tmp_path / "p.gguf", options, resume=True)
    text.write_text(rows)
    with pytest.raises(UsageError, match="begun with --target 80%, --seed 1"):
        train(base, tmp_path / "p.gguf", replace(options, seed=2, target=0.9), resume=True)
    train(base, tmp_path / "p.gguf", options, resume=True)


def test_what_steps_have_found_is_kept_while_they_go_on(tmp_path, base, options, monkeypatch):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)
    steps: list[int] = []

    def stop_at_the_third(done: int, total: int, what: str) -> None:
        if "end to end" in what and (steps.append(done) or len(steps) == 3):
            raise KeyboardInterrupt

    options = replace(options, tune_tokens=160)
    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "p.gguf", options, progress=stop_at_the_third)
    assert load(tmp_path / "p.gguf.state" / "tune.pt")["n_tokens"] == steps[-1] == 96
    report = train(base, tmp_path / "p.gguf", options, resume=True)
    assert [one["step"] for one in report["curve"]] == [1, 2, 3, 4, 5]


def test_what_is_not_held_out_is_called_so(tmp_path, base, options):
    report = train(base, tmp_path / "p.gguf", replace(options, valid_rows=2))
    assert list(report["held_out"]) == ["trained on"]


def test_a_pack_to_go_on_from_brings_its_policy(tmp_path, base, options):
    first, second, third = (tmp_path / f"{i}.gguf" for i in range(3))
    train(base, first, replace(options, kv="drop"))
    own = {name: getattr(Options, name) for name in FROM_INIT}
    on = replace(options, **own, init=str(first), harvest_tokens=0, gate_lr=1e-4)
    train(base, second, on)
    train(base, third, replace(on, kv="project"))
    assert [read_pack(pack).depth.kv_policy for pack in (first, second, third)] == ["drop", "drop", "project"]


def test_wrong_words_leave_nothing_behind(tmp_path, base, options):
    out = tmp_path / "p.gguf"
    wrong: list[tuple[type[LiquidError], Path, dict[str, Any]]] = [
        (NotFoundError, tmp_path / "none.gguf", {}),
        (NotFoundError, base, {"data": (str(tmp_path / "none.txt"),)}),
        (NotFoundError, base, {"valid": (str(tmp_path / "none.txt"),)}),
        (UsageError, base, {"layers": (1, 9)}),
        (UsageError, base, {"rank": 1000}),
        (UsageError, base, {"target": 0.5, "n_gates": 1}),
    ]
    for kind, model, words in wrong:
        with pytest.raises(kind):
            train(model, out, replace(options, **words))
        assert not (tmp_path / "p.gguf.state").exists()
    train(base, out, options)


def test_a_target_out_of_reach_is_told_at_the_start(tmp_path, base, options):
    """One gate on a fourth of the layers, or a pack's only gate."""
    with pytest.raises(UsageError, match="--target 70%: gates on 1 of 4 layers leave 75% that always run"):
        train(base, tmp_path / "p.gguf", replace(options, target=0.7))
    train(base, tmp_path / "p.gguf", replace(options, target=0.76))
    onward = Options(data=options.data, init=str(tmp_path / "p.gguf"), target=0.7, valid_rows=1)
    with pytest.raises(UsageError, match="leave 75% that always run") as caught:
        train(base, tmp_path / "q.gguf", onward)
    assert caught.value.hint == "a higher --target"


def test_held_out_text_may_change_and_is_looked_at_first(tmp_path, base, options):
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps({"tokens": [1, 2, 3]}))
    said: list[str] = []
    with pytest.raises(UsageError, match=r"--valid .*short\.jsonl holds no row"):
        train(base, tmp_path / "p.gguf", replace(options, valid=(str(short),)), progress=lambda *a: said.append(a[2]))
    assert not said
    stop_at("end to end", base, tmp_path / "p.gguf", options)
    valid = (rows_file(tmp_path / "v.jsonl"),)
    report = train(base, tmp_path / "p.gguf", replace(options, valid=valid, valid_rows=3), resume=True)
    assert list(report["held_out"]) == ["v.jsonl"]


def test_files_of_the_same_name_are_two_kinds(tmp_path, base, options):
    folders = [tmp_path / name for name in "xy"]
    for folder in folders:
        folder.mkdir()
    valid = tuple(rows_file(folder / "held.jsonl") for folder in folders)
    report = train(base, tmp_path / "p.gguf", replace(options, valid=valid))
    assert set(report["held_out"]) == set(valid)


def test_a_stage_that_diverged_begins_anew_with_another_rate(tmp_path, base, options):
    out = tmp_path / "p.gguf"
    with pytest.raises(LiquidError, match="diverged") as error:
        train(base, out, replace(options, lr=1e30))
    assert "--resume" in error.value.hint and not out.exists()
    with pytest.raises(UsageError, match="begun with --target 80%"):
        train(base, out, replace(options, target=0.9), resume=True)
    train(base, out, options, resume=True)
    assert all(np.isfinite(tensor).all() for tensor in read_pack(out).tensors.values())


def test_one_run_at_a_time(tmp_path, base, options):
    stop_at("end to end", base, tmp_path / "p.gguf", options)
    with FileLock(tmp_path / "p.gguf.state" / "lock"), pytest.raises(UsageError, match="going on"):
        train(base, tmp_path / "p.gguf", options, resume=True)


@pytest.mark.parametrize("name", ["local.pt", "tune.pt", "gates.pt"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_damage_is_named_and_its_hint_mends_it(tmp_path, base, options, name, is_lost):
    options, out = replace(options, rank=2), tmp_path / "p.gguf"
    stop_at("calibrating", base, out, options)
    kept = tmp_path / "p.gguf.state" / name
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    if is_lost:
        kept.unlink()
    if not (is_lost and name == "gates.pt"):  # the last one: what is lost is computed anew
        with pytest.raises(IntegrityError, match=f"{name} is {'missing' if is_lost else 'damaged'}") as caught:
            train(base, out, options, resume=True)
        with pytest.raises(UsageError, match="begun with --n-gates 1"):
            train(base, out, replace(options, n_gates=2), resume=True)
        for word in caught.value.hint.partition(",")[0].split()[1:]:
            Path(word).unlink()
    assert train(base, out, options, resume=True)["curve"]


def test_what_a_killed_writer_leaves_is_no_earlier_run(tmp_path, base, options):
    state = tmp_path / "p.gguf.state"
    state.mkdir()
    (state / ".base-f32.gguf.ab12.part").write_bytes(b"half")
    train(base, tmp_path / "p.gguf", options)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"{}", None])
@pytest.mark.parametrize("resume", [True, False])
def test_without_a_list_of_options_nothing_is_resumed(tmp_path, base, options, content, resume):
    stop_at("end to end", base, tmp_path / "p.gguf", options)
    kept = tmp_path / "p.gguf.state" / "options.json"
    kept.unlink() if content is None else kept.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"options\.json is (damaged|missing), and nothing else says") as caught:
        train(base, tmp_path / "p.gguf", replace(options, seed=2), resume=resume)
    assert "another -o or --state" in caught.value.hint and kept.exists() == (content is not None)


def test_a_damaged_list_of_options_with_nothing_beside_it_is_no_hindrance(tmp_path, base, options):
    state = tmp_path / "p.gguf.state"
    state.mkdir()
    (state / "options.json").write_bytes(b"{")
    (state / CONVERTED).write_bytes(b"of who knows what")
    train(base, tmp_path / "p.gguf", options)
    assert not (state / CONVERTED).exists()


def test_nothing_to_resume_is_noted(tmp_path, base, options):
    notes: list[str] = []
    train(base, tmp_path / "p.gguf", options, resume=True, note=notes.append)
    assert len(notes) == 1 and "nothing to resume" in notes[0] and "p.gguf.state" in notes[0]
    train(base, tmp_path / "p.gguf", options, resume=True, note=notes.append)
    (tmp_path / "q.gguf.state").mkdir()
    train(base, tmp_path / "q.gguf", options, note=notes.append)
    assert len(notes) == 1


def test_more_gates_than_candidates_are_refused(tmp_path, base, options):
    with pytest.raises(UsageError, match="--n-gates 3: at most 2 was expected"):
        train(base, tmp_path / "p.gguf", replace(options, n_gates=3))
    assert not (tmp_path / "p.gguf.state").exists()
    report = train(base, tmp_path / "p.gguf", replace(options, n_gates=None))
    assert report["gates"] == [1, 2] and report["options"]["n_gates"] == 2


@pytest.mark.parametrize(
    ("words", "said"), [({"device": "cuda"}, "--device"), ({"data": "share=x"}, "share=x")], ids=str
)
def test_options_are_looked_at_before_the_folder(tmp_path, base, options, monkeypatch, words, said):
    monkeypatch.setattr(training.torch.cuda, "is_available", lambda: False)
    stop_at("end to end", base, tmp_path / "p.gguf", options)
    wrong = {name: (f"{options.data[0]}:{word}",) if name == "data" else word for name, word in words.items()}
    with pytest.raises(UsageError, match=said):
        train(base, tmp_path / "p.gguf", replace(options, **wrong))


@pytest.mark.parametrize("words", ["8-11,25", "1", "1-2", "3,5-7,9"])
def test_layers_are_shown_as_they_are_typed(words):
    assert layers_text(parse_layers(words)) == words


def test_options_of_the_earlier_run_are_shown_as_they_are_typed(tmp_path, base, options):
    texts = (options.data[0], rows_file(tmp_path / "b.jsonl"))
    stop_at("end to end", base, tmp_path / "p.gguf", replace(options, data=texts, target=0.825))
    told = re.escape(f"begun with --data {texts[0]} --data {texts[1]}, --target 82.5%, --layers 1-2, other contents")
    with pytest.raises(UsageError, match=told):
        train(base, tmp_path / "p.gguf", replace(options, layers=(2,)), resume=True)
    with pytest.raises(UsageError, match="--layers 1-2,7: layers from 1 to 3"):
        train(base, tmp_path / "q.gguf", replace(options, layers=(1, 2, 7)))


def test_a_damaged_chunk_is_named(tmp_path, base, options):
    stop_at("pricing layers", base, tmp_path / "p.gguf", options)
    chunk = next((tmp_path / "p.gguf.state" / "chunks").iterdir())
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(IntegrityError, match=rf"{chunk.name} is damaged"):
        train(base, tmp_path / "p.gguf", options, resume=True)
    chunk.unlink()
    train(base, tmp_path / "p.gguf", options, resume=True)


def test_a_run_belongs_to_the_pack_it_goes_on_from(tmp_path, base, options):
    first, out = tmp_path / "first.gguf", tmp_path / "p.gguf"
    train(base, first, options)
    on = replace(options, **{name: getattr(Options, name) for name in FROM_INIT}, init=str(first), gate_lr=1e-4)
    stop_at("pricing layers", base, out, on)
    before = first.read_bytes()
    first.unlink()
    train(base, first, replace(options, layers=(2,)), state=tmp_path / "other")
    with pytest.raises(UsageError, match="other contents of --init"):
        train(base, out, on, resume=True)
    first.write_bytes(before)
    train(base, out, on, resume=True)


def test_lines_end_with_a_line_feed_alone(tmp_path, base, options):
    """JSON may hold the other separators of Unicode as they are."""
    path = tmp_path / "qa.jsonl"
    row = json.dumps({"tokens": [1, 2, 3, 4] * 20, "note": "a\u2028b\u0085c"}, ensure_ascii=False)
    path.write_text(f"{row}\r\n\n{row}\n", encoding="utf-8")
    assert [number for number, _ in json_lines(path)] == [1, 3]
    assert [number for number, _ in json_lines(path, 2)] == [1]
    train(base, tmp_path / "p.gguf", replace(options, data=(str(path),)))


def test_greedy_answers_are_held_out_as_sampled_ones_are(tmp_path, base, options, monkeypatch):
    def write(run: training.Run) -> None:
        for name in ("own.jsonl", "own-greedy.jsonl"):
            rng = random.Random(name)
            rows = [{"kind": "chat", "tokens": rng.choices(range(13), k=40)} for _ in range(20)]
            (run.state / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(training, "write_own_text", write)
    greedy = replace(options, data=("self:99:greedy",))
    assert list(train(base, tmp_path / "p.gguf", greedy)["held_out"]) == ["self:greedy"]


def test_half_a_record_is_dropped(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"tokens": [1]}\n{"tokens": [2, 3')
    _drop_torn(path)
    assert path.read_text() == '{"tokens": [1]}\n'
    path.write_text('{"tok')
    _drop_torn(path)
    assert path.read_text() == ""


@pytest.mark.parametrize(
    "words",
    [{"epochs": 0}, {"harvest_tokens": -5}, {"tune_tokens": -300}, {"lr": float("nan")}, {"lr": -1.0}, {"lr": 0.0},
     {"gate_lr": -1.0}, {"always_run_tokens": 32}, {"always_run_tokens": -1}, {"seed": -1}, {"rank": -1},
     {"init": "pack.gguf"}],
    ids=str,
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(options, words):
    with pytest.raises(UsageError):
        replace(options, **words).check()


@pytest.mark.parametrize(
    "line",
    ["no json", "[1, 2]", '{"question": "q"}', '{"question": "q", "answer": 4}', '{"tokens": [1, "2"]}',
     '{"tokens": [-1, 2]}', '{"tokens": [1, 2], "n_prompt": "x"}', '{"tokens": 5}'],
)  # fmt: skip
def test_lines_that_are_no_records_are_named(tmp_path, base, options, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"tokens": [1] * 40}) + f"\n\n{line}\n")
    with pytest.raises(UsageError, match=r"bad\.jsonl, line 3"):
        train(base, tmp_path / "p.gguf", replace(options, data=(str(path),)))


def test_ids_of_another_vocabulary_are_refused(tmp_path, base, options):
    path = tmp_path / "big.jsonl"
    path.write_text(json.dumps({"tokens": [1, 2, 3, 900] * 10}))
    with pytest.raises(UsageError, match="vocabulary of 16"):
        train(base, tmp_path / "p.gguf", replace(options, data=(str(path),)))


@pytest.mark.parametrize("text", ["self:0", "{}:lines=0.5", "{}:lines=0", "{}:share=0", "{}:share=-1", "{}:lines"])
def test_amounts_of_text_are_numbers_above_zero(tmp_path, text):
    with pytest.raises(UsageError):
        Source.parse(text.format(rows_file(tmp_path / "a.jsonl")))


@pytest.mark.parametrize("text", ["{}:share=0.5", "self:100"])
def test_held_out_text_has_no_share(tmp_path, text):
    with pytest.raises(UsageError, match="--valid"):
        Source.parse(text.format(rows_file(tmp_path / "a.jsonl")), "--valid")


def test_a_pack_is_no_base(tmp_path, base, options):
    train(base, tmp_path / "p.gguf", options)
    with pytest.raises(LiquidError) as error:
        train(tmp_path / "p.gguf", tmp_path / "q.gguf", options)
    assert not (tmp_path / "q.gguf.state").exists() and "p.gguf" in str(error.value)
