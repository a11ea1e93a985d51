"""GGUF to smaller GGUF: `plan` says what would be done, `run` does it."""

from .plan import Options, Plan, optional_tensor_type, overrides, plan, plan_file, plan_path
from .run import Result, run
from .schema import schema
from .sizes import budget_bytes, largest_that_fits, plan_every_type
from .types import FILE_TYPES, OFFERED, file_type, find_file_type

__all__ = [
    "FILE_TYPES",
    "OFFERED",
    "Options",
    "Plan",
    "Result",
    "budget_bytes",
    "file_type",
    "find_file_type",
    "largest_that_fits",
    "optional_tensor_type",
    "overrides",
    "plan",
    "plan_every_type",
    "plan_file",
    "plan_path",
    "run",
    "schema",
]
