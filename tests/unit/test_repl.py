"""The words of the REPL, turns of several lines, and the picture of depth."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest

from liquidcli.errors import Interrupted, LiquidError, UsageError
from liquidcli.runtime.chat import Reply, ReplySettings
from liquidcli.runtime.depth import DepthPolicy, DepthSetting, DepthStats
from liquidcli.runtime.events import Event, Summary, Timings
from liquidcli.ui.completion import candidates, files
from liquidcli.ui.depth_map import depth_map, token_map
from liquidcli.ui.figures import answer_status, engine_line
from liquidcli.ui.lineedit import PipeReader, _history, is_open, unfold
from liquidcli.ui.repl import Repl
from liquidcli.ui.repl_commands import ALIASES, COMMANDS, dispatch, sources, words


class FakeEngine:
    def __init__(self) -> None:
        gates = (SimpleNamespace(layer=0, span=1),)
        self.info = SimpleNamespace(n_ctx=100, n_ctx_train=100, gates=gates, threshold=0.5, name="fake", n_layer=2)
        self.policy = DepthPolicy()
        self.n_held = 10
        self.info.path, self.info.metadata = "fake.gguf", {"general.license": "mit"}
        self.n_cleared = 0

    def set_depth(self, policy: DepthPolicy) -> DepthSetting:
        self.policy = policy
        return DepthSetting("threshold", 0.5, "a note")

    def held(self) -> list[int]:
        return [0] * self.n_held

    def tokenize(self, text: str, add_special: bool = True) -> list[str]:
        return text.split()

    def depth_stats(self) -> DepthStats:
        return DepthStats(2, n_tokens=4, n_layer_runs=6)

    def clear(self) -> None:
        self.n_cleared += 1


class FakeConversation:
    """Answers by saying what was asked, backwards."""

    is_chat = True

    def __init__(self, reason: str = "stop") -> None:
        self.engine, self.settings, self.system, self.reason = FakeEngine(), ReplySettings(), None, reason
        self.format = SimpleNamespace(source="{{ template }}")
        self.turns: list[str] = []
        self.last = Reply()

    def ask(self, text: str):
        if text.endswith("fail"):
            raise LiquidError("it failed")
        self.turns.append(text)
        self.last = Reply(text[::-1], [1], [text[::-1]], [np.array([True, False])])
        yield Event(text[::-1], 1, 1, 2)
        self.last.summary = Summary(
            self.reason, 3, 1, Timings(3, 0, 10.0, 1, 5.0), DepthStats(2, 4, 6.0), self.engine.policy, 7
        )
        yield Event(summary=self.last.summary)

    def regenerate(self):
        return self.ask(self.turns.pop()) if self.turns else None

    def question(self) -> str | None:
        return self.turns[-1] if self.turns else None

    def n_used(self) -> int:
        return len(self.engine.held())

    def undo(self) -> str | None:
        return self.turns.pop() if self.turns else None

    def clear(self) -> None:
        self.turns.clear()


class FakeKeeper:
    """Keeps nothing, and says what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.paused = False

    def note(self) -> str:
        self.asked.append("note")
        return ""

    def start_new(self) -> None:
        self.asked.append("new")

    def pause(self, on: bool) -> None:
        self.asked.append(f"pause {on}")


def session(text: str, reason: str = "stop", **options) -> Repl:
    repl = Repl(FakeConversation(reason), PipeReader(io.StringIO(text)), FakeKeeper(), **options)
    repl.run()
    return repl


def test_lines_are_turns_and_answers_go_to_stdout_alone(capsys) -> None:
    session("abc\n\nxyz\n")
    assert capsys.readouterr() == ("cba\nzyx\n", "")


def test_bye_ends_before_the_input_does(capsys) -> None:
    session("abc\n/bye\nxyz\n")
    assert capsys.readouterr().out == "cba\n"


def test_a_failure_is_told_and_the_chat_goes_on(capsys) -> None:
    session("fail\nabc\n")
    said = capsys.readouterr()
    assert said.out == "cba\n"
    assert said.err == "error: it failed\n"


def test_an_interrupted_answer_ends_a_chat_that_nobody_types() -> None:
    with pytest.raises(Interrupted):
        session("abc\nxyz\n", reason="interrupted")


def test_a_full_context_is_announced(capsys) -> None:
    session("abc\n", reason="context")
    assert "context of 100 tokens is full" in capsys.readouterr().err


def test_a_name_keeps_to_one_line_of_the_banner() -> None:
    engine = FakeEngine()
    engine.info.name = "a\nb\x1b[2J\rc"
    assert engine_line(engine).splitlines()[0] == "a bc" and engine_line(engine).count("\n") == 1


def test_a_filling_context_is_announced_once(capsys) -> None:
    repl = Repl(FakeConversation(), PipeReader(io.StringIO("a\nb\nc\nd\n")), FakeKeeper())
    repl.engine.n_held = 83
    repl.run()
    assert capsys.readouterr().err.count("83% of the context") == 1


def test_figures_follow_an_answer_only_when_wanted(capsys) -> None:
    session("/set verbose\nabc\n/set quiet\nabc\n")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert len(lines) == 1 and "1.5/2 layers" in lines[0]


@pytest.mark.parametrize(
    ("word", "nearest"), [("/dept", "/depth"), ("/hlep", "/help"), ("/cler", "/clear"), ("/quti", "/quit")]
)
def test_an_unknown_command_names_the_nearest(word: str, nearest: str) -> None:
    with pytest.raises(UsageError) as failure:
        dispatch(session(""), word)
    assert nearest in failure.value.hint


def test_every_command_and_alias_is_in_the_help_and_completed(capsys) -> None:
    dispatch(session(""), "/?")
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert {*COMMANDS, *ALIASES, "/depth map", "/set verbose", "/show info"} <= set(words())


def test_depth_is_set_in_words_and_refused_as_a_number(capsys) -> None:
    repl = session("/depth 75%\n/depth 0.75\n")
    assert str(repl.engine.policy) == "75%"
    said = capsys.readouterr().err
    assert "a note" in said and "could be a share or a threshold" in said


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [("temperature 0.1", "temp", 0.1), ("temp 0.1", "temp", 0.1), ("top_k 5", "top_k", 5), ("seed 3", "seed", 3),
     ("repeat_last_n -1", "repeat_last_n", -1), ("min-p 0.2", "min_p", 0.2)],
)  # fmt: skip
def test_parameters_have_both_vocabularies(typed: str, name: str, value: float) -> None:
    repl = session(f"/set parameter {typed}\n")
    assert getattr(repl.conversation.settings.sampling, name) == value


def test_the_other_settings() -> None:
    repl = session("/set parameter num_predict 9\n/set parameter stop END\n/set system Be brief.\n")
    settings = repl.conversation.settings
    assert (settings.max_tokens, settings.stop, repl.conversation.system) == (9, ("END",), "Be brief.")


@pytest.mark.parametrize(
    "typed",
    ["/set", "/set parameter", "/set parameter temp", "/set parameter temp hot", "/set parameter temp -1", "/set x",
     "/set parameter num_ctx 9", "/set parameter tmp 1", "/set temp 0",
     "/set parameter num_predict -5", "/undo", "/show", "/show y", "/stats", "/depth map", "/depth map x",
     "/regen", "/edit", "/edit x", "/read", "/read missing", "/set format", "/set format missing",
     "/set nothink"],
)  # fmt: skip
def test_what_cannot_be_done_is_a_sentence(typed: str, capsys) -> None:
    repl = session(typed + "\n")
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.out == "" and repl.failure is not None
    assert "hint: " in said.err, "what to type next"
    assert (repl.conversation.settings.max_tokens, repl.conversation.settings.sampling.temp) == (-1, 0.8)


@pytest.mark.parametrize(("typed", "meant"), [
    ("temp 0", "temperature 0"), ("top-k 5", "top_k 5"), ("n 3", "num_predict 3"), ("seed", "seed"),
])  # fmt: skip
def test_a_parameter_without_its_word_is_spelled_out(typed: str, meant: str, capsys) -> None:
    session(f"/set {typed}\n")
    assert f"hint: /set parameter {meant}\n" in capsys.readouterr().err


def test_texts_that_stop_an_answer_are_added_and_taken_back(capsys) -> None:
    repl = session("/set parameter stop END\n/set parameter stop ###\n")
    assert repl.conversation.settings.stop == ("END", "###")
    repl = session("/set parameter stop END\n/set parameter stop\n")
    assert repl.conversation.settings.stop == () and "no text ends an answer" in capsys.readouterr().err


def test_a_folder_is_no_file(tmp_path, capsys) -> None:
    session(f"hi\n/read {tmp_path}\n/depth map {tmp_path}\n/depth map {tmp_path}/map.txt\n")
    said = capsys.readouterr().err
    assert f"/read {tmp_path}/*.txt" in said and f"{tmp_path}/map.html" in said and "FILE.html" in said


def test_the_status_line_tells_of_the_answer_as_the_map_does() -> None:
    assert "1.0 of 2 layers" in answer_status(session("hi\n").conversation)


def test_what_is_not_saved_can_be_tried_again(capsys) -> None:
    repl = session("")
    repl.keeper.note = lambda: (_ for _ in ()).throw(OSError(28, "No space left"))
    repl.show(repl.conversation.ask("hi"))
    assert repl.keeper.paused and "/save NAME tries again" in capsys.readouterr().err


def test_turns_can_be_taken_back_repeated_and_forgotten(capsys) -> None:
    repl = session("abc\nxyz\n/undo\n/regen\n/clear\n")
    assert repl.failure is None
    assert repl.conversation.turns == [] and repl.engine.n_cleared == 1
    assert repl.keeper.asked == ["note", "note", "note", "new"]
    assert capsys.readouterr().out == "cba\nzyx\ncba\n"


def test_stats_and_the_map_of_the_last_answer(capsys) -> None:
    session("abc\n/stats\n/depth map\n/depth map layers\n/depth map tokens\n")
    shown = capsys.readouterr().out
    assert "1 answer, " in shown
    assert "answer   1 tokens" in shown and "1.5 of 2 layers per token" in shown and "10 of 100 tokens" in shown
    assert "50% of the layers ran" in shown and "cba[1]" in shown and "1/2" in shown


def test_an_answer_keeps_the_depth_it_was_made_with(tmp_path, capsys) -> None:
    repl = session(f"abc\n/depth full\n/stats\n/depth map {tmp_path}/map.html\n")
    shown = capsys.readouterr().out
    assert "depth    1.5 of 2 layers per token (75%), depth auto, prompt and answer" in shown
    assert "so far   1 answer, 1.5 of 2 layers per token (75%)\n" in shown and "full" not in shown
    assert "depth auto" in (tmp_path / "map.html").read_text()
    status = answer_status(repl.conversation)
    assert status.startswith("depth full | context"), "what was measured at another depth is left out"


@pytest.mark.parametrize(
    ("text", "open_"),
    [("hi", False), ("hi\\", True), ("hi\\\\", False), ('"""', True), ('"""a', True), ('"""a\nb"""', False),
     ('"""a""" b', False), ("a\\\nb", False), ("", False)],
)  # fmt: skip
def test_when_a_turn_goes_on(text: str, open_: bool) -> None:
    assert is_open(text) is open_


def test_turns_of_several_lines_lose_their_marks() -> None:
    assert unfold('"""\na\nb\n"""') == "a\nb"
    assert unfold("a\\\nb") == "a\nb"
    assert unfold("  x ") == "x"
    reader = PipeReader(io.StringIO('"""one\ntwo"""\nthree\\\nfour\nfive\n"""open'))
    assert [reader.read() for _ in range(5)] == ["one\ntwo", "three\nfour", "five", "open", None]


def test_the_map_has_a_row_per_two_layers_and_fits() -> None:
    rng = np.random.default_rng(0)
    layers = list(rng.random((100, 7)) < 0.7)
    lines = depth_map(layers, 80)
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) == 2 * (1 + 4)
    top = depth_map([np.array([1, 1, 0]), np.array([0, 1, 1]), np.array([1, 0, 0])], 80)
    assert top[1].split() == ["2", "▄", "33%"]
    assert top[2].split() == ["0-1", "█▀▄", "67%"]


def test_the_map_of_tokens_shows_text_and_folds_deep_models() -> None:
    lines = token_map([" the", "\n", "\x1b[31m", "日本語の長いトークンです"], [np.array([True, False] * 60)] * 4, 80)
    assert all("\x1b" not in line and "\n" not in line for line in lines)
    assert lines[0].startswith("␣the ") and lines[1].startswith("⏎ ")
    assert all(line.endswith(" 60/120") for line in lines)
    ascii_ = token_map(["a"], [np.array([True, False])], 80, unicode=False)
    assert ascii_[0].split() == ["a", "#.", "1/2"]


def test_a_question_is_asked_again_in_other_words(capsys) -> None:
    repl = session("abc\n/edit xyz\n")
    assert repl.conversation.turns == ["xyz"] and capsys.readouterr().out == "cba\nzyx\n"


class Typist(PipeReader):
    """Lines as if a person typed them; `^C` is Ctrl-C."""

    interactive = True

    def __init__(self, stream: io.StringIO) -> None:
        super().__init__(stream)
        self.offered: list[str] = []

    def read(self, prefilled: str = "", status: str = "") -> str | None:
        self.offered.append(prefilled)
        text = super().read()
        if text == "^C":
            raise KeyboardInterrupt
        return text


def test_a_question_is_edited_where_it_is_typed() -> None:
    reader = Typist(io.StringIO("abc\n/edit\nabcd\n"))
    repl = Repl(FakeConversation(), reader, FakeKeeper())
    repl.run()
    assert reader.offered == ["", "", "abc", ""] and repl.conversation.turns == ["abcd"]


@pytest.mark.parametrize("typed", ["/edit\n^C\n", "/edit\n\n", "/edit\n/stats\n", "/edit\nfail\n", "/edit fail\n"])
def test_a_question_stays_when_the_other_words_come_to_nothing(typed: str) -> None:
    repl = Repl(FakeConversation(), Typist(io.StringIO(f"abc\nxyz\n{typed}")), FakeKeeper())
    repl.run()
    assert repl.conversation.turns == ["abc", "xyz"]


def test_history_that_cannot_be_written_is_remembered_all_the_same(tmp_path) -> None:
    history = _history(tmp_path / "history")
    history.append_string("kept")
    (tmp_path / "history").unlink()
    (tmp_path / "history").mkdir()  # as good as a full disk: nothing can be written any more
    history.append_string("remembered")
    assert history.get_strings()[-1] == "remembered"


def test_files_go_with_the_next_question_alone(tmp_path, capsys) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"text of {name}\n")
    (tmp_path / "c.bin").write_bytes(b"\0\1")
    repl = session(f"/read {tmp_path}/*.txt\nwhat?\nagain\n/read {tmp_path}/c.bin\n")
    first, second = repl.conversation.turns
    assert first == "a.txt:\n```\ntext of a.txt\n```\n\nb.txt:\n```\ntext of b.txt\n```\n\nwhat?" and second == "again"
    said = capsys.readouterr().err
    assert said.count("go with your next question") == 2 and "is no text" in said


def test_files_stay_with_a_question_that_came_to_nothing(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("text\n")
    repl = session(f"/read {tmp_path}/a.txt\nplease fail\nwhat?\nagain\n")
    first, second = repl.conversation.turns
    assert first.startswith("a.txt:") and first.endswith("what?") and second == "again"


@pytest.mark.parametrize("typed", ["/read ~nobody-of-that-name/x", "/read " + "x" * 5000, "/set format /proc/self/mem",
                                   "/depth map ~nobody-of-that-name/x.html"])  # fmt: skip
def test_a_file_that_cannot_be_read_is_a_sentence_and_the_chat_goes_on(typed: str, capsys) -> None:
    repl = session(f"hi\n{typed}\nnext\n")
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "internal" not in said and repl.conversation.turns == ["hi", "next"]


def test_the_context_is_drawn_and_the_license_told(capsys) -> None:
    session("/context\n/show license\n/model\n")
    assert capsys.readouterr().out == f"[{'#' * 4}{'.' * 36}] 10 of 100 tokens, 10%\n0 messages\nmit\nfake.gguf\n"


def test_another_model_is_gone_on_with_only_if_there_is_one() -> None:
    def find(ref: str) -> None:
        if ref != "there":
            raise UsageError("no such model")

    repl = session("/model nowhere\n/model there\nnot read\n", find_model=find)
    assert repl.next_model == "there" and repl.failure is not None and repl.conversation.turns == []


@pytest.mark.parametrize(
    ("line", "begun", "found"),
    [
        ("/dep", "/dep", ["/depth"]),
        ("/depth f", "/depth f", ["/depth full"]),
        ("/set parameter top", "top", ["top_k", "top_p"]),
        ("/load s", "s", ["saved"]),
        ("hello /dep", "", []),
        ("/dep\n", "", []),
    ],
)
def test_what_tab_offers(line: str, begun: str, found: list[str]) -> None:
    known = {**sources(), "/load": lambda text: [name for name in ("saved", "other") if name.startswith(text)]}
    offered = candidates(line, words(), known)
    assert (
        offered[0] == begun and [word for word in offered[1] if not word.startswith("/depth ") or " f" in line] == found
    )


def test_tab_offers_files(tmp_path) -> None:
    assert files("~nobody-of-that-name/x") == []
    (tmp_path / "folder").mkdir()
    for name in ("file.txt", ".hidden", "odd\x1b[2J"):
        (tmp_path / name).touch()
    assert sorted(files(f"{tmp_path}/")) == [f"{tmp_path}/file.txt", f"{tmp_path}/folder/"]
    assert files(f"{tmp_path}/.h") == [f"{tmp_path}/.hidden"] and files(f"{tmp_path}/none/x") == []


def test_thinking_is_switched_where_the_template_knows_of_it(capsys) -> None:
    conversation = FakeConversation()
    conversation.format = SimpleNamespace(source="{% if enable_thinking %}", variables={})
    Repl(conversation, PipeReader(io.StringIO("/set nothink\n")), FakeKeeper()).run()
    assert conversation.format.variables == {"enable_thinking": False}
