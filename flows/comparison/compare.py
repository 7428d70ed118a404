"""`wardround compare`: reads committed rounds, writes the report into a folder, and as a run of its own into MLflow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.comparison.figure import draw, png
from flows.comparison.page import html, markdown, title
from flows.comparison.rows import Compared, check_comparable
from flows.coordinator import Coordinator
from flows.mlflow_client import Book, open_book, reaching
from flows.store import measurements, rounds, studies
from flows.store.database import reading

EXPERIMENT = "comparison"
HTML, TEXT, FIGURE = "comparison.html", "comparison.md", "comparison.png"


@dataclass(frozen=True, slots=True)
class Report:
    """One comparison, written down. `figure` is a PNG."""

    studies: tuple[Compared, ...]
    text: str
    page: str
    figure: bytes

    def write(self, folder: Path) -> None:
        """Three files; those of an earlier comparison there are replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TEXT).write_text(self.text, "utf-8")
        (folder / HTML).write_text(self.page, "utf-8")
        (folder / FIGURE).write_bytes(self.figure)


def compare(coordinator: Coordinator, wanted: Sequence[str]) -> Report:
    """Of committed rounds only. Raises `StudyUnknown` or `NotComparable`."""
    found = []
    with reading(coordinator.store) as connection:
        for label in wanted:
            study = studies.find(connection, label)
            records = tuple(rounds.committed(connection, study.study))
            found.append(Compared(study, records, tuple(measurements.of_study(connection, study.study))))
    check_comparable(found)
    figure = png(draw(found))
    return Report(tuple(found), markdown(found), html(found, figure), figure)


def publish(report: Report, url: str) -> str:
    """Log it as a finished run; returns its page. Raises `BookUnreachable`."""
    book = open_book(url)
    client, found = book.client, report.studies
    with reaching(url):
        known = client.get_experiment_by_name(EXPERIMENT)
        place = known.experiment_id if known is not None else client.create_experiment(EXPERIMENT)
        tags = {"mlflow.user": "wardround", "mlflow.source.name": EXPERIMENT, "mlflow.note.content": report.text}
        tags |= {f"wardround.study.{one.study.study}": one.label for one in found}
        run = client.create_run(place, run_name=title(found), tags=tags).info.run_id
        _log(book, run, report)
        client.set_terminated(run, "FINISHED")
    return book.link(run)


def _log(book: Book, run: str, report: Report) -> None:
    """Metrics with step = round under `NAME-REVISION/`, so that MLflow draws the studies side by side."""
    from mlflow.entities import Metric, Param

    points = []
    for one in report.studies:
        for kind, told in (("", one.points), ("external_", one.external_points)):
            for point in told:
                ends = {} if point.interval is None else dict(zip(("_low", "_high"), point.interval, strict=True))
                for end, value in ({"": point.value} | ends).items():
                    key = f"{_key(one)}/{kind}score{end}"
                    points.append(Metric(key, round(value, 6), 0, point.round))
    params = [Param(_key(one), one.method) for one in report.studies]
    for start in range(0, len(points), 500):
        book.client.log_batch(run, metrics=points[start : start + 500])
    book.client.log_batch(run, params=params)
    book.client.log_text(run, report.page, HTML)
    book.client.log_text(run, report.text, TEXT)
    book.client.log_figure(run, draw(report.studies), FIGURE)


def _key(one: Compared) -> str:
    """MLflow takes no @ in a key."""
    return one.label.replace("@", "-")
