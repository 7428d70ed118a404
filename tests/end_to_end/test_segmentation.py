"""A study of segmentation over three hospitals, with masks as DICOM SEG: `wardround demo --segmentation`."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
Finished = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, demo_factory: Callable[..., AbstractContextManager[Any]]
) -> Finished:
    folder = tmp_path_factory.mktemp("segmentation")
    with demo_factory(folder, "--segmentation", "--rounds", "3") as demo:
        code = demo.process.wait(timeout=600)
    assert code == 0, (folder / "demo.log").read_text()
    return folder, json.loads((folder / "out.json").read_text())


def test_all_hospitals_take_part_and_the_lesions_are_found(finished: Finished) -> None:
    _, summary = finished
    assert summary["model"] == {"name": "unet-small-3d", "version": 1}
    assert [(one["registered"], one["ready"], one["contributing"]) for one in summary["rounds"]] == [(3, 3, 3)] * 3
    dice = [one["dice_lesion"] for one in summary["rounds"]]
    assert dice[-1] > 0.2
    assert dice[-1] > dice[0]


def test_dice_is_in_mlflow_and_the_model_is_no_pickle(finished: Finished) -> None:
    folder, _ = finished
    names = {path.name for path in (folder / "w" / "mlflow" / "artifacts").rglob("*")}
    assert {"dice.png", "model.pt2"} <= names
    assert "auroc.png" not in names


def test_its_evidence_verifies(finished: Finished) -> None:
    work = finished[0] / "w"
    (bundle,) = (work / "coordinator" / "evidence").glob("*bundle*")
    command = [str(BIN / "wardround"), "verify", str(bundle), "--trust", str(work / "keys.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "Dice" in (bundle / "report" / "report.html").read_text()
