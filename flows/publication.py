"""From a study.toml to a published study: keys pinned, model built once, plan offered to the hospitals."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boundary.errors import BadTensors, InvalidPlan
from boundary.messages import PlanProposed
from boundary.names import COORDINATOR
from boundary.parts import Parts, parts_of, tuned_of
from boundary.plan import StudyPlan, parse_plan, plan_from_toml
from boundary.roster import read_roster
from boundary.tensors import Vector, check_values, flatten, manifest_of, pack, unpack
from flows.coordinator import Coordinator
from flows.desk import Desk
from flows.records import ModelStart
from flows.store import holdings, members, studies
from flows.store.database import reading, writing

if TYPE_CHECKING:
    from models.parameters import Tensors


def pinned(coordinator: Coordinator, text: str) -> StudyPlan:
    """Parse a plan; hospitals given without keys get those of the present roster. Raises `InvalidPlan`.

    The plan that is published and approved always has the keys in it.
    """
    try:
        value: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise InvalidPlan(f"not TOML: {why}") from why
    hospitals = value.get("hospitals")
    if not isinstance(hospitals, list) or not all(_is_without_key(one) for one in hospitals):
        return plan_from_toml(text)
    named = [{"silo": one} if isinstance(one, str) else one for one in hospitals]
    with reading(coordinator.store) as connection:
        data = members.current_roster(connection)
    known = {} if data is None else {c.party: c for c in read_roster(data, coordinator.key.public).roster.members}
    strangers = sorted({one["silo"] for one in named} - set(known))
    if strangers:
        raise InvalidPlan(f"hospitals: {', '.join(strangers)} not on the roster: invite and admit them first")
    value["hospitals"] = [one | {"signing_key": known[one["silo"]].signing_key} for one in named]
    return parse_plan(value)


def _is_without_key(hospital: Any) -> bool:
    """A name, or a table with one, perhaps its role, and no key."""
    return isinstance(hospital, str) or (
        isinstance(hospital, dict) and "signing_key" not in hospital and isinstance(hospital.get("silo"), str)
    )


def publish(coordinator: Coordinator, plan: StudyPlan) -> studies.Study:
    """Build the initial model, keep the study, offer the plan to its hospitals. Again is harmless.

    Raises `InvalidPlan` for a network that is not for the plan's task and images.
    """
    tensors, parts = checked_tensors(plan, coordinator.weights)
    check_finished(coordinator, plan, parts)
    with reading(coordinator.store) as connection:
        Desk(coordinator.key, coordinator.now, plan).roster(connection)
        known = {study.label for study in studies.every(connection)}
    if plan.label in known:
        with writing(coordinator.store) as connection:
            study = studies.find(connection, plan.label)
            studies.publish(connection, plan, study.model, coordinator.now())  # refuses another plan of this name
    else:
        study = begin_study(coordinator, plan, flatten(tensors, parts.whole), parts)
    propose(coordinator, study)
    return study


def check_finished(coordinator: Coordinator, plan: StudyPlan, parts: Parts) -> None:
    """Whether the finished models that the plan evaluates are kept here, and are of its network. Raises `InvalidPlan`.

    A hospital looks at them again before they touch its network.
    """
    for digest in plan.evaluation.models:
        try:
            with coordinator.blobs.open(digest) as source:
                weights = unpack(source.read(), parts.whole, plan.aggregation.downlink)
            check_values(weights, plan.aggregation.max_model_norm)
        except FileNotFoundError as why:
            raise InvalidPlan(
                f"evaluation.models: {digest} is not kept here. `wardround compare` tells the digest of a study's last "
                "model, `wardround plan keep` takes one in from a file"
            ) from why
        except BadTensors as why:
            raise InvalidPlan(f"evaluation.models: {digest} is not of {plan.model.name}: {why}") from why


def checked_tensors(plan: StudyPlan, weights: Path) -> tuple["Tensors", Parts]:
    """The initial weights by name, and which of them move. Raises `InvalidPlan` for what no hospital could train.

    `weights` is the coordinator's folder of pretrained files.
    """
    from models.catalogue import check_model
    from models.errors import ModelError
    from models.parameters import initial_tensors

    try:
        check_model(plan)
        tensors = initial_tensors(plan.model, len(plan.labels.classes), weights)
        shapes = manifest_of(tensors)
        check_values(flatten(tensors, shapes), plan.aggregation.max_model_norm)
    except (ModelError, BadTensors) as why:
        raise InvalidPlan(f"model: {why}") from why
    parts = parts_of(plan.model, shapes)
    if plan.personalisation is not None:
        tuned_of(parts, plan.personalisation.parameters)
    return tensors, parts


def begin_study(coordinator: Coordinator, plan: StudyPlan, weights: Vector, parts: Parts) -> studies.Study:
    """Keep a new study with the weights it begins with, float32 [parts.whole.size]. Raises `AlreadyPublished`."""
    start, now = _model_start(coordinator, plan, weights, parts), coordinator.now()
    with writing(coordinator.store) as connection:
        for blob in (start.initial, start.first):
            holdings.record(connection, blob, owner=COORDINATOR, now=now)
        studies.publish(connection, plan, start, now)
        return studies.find(connection, plan.label)


def _model_start(coordinator: Coordinator, plan: StudyPlan, weights: Vector, parts: Parts) -> ModelStart:
    """The initial weights as a blob, and apart what of them moves, which alone may be rounded."""
    blobs, downlink = coordinator.blobs, plan.aggregation.downlink
    if parts.moves_whole:
        return ModelStart(manifest=parts.whole, initial=blobs.put_bytes(pack(weights, parts.whole, downlink)))
    initial = blobs.put_bytes(pack(weights, parts.whole))
    moving = blobs.put_bytes(pack(parts.moving_of(weights), parts.moving, downlink))
    return ModelStart(manifest=parts.whole, initial=initial, moving=moving)


def propose(coordinator: Coordinator, study: studies.Study) -> None:
    """Offer the plan to every hospital it names. Offering again is harmless."""
    desk = Desk(coordinator.key, coordinator.now, study.plan)
    with writing(coordinator.store) as connection:
        for silo in study.plan.silos:
            desk.tell(connection, silo, PlanProposed(study=study.study, plan=study.plan))
