"""`liquid doctor`: facts and findings, whatever state the native library is in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liquidcli import diagnosis
from tests.command import Liquid

LIBRARY = {"version": "1", "stamp": "s", "features": ["AVX", "AVX2"], "devices": [], "amx_allowed": False}
FACTS = {
    "library": LIBRARY,
    "cpu": {"features": ["AVX", "AVX2"], "amx": False, "n_threads": 2},
    "folders": {name: {"path": "x", "writable": True, "free_bytes": 10**12} for name in ("home", "hub_cache")},
    "default_model": {"path": "x", "gates": "y"},
    "environment": {},
}


def test_facts_are_there_and_the_exit_code_says_whether_the_library_works(tmp_path: Path) -> None:
    result = Liquid(tmp_path, {})("doctor", "--json")
    told = json.loads(result.stdout)
    assert told["folders"]["home"]["path"] == str(tmp_path / "liquid") and told["cpu"]["n_threads"] >= 1
    assert told["default_model"]["path"] is None
    assert any("liquid pull" in finding["change"] for finding in told["findings"])
    assert result.returncode == (1 if told["library"].get("problem") else 0)
    assert not (tmp_path / "liquid").exists(), "looking changes nothing"


def test_a_missing_library_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "no/llama_cpp").mkdir(parents=True)
    (tmp_path / "no/llama_cpp/__init__.py").write_text("raise ImportError('not for this machine', name='llama_cpp')")
    result = Liquid(tmp_path, {"PYTHONPATH": str(tmp_path / "no")})("doctor")
    assert result.returncode == 1 and "Traceback" not in result.stdout + result.stderr
    assert "problem: the native library is not installed" in result.stdout and "change: " in result.stdout


def test_a_library_that_dies_is_survived(tmp_path: Path) -> None:
    (tmp_path / "no/llama_cpp").mkdir(parents=True)
    (tmp_path / "no/llama_cpp/__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    result = Liquid(tmp_path, {"PYTHONPATH": str(tmp_path / "no")})("doctor", "--json")
    assert result.returncode == 1 and "SIGILL" in json.loads(result.stdout)["library"]["problem"]


def findings(**changes: dict) -> str:
    facts = {**FACTS, **{name: {**FACTS[name], **change} for name, change in changes.items()}}
    return "\n".join(f"{f['level']}: {f['what']} -> {f['change']}" for f in diagnosis._findings(facts))


@pytest.mark.parametrize(("changes", "words"), [
    ({"cpu": {"features": ["AVX", "AVX2", "FMA"]}}, "problem: the library was built without FMA"),
    ({"cpu": {"amx": True}}, "note: AMX is not used: it is left out unless asked for, and this system refuses it"),
    ({"library": {"features": ["AVX", "AVX2", "AMX_INT8"]}, "cpu": {"amx": True}}, "matrix product will crash"),
    ({"library": {"devices": [{"kind": "gpu", "description": "Some GPU"}]}}, "note: layers go to Some GPU"),
    ({"folders": {"home": {"path": "h", "writable": False, "free_bytes": 1}}}, "problem: h cannot be written to"),
    ({"folders": {"home": {"path": "h", "writable": True, "free_bytes": 10**9}}}, "problem: only 1.0 GB are free at h"),
    ({"environment": {"HF_HUB_OFFLINE": "1"}}, "HF_HUB_OFFLINE is set"),
    ({"default_model": {"gates": None}}, "no gates are built in"),
])  # fmt: skip
def test_findings_name_the_flag(changes: dict, words: str) -> None:
    assert words in findings(**changes) and words not in findings()


@pytest.mark.parametrize(("policy", "told"), [("drop", "50.0 MB, 100.0 MB at full depth"), ("project", "at any depth")])
def test_what_the_default_models_memory_holds_is_told(policy: str, told: str) -> None:
    need = {"n_ctx": 4096, "kv_policy": policy, "total_bytes": 10**8, "kv_bytes": 5 * 10**7, "kv_bytes_full": 10**8}
    facts = {
        **FACTS,
        "default_model": {"path": "x", "gates": "y", "memory": need},
        "memory": {"available_bytes": 10**9},
    }
    (finding,) = (f for f in diagnosis._findings(facts) if "keys and values" in f["what"])
    assert told in finding["what"] and finding["level"] == "note"
    short = {**facts, "memory": {"available_bytes": 10**7}}
    assert any(f["level"] == "problem" and "are available" in f["what"] for f in diagnosis._findings(short))
