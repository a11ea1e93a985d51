"""Conversations on disk: private, bounded, whole or refused; two chats never write to the same one."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from liquidcli.errors import IntegrityError, NotFoundError, UsageError
from liquidcli.runtime import session as module
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.keeper import Keeper
from liquidcli.runtime.session import Session, Sessions
from liquidcli.runtime.state import OtherOrigin

TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    (tmp_path / "sessions").mkdir()
    return Sessions(tmp_path / "sessions")


class FakeEngine:
    """Remembers three tokens; its state files say which model they are of."""

    def __init__(self, model: str = "a", n_ctx: int = 64) -> None:
        self.info = SimpleNamespace(name=f"model {model}", path=f"/{model}.gguf", n_ctx=n_ctx)
        self.policy, self.model, self.n_held = DepthPolicy(), model, 3

    def identity(self) -> str:
        return self.model

    def held(self) -> list[int]:
        return [1] * self.n_held

    def kv_bytes(self) -> int:
        return 100

    def clear(self) -> None:
        self.n_held = 0

    def save_state(self, path: Path) -> None:
        path.write_text(self.model)

    def load_state(self, path: Path) -> list[int]:
        if not path.is_file():
            raise NotFoundError("no state file")
        if path.read_text() == "broken":
            raise IntegrityError("the state file is broken")
        if path.read_text() != self.model:
            raise OtherOrigin(path, "model", path.read_text(), self.model)
        self.n_held = 3
        return self.held()


class FakeConversation:
    def __init__(self, model: str = "a") -> None:
        self.engine, self.turns, self.system, self.read = FakeEngine(model), [], None, {}

    def read_so_far(self) -> dict:
        return {"text": "t", "tokens": [1, 2, 3], "ends": []}

    def recall(self, turns, read) -> None:
        self.turns, self.read = list(turns), read


def keeper(sessions: Sessions, model: str = "a", turns=TURNS) -> Keeper:
    kept = Keeper(sessions, FakeConversation(model), ref=model, options={"n_ctx": 64})
    kept.conversation.turns = list(turns)
    return kept


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_was_said_is_read_back_and_is_nobody_elses(sessions: Sessions) -> None:
    before = os.umask(0)
    try:
        sessions.save(Session("talk", True, model={"name": "m"}, options={"n_ctx": 5}, system="be", turns=TURNS))
    finally:
        os.umask(before)
    found = sessions.load("talk")
    assert (found.turns, found.system, found.options, found.named) == (TURNS, "be", {"n_ctx": 5}, True)
    assert mode(sessions.text_path("talk")) == 0o600 and mode(sessions.text_path("talk").parent) == 0o700


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "-rf", "a b", "x" * 65, "a\x1b[2J", "a\n"])
def test_a_name_is_a_file_name_and_nothing_else(sessions: Sessions, name: str) -> None:
    with pytest.raises(UsageError, match="no name for a session"):
        sessions.text_path(name)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": 5}', '{"name": "x", "turns": [5]}', '{"name": "x", "turns": [{"role": "user"}]}',
             '{"name": "x", "options": []}', '{"name": "x", "saved_at": "now"}',
             '{"name": "x", "model": []}', '{"name": "x", "options": {"n_ctx": "x"}}',
             '{"name": "x", "read": {"ends": 5}}', '{"name": "x", "options": {"n_ctx": true}}',
             '{"name": "x", "options": {"n_ctx": -1}}', '{"name": "x", "options": {"n_ctx": 1e3}}',
             '{"name": "x", "saved_at": NaN}', '{"name": "x", "saved_at": 1e300}', '{"name": "x", "saved_at": false}',
             '{"name": "x", "named": "yes"}'],
)  # fmt: skip
def test_a_broken_session_is_a_sentence_and_no_trouble_for_others(sessions: Sessions, text: str) -> None:
    sessions.save(Session("good", turns=TURNS))
    sessions.text_path("bad").write_text(text)
    with pytest.raises(IntegrityError, match="broken") as broken:
        sessions.load("bad")
    assert broken.value.hint == f"rm {sessions.text_path('bad')}"
    assert [session.name for session in sessions.all()] == ["good"]
    with pytest.raises(NotFoundError) as failure:
        sessions.load("nothing")
    assert "good" in failure.value.hint


def test_only_the_last_states_are_kept_and_texts_that_have_a_name(sessions: Sessions, monkeypatch) -> None:
    monkeypatch.setattr(module, "KEPT_STATES", 3)
    monkeypatch.setattr(module, "KEPT_UNNAMED", 4)
    monkeypatch.setattr(module, "KEPT_STATE_BYTES", 250)
    for n in range(8):
        sessions.save(Session(f"s{n}", named=n == 0, turns=TURNS))
        for path in (sessions.state_path(f"s{n}"), sessions.text_path(f"s{n}")):
            path.touch()
            if path.suffix == ".state":
                path.write_bytes(bytes(100))
            os.utime(path, (n, n))
    sessions.state_path("orphan").touch()
    sessions.prune()
    assert sessions.names() == ["s7", "s6", "s5", "s4", "s0"]
    assert [name for name in sessions.names() if sessions.state_bytes(name)] == ["s7", "s6"], "250 bytes hold two"
    assert not sessions.state_path("orphan").exists()


def test_nothing_is_written_before_something_was_said(sessions: Sessions) -> None:
    keeper(sessions, turns=[]).suspend()
    assert sessions.names() == []


def test_a_session_is_taken_up_with_its_state(sessions: Sessions) -> None:
    first = keeper(sessions)
    first.suspend()
    second = keeper(sessions, turns=[])
    assert "1 turn, 3 tokens, as it was left" in second.resume(sessions.latest())
    assert second.conversation.turns == TURNS and second.conversation.read["tokens"] == [1, 2, 3]
    second.conversation.turns += TURNS
    second.suspend()
    assert sessions.names() == [first.session.name] and len(sessions.latest().turns) == 4


@pytest.mark.parametrize(("content", "words"), [("b", "of another model"), ("broken", "broken"), (None, "not kept")])
def test_a_state_that_does_not_fit_is_said_in_a_line_and_the_text_stays(sessions, content, words) -> None:
    first = keeper(sessions)
    first.suspend()
    path = sessions.state_path(first.session.name)
    path.write_text(content) if content else path.unlink()
    second = keeper(sessions, turns=[])
    said = second.resume(sessions.latest())
    assert words in said and "\n" not in said and "read anew" in said
    assert second.conversation.turns == TURNS and second.conversation.engine.held() == []


def test_another_models_session_is_not_switched_to(sessions: Sessions) -> None:
    other = keeper(sessions, "b")
    other.suspend()
    here = keeper(sessions, "a", [{"role": "user", "content": "mine"}])
    with pytest.raises(UsageError, match="with another model, model b") as failure:
        here.switch(other.session.name)
    assert f"--resume {other.session.name}" in failure.value.hint
    assert here.conversation.turns[0]["content"] == "mine"


def test_switching_keeps_what_is_left(sessions: Sessions) -> None:
    first = keeper(sessions)
    first.suspend()
    second = keeper(sessions, turns=[{"role": "user", "content": "other"}])
    second.note()
    left = second.session.name
    second.switch(first.session.name)
    assert sessions.load(left).turns[0]["content"] == "other" and second.conversation.turns == TURNS
    second.start_new()
    second.conversation.turns = [{"role": "user", "content": "third"}]
    second.note()
    assert len(sessions.names()) == 3


def test_a_name_is_kept_unless_it_is_taken(sessions: Sessions) -> None:
    first = keeper(sessions)
    first.suspend()
    first.rename("talk")
    assert sessions.names() == ["talk"] and sessions.state_bytes("talk") and sessions.load("talk").named
    second = keeper(sessions)
    second.note()
    with pytest.raises(UsageError, match="already"):
        second.rename("talk")
    first.rename("talk")
    with pytest.raises(UsageError, match="nothing to save"):
        keeper(sessions, turns=[]).rename("empty")


def test_a_text_outlives_a_name_that_finds_no_room(sessions: Sessions, monkeypatch) -> None:
    first = keeper(sessions)
    first.suspend()
    monkeypatch.setattr(Sessions, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(OSError, match="no space"):
        first.rename("talk")
    assert sessions.load("talk").turns == TURNS


def test_two_chats_never_write_to_the_same_session(sessions: Sessions) -> None:
    keeper(sessions).suspend()
    one, two = keeper(sessions, turns=[]), keeper(sessions, turns=[])
    one.resume(sessions.latest())
    two.resume(sessions.latest())
    one.conversation.turns.append({"role": "user", "content": "one"})
    two.conversation.turns.append({"role": "user", "content": "two"})
    assert one.note() == ""
    assert "another chat goes on" in two.note()
    said = {session.turns[-1]["content"] for session in sessions.all()}
    assert said == {"one", "two"} and len(sessions.names()) == 2


def test_a_name_is_not_put_over_what_another_chat_has_said(sessions: Sessions) -> None:
    keeper(sessions).rename("talk")
    for name in ("mine", "talk"):
        one, two = keeper(sessions, turns=[]), keeper(sessions, turns=[])
        one.resume(sessions.load("talk"))
        two.resume(sessions.load("talk"))
        two.conversation.turns += [{"role": "user", "content": "two"}, {"role": "assistant", "content": "said"}]
        two.close()
        longer = sessions.load("talk").turns
        if name == "mine":
            assert "another chat goes on" in one.rename(name) and sessions.load("mine").turns == longer[:-2]
        else:
            with pytest.raises(UsageError, match="already"):
                one.rename(name)
        assert sessions.load("talk").turns == longer and longer[-2]["content"] == "two"


def test_a_chat_that_is_not_saved_deletes_nothing(sessions: Sessions) -> None:
    before = keeper(sessions)
    before.suspend()
    for leave in (lambda kept: kept.suspend(), lambda kept: kept.pause(True), lambda kept: kept.close()):
        private = keeper(sessions, turns=[])
        private.paused = True
        private.resume(sessions.latest())
        private.conversation.turns.clear()
        leave(private)
    assert sessions.names() == [before.session.name]


def test_what_is_not_to_be_kept_is_gone(sessions: Sessions) -> None:
    private = keeper(sessions)
    private.note()
    private.pause(True)
    private.suspend()
    assert sessions.names() == []
    private.rename("kept-after-all")
    assert sessions.names() == ["kept-after-all"]


def test_a_session_of_turns_that_were_all_taken_back_is_gone(sessions: Sessions) -> None:
    for named in (False, True):
        undone = keeper(sessions)
        undone.note()
        if named:
            undone.rename("kept")
        undone.conversation.turns.clear()
        undone.suspend()
    assert sessions.names() == ["kept"]


def test_what_a_killed_chat_was_writing_goes_once_it_is_old(sessions: Sessions) -> None:
    for name, age_s in ((".a.state.x.part", 7200), (".b.state.y.part", 0)):
        (sessions.text_path("a").parent / name).touch()
        os.utime(sessions.text_path("a").parent / name, (time.time() - age_s,) * 2)
    sessions.prune()
    assert [path.name for path in sessions.text_path("a").parent.glob(".*.part")] == [".b.state.y.part"]


def test_leaving_never_fails(sessions: Sessions, monkeypatch) -> None:
    leaving = keeper(sessions)
    monkeypatch.setattr(FakeEngine, "save_state", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left")))
    assert leaving.close().startswith("only the text was saved")
    assert json.loads(sessions.text_path(leaving.session.name).read_text())["turns"] == TURNS
