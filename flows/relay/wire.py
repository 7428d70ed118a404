"""Bodies in and out: strict JSON to a frozen value, a frozen value to its one byte form."""

from typing import Any, TypeVar

from fastapi import Response
from pydantic import ValidationError

from boundary.canonical import canonical_bytes, parse_json
from boundary.errors import MalformedMessage
from boundary.names import DigestStr, Frozen

Value = TypeVar("Value", bound=Frozen)


class Receipt(Frozen):
    """The envelope with this digest is kept; the same envelope again gets the same receipt."""

    digest: DigestStr


def parse(kind: type[Value], body: bytes) -> Value:
    """Raises `MalformedMessage` or `TooLarge`."""
    try:
        return kind.model_validate(parse_json(body))
    except ValidationError as why:
        first = why.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MalformedMessage(f"{kind.__name__}: {place}: {first['msg']}") from why


def answer(value: Frozen) -> Response:
    return Response(canonical_bytes(value.model_dump(mode="json")), media_type="application/json")


def takes(kind: type[Frozen], says: str) -> dict[str, Any]:
    """For OpenAPI: the endpoint reads its own body, so that it is limited before it is parsed."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "description": says, "content": {"application/json": {"schema": schema}}}}
