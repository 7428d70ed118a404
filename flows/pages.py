"""The words people read in Prefect and MLflow: markdown made from committed rounds. Pure text in, text out."""

from collections.abc import Sequence

from boundary.guarantee import EPSILON_BANDS, PatientPrivacy
from boundary.parties import trainers, validates_apart, validators
from boundary.plan import StudyPlan
from boundary.robustness import Median, RolledBack
from compliance.records import AnyMetrics, RoundRecord, current
from flows import describing, personalisation, readings
from flows.engine import HEADLINES, Reason
from flows.personalisation import Personalised
from flows.records import Statistics
from flows.store.studies import Study


def number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001 - an en dash is how "no value" is printed


def size(count: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def round_title(number_: int, of: int) -> str:
    width = len(str(of))
    return f"round {number_:0{max(2, width)}d} of {of}"


def counts(record: RoundRecord) -> str:
    """The three counts that belong to every round."""
    said = f"{len(record.registered)} registered, "
    if record.not_drawn:
        said += f"{len(record.not_drawn)} not drawn, "
    return f"{said}{len(record.ready)} ready, {len(record.contributing)} contributing"


def partial_message(record: RoundRecord) -> str:
    """What a named state says when hospitals were missing."""
    absent = ", ".join(f"{silo} ({code})" for silo, code in sorted(record.missing.items()))
    asked = len(record.registered) - len(record.not_drawn)
    return f"{len(record.contributing)} of {asked} hospitals contributed; without {absent}"


def rollback_message(record: RoundRecord) -> str:
    """Why a round's model does not count. No hospital is named, for nobody knows whose change it was."""
    match record.rolled_back:
        case RolledBack.VOTED_DOWN if record.vote is not None:
            no, voted = record.vote.against, record.vote.voted
            why = f"{no} of {voted} hospitals found the new model worse for their patients, and so it is in their mean"
        case RolledBack.TOO_LONG:
            why = "the mean change is longer than the plan lets any hospital's be, so somebody's was not clipped"
        case RolledBack.MODEL_TOO_LARGE:
            why = "the new model is larger than aggregation.max_model_norm"
        case _:
            why = "the votes add up to what no honest votes give"
    return f"rolled back to the model it began with: {why}"


def rounds_table(plan: StudyPlan, records: Sequence[RoundRecord]) -> str:
    names = readings.headings(plan)
    rows = [
        f"| round | training loss | loss | {' | '.join(names)} | patients' images evaluated | registered / ready / "
        "contributing | seconds |",
        f"|---:|---:|---:|{'---:|' * len(names)}---:|:---:|---:|",
    ]
    for record in records:
        metrics = record.metrics
        rows.append(
            f"| {record.round} | {number(record.train_loss)} | {number(metrics.loss if metrics else None)} "
            f"| {' | '.join(map(number, readings.values(plan, metrics)))} "
            f"| {metrics.count if metrics else '–'} "  # noqa: RUF001
            f"| {len(record.registered)} / {len(record.ready)} / {len(record.contributing)} "
            f"| {record.timing.total:.1f} |"
        )
    rolled_back = [str(record.round) for record in records if record.rolled_back is not None]
    if rolled_back:
        rows += ["", f"Rolled back: round {', '.join(rolled_back)}. The model of the round before counts instead."]
    return "\n".join(rows)


def told(metrics: AnyMetrics) -> str:
    """`AUROC 0.912, accuracy 0.873`: a model in a few figures."""
    return ", ".join(f"{name} {number(value, 3)}" for name, value in readings.readings(metrics))


def round_page(study: Study, record: RoundRecord) -> str:
    """One round: the result in a sentence, who took part, where the time went."""
    metrics = record.metrics
    result = (
        f"Loss {number(metrics.loss)}, {told(metrics)} on {metrics.count} held-back images of all hospitals together."
        if metrics
        else "The new model has no metrics: too few hospitals answered in time, or what they sent adds up to none."
    )
    if record.rolled_back is not None:
        found = record.tried_metrics
        result = f"**This round was {rollback_message(record)}.**"
        result += f" The model that was tried had loss {number(found.loss)}, {told(found)}." if found else ""
    elif record.vote is not None:
        result += f" {record.vote.against} of {record.vote.voted} hospitals voted against it."
    lines = [
        f"# {study.label} · {round_title(record.round, study.plan.training.rounds)}",
        "",
        result,
        "",
        f"**{counts(record)}** – closed because {HEADLINES[Reason(record.train.reason)]}.",  # noqa: RUF001
        "",
        "| hospital | in the sum | sent | received |",
        "|---|---|---:|---:|",
    ]
    for silo in record.registered:
        standing = "yes" if silo in record.contributing else f"no: {record.absent.get(silo, 'LATE')}"
        standing = "not drawn" if silo in record.not_drawn else standing
        traffic = record.traffic.get(silo)
        moved = f"{size(traffic.up)} | {size(traffic.down)}" if traffic else "– | –"  # noqa: RUF001
        lines.append(f"| {silo} | {standing} | {moved} |")
    if record.shortened is not None:
        lines += ["", f"{record.shortened} of {len(record.contributing)} changes were shortened to the plan's longest; "
                  f"the mean change is {record.update_norm:.3g} long."]  # fmt: skip
    if record.median is not None:
        lines += ["", median_of(record.median)]
    if record.clipped:
        lines += ["", f"{record.clipped:,} weights were clipped: the change did not fit the round's scale."]
    if record.late:
        lines += ["", late_updates(record)]
    if record.below:
        lines += ["", spent_so_far(record)]
    timing = record.timing
    lines += [
        "",
        f"Seconds: training {timing.training:.1f}, transport {timing.transport:.1f}, aggregation "
        f"{timing.aggregation:.1f}, evaluation {timing.evaluation:.1f}, total {timing.total:.1f}.",
        "",
        f"Model `{record.model_in[:19]}…` → `{record.model_out.digest[:19]}…`, transcript of the masked sum "
        f"`{record.transcript[:19]}…`",
    ]
    return "\n".join(lines)


def median_of(median: Median) -> str:
    """Of how many groups, and of how many not."""
    without = f", without {median.spoiled} whose sum was too long or none of changes" if median.spoiled else ""
    return f"The new model is made of the median of {median.groups} groups of hospitals{without}."


def late_updates(record: RoundRecord) -> str:
    """How many changes of the sum are of a round before: whose, nobody knows."""
    many = "is" if record.late == 1 else "are"
    return f"{record.late} of the {len(record.contributing)} changes {many} of an earlier round and came late."


def statistics_page(study: Study, found: Statistics) -> str:
    """What the images of all hospitals are like: only these sums are known, to anybody. Small cells are not told."""
    scale, names = found.normalisation, study.plan.labels.classes
    if found.description is not None:
        said = "" if scale is None else f"\n\nMean intensity {number(scale.mean)}, deviation {number(scale.deviation)}."
        return describing.description_page(study, found) + said
    if scale is None:
        raise ValueError("statistics over no image")
    of = "of the class" if study.plan.task == "classification" else "that show the class"
    rows = [f"| class | training images {of} |", "|---|---:|"]
    rows += [f"| {name} | {count} |" for name, count in zip(names, describing.hidden(found.labels), strict=True)]
    return "\n".join(
        [
            f"# {study.label}: the images of all hospitals together",
            "",
            f"{describing.told(found.images)} training images of {len(found.decision.members)} hospitals. Their "
            f"intensities, mapped to 0 to 1, have mean {number(scale.mean)} and standard deviation "
            f"{number(scale.deviation)}: all rounds use these two.",
            "",
            *rows,
            "",
            "A plan that measures this study's models, or goes on from them, says under `[preprocessing]`:",
            "",
            f"    normalise = {{mean = {scale.mean!r}, deviation = {scale.deviation!r}}}",
        ]
    )


def personalised_page(study: Study, found: Personalised) -> str:
    """Whether it was worth it: what all hospitals' comparisons come to."""
    return "\n".join([f"# {study.label}: worth it?", "", *personalisation.lines(found)])


def study_page(study: Study, records: Sequence[RoundRecord], mlflow_link: str | None) -> str:
    """The study so far, as a newcomer should find it."""
    plan = study.plan
    done = f"{len(records)} of {plan.training.rounds} rounds committed"
    lines = [
        f"# {plan.purpose.title}",
        "",
        f"Study `{study.study}`, plan **{study.label}**: {done}. {len(trainers(plan))} hospitals train "
        f"{plan.model.name}@{plan.model.version} {plan.aim}; "
        f"at least {plan.aggregation.quorum} of them in every sum.{_validating(plan)}",
        "",
    ]
    last = current(records)
    if last is not None:
        lines += [
            f"**Now: {told(last)}, loss {number(last.loss)}** ({last.count} held-back images).",
            "",
        ]
    if mlflow_link:
        lines += [f"Metrics, model and plan in MLflow: [{study.study}]({mlflow_link})", ""]
    return "\n".join(
        [
            *lines,
            rounds_table(plan, records),
            "",
            *([] if study.personalised is None else [*personalisation.lines(study.personalised), ""]),
            guarantee(study.plan, records),
            "",
            f"Plan digest `{study.plan_digest}`",
        ]
    )


def _validating(plan: StudyPlan) -> str:
    """Who only validates, and whether that can be told apart."""
    others = validators(plan)
    if not others:
        return ""
    how = (
        "apart: their patients are an external validation"
        if validates_apart(plan)
        else "together with the others: they are too few for a sum of their own, so no external result can be told"
    )
    return f" {', '.join(others)} only validate, {how}."


def guarantee(plan: StudyPlan, records: Sequence[RoundRecord]) -> str:
    """What the plan promises each patient, and what is known of how much of it is spent."""
    match plan.privacy:
        case PatientPrivacy() as privacy:
            asked = (
                f"epsilon {privacy.epsilon:g} in every hospital for the whole study, at delta = 1 / (10 x the most "
                "patients it declares)"
                if privacy.epsilon is not None
                else f"noise multiplier {privacy.noise_multiplier:g}; what that costs differs between hospitals"
            )
            said = f"**Privacy: per patient**, {asked}. Neither training loss nor patient counts are reported."
            said += " Not covered by it: the summed metrics of held-back patients, on whom this study never trains."
            spent = spent_so_far(records[-1]) if records else ""
            return f"{said} {spent}".rstrip()
        case _:
            return "**Privacy noise: none** – this plan gives no mathematical guarantee per patient."  # noqa: RUF001


def spent_so_far(record: RoundRecord) -> str:
    """How many hospitals are below each band of epsilon, of those in the round's sum."""
    if not record.below:
        return ""
    counted = ", ".join(f"{n} below {band}" for band, n in zip(EPSILON_BANDS, record.below, strict=True))
    return f"Spent on this study after round {record.round}, of {len(record.contributing)} hospitals: {counted}."
