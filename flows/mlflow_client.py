"""What is written into MLflow, through its client. Imported late: mlflow takes seconds.

One experiment per study, one parent run per study, global metrics with step = round, sent in batches. Nothing of one
hospital but its name, its keyed data set digest and the bytes it moved.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import matplotlib as mpl

from boundary.canonical import parse_json
from boundary.guarantee import EPSILON_BANDS
from boundary.plan import to_json
from compliance.records import GlobalMetrics, RoundRecord, SegmentationMetrics
from flows import pages, personalisation, readings
from flows.store.studies import Study

PICKLE_VARIABLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_STUDY_TAG, _PLAN_TAG = "wardround.study", "wardround.plan_digest"
_COMMITTED = "round/committed"  # the metric that says a round's batch went through
Open = Callable[[str], BinaryIO]


class BookUnreachable(Exception):
    """MLflow cannot be written to now; what it lacks is sent later."""


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn whatever keeps MLflow from answering into `BookUnreachable`."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, ConnectionError) as why:
        raise BookUnreachable(f"MLflow at {url} does not answer as it should ({type(why).__name__})") from why


def open_book(url: str) -> "Book":
    """Settings first, then the import: mlflow reads its environment early. Raises `BookUnreachable`."""
    os.environ.update(
        {
            PICKLE_VARIABLE: "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        }
    )
    mpl.use("Agg")
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(url)
    return Book(url, MlflowClient(url))


class Book:
    """The run of one study. Every method may raise `BookUnreachable` and may be repeated."""

    def __init__(self, url: str, client: Any) -> None:
        self.url, self.client = url, client

    def link(self, run: str) -> str:
        """The run's page, in the classic view."""
        with reaching(self.url):
            experiment = self.client.get_run(run).info.experiment_id
        return f"{self.url}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"

    def start(self, study: Study, datasets: dict[str, str], roster: bytes) -> str:
        """Find or make the experiment and the run, and log what is fixed before the first round."""
        with reaching(self.url):
            experiment = self._experiment(study)
            run = self._run(experiment, study)
            self._params(run, study)
            plan = json.dumps(parse_json(to_json(study.plan)), indent=2)
            self.client.log_text(run, plan, "1-plan.json")
            self.client.log_text(run, json.dumps(parse_json(roster), indent=2), "2-roster.json")
            self.client.log_text(run, json.dumps(datasets, indent=2), "3-dataset-digests.json")
            self._inputs(run, datasets)
        return run

    def log_once(
        self, experiment: str, name: str, params: dict[str, Any], metrics: dict[str, float], figure: Any
    ) -> str:
        """A run of its own that is finished at once, with one figure; returns its page."""
        with reaching(self.url):
            found = self.client.get_experiment_by_name(experiment)
            place = found.experiment_id if found is not None else self.client.create_experiment(experiment)
            tags = {"mlflow.user": "wardround", "mlflow.source.name": experiment}
            run = self.client.create_run(place, run_name=name, tags=tags).info.run_id
            for key, value in params.items():
                self.client.log_param(run, key, value)
            for key, value in metrics.items():
                self.client.log_metric(run, key, value)
            self.client.log_figure(run, figure, f"figures/{experiment}.png")
            self.client.set_terminated(run, "FINISHED")
        return self.link(run)

    def _experiment(self, study: Study) -> str:
        found = self.client.get_experiment_by_name(study.plan.name)
        if found is not None:
            return str(found.experiment_id)
        tags = {"mlflow.note.content": study.plan.purpose.title}
        return str(self.client.create_experiment(study.plan.name, tags=tags))

    def _run(self, experiment: str, study: Study) -> str:
        same = self.client.search_runs([experiment], f"tags.`{_STUDY_TAG}` = '{study.study}'", max_results=1)
        if same:
            return str(same[0].info.run_id)
        made = self.client.create_run(
            experiment,
            run_name=f"{study.published_at:%Y-%m-%d} · {study.label}",
            tags={
                _STUDY_TAG: study.study,
                _PLAN_TAG: study.plan_digest,
                "mlflow.user": "wardround",
                "mlflow.source.name": "federated-training",
            },
        )
        return str(made.info.run_id)

    def _params(self, run: str, study: Study) -> None:
        from mlflow.entities import Param

        plan = study.plan
        known = self.client.get_run(run).data.params
        values = {
            "plan": study.label,
            "plan_digest": study.plan_digest,
            "hospitals": ", ".join(plan.silos),
            "model": f"{plan.model.name}@{plan.model.version}",
            "classes": ", ".join(plan.labels.classes),
            "rounds": plan.training.rounds,
            "optimizer": plan.training.optimizer,
            "learning_rate": plan.training.learning_rate,
            "weighting": plan.training.weighting,
            "quorum": plan.aggregation.quorum,
            **{f"privacy_{name}": said for name, said in plan.privacy.model_dump().items() if said is not None},
        }
        if not plan.bands:  # a private training takes steps of patients drawn by chance, not epochs of batches
            values |= {"local_epochs": plan.training.local_epochs, "batch_size": plan.training.batch_size}
        fresh = [Param(key, str(value)) for key, value in values.items() if key not in known]
        self.client.log_batch(run, params=fresh)

    def _inputs(self, run: str, datasets: dict[str, str]) -> None:
        """Each hospital's data set by its keyed digest: 36 characters are all that MLflow shows of one."""
        from mlflow.data.http_dataset_source import HTTPDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput

        if self.client.get_run(run).inputs.dataset_inputs:
            return
        inputs = []
        for silo, digest in sorted(datasets.items()):
            source = HTTPDatasetSource(f"https://{silo}.invalid/stays-in-the-hospital")
            dataset = MetaDataset(source, name=silo, digest=digest.removeprefix("sha256:")[:36])
            inputs.append(DatasetInput(dataset._to_mlflow_entity(), []))  # noqa: SLF001 - MLflow offers no other way
        if inputs:
            self.client.log_inputs(run, inputs)

    def metrics(self, run: str, record: RoundRecord) -> None:
        """Log one committed round in one batch; a batch that went through before is not sent again."""
        from mlflow.entities import Metric

        with reaching(self.url):
            if any(point.step == record.round for point in self.client.get_metric_history(run, _COMMITTED)):
                return
            at = int(record.committed_at.timestamp() * 1000)
            points = [Metric(key, value, at, record.round) for key, value in _values(record).items()]
            self.client.log_batch(run, metrics=points)

    def checkpoint(self, run: str, record: RoundRecord, open_blob: Open) -> None:
        """The round's global weights, as safetensors."""
        with reaching(self.url), TemporaryDirectory() as folder, open_blob(record.model_out.digest) as source:
            path = Path(folder) / f"round-{record.round:03d}.safetensors"
            with path.open("wb") as target:
                while piece := source.read(2**20):
                    target.write(piece)
            self.client.log_artifact(run, str(path), "checkpoints")

    def figures(self, run: str, records: list[RoundRecord]) -> str:
        """Loss and AUROC or Dice over rounds, as people look at them first."""
        from matplotlib.figure import Figure

        with reaching(self.url):
            private = [("privacy", _draw_privacy)] if any(record.below for record in records) else []
            dice = any(isinstance(record.metrics, SegmentationMetrics) for record in records)
            score = ("dice", _draw_dice) if dice else ("auroc", _draw_auroc)
            for name, draw in (("loss", _draw_loss), score, *private):
                figure = Figure(figsize=(7, 4), layout="constrained")
                axes = figure.subplots()
                draw(axes, records)
                if any(record.rolled_back is not None for record in records):
                    _mark_rollbacks(axes, records)
                    axes.legend()
                self.client.log_figure(run, figure, f"figures/{name}.png")
        return run

    def describe(self, run: str, study: Study, records: list[RoundRecord]) -> str:
        """The run's description: a plain sentence first."""
        with reaching(self.url):
            self.client.set_tag(run, "mlflow.note.content", pages.study_page(study, records, None))
            if len(records) == study.plan.training.rounds:
                self.client.set_terminated(run, "FINISHED")
        return run

    def personalised(self, run: str, study: Study, records: list[RoundRecord]) -> str:
        """At how many hospitals which model is better, as metrics of the run, and in its description."""
        if study.personalised is None:
            return run
        with reaching(self.url):
            for key, value in personalisation.points(study.personalised).items():
                self.client.log_metric(run, key, value)
            self.client.set_tag(run, "mlflow.note.content", pages.study_page(study, records, None))
        return run

    def register(self, run: str, study: Study, record: RoundRecord, open_blob: Open) -> str:
        """Register the released global model as a torch.export program (`pt2`): no pickle in it."""
        from flows.release import log_global_model

        with reaching(self.url):
            version = log_global_model(self.client, run, study, record, open_blob)
        return f"{study.plan.name} version {version}"


def _values(record: RoundRecord) -> dict[str, float]:
    """Metrics of a round. MLflow lists groups by name, so what people look for first is in `global/`."""
    metrics, timing = record.metrics, record.timing
    measured = {
        **({f"global/{name}": value for name, value in readings.with_ends(metrics).items()} if metrics else {}),
        "global/train_loss": record.train_loss,
        "round/registered": float(len(record.registered)),
        "round/ready": float(len(record.ready)),
        "round/contributing": float(len(record.contributing)),
        "round/rolled_back": float(record.rolled_back is not None),
        "round/update_norm": record.update_norm,
        "round/shortened": record.shortened,
        "round/groups_spoiled": None if record.median is None else record.median.spoiled,
        "round/votes_against": None if record.vote is None else record.vote.against,
        "seconds/training": timing.training,
        "seconds/transport": timing.transport,
        "seconds/aggregation": timing.aggregation,
        "seconds/evaluation": timing.evaluation,
        "seconds/total": timing.total,
        "transport/bytes_up": float(sum(traffic.up for traffic in record.traffic.values())),
        "transport/bytes_down": float(sum(traffic.down for traffic in record.traffic.values())),
        _COMMITTED: 1.0,
    }
    if record.not_drawn:
        measured["round/not_drawn"] = float(len(record.not_drawn))
    if record.late is not None:
        measured["round/late_updates"] = float(record.late)
    for band, hospitals in zip(EPSILON_BANDS, record.below, strict=False):
        measured[f"privacy/hospitals_below_epsilon_{band}"] = float(hospitals)
    return {key: round(float(value), 6) for key, value in measured.items() if value is not None}


def _draw_loss(axes: Any, records: list[RoundRecord]) -> None:
    if all(record.train_loss is not None for record in records):
        axes.plot(
            [record.round for record in records], [record.train_loss for record in records], "o-", label="training"
        )
    measured = [(record.round, record.metrics.loss) for record in records if record.metrics]
    axes.plot(*zip(*measured, strict=True), "s-", label="held-back patients") if measured else None
    axes.set(xlabel="round", ylabel="loss (nats per image)", title="Loss of the global model", ylim=(0, None))
    axes.legend() if axes.lines else None
    _whole_rounds(axes)


def _draw_privacy(axes: Any, records: list[RoundRecord]) -> None:
    """How many hospitals have spent less than each band of epsilon: all that is known outside of them."""
    told = [record for record in records if record.below]
    for place, band in enumerate(EPSILON_BANDS):
        axes.plot([r.round for r in told], [r.below[place] for r in told], "o-", label=f"below epsilon {band}")
    most = max(len(record.contributing) for record in told)
    axes.set(xlabel="round", ylabel="hospitals", title="What the study has cost so far", ylim=(-0.2, most + 0.2))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    _whole_rounds(axes)


def _draw_auroc(axes: Any, records: list[RoundRecord]) -> None:
    measured = [
        (record.round, record.metrics.auroc)
        for record in records
        if isinstance(record.metrics, GlobalMetrics) and record.metrics.auroc is not None
    ]
    if measured:
        axes.plot(*zip(*measured, strict=True), "s-", color="tab:green")
    axes.axhline(0.5, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="round", ylabel="AUROC", title="AUROC on the held-back patients of all hospitals", ylim=(0.4, 1.01))
    _whole_rounds(axes)


def _draw_dice(axes: Any, records: list[RoundRecord]) -> None:
    """A line for the mean and for each class, of the rounds in which an image shows it."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if isinstance(record.metrics, SegmentationMetrics):
            told = [("mean", record.metrics.dice), *((one.name, one.mean) for one in record.metrics.classes)]
            for name, value in told:
                lines.setdefault(name, []).extend([] if value is None else [(record.round, value)])
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), "s-" if name == "mean" else "o--", label=name) if points else None
    axes.set(xlabel="round", ylabel="Dice", title="Dice on the held-back patients of all hospitals", ylim=(0, 1.01))
    axes.legend() if axes.lines else None
    _whole_rounds(axes)


def _mark_rollbacks(axes: Any, records: list[RoundRecord]) -> None:
    """A line where a round was rolled back: there the curve has no point."""
    for number, record in enumerate(record for record in records if record.rolled_back is not None):
        label = None if number else "rolled back"
        axes.axvline(record.round, color="tab:red", linestyle="--", linewidth=1, label=label)


def _whole_rounds(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
