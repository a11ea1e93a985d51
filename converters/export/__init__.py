"""The converters' way back: a GGUF to a Hugging Face folder. `plan_export` decides from keys, `run_export` streams.

with open_gguf("SmolLM2-135M-Instruct-Q4_K_M.gguf") as f:
    run_export(plan_export(f, dtype="f16"), "SmolLM2-135M-Instruct")
"""

from .plan import MAX_SHARD_BYTES, ExportPlan, plan_export
from .run import ExportResult, run_export

__all__ = ["MAX_SHARD_BYTES", "ExportPlan", "ExportResult", "plan_export", "run_export"]
