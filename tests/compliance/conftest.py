"""The golden federation, which has one audit event of every kind."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fed() -> ModuleType:
    path = Path(__file__).parents[1] / "vectors" / "make.py"
    spec = importlib.util.spec_from_file_location("golden_for_compliance", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
