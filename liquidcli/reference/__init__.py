"""The PyTorch reference of the architecture; the converter and the runtime are checked against it; gates train in it.

Needs torch and safetensors, the optional extra `train`; nothing else of the package imports this room at module level.
"""

from __future__ import annotations

import importlib.util

from liquidcli.errors import LiquidError

if missing := [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]:
    raise LiquidError(
        f"the PyTorch reference needs {' and '.join(missing)}, which is not installed",
        hint="pip install 'liquid-depth[train]'",
    )

from .checkpoint import from_pretrained, save_pretrained
from .config import LiquidConfig
from .depth_config import DepthConfig
from .model import LiquidForCausalLM, Output, Trace

__all__ = ["DepthConfig", "LiquidConfig", "LiquidForCausalLM", "Output", "Trace", "from_pretrained", "save_pretrained"]
