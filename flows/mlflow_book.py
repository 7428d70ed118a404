"""MLflow, the reading room: a reconciler from committed rounds, never part of a round.

What was published is remembered in our own store, and MLflow is asked before a metric is sent, so an outage, a crash
or a second publisher costs a delay and never a doubled point. Nothing here can stop training.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from compliance.records import RoundRecord
from flows.coordinator import Coordinator
from flows.measured_book import log_measured
from flows.mlflow_client import Book, BookUnreachable, open_book
from flows.store import measurements, members, rounds, studies
from flows.store.database import reading, writing
from flows.store.studies import Study

_log = logging.getLogger("flows.mlflow")
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
_LAST_TRY_SECONDS = 120.0  # how long the end of a run waits for MLflow before it leaves the rest to the next run


class Publisher:
    """Publishes one study in a thread of its own. `problem` says, in a sentence, why MLflow is behind, if it is."""

    def __init__(self, coordinator: Coordinator, study: Study) -> None:
        self._coordinator, self._study = coordinator, study
        self._wanted, self._stopping = threading.Event(), threading.Event()
        self._busy = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="mlflow publisher", daemon=True)
        self._book: Book | None = None
        self.problem: str | None = None
        self.link: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._wanted.set()
        self._thread.join(timeout=_LAST_TRY_SECONDS)

    def wake(self) -> None:
        """There may be something to publish."""
        self._wanted.set()

    def catch_up(self) -> None:
        """Publish all there is, now, and set `problem` if that cannot be done."""
        self._try()

    def _keep(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            self._wanted.wait()
            self._wanted.clear()
            if self._stopping.is_set():
                return
            self._try()
            if self.problem is None:
                pause = _FIRST_PAUSE
                continue
            _log.warning("MLflow is behind: %s; again in %.0f s", self.problem, pause)
            self._stopping.wait(pause)
            self._wanted.set()
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try(self) -> None:
        url = self._coordinator.settings.mlflow_url
        if url is None:
            return
        with self._busy:
            try:
                if self._book is None:
                    self._book = open_book(url)
                self._publish(self._book)
                self.problem = None
            except BookUnreachable as why:
                self.problem = str(why)

    def _publish(self, book: Book) -> None:
        study = self._study
        run = self._once("start", lambda: book.start(study, self._consents(), self._roster()))
        self.link = book.link(run)
        with reading(self._coordinator.store) as connection:
            records = rounds.committed(connection, study.study)
            measured = measurements.of_study(connection, study.study)
        for record in records:
            self._once(f"round-{record.round:04d}", partial(self._round, book, run, record))
        if records:
            newest = records[-1].round
            self._once(f"figures-{newest:04d}", lambda: book.figures(run, records))
            self._once(f"summary-{newest:04d}", lambda: book.describe(run, study, records))
        for found in measured:
            self._once(f"measured-{found.phase}-{found.round:04d}", partial(log_measured, book, run, found))
        if records and len(records) == study.plan.training.rounds:
            final = self._coordinator.blobs
            self._once("model", lambda: book.register(run, study, records[-1], final.open))
            self._personalised(book, run, records)

    def _personalised(self, book: Book, run: str, records: list[RoundRecord]) -> None:
        with reading(self._coordinator.store) as connection:
            study = studies.find(connection, self._study.study)  # as it is now: this is known last
        if study.personalised is not None:
            self._once("personalised", lambda: book.personalised(run, study, records))

    def _round(self, book: Book, run: str, record: RoundRecord) -> str:
        book.metrics(run, record)
        book.checkpoint(run, record, self._coordinator.blobs.open)
        return run

    def _once(self, what: str, do: Callable[[], str]) -> str:
        study = self._study.study
        with reading(self._coordinator.store) as connection:
            done = rounds.is_published(connection, study, what)
        if done is not None:
            return done
        reference = do()
        with writing(self._coordinator.store) as connection:
            rounds.mark_published(connection, study, what, reference, self._coordinator.now())
        return reference

    def _consents(self) -> dict[str, str]:
        """Keyed data set digests by hospital: they fix the data and name none."""
        with reading(self._coordinator.store) as connection:
            found = {
                silo: rounds.is_published(connection, self._study.study, f"consent-{silo}")
                for silo in self._study.plan.silos
            }
        return {silo: digest for silo, digest in found.items() if digest is not None}

    def _roster(self) -> bytes:
        with reading(self._coordinator.store) as connection:
            return members.current_roster(connection) or b"{}"
