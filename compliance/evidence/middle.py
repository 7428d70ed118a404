"""Sections 6 to 8: what the guarantee cost, how the sums were opened, what left each hospital."""

from collections import defaultdict
from typing import Any

from boundary.guarantee import PatientPrivacy
from compliance.accountant import ORDERS
from compliance.events import (
    BudgetCommitted,
    BudgetRefused,
    ContributionReleased,
    StatisticsTaken,
    SumOpened,
    WorkRefused,
)
from compliance.evidence.facts import Facts, HospitalFacts, RoundFacts
from compliance.evidence.opening import LOUD
from compliance.evidence.reading import Entry
from compliance.evidence.tables import Cell, Figure, Section, Table, figure, names, section, table


def privacy(facts: Facts) -> Section:
    private = facts.plan.privacy
    if not isinstance(private, PatientPrivacy):
        return section(
            6,
            "Privacy per patient",
            LOUD + facts.no_guarantee + ".",
            tables=[_releases_without(facts)],
            notes=["Masked sums hide one hospital's vector. They do not limit what a model remembers of a patient."],
        )
    return section(
        6,
        "Privacy per patient",
        "Epsilon is computed here from the reservations in each hospital's log. A reservation counts as spent whether "
        "or not its result left. Smaller is stronger.",
        fields=[
            ("Unit", "one patient with all images of that patient"),
            ("Neighbouring data sets", "one patient of one hospital added or removed"),
            (
                "Trust model",
                "noise is added in each hospital; it holds against the coordinator and all other hospitals",
            ),
            ("Mechanism", "Gaussian noise on clipped gradients of Poisson-sampled patients (DP-SGD)"),
            ("Clipping norm C", private.clip),
            ("Steps in a round", private.steps),
            ("Patients in a step, on average", private.patients_per_step),
            ("Cap of the plan", private.epsilon if private.epsilon is not None else "none: the plan gives the noise"),
            ("Accountant", f"Renyi, {len(ORDERS)} orders from {ORDERS[0]} to {ORDERS[-1]} (compliance/accountant.py)"),
        ],
        tables=[
            table(
                "Spent by hospital",
                (
                    "hospital",
                    "noise multiplier",
                    "sampling rate",
                    "reservations",
                    "committed",
                    "refused",
                    "delta",
                    "epsilon, computed",
                    "epsilon, by its log",
                    "cap",
                    "all shown",
                ),
                [_spent(one, private) for one in facts.hospitals],
            ),
            _releases_without(facts),
        ],
        figures=[_epsilon_figure(facts, private.epsilon)],
        notes=[
            "Not covered: how long a training takes; how many hospitals are below each of a few epsilons (exact).",
            "Lifetime budgets over several studies are kept in the hospitals and are not in this bundle.",
        ],
    )


def _spent(hospital: HospitalFacts, private: PatientPrivacy) -> list[Cell]:
    log, spending = hospital.log, hospital.spending
    counts: list[Cell] = [len(spending.after), len(log.of(BudgetCommitted)), len(log.of(BudgetRefused))]
    shown = "yes" if spending.is_whole and log.is_there else "no"
    if spending.last is None:
        return [hospital.silo, None, None, *counts, None, None, None, private.epsilon, shown]
    release = spending.releases[-1]
    last = spending.last
    numbers = [_short(release.noise_multiplier), _short(release.sampling_rate)]
    return [
        hospital.silo,
        *numbers,
        *counts,
        _short(last.delta),
        round(last.epsilon, 4),
        round(last.told, 4),
        private.epsilon,
        shown,
    ]


def _short(number: float) -> str:
    return f"{number:.4g}"


def _epsilon_figure(facts: Facts, cap: float | None) -> Figure:
    lines = [
        {"name": one.silo, "points": [[spent.round, round(spent.epsilon, 6)] for spent in one.spending.after]}
        for one in facts.hospitals
        if one.spending.after
    ]
    return figure("epsilon", "Epsilon spent by each hospital, against the plan's cap", cap=cap, lines=lines)


def _releases_without(facts: Facts) -> Table:
    """All that left without a guarantee per patient (NIST SP 800-226: say what is not covered)."""
    rows: dict[str, set[str]] = defaultdict(set)
    for hospital in facts.hospitals:
        for entry in hospital.log.of(ContributionReleased):
            rows[entry.event.phase].add(hospital.silo)
    said: list[list[Cell]] = []
    if rows["statistics"] or facts.coordinator.of(StatisticsTaken):
        said.append(["masked sums of intensities before round 1", names(sorted(rows["statistics"]))])
    measuring = rows["evaluate"] | rows["validate"]
    if measuring:
        said.append(["masked sums of metrics over held-back patients", names(sorted(measuring))])
    if rows["personalise"]:
        said.append(["masked counts of hospitals at which a model is better", names(sorted(rows["personalise"]))])
    if rows["train"] and not facts.is_private:
        said.append(["masked sums of model changes and of the training loss", names(sorted(rows["train"]))])
    return table("Released without a guarantee per patient", ("what", "hospitals"), said)


def aggregation(facts: Facts) -> Section:
    rows = [_sum(one, opened) for one in facts.rounds for opened in one.sums]
    failed = [
        [one.number, each.event.phase, each.event.attempt, each.event.reason, str(each.at)]
        for one in facts.rounds
        for each in one.failed
    ]
    return section(
        7,
        "Masked sums",
        "Only sums over the surviving hospitals of a cohort were opened; each vector was under masks before it left.",
        fields=[
            ("Fewest hospitals in a sum (plan)", facts.plan.aggregation.quorum),
            (
                "Fewest hospitals in an opened sum",
                min((len(o.event.surviving) for one in facts.rounds for o in one.sums), default=None),
            ),
            ("Bits of the ring", facts.plan.aggregation.ring),
        ],
        tables=[
            table(
                "Opened sums",
                ("round", "phase", "attempt", "in the cohort", "in the sum", "dropped out", "entry"),
                rows,
            ),
            table("Attempts that failed", ("round", "phase", "attempt", "why", "entry"), failed),
            table(
                "Receipts",
                ("round", "signed by", "missing", "not valid", "transcript"),
                [_receipt(one) for one in facts.trained],
            ),
        ],
        figures=[_cohort_figure(facts)],
    )


def _sum(one: RoundFacts, opened: Entry[SumOpened]) -> list[Any]:
    said = opened.event
    about = (said.phase, said.attempt)
    cohort = next((c.event.members for c in one.cohorts if (c.event.phase, c.event.attempt) == about), ())
    lost = sorted(set(cohort) - set(said.surviving))
    return [one.number, *about, len(cohort), len(said.surviving), names(lost), str(opened.at)]


def _receipt(one: RoundFacts) -> list[Cell]:
    found = one.receipt
    if found is None:
        return [one.number, "no receipt", None, None, None]
    return [one.number, names(found.valid), names(found.absent), names(found.invalid), found.receipt.receipt.transcript]


def _cohort_figure(facts: Facts) -> Figure:
    rows = []
    for hospital in facts.hospitals:
        refused = {one.event.round for one in hospital.log.of(WorkRefused)}
        cells = [_cell(hospital.silo, one, refused) for one in facts.trained]
        rows.append({"name": hospital.silo, "cells": cells})
    return figure("cohort", "Who contributed to which round", rounds=[one.number for one in facts.trained], rows=rows)


def _cell(silo: str, one: RoundFacts, refused: set[int]) -> str:
    if silo in one.contributing:
        return "contributed"
    if one.record is not None and silo in one.record.not_drawn:
        return "not drawn"
    return "refused" if one.number in refused else "absent"


def egress(facts: Facts) -> Section:
    totals: list[list[Cell]] = []
    rows: list[list[Cell]] = []
    for hospital in facts.hospitals:
        sent = hospital.log.of(ContributionReleased)
        totals.append(
            [hospital.silo, len(sent), sum(one.event.size for one in sent) if hospital.log.is_there else None]
        )
        for one in sent:
            said = one.event
            rows.append([hospital.silo, said.round, said.phase, said.attempt, said.size, said.vector, str(one.at)])
    return section(
        8,
        "What left each hospital",
        "Masked vectors, by their digests, all to the coordinator. The messages around them (docs/threat-model.md) "
        "have no free text and are not counted here.",
        tables=[
            table("Bytes by hospital", ("hospital", "vectors", "bytes"), totals),
            table("Every vector", ("hospital", "round", "phase", "attempt", "bytes", "digest", "entry"), rows),
        ],
        figures=[
            figure(
                "bytes",
                "Bytes of masked vectors that left each hospital",
                bars=[[row[0], row[2] or 0] for row in totals],
            )
        ],
        notes=["Names of tensors follow from the plan's model and are not in the logs."],
    )
