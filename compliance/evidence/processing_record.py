"""A draft of the records of processing activities (GDPR Art. 30) from the plan, to be finished by people.

Who is controller and who is processor is theirs to decide: hospitals usually are (joint) controllers, and the
coordinator is one of them or a processor. So both records are drafted.
"""

from boundary.plan import StudyPlan

HUMAN = "NEEDS-HUMAN"


def processing_record(plan: StudyPlan) -> str:
    """Markdown. Every field that the plan cannot know says NEEDS-HUMAN."""
    return "\n".join((*_head(plan), *_controller(plan), *_processor(plan))) + "\n"


def _head(plan: StudyPlan) -> list[str]:
    return [
        f"# Draft: records of processing activities, {plan.label}",
        "",
        f"A draft from the approved plan. Every field marked {HUMAN} is to be filled in and the rest checked by the "
        "person responsible, at each party for itself. It is evidence, not certification.",
        "",
    ]


def _controller(plan: StudyPlan) -> list[str]:
    purpose, data = plan.purpose, plan.dataset
    return [
        "## As controller: Article 30(1), at each hospital and, if it decides on purposes, at the coordinator",
        "",
        *_field("(a) Controller, joint controllers, representative, data protection officer", _parties(plan)),
        *_field("(b) Purposes", f"{_line(purpose.title)}. {_line(purpose.statement)}"),
        *_field(
            "Legal basis (as the plan says; not asked by Article 30)",
            f"{_line(purpose.legal_basis)}: {HUMAN} to confirm",
        ),
        *_field("Ethics reference (as the plan says)", f"{_line(purpose.ethics_reference)}: {HUMAN} to confirm"),
        *_field(
            "(c) Categories of data subjects and of personal data",
            f"Patients with images in the data set {data.name}: {', '.join(data.modalities)} images and their labels "
            f"({_labels(plan)}). {HUMAN}: other categories, children, vulnerable people.",
        ),
        *_field(
            "(d) Categories of recipients",
            "Images and labels: none outside the hospital. Masked sums and the models made from them: the coordinator "
            f"and the hospitals of the study. {HUMAN}: whoever gets a released model.",
        ),
        *_field(
            "(e) Transfers to third countries", f"{HUMAN}: where each party and its servers are, and the safeguards."
        ),
        *_field("(f) Time limits for erasure", _limits(plan)),
        *_field("(g) Technical and organisational security measures", _measures(plan)),
    ]


def _processor(plan: StudyPlan) -> list[str]:
    return [
        "## As processor: Article 30(2), at the coordinator if it works for the hospitals",
        "",
        *_field(
            "(a) Processor, each controller it acts for, representatives, data protection officers", _parties(plan)
        ),
        *_field(
            "(b) Categories of processing for each controller",
            "Adding up masked vectors of at least "
            f"{plan.aggregation.quorum} hospitals, keeping models, signed records and logs. {HUMAN}: the contract "
            "(Article 28).",
        ),
        *_field(
            "(c) Transfers to third countries", f"{HUMAN}: where the coordinator's servers are, and the safeguards."
        ),
        *_field("(d) Technical and organisational security measures", _measures(plan)),
    ]


def _field(name: str, text: str) -> list[str]:
    return [f"- **{name}**: {text}"]


def _parties(plan: StudyPlan) -> str:
    return (
        f"Hospitals, as the federation calls them: {', '.join(plan.silos)}. {HUMAN}: legal names, addresses, contacts."
    )


def _limits(plan: StudyPlan) -> str:
    return (
        f"Records and logs: {plan.purpose.retain_years} years after the study (the plan). The plan ends on "
        f"{plan.purpose.expires}. {HUMAN}: images and labels, by each hospital's own rules; released models."
    )


def _measures(plan: StudyPlan) -> str:
    guarantee = (
        "no noise per patient"
        if plan.privacy.mechanism == "none"
        else "noise per patient (differential privacy) in every hospital"
    )
    return (
        f"Data stay in the hospital; {guarantee}; sums under masks over at least {plan.aggregation.quorum} hospitals; "
        f"signed messages; append-only logs that the parties cosign. {HUMAN}: access control, premises, staff, backups."
    )


def _labels(plan: StudyPlan) -> str:
    return ", ".join(_line(label) for label in plan.labels.classes)


def _line(text: str) -> str:
    """Of the plan's free text, one line in which nothing is markup."""
    one = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\`*_{}[]()<>#+!|~-" else char for char in one)
