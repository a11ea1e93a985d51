"""A verb's parameters are called what the library and the JSON call them, whatever llama.cpp calls the flag."""

from __future__ import annotations

import importlib
import inspect

import pytest

from liquidcli.runtime import engine, fit, hellaswag, perplexity

OURS = {"path", "n_seq", "n_outputs", "kv_unified", "on_node", "progress"}  # a verb decides these itself
ENGINE = set(inspect.signature(engine.Engine.load).parameters) - OURS
FLAGS = {"ctx_size", "batch_size", "ubatch_size", "threads", "gpu_layers", "cache_type_k", "cache_type_v", "chunks"}


def parameters(function: object) -> set[str]:
    return set(inspect.signature(function).parameters)


@pytest.mark.parametrize("verb", ["run", "chat", "perplexity", "bench", "fit"])
def test_no_verb_names_a_parameter_after_its_flag(verb: str) -> None:
    assert not parameters(getattr(importlib.import_module(f"liquidcli.cli.{verb}"), verb)) & FLAGS


def test_verbs_take_what_the_library_takes() -> None:
    verbs = {
        name: parameters(getattr(importlib.import_module(f"liquidcli.cli.{name}"), name))
        for name in ("run", "chat", "perplexity", "bench", "fit")
    }
    assert verbs["run"] >= ENGINE and verbs["chat"] >= ENGINE
    assert verbs["perplexity"] >= {"n_ctx", "n_chunks", "n_batch", "ppl_stride"} & parameters(perplexity.measure)
    assert verbs["perplexity"] >= (ENGINE - {"n_threads_batch"}) | (parameters(hellaswag.read_tasks) - {"text"})
    assert verbs["bench"] >= ENGINE - {"n_ctx", "n_threads_batch"}
    assert verbs["fit"] >= parameters(fit.estimate) - {"f"}
