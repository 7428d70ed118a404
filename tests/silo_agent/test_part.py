"""What a hospital that trains nothing is told, what it counts, and that no budget and no guarantee is asked of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boundary.description import sizes
from boundary.plan import StudyPlan, parse_plan
from infra import golden
from silo_agent.budget import terms_of
from silo_agent.describing import described
from silo_agent.errors import WorkFailed
from silo_agent.intake.cache import CohortArrays
from silo_agent.policy.model import PatientCaps, SiloDataset
from silo_agent.steward import Dossier, dossier, lines

FINISHED = "sha256:" + "a" * 64
KEYS = [golden.key(name).public.text for name in ("v-1", "v-2", "v-3")]


def plan_with(validating: int, **sections: dict[str, Any]) -> StudyPlan:
    """The golden plan with so many hospitals beside its three, which only validate: v-1, v-2, v-3."""
    value = golden.plan().model_dump(mode="json")
    value["preprocessing"]["normalise"] = "none"
    value["aggregation"] |= {"error_feedback": False, "quorum": 3}
    value["personalisation"] = None
    value["model"] |= {"home": [], "trained": ["*"]}
    for number, key in enumerate(KEYS[:validating], 1):
        value["hospitals"].append({"silo": f"v-{number}", "signing_key": key, "role": "validate"})
    for section, changed in sections.items():
        value[section] = value[section] | changed
    return parse_plan(value)


def told(site: Any, plan: StudyPlan, who: str) -> dict[str, str]:
    site.propose()
    file: Dossier = dossier(site.journal, site.folder, site.journal.plan(site.study), site.now)
    return dict(lines(replace(file, plan=plan, site=who)))


@pytest.mark.parametrize(("validating", "summed"), [(3, "in a sum of their own"), (2, "in the one sum of all")])
def test_the_steward_of_a_validating_hospital_reads_its_part(site: Any, validating: int, summed: str) -> None:
    plan = plan_with(validating)
    said = told(site, plan, "v-1")
    assert summed in said["Our part"]
    assert "An order to train is refused (NOT_OUR_PART)" in said["Our part"]
    assert "all of the patients held back" in said["On which data"]
    assert said["What leaves"].startswith("counts of right and wrong")
    assert "no budget is spent" in said["Guarantee"]
    others = told(site, plan, "ucl")
    assert others["Who only validates"].startswith("v-1, v-2")
    assert others["What leaves"].startswith("per round: the change of")


def test_the_steward_reads_which_models_are_measured_and_what_is_counted(site: Any) -> None:
    plan = plan_with(
        0, training={"rounds": 0}, evaluation={"models": [FINISHED]}, dataset={"described": True}
    )  # fmt: skip
    said = told(site, plan, "ucl")
    assert FINISHED in said["What is measured"]
    assert "none that we have measured in another study" in said["What is measured"]
    assert "images per patient" in said["Counted once"]
    assert "What is trained" not in said


def test_where_nobody_is_trained_on_no_guarantee_is_asked_for() -> None:
    caps = PatientCaps(1000, 8.0, 16.0, "everybody", required=True)
    here = SiloDataset("images", None, caps, "v-1")  # type: ignore[arg-type]
    assert terms_of(plan_with(1), here) is None
    with pytest.raises(WorkFailed, match="asks for a guarantee"):
        terms_of(plan_with(1), replace(here, site="ucl"))


def test_a_cohort_is_counted_on_both_sides_without_those_who_withdrew() -> None:
    """Patient 0 is held back, 1 has withdrawn, 2 has three images, one of them of class 1."""
    patients = np.array([0, 0, 1, 2, 2, 2, 3])
    labels = np.array([0, 1, 1, 0, 0, 1, 0])
    images = np.linspace(0, 1, 7, dtype=np.float32)[:, None, None, None] * np.ones((7, 1, 4, 4), np.float32)
    arrays = CohortArrays(images, labels, patients, patients == 0, patients == 1)
    numbers, found, at = described(arrays, 2), {}, 0
    for name, size in sizes(2).items():
        found[name] = numbers[at : at + size].tolist()
        at += size
    assert at == len(numbers)
    assert (found["training_patients"], found["training_images"], found["training_classes"]) == ([2], [4], [3, 1])
    assert (found["held_back_patients"], found["held_back_images"], found["held_back_classes"]) == ([1], [2], [1, 1])
    assert found["per_patient"] == [1, 1, 1, 0, 0]
    assert sum(found["intensities"]) == pytest.approx(6)
    assert (found["intensities"][0], found["intensities"][-1]) == (1, 1), "both ends of [0, 1] are in a bin"
