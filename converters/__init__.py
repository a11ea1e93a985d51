"""Hugging Face checkpoint folder to GGUF: `plan` decides from headers, `run` streams. No torch.

    plan = converters.plan("SmolLM2-135M-Instruct", outtype="f16")
    result = converters.run(plan, "SmolLM2-135M-Instruct-F16.gguf")
"""

from .plan import Plan, plan
from .run import Result, run

__all__ = ["Plan", "Result", "plan", "run"]
