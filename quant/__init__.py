"""GGUF to smaller GGUF: `plan` says what would be done, `run` does it."""

from .plan import Plan, plan
from .run import Result, run

__all__ = ["Plan", "Result", "plan", "run"]
