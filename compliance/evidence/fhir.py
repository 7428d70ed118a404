"""The shown entries as FHIR R4 AuditEvents (HL7 FHIR 4.0.1, "AuditEvent"), for whoever collects audits in that form.

The log is the evidence, these are a rendition: identifiers follow from the leaf's hash, so an AuditEvent can be traced
to its entry. IHE BALP's profiles are of REST operations and of patients; only uploads are one of these
(`IHE.BasicAudit.Create`, profiles.ihe.net/ITI/BALP), so only they claim a profile. Nothing names a patient.
"""

import uuid
from typing import Any

from boundary.names import COORDINATOR
from compliance.bundle import Bundle
from compliance.events import (
    AnyEvent,
    BudgetRefused,
    BudgetReserved,
    ContributionReleased,
    DataPurged,
    EvidenceIssued,
    GateRefused,
    HospitalAdmitted,
    HospitalsDrawn,
    IncidentClosed,
    IncidentOpened,
    IntakeCounted,
    LateUpdateOffered,
    PlanApprovalGiven,
    PlanDeclineGiven,
    PlanPublished,
    PolicyAdopted,
    ReceiptSigned,
    ReleaseDecided,
    RoundClosed,
    RoundOpened,
    SumOpened,
    TrainingStarted,
    UnmaskingHelped,
    WithdrawalEffective,
    WorkRefused,
)
from compliance.evidence.facts import Facts, facts_of
from compliance.evidence.reading import Entry

_EVENT_TYPE = "http://terminology.hl7.org/CodeSystem/audit-event-type"
_DICOM = "http://dicom.nema.org/resources/ontology/DCM"
_REST = "http://hl7.org/fhir/restful-interaction"
_ENTITY = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
_OURS = "urn:wardround:event"
_PARTY = "urn:wardround:party"
_LEAF = "urn:wardround:leaf"
BALP_CREATE = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit.Create"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:wardround:audit-events")
_URI = "5"  # of http://hl7.org/fhir/network-type: the address is a URI

# DICOM PS3.16, CID 400: Application Activity, Export, Security Alert, Patient Record; and FHIR's action codes.
_ACTIVITY, _EXPORT, _ALERT = ("110100", "Application Activity"), ("110106", "Export"), ("110113", "Security Alert")
_WORTH_IT: dict[type[AnyEvent], tuple[tuple[str, str], str]] = {
    HospitalAdmitted: (_ACTIVITY, "C"),
    PlanPublished: (_ACTIVITY, "C"),
    PlanApprovalGiven: (_ACTIVITY, "E"),
    PlanDeclineGiven: (_ACTIVITY, "E"),
    IntakeCounted: (_ACTIVITY, "R"),
    TrainingStarted: (_ACTIVITY, "R"),
    HospitalsDrawn: (_ACTIVITY, "E"),
    LateUpdateOffered: (_ACTIVITY, "E"),
    PolicyAdopted: (_ALERT, "U"),
    GateRefused: (_ALERT, "E"),
    BudgetReserved: (_ACTIVITY, "E"),
    BudgetRefused: (_ALERT, "E"),
    ContributionReleased: (_EXPORT, "C"),
    UnmaskingHelped: (_ACTIVITY, "E"),
    WorkRefused: (_ACTIVITY, "E"),
    RoundOpened: (_ACTIVITY, "E"),
    SumOpened: (_ACTIVITY, "E"),
    RoundClosed: (_ACTIVITY, "C"),
    ReceiptSigned: (_ACTIVITY, "C"),
    WithdrawalEffective: (_ACTIVITY, "E"),
    IncidentOpened: (_ALERT, "E"),
    IncidentClosed: (_ALERT, "E"),
    ReleaseDecided: (_ACTIVITY, "E"),
    EvidenceIssued: (_ACTIVITY, "C"),
    DataPurged: (_ACTIVITY, "D"),
}
_REFUSALS = WorkRefused, GateRefused, BudgetRefused, PlanDeclineGiven, IncidentOpened


def audit_events(bundle: Bundle) -> dict[str, Any]:
    """A FHIR Bundle of type collection, log by log, in the order of the entries."""
    return audit_events_from(facts_of(bundle))


def audit_events_from(facts: Facts) -> dict[str, Any]:
    """The same where the facts of the bundle are known already."""
    found = []
    for log in facts.logs:
        for entry in log.everything():
            if type(entry.event) in _WORTH_IT:
                resource = _resource(entry, log.hashes[entry.at.sequence - 1])
                found.append({"fullUrl": f"urn:uuid:{resource['id']}", "resource": resource})
    return {"resourceType": "Bundle", "type": "collection", "entry": found}


def _resource(entry: Entry[AnyEvent], leaf: bytes) -> dict[str, Any]:
    (code, display), action = _WORTH_IT[type(entry.event)]
    resource: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": str(uuid.uuid5(_NAMESPACE, leaf.hex())),
        "type": {"system": _DICOM, "code": code, "display": display},
        "subtype": [{"system": _OURS, "code": entry.event.event}],
        "action": action,
        "recorded": entry.time,
        "outcome": "4" if isinstance(entry.event, _REFUSALS) else "0",
        "agent": [{"who": _party(entry.actor), "requestor": True}],
        "source": {"observer": _party(entry.at.log)},
        "entity": [_entry_of(entry, leaf)],
    }
    if isinstance(entry.event, ContributionReleased):
        _as_upload(resource, entry.event, entry.actor)
    return resource


def _party(name: str) -> dict[str, Any]:
    return {"identifier": {"system": _PARTY, "value": name}}


def _entry_of(entry: Entry[AnyEvent], leaf: bytes) -> dict[str, Any]:
    return {
        "what": {"identifier": {"system": _LEAF, "value": leaf.hex()}},
        "type": {"system": _ENTITY, "code": "4", "display": "Other"},
        "description": f"entry {entry.at.sequence} of the log of {entry.at.log}",
        "detail": [
            {"type": name, "valueString": str(value)}
            for name, value in (
                ("study", getattr(entry.event, "study", None)),
                ("round", getattr(entry.event, "round", None)),
            )
            if value is not None
        ],
    }


def _as_upload(resource: dict[str, Any], event: ContributionReleased, silo: str) -> None:
    """A vector is put into the coordinator's store over HTTP: BALP's pattern of a create without a patient."""
    resource["meta"] = {"profile": [BALP_CREATE]}
    resource["type"] = {"system": _EVENT_TYPE, "code": "rest", "display": "Restful Operation"}
    resource["subtype"].insert(0, {"system": _REST, "code": "create", "display": "create"})
    resource["agent"] = [
        _end(silo, "110153", "Source Role ID", requestor=True),
        _end(COORDINATOR, "110152", "Destination Role ID", requestor=False),
    ]
    resource["entity"].append(
        {
            "what": {"identifier": {"system": "urn:ietf:rfc:6920", "value": event.vector}},
            "type": {"system": _ENTITY, "code": "2", "display": "System Object"},
            "role": {"system": _ROLE, "code": "4", "display": "Domain Resource"},
            "detail": [{"type": "bytes", "valueString": str(event.size)}],
        }
    )


def _end(party: str, code: str, display: str, *, requestor: bool) -> dict[str, Any]:
    return {
        "type": {"coding": [{"system": _DICOM, "code": code, "display": display}]},
        "who": _party(party),
        "requestor": requestor,
        "network": {"address": f"{_PARTY}:{party}", "type": _URI},
    }
