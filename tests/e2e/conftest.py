"""What many commands are tried on: a machine of one's own, and a model with gates beside its llama twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import random_models
from tests.command import Liquid


@pytest.fixture
def liquid(tmp_path: Path) -> Liquid:
    return Liquid(tmp_path, {})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"gated": random_models.gated(folder), "stock": random_models.stock(folder)}
