"""docs/openapi.json is what the code says today, and a valid document."""

import json
from pathlib import Path

import pytest

from flows.relay.openapi import document, text

PUBLISHED = Path(__file__).parents[3] / "docs" / "openapi.json"


def test_the_published_document_is_current() -> None:
    assert PUBLISHED.read_text() == text(), "run: python -m flows.relay.openapi > docs/openapi.json"


def test_the_document_is_valid() -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
    validator.validate(json.loads(text()))


def test_every_reference_leads_somewhere_and_every_endpoint_says_how_it_refuses() -> None:
    found = document()
    schemas = found["components"]["schemas"]
    names = [part.split('"')[0] for part in json.dumps(found).split("#/components/schemas/")[1:]]
    assert set(names) <= set(schemas)
    for path, methods in found["paths"].items():
        for operation in methods.values():
            assert "default" in operation["responses"], path
