"""A plan and an archive that are about nobody, for `silo-agent rehearse`: the same at every hospital."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from boundary.identity import SigningIdentity
from boundary.plan import StudyPlan, parse_plan
from silo_agent.policy.model import PatientCaps, SiloDataset
from silo_agent.policy.sections import DatasetRules

IMAGES = 96
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Stage:
    """What a rehearsal is played with."""

    plan: StudyPlan
    dataset: SiloDataset
    key_file: Path


def synthetic_stage(
    folder: Path, site: str, hospitals: int, network: str, side: int, entropy: Callable[[int], bytes], today: date
) -> Stage:
    """Write synthetic chests as DICOM below `folder`, and compose a plan of `site` with hospitals that do not exist."""
    from infra.hospitals.phantoms import make_phantom_hospitals

    (home,) = make_phantom_hospitals(folder.resolve() / "archive", 1, IMAGES)
    key_file = folder / "key"
    key_file.write_bytes(entropy(KEY_BYTES))
    return Stage(_plan(site, hospitals, network, side, today), _dataset(home), key_file)


def _dataset(home: Path) -> SiloDataset:
    rules = DatasetRules.model_validate(
        {
            "source": {"kind": "folder", "path": str(home / "dicom")},
            "labels": {"kind": "csv", "path": str(home / "labels.csv")},
            "modalities": ["CT"],
            "exclusions": {"path": str(home / "nobody"), "max_age_hours": 1},
            "min_patients": 1,
            "max_images_per_patient": 1000,
            "n_max_patients": IMAGES,
            "lossy": "refuse",
            "burned_in": "refuse",
        }
    )
    caps = PatientCaps(most_patients=IMAGES, study_epsilon=1, lifetime_epsilon=1, population="nobody", required=False)
    return SiloDataset("rehearsal", rules, caps)


def _plan(site: str, hospitals: int, network: str, side: int, today: date) -> StudyPlan:
    silos = [site, *(f"rehearsal-{number}" for number in range(2, hospitals + 1))]
    nothing = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "a rehearsal without patients")
    return parse_plan(
        {
            "version": 1,
            "name": "rehearsal",
            "revision": 1,
            "purpose": nothing | {"expires": today.isoformat()},
            "hospitals": [{"silo": silo, "signing_key": SigningIdentity.generate().public.text} for silo in silos],
            "model": {"name": network, "version": 1},
            "preprocessing": {"size": [side, side], "intensity": "window", "low": -200, "high": 300},
            "labels": {"classes": ["0", "1"]},
            "dataset": {"name": "rehearsal", "modalities": ["CT"]},
            "training": {"rounds": 1, "batch_size": 16},
        }
    )
