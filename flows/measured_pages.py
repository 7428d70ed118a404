"""How good models are, with 95 % intervals: what `federated-evaluation` shows. Pure text in, text out."""

from collections.abc import Sequence

from boundary.parties import validates_apart, validators
from compliance.records import AnyMetrics, RoundRecord
from flows import readings
from flows.records import Measurement
from flows.store.studies import Study

INDEPENDENT = (
    "Intervals are 95 %: Newcombe's for AUROC, Wilson's for accuracy. They count each image as independent; where "
    "patients have several images the truth is wider. AUROC is read from histograms that the hospitals add up."
)


def finished_page(study: Study, found: Sequence[Measurement]) -> str:
    """The finished models of a plan that trains nothing, each measured once."""
    plan, models = study.plan, study.plan.evaluation.models
    lines = [
        f"# {study.label}: {len(found)} of {len(models)} finished models measured",
        "",
        f"Nothing is trained: all patients of {', '.join(plan.silos)} are held back.",
        "",
        *_table(study, [(f"`{one.model[:19]}…`", one.metrics, one.decision.members) for one in found], "model"),
        "",
        INDEPENDENT,
    ]
    return "\n".join(lines)


def rounds_page(study: Study, records: Sequence[RoundRecord], external: Sequence[Measurement], number: int = 0) -> str:
    """What a study's rounds were measured at; of one round if `number` is not 0."""
    rows: list[tuple[str, AnyMetrics, Sequence[str]]] = []
    apart = {one.round: one for one in external}
    for record in records:
        if number not in {0, record.round}:
            continue
        if record.metrics is not None and record.evaluate is not None:
            rows.append((f"{record.round}", record.metrics, record.evaluate.members))
        if (one := apart.get(record.round)) is not None:
            rows.append((f"{record.round}, external", one.metrics, one.decision.members))
    lines = [f"# {study.label}: {_headline(records, number)}", "", *_table(study, rows, "round"), "", INDEPENDENT]
    return "\n".join([*lines, *_who_validates(study)])


def _headline(records: Sequence[RoundRecord], number: int) -> str:
    asked = [record for record in records if record.metrics is None and number in {0, record.round}]
    missing = [record.round for record in asked if record.rolled_back is None]
    brought_down = [record.round for record in asked if record.rolled_back is not None]
    said = f"round {number}" if number else f"{len(records)} rounds"
    told = [f"not measured, for want of hospitals: {', '.join(map(str, missing))}"] if missing else []
    told += [f"rolled back: {', '.join(map(str, brought_down))}"] if brought_down else []
    return "; ".join([said, *told]) if told else f"{said}, as measured on held-back patients"


def _who_validates(study: Study) -> list[str]:
    plan, others = study.plan, validators(study.plan)
    if not others:
        return []
    if validates_apart(plan):
        return ["", f"External: {', '.join(others)}, on whose patients this study never trains."]
    return [
        "",
        f"{', '.join(others)} never train; they are fewer than the {plan.aggregation.quorum} that a sum needs, so they "
        "are in the one sum of all, and no external result can be told.",
    ]


def _table(study: Study, rows: Sequence[tuple[str, AnyMetrics, Sequence[str]]], of: str) -> list[str]:
    names = readings.headings(study.plan)
    head = f"| {of} | {' | '.join(names)} | loss | images | hospitals |"
    lines = [head, f"|---|{'---:|' * (len(names) + 2)}---|"]
    for name, metrics, members in rows:
        told = " | ".join(said for _, said in readings.with_bounds(metrics))
        lines.append(f"| {name} | {told} | {metrics.loss:.4f} | {metrics.count} | {', '.join(members)} |")
    return lines
