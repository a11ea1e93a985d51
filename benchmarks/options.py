"""Options that the timing programs of this folder share: models, clock, rounds. Knows no timing."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from random_model import BODY_TYPES
from shapes import SHAPES

from liquidcli.errors import UsageError

CLOCKS = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}


def parser_of(doc: str, program: str) -> argparse.ArgumentParser:
    """The program's docstring up to what it knows is its help."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=program, description=doc.split("\n\nKnows")[0], formatter_class=raw)


def add_models(parser: argparse.ArgumentParser, *, shape: str, gated: str, kv_policy: str = "project") -> None:
    """Which random models; defaults are given where the programs differ."""
    add = parser.add_argument
    types = [kind.name.lower() for kind in BODY_TYPES]
    add("--shape", choices=sorted(SHAPES), default=shape)
    add("--gated", default=gated, metavar="upper|all|LIST", help=f"layers with a gate (default: {gated})")
    add("--adapter", type=int, default=0, metavar="M", help="hidden size of the adapters (default: none)")
    add("--kv-policy", choices=("project", "drop"), default=kv_policy, help=f"(default: {kv_policy})")
    add("--type", choices=types, default="q4_0", help="of the layers' matrices")
    add("--head-type", choices=types, default="q6_k", help="of embedding and head")
    add("--seed", type=int, default=1)
    add("--dir", type=Path, default=None, help="where the models go (default: a cache folder)")
    add("--keep", action="store_true", help="keep the models for the next run")
    add("--threads", type=int, default=None)
    add("--json", action="store_true")


def add_rounds(parser: argparse.ArgumentParser, rounds: int, *, stock: bool = True) -> None:
    """For programs that run several ways of computing in turns."""
    add = parser.add_argument
    add("--rounds", type=int, default=rounds)
    add("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: time of this process, for a busy machine")
    if stock:
        add("--no-stock", action="store_true", help="leave the llama twin out")


def check_models(options: argparse.Namespace, skip_rates: Sequence[float]) -> None:
    """UsageError for what cannot be made."""
    if options.adapter % 32:
        raise UsageError(f"the hidden size of an adapter is a multiple of 32, {options.adapter} is not")
    if any(not 0 <= rate <= 1 for rate in skip_rates):
        raise UsageError("--skip-rate lies between 0 and 1")


def check_rounds(options: argparse.Namespace) -> None:
    """UsageError for what cannot be timed."""
    if options.rounds < 1:
        raise UsageError("--rounds is at least 1")
    if options.clock == "cpu" and options.threads != 1:
        raise UsageError("processor time is comparable for one thread only: waiting threads spin", hint="--threads 1")
