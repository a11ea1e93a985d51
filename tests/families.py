"""A family's model of a configuration alone, as `plan` makes it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from liquidcli.converters.config import Config
from liquidcli.converters.registry import find
from liquidcli.converters.stock_or_liquid import stock_or_liquid


def chosen(config: Config, present: Collection[str] = (), *, stock: bool = False) -> tuple[Any, list[str]]:
    """The model, and all that it warns of."""
    model, told = stock_or_liquid(find(config.values)[1](config, present, exact_gate=False), stock=stock)
    return model, model.warnings() + told


def model_of(config: Config, present: Collection[str] = (), *, stock: bool = False) -> Any:
    return chosen(config, present, stock=stock)[0]
