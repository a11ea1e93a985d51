"""GGUF to smaller GGUF: `plan` says what would be done, `run` does it."""

from .imatrix import read_imatrix, write_imatrix
from .imatrix_sums import Sums, read_sums, write_dat
from .options import Options, key_overrides, optional_tensor_type, overrides, words_of_file
from .plan import Plan, plan, plan_file, plan_path
from .run import Result, check_importance, output_paths, run
from .schema import schema
from .sizes import Choice, budget_bytes, closest_below, largest_that_fits, plan_every_type, plans_of
from .types import FILE_TYPES, OFFERED, file_type, find_file_type

__all__ = [
    "FILE_TYPES",
    "OFFERED",
    "Choice",
    "Options",
    "Plan",
    "Result",
    "Sums",
    "budget_bytes",
    "check_importance",
    "closest_below",
    "file_type",
    "find_file_type",
    "key_overrides",
    "largest_that_fits",
    "optional_tensor_type",
    "output_paths",
    "overrides",
    "plan",
    "plan_every_type",
    "plan_file",
    "plan_path",
    "plans_of",
    "read_imatrix",
    "read_sums",
    "run",
    "schema",
    "words_of_file",
    "write_dat",
    "write_imatrix",
]
