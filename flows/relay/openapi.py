"""The OpenAPI document: `python -m flows.relay.openapi > docs/openapi.json`. CI fails when it is not current."""

import json
import sys
from typing import Any

from pydantic.json_schema import models_json_schema

from boundary.api import Heartbeat, PollRequest, SignedEnrolment
from flows.relay.app import bare_app

_READ_BY_US = (Heartbeat, PollRequest, SignedEnrolment)  # bodies that FastAPI does not see: see `wire.takes`


def document() -> dict[str, Any]:
    found = bare_app().openapi()
    place = "#/components/schemas/{model}"
    _, bodies = models_json_schema([(kind, "validation") for kind in _READ_BY_US], ref_template=place)
    schemas = found["components"]["schemas"]
    found["components"]["schemas"] = dict(sorted((bodies["$defs"] | schemas).items()))
    return found


def text() -> str:
    return json.dumps(document(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
