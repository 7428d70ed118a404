"""`wardround serve`, up to where Prefect takes over."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app


@pytest.fixture
def httpx_log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("httpx")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(before)


def test_asking_prefect_for_work_is_no_line_of_the_log_each_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, httpx_log: logging.Logger
) -> None:
    home = tmp_path / "home"
    CliRunner().invoke(app, ["init", "--url", "https://localhost:8443", "--home", str(home)], catch_exceptions=False)
    settings = home / "coordinator.toml"
    settings.write_text(settings.read_text().replace("# prefect_url", "prefect_url"))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    said = []

    async def served(_coordinator: Any) -> None:
        said.append(httpx_log.isEnabledFor(logging.INFO))

    monkeypatch.setattr("flows.deployment.serve", served)
    CliRunner().invoke(app, ["serve", "--home", str(home)], catch_exceptions=False)
    assert said == [False]
