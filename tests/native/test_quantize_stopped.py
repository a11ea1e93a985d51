"""Jobs that are killed, stopped or starved: the target is whole or absent, the same command ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from liquidcli import quant
from liquidcli.errors import DiskSpaceError, IntegrityError, Interrupted, UsageError
from liquidcli.gguf_file import open_gguf
from liquidcli.quant import parts
from tests.quant_models import Shape, make

N_KILLS = int(os.environ.get("LIQUID_KILLS", "4"))
JOB = """
import sys, time
from liquidcli import quant
from liquidcli.quant import parts
parts.CHECKPOINT_S = 0.0
plan = quant.plan(sys.argv[1], "Q4_K_M")
print("begins", flush=True)
quant.run(plan, sys.argv[2], n_threads=1, progress=lambda *_: time.sleep(0.02))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make(Shape(n_layer=6)).write(tmp_path_factory.mktemp("m") / "noise-f16.gguf")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    return quant.run(quant.plan(model, "Q4_K_M"), tmp_path_factory.mktemp("w") / "whole.gguf")


@pytest.fixture
def often(monkeypatch):
    """As if every piece took a checkpoint's time."""
    monkeypatch.setattr(parts, "CHECKPOINT_S", 0.0)


def stop_after(n: int, error: type[BaseException] = KeyboardInterrupt):
    calls = iter(range(n))

    def progress(*_):
        if next(calls, None) is None:
            raise error

    return progress


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_at_random_moments(model, whole, tmp_path):
    """Again and again on the same target, so that most runs begin with what another left."""
    target, n_whole, n_resumed = tmp_path / "q.gguf", 0, 0
    moments = random.Random(5)
    for _ in range(N_KILLS):
        job = subprocess.Popen([sys.executable, "-c", JOB, model, target], stdout=subprocess.PIPE)
        assert job.stdout.readline() == b"begins\n"
        time.sleep(moments.random() * 1.5)
        job.send_signal(signal.SIGKILL)
        job.communicate(timeout=60)
        n_resumed += (tmp_path / ".q.gguf.part.json").exists()
        if target.exists():
            assert target.read_bytes() == whole.output.read_bytes()
            n_whole += 1
            target.unlink()
    result = quant.run(quant.plan(model, "Q4_K_M"), target)
    assert result.sha256 == whole.sha256 and left(tmp_path) == ["q.gguf"]
    assert n_resumed or n_whole
    print(f"{N_KILLS} kills: {n_whole} came too late, {n_resumed} left something to go on with")


def test_a_stopped_job_goes_on(model, whole, tmp_path, often):
    target = tmp_path / "q.gguf"
    with pytest.raises(Interrupted, match="the same command goes on"):
        quant.run(quant.plan(model, "Q4_K_M"), target, progress=stop_after(20))
    assert left(tmp_path) == [".q.gguf.part", ".q.gguf.part.json"]
    seen = []
    result = quant.run(quant.plan(model, "Q4_K_M"), target, progress=lambda done, *_: seen.append(done))
    assert result.resumed_bytes > 0 and seen[0] > 0 and seen[-1] == result.plan.source_bytes
    assert result.sha256 == whole.sha256 and left(tmp_path) == ["q.gguf"]
    assert target.read_bytes() == whole.output.read_bytes()


@pytest.mark.parametrize("function", ["open", "fstat"])
def test_stopped_in_the_moment_its_file_is_begun(model, whole, tmp_path, often, monkeypatch, function):
    """Nothing is left of a job that has just begun, and all of one that had come far."""
    target, called = tmp_path / "q.gguf", getattr(os, function)

    def then_ctrl_c(*words, **settings):
        result = called(*words, **settings)
        signal.raise_signal(signal.SIGINT)
        return result

    for before, error in (([], KeyboardInterrupt), ([".q.gguf.part", ".q.gguf.part.json"], Interrupted)):
        if before:
            stopped(model, target)
        plan = quant.plan(model, "Q4_K_M")
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(parts.os, function, then_ctrl_c)
            quant.run(plan, target)
        assert left(tmp_path) == before
    result = quant.run(quant.plan(model, "Q4_K_M"), target)
    assert result.resumed_bytes > 0 and result.sha256 == whole.sha256


def test_a_short_job_leaves_nothing(model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        quant.run(quant.plan(model, "Q4_K_M"), tmp_path / "q.gguf", progress=stop_after(20))
    assert left(tmp_path) == []


def stopped(model, target):
    with pytest.raises(Interrupted):
        quant.run(quant.plan(model, "Q4_K_M"), target, progress=stop_after(20))


def test_only_the_same_job_goes_on(model, tmp_path, often):
    target = tmp_path / "q.gguf"
    stopped(model, target)
    other = quant.run(quant.plan(model, "Q5_K_M"), target)
    fresh = quant.run(quant.plan(model, "Q5_K_M"), tmp_path / "fresh.gguf")
    assert other.resumed_bytes == 0 and other.sha256 == fresh.sha256


def test_an_input_that_changed_starts_anew(tmp_path, often):
    source = make(Shape(n_layer=6)).write(tmp_path / "m.gguf")
    stopped(source, tmp_path / "q.gguf")
    make(Shape(n_layer=6), seed=9).write(source)
    result = quant.run(quant.plan(source, "Q4_K_M"), tmp_path / "q.gguf")
    assert result.resumed_bytes == 0
    assert result.sha256 == quant.run(quant.plan(source, "Q4_K_M"), tmp_path / "fresh.gguf").sha256


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "no journal", "strange journal"])
def test_a_part_that_is_not_what_the_journal_says_starts_anew(model, whole, tmp_path, often, damage):
    target, part = tmp_path / "q.gguf", tmp_path / ".q.gguf.part"
    stopped(model, target)
    journal, content = tmp_path / ".q.gguf.part.json", bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    damages = {
        "flipped": lambda: part.write_bytes(content),
        "short": lambda: part.write_bytes(content[:1000]),
        "empty": lambda: part.write_bytes(b""),
        "no journal": journal.unlink,
        "strange journal": lambda: journal.write_text('{"job": 3, "offset": "many"}'),
    }
    damages[damage]()
    result = quant.run(quant.plan(model, "Q4_K_M"), target)
    assert result.resumed_bytes == 0 and result.sha256 == whole.sha256 and left(tmp_path) == ["q.gguf"]


def test_a_tail_after_the_last_checkpoint_is_cut(model, whole, tmp_path, often):
    stopped(model, tmp_path / "q.gguf")
    with (tmp_path / ".q.gguf.part").open("ab") as file:
        file.write(b"half a block")
    result = quant.run(quant.plan(model, "Q4_K_M"), tmp_path / "q.gguf")
    assert result.resumed_bytes > 0 and result.sha256 == whole.sha256


def test_two_jobs_with_one_target(model, tmp_path):
    target, refused = tmp_path / "q.gguf", []

    def second(*_):
        if not refused:
            with pytest.raises(UsageError, match="another process is writing") as failure:
                quant.run(quant.plan(model, "Q8_0"), target)
            refused.append(failure)

    result = quant.run(quant.plan(model, "Q4_K_M"), target, progress=second)
    assert refused and result.sha256 == quant.run(quant.plan(model, "Q4_K_M"), tmp_path / "again.gguf").sha256


def test_files_of_a_split_model_go_on_one_by_one(tmp_path, often):
    from tests.native.test_quantize_oracle import write_shards

    plan = quant.plan(write_shards(tmp_path, 2), "Q4_0", keep_split=True)
    with pytest.raises(Interrupted):
        quant.run(plan, tmp_path / "q.gguf", progress=stop_after(len(plan.shards[0].tensors) + 5))
    assert not list(tmp_path.glob("q-*"))
    result = quant.run(plan, tmp_path / "q.gguf")
    assert result.resumed_bytes > plan.shards[0].size_bytes and result.size_bytes == plan.size_bytes
    fresh = quant.run(plan, tmp_path / "f.gguf")
    assert result.sha256s == fresh.sha256s and not list(tmp_path.glob(".q-*"))
    with open_gguf(result.output) as f:
        assert len(f.paths) == 2


def test_a_disk_that_fills_up(model, tmp_path, monkeypatch, often):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts.os, "fsync", full)
    with pytest.raises(DiskSpaceError, match="is full; nothing was kept"):
        quant.run(quant.plan(model, "Q4_K_M"), tmp_path / "q.gguf")
    assert left(tmp_path) == []


def test_a_source_that_is_cut_while_it_is_read(tmp_path):
    """What its header promises is checked when it is opened, by plan and run alike."""
    source = make(Shape(n_layer=2)).write(tmp_path / "m.gguf")
    plan = quant.plan(source, "Q4_0")
    source.write_bytes(source.read_bytes()[:-4000])
    with pytest.raises(IntegrityError, match="truncated"):
        quant.run(plan, tmp_path / "q.gguf")
    assert left(tmp_path) == ["m.gguf"]


def test_the_journal_holds_no_more_than_it_needs(model, tmp_path, often):
    stopped(model, tmp_path / "q.gguf")
    saved = json.loads((tmp_path / ".q.gguf.part.json").read_text())
    assert set(saved) == {"job", "offset", "done", "sha256"}
    assert saved["offset"] <= (tmp_path / ".q.gguf.part").stat().st_size


@pytest.mark.parametrize(
    ("shape", "found"),
    [(Shape(n_layer=3), "blk.2"), (Shape(n_layer=2, n_embd=512), "512 weights"), (None, "strange.weight")],
)
def test_importance_of_another_model(tmp_path, shape, found):
    from tests.native.test_quantize_oracle import write_imatrix

    source = make(Shape(n_layer=2)).write(tmp_path / "m.gguf")
    if shape is None:
        entry = {"strange.weight": (np.ones((1, 256), np.float32), np.ones(1))}
        quant.write_imatrix(tmp_path / "i.gguf", entry, datasets=[], n_chunks=1, chunk_tokens=512)
    else:
        write_imatrix(tmp_path / "i.gguf", make(shape, seed=None).write(tmp_path / "other.gguf"))
    with pytest.raises(IntegrityError, match="of another model") as failure:
        quant.plan(source, "Q4_K_M", imatrix=tmp_path / "i.gguf")
    assert found in failure.value.message
