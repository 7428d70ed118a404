"""Models measured in sums of their own, in MLflow: metrics of the study's run with step = round."""

from flows import readings
from flows.mlflow_client import Book, reaching
from flows.records import Measurement

GROUPS = {"validate": "external", "evaluate": "finished"}  # by phase: what people look for first in MLflow's list


def log_measured(book: Book, run: str, found: Measurement) -> str:
    """One batch; the count among it says that it went through, so it is not sent again. Raises `BookUnreachable`."""
    from mlflow.entities import Metric

    group = GROUPS[found.phase]
    with reaching(book.url):
        last = f"{group}/images"
        if any(point.step == found.round for point in book.client.get_metric_history(run, last)):
            return run
        at = int(found.taken_at.timestamp() * 1000)
        values = {f"{group}/{name}": value for name, value in readings.with_ends(found.metrics).items()}
        values |= {f"{group}/hospitals": float(len(found.decision.members)), last: float(found.metrics.count)}
        points = [Metric(key, round(value, 6), at, found.round) for key, value in values.items() if value is not None]
        book.client.log_batch(run, metrics=points)
        book.client.set_tag(run, f"wardround.{group}.{found.round}", found.model)
    return run
