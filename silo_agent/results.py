"""A finished piece of work on the agent's disk: the vector and what it is made of."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from silo_agent.state import write_private


@dataclass(frozen=True, slots=True)
class StoredResult:
    """`vector` is a file of little-endian float32; `parameters` and `metrics` give its layout."""

    vector: Path
    parameters: int
    metrics: int

    def save(self, folder: Path) -> None:
        """Write the description last: a folder with it is complete."""
        content = {"vector": str(self.vector), "parameters": self.parameters, "metrics": self.metrics}
        write_private(folder / "result.json", json.dumps(content).encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        content = json.loads((folder / "result.json").read_bytes())
        return cls(Path(content["vector"]), content["parameters"], content["metrics"])
