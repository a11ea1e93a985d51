"""Options from the environment and from a file: the command line wins, a wrong one says where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from liquidcli.cli import app, presets
from liquidcli.errors import UsageError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("LIQUID_HOME", str(tmp_path))
    monkeypatch.delenv("LIQUID_CONFIG", raising=False)
    return tmp_path


def found(*args: str) -> dict:
    return presets.presets(app.command_for(list(args)), list(args))[1].values


def test_ours_comes_before_llama_cpps_and_both_before_the_file(home: Path, monkeypatch) -> None:
    (home / "config.toml").write_text("ctx_size = 1\npredict = 2\nseed = 3\n[chat]\nseed = 4\nraw = true\n")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "10")
    monkeypatch.setenv("LLAMA_ARG_N_PREDICT", "20")
    monkeypatch.setenv("LIQUID_CTX_SIZE", "100")
    assert found("run", "hi") == {"n_ctx": "100", "max_tokens": "20", "seed": 3}
    assert found("chat") == {"n_ctx": "100", "max_tokens": "20", "seed": 4, "raw": True}
    assert found("bench") == {} and found("list") == {} and found("--version") == {}


def test_a_verb_that_measures_hears_its_own_section_alone(home: Path, monkeypatch) -> None:
    (home / "config.toml").write_text("threads = 2\n[perplexity]\nctx_size = 256\n")
    monkeypatch.setenv("LIQUID_CTX_SIZE", "100")
    assert found("perplexity") == {"n_ctx": 256}


def test_several_are_a_list_and_a_flag_is_a_word(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("LIQUID_REVERSE_PROMPT", "END")
    monkeypatch.setenv("LIQUID_IGNORE_EOS", "1")
    assert found("run") == {"reverse_prompt": ["END"], "ignore_eos": "1"}


@pytest.mark.parametrize("text", ["x = [", "[run]\nctx_siz = 1\n", "run = 5\n"])
def test_a_file_that_cannot_be_meant_names_itself(home: Path, text: str) -> None:
    (home / "config.toml").write_text(text)
    with pytest.raises(UsageError) as failure:
        found("run")
    assert str(home / "config.toml") in failure.value.message and failure.value.hint


def test_a_wrong_value_says_where_it_comes_from(home: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("LIQUID_CTX_SIZE", "many")
    assert app.execute(["run", "hi"]) == 2
    assert "hint: it comes from LIQUID_CTX_SIZE" in capsys.readouterr().err
    monkeypatch.delenv("LIQUID_CTX_SIZE")
    (home / "config.toml").write_text('ctx_size = "many"\n')
    assert app.execute(["chat", "missing.gguf"]) == 2
    assert "ctx_size in" in capsys.readouterr().err


def test_a_model_that_is_set_is_taken_where_none_is_typed(home: Path, monkeypatch, capsys) -> None:
    (home / "config.toml").write_text('model = "of-the-file.gguf"\n[chat]\nmodel = "of-chat.gguf"\n')
    assert (presets.model("run"), presets.model("chat")) == ("of-the-file.gguf", "of-chat.gguf")
    assert app.execute(["chat"]) == 3 and "of-chat.gguf" in capsys.readouterr().err
    assert app.execute(["chat", "-m", "typed.gguf"]) == 3 and "typed.gguf" in capsys.readouterr().err
    monkeypatch.setenv("LLAMA_ARG_MODEL", "of-llama.gguf")
    assert presets.model("chat") == "of-llama.gguf"
    monkeypatch.setenv("LIQUID_MODEL", "ours.gguf")
    assert presets.model("chat") == "ours.gguf"
