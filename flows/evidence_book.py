"""Evidence in MLflow, the reading room. `wardround verify --mlflow` compares what is shown there with a bundle."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from boundary.canonical import parse_json
from flows.mlflow_client import Book, open_book, reaching
from flows.store.studies import Study

FOLDER = "evidence"
RELEASED = "released"  # the alias of a registered model that an officer has decided to release
_REPORT = f"{FOLDER}/report/report.html"


def show(book: Book, run: str, study: Study, bundle: Path, report: dict[str, Any], after: str) -> str:
    """Put a bundle's files under `evidence/`, its verdicts into tags, and the way to it into the run's description.

    `after` is what the description says besides. Returns the report's page. Raises `BookUnreachable`.
    """
    client = book.client
    with reaching(book.url):
        client.log_artifacts(run, str(bundle), FOLDER)
        for verdict, count in report["verdicts"].items():
            client.set_tag(run, f"evidence.{verdict}", str(count))
        client.set_tag(run, "evidence.as_of", report["as_of"])
        experiment = client.get_run(run).info.experiment_id
        page = f"{book.url}/#/experiments/{experiment}/runs/{run}/artifacts/{_REPORT}"
        client.set_tag(run, "mlflow.note.content", f"{_headline(study, report, page)}\n\n{after}")
    return page


def _headline(study: Study, report: dict[str, Any], page: str) -> str:
    found = ", ".join(f"{count} {verdict}" for verdict, count in report["verdicts"].items() if count)
    return "\n".join(
        [
            f"**Evidence about {study.label}: {found}.** [Read the report]({page})",
            "",
            "| verdict | controls |",
            "|---|---|",
            *(f"| {verdict} | {_controls(report, verdict)} |" for verdict in ("FAIL", "NEEDS-HUMAN", "NOT-MEASURED")),
            "",
            "Evidence, not certification. MLflow shows a copy: `wardround verify` checks it against the signed logs.",
        ]
    )


def _controls(report: dict[str, Any], verdict: str) -> str:
    return ", ".join(row["id"] for row in report["controls"] if row["verdict"] == verdict) or "none"


def copies_in(url: str, bundle: Path) -> dict[str, bytes]:
    """What MLflow shows of this bundle's study: path in the bundle -> bytes.

    Raises `BookUnreachable`, `LookupError`.
    """
    study = parse_json((bundle / "manifest.json").read_bytes())["study"]
    book = open_book(url)
    with reaching(url), TemporaryDirectory() as folder:
        client = book.client
        places = [found.experiment_id for found in client.search_experiments()]
        runs = client.search_runs(places, f"tags.`wardround.study` = '{study}'", max_results=1)
        if not runs:
            raise LookupError(f"MLflow at {url} has no run of {study}")
        place = Path(client.download_artifacts(runs[0].info.run_id, FOLDER, folder))
        return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def mark_released(book: Book, study: Study, manifest: str) -> str:
    """Move the registry's alias to the study's model; returns its version. Raises `LookupError` if it has none."""
    client, name = book.client, study.plan.name
    with reaching(book.url):
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("wardround.study") == study.study:
                client.set_registered_model_alias(name, RELEASED, version.version)
                client.set_model_version_tag(name, version.version, "evidence.manifest", manifest)
                return str(version.version)
    raise LookupError(f"the model of {study.label} is not registered in MLflow yet: run its training flow to the end")
