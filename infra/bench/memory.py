"""The coordinator's memory while it sums a round: it should not grow with the number of hospitals.

Measured in a process of its own that does nothing else: `RoundWork.aggregate` over sealed contributions on disk, from
unsealing to the stored new model. The figure is the growth of the peak of resident memory, in models of 25 MB.
"""

import hashlib
import json
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from boundary.contribution import contribution_context, seal_contribution
from boundary.layout import layout_for
from boundary.messages import BlobRef, Collection, Contribution
from boundary.plan import StudyPlan
from boundary.sealing import SealingKey
from boundary.tensors import TensorManifest, TensorSpec, pack
from flows.aggregation import Sealed
from flows.coordinator import Coordinator, create, load, starting_settings
from flows.desk import Desk
from flows.records import CohortDecision, ModelStart
from flows.round_work import Gathered, RoundWork
from flows.store import rounds, studies
from flows.store.database import writing
from infra.bench.federation import keyed_plan
from infra.bench.rows import Row, at_most

PARAMETERS = 25 * 2**20 // 4
HOSPITALS = (3, 10, 30)
MODEL_BYTES = 4 * PARAMETERS
_ORDER = "sha256:" + "0" * 64


def memory() -> list[Row]:
    rows = []
    for hospitals in HOSPITALS:
        with tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder:
            prepare(Path(folder), hospitals)
            done = subprocess.run([sys.executable, "-m", "infra.bench.memory", folder],
                                  check=True, capture_output=True, text=True)  # fmt: skip
        found = json.loads(done.stdout)
        rows.append(Row(f"peak memory of a sum over {hospitals} hospitals", found["grown"] / MODEL_BYTES, "models",
                        "memory of one 25 MB model", 1.0, at_most(4)))  # fmt: skip
        rows.append(Row(f"a sum over {hospitals} hospitals, to the stored model", found["seconds"], "s"))
    return rows


def prepare(folder: Path, hospitals: int) -> None:
    """A coordinator with a published study, and each hospital's sealed contribution in its blob store."""
    home = folder / "home"
    coordinator = create(home, starting_settings(home, "https://localhost:8443", "127.0.0.1", 8443, ["localhost"]))
    plan = keyed_plan([f"hospital-{number:02d}" for number in range(hospitals)], "images", 10)
    manifest = TensorManifest(tensors=(TensorSpec(name="weights", shape=(PARAMETERS,)),))
    initial = coordinator.blobs.put_bytes(pack(np.full(PARAMETERS, 0.01, dtype=np.float32), manifest))
    with writing(coordinator.store) as connection:
        studies.publish(connection, plan, ModelStart(manifest=manifest, initial=initial), coordinator.now())
    layout = layout_for("train", parameters=PARAMETERS, metrics=0)
    vector = folder / "vector"
    values = np.full(layout.size, 1e-3, dtype="<f4")
    values[layout.where("images")] = values[layout.where("weight")] = 100
    values.tofile(vector)
    collection = _collection(coordinator, plan)
    said = [_contribution(folder, coordinator, vector, collection, silo).model_dump_json() for silo in plan.silos]
    (folder / "contributions.json").write_text(json.dumps(said))


def _collection(coordinator: Coordinator, plan: StudyPlan) -> Collection:
    with writing(coordinator.store) as connection:
        return Collection(study=studies.find(connection, plan.label).study, round=1, phase="train")


def _contribution(
    folder: Path, coordinator: Coordinator, vector: Path, collection: Collection, silo: str
) -> Contribution:
    sealed, hasher = folder / "sealed", hashlib.sha256()
    with vector.open("rb") as source, sealed.open("wb") as target:
        sealed_key, chunks = seal_contribution(
            source.read,
            coordinator=SealingKey(coordinator.card.sealing_key),
            context=contribution_context(collection, silo, _ORDER),
            file_key=secrets.token_bytes(32),
        )
        for chunk in chunks:
            hasher.update(chunk)
            target.write(chunk)
    blob = BlobRef(digest="sha256:" + hasher.hexdigest(), size=sealed.stat().st_size)
    coordinator.blobs.adopt(blob.digest, sealed)
    return Contribution(collection=collection, order=_ORDER, vector=blob, sealed_key=sealed_key)


def aggregate(folder: Path) -> dict[str, float]:
    """In the measured process."""
    coordinator = load(folder / "home")
    said = [Contribution.model_validate_json(one) for one in json.loads((folder / "contributions.json").read_text())]
    with writing(coordinator.store) as connection:
        study = studies.find(connection, said[0].collection.study)
        now = datetime.now(UTC)
        reins = studies.take_reins(connection, study.study, "benchmark", now, timedelta(minutes=10))
        opened = rounds.open_round(connection, reins, 1, study.model.initial.digest, now)
    desk = Desk(coordinator.key, coordinator.now, study.plan)
    silos = study.plan.silos
    work = RoundWork(coordinator, study, reins, desk, _ORDER, opened, study.model.initial, silos)
    gathered = Gathered(
        CohortDecision(phase="train", attempt=1, reason="ALL_THERE", members=silos, absent={}, closed_at=now),
        tuple(_sealed(coordinator, silos, said)),
        0.0,
        0.0,
    )
    _ = coordinator.unsealing
    begun = time.monotonic()
    grown = grown_by(lambda: work.aggregate(gathered))
    return {"seconds": time.monotonic() - begun, "grown": grown}


def grown_by(work: Callable[[], object]) -> int:
    """By how many bytes the peak of this process's resident memory rises while `work` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is counted from here
    before = _resident_bytes("VmRSS")
    work()
    return _resident_bytes("VmHWM") - before


def _sealed(coordinator: Coordinator, silos: tuple[str, ...], said: list[Contribution]) -> Iterator[Sealed]:
    for silo, message in zip(silos, said, strict=True):
        digest = message.vector.digest
        yield Sealed(silo, message, lambda digest=digest: coordinator.blobs.open(digest))  # type: ignore[misc]


def _resident_bytes(name: str) -> int:
    """Bytes. Not `ru_maxrss`, which a process inherits from the one that started it."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    print(json.dumps(aggregate(Path(sys.argv[1]))))
