"""A segmentation at the coordinator: its metrics out of masked sums, what people read of them, what is published."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure

from boundary.errors import InvalidPlan
from boundary.learning import ModelChoice
from boundary.plan import StudyPlan
from compliance.records import ClassDice, RoundRecord, SegmentationMetrics, record_from, to_bytes
from flows import pages, readings
from flows.mlflow_client import _draw_dice, _values
from flows.publication import publish
from flows.release import example_size
from flows.round_work import RoundWork
from flows.store import studies
from flows.store.database import reading
from infra import golden
from infra.driving import PARAMETERS, attempts, masks_work_of, one_round, run
from infra.federation import SEGMENTATION, SimulatedFederation, make_federation
from models.parameters import manifest

Make = Callable[..., RoundRecord]
METRICS = SegmentationMetrics(
    count=9,
    loss=0.25,
    dice=0.7,
    classes=(
        ClassDice(name="liver", images=9, mean=0.9, pooled=0.95),
        ClassDice(name="tumour, any", images=2, mean=0.5, pooled=0.625),
        ClassDice(name="cyst", images=0, mean=None, pooled=None),
    ),
)
PLAN = golden.segmentation_plan().model_copy(
    update={
        "labels": golden.segmentation_plan().labels.model_copy(
            update={"classes": ("background", "liver", "tumour, any", "cyst")}
        )
    }
)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[SimulatedFederation]:
    works = {f"h{n}": masks_work_of(n) for n in (1, 2, 3)}
    made = make_federation(
        tmp_path / "home", works, parameters=PARAMETERS, normalise="federated", changes=SEGMENTATION
    )  # fmt: skip
    yield made
    made.close()


@pytest.fixture
def record(round_record: Make) -> RoundRecord:
    return round_record(2, metrics=METRICS)


def test_the_masked_sum_of_voxels_and_dice_is_read_by_class(federation: SimulatedFederation) -> None:
    async def story(driver: Any) -> RoundRecord:
        work = driver.open_round(1)
        _, counted = await attempts(work, "statistics", work.model_in, RoundWork.count)
        assert counted.labels == (6, 6, 6)
        driver.learn(counted)
        return await one_round(driver)

    metrics = run(federation, story).metrics
    assert isinstance(metrics, SegmentationMetrics)
    assert metrics.count == 1 + 2 + 3
    liver, tumour = metrics.classes
    assert (liver.name, tumour.name) == ("liver", "tumour")
    # 2 of 4 pixels are found, none is wrong: 2 * 2 / (2 + 4), in each image as in all
    assert (liver.images, liver.mean, liver.pooled) == (6, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (tumour.images, tumour.mean, tumour.pooled) == (6, 1.0, 1.0)
    assert metrics.dice == pytest.approx(5 / 6)


# --- what people read --------------------------------------------------------------------------------
def test_a_record_with_dice_comes_back_from_its_bytes(record: RoundRecord) -> None:
    assert record_from(to_bytes(record)) == record


def study(plan: StudyPlan, found: RoundRecord) -> Any:
    return SimpleNamespace(
        study=found.study, label=plan.label, plan=plan, plan_digest="sha256:0", model=None, statistics=None,
        personalised=None,
    )  # fmt: skip


def test_pages_tell_dice_where_a_classification_has_auroc(record: RoundRecord, round_record: Make) -> None:
    table = pages.rounds_table(PLAN, [round_record(1, metrics=None), record]).splitlines()
    assert table[0].startswith("| round | training loss | loss | Dice | Dice of liver | Dice of tumour, any | Dice of")
    assert table[1].count("|") == table[0].count("|") == table[2].count("|") == table[3].count("|")
    assert "| 0.7000 | 0.9000 | 0.5000 | – | 9 |" in table[3]  # noqa: RUF001
    page = pages.round_page(study(PLAN, record), record)
    assert "Loss 0.2500, Dice 0.700, Dice of liver 0.900, Dice of tumour, any 0.500, Dice of cyst –" in page  # noqa: RUF001
    whole = pages.study_page(study(PLAN, record), [record], None)
    assert "unet-small-3d@1 to outline liver and tumour, any and cyst in volumes of 32 x 64 x 96 voxels" in whole
    assert "**Now: Dice 0.700," in whole
    assert "AUROC" not in page + whole


def test_mlflow_has_the_dice_of_every_class_in_names_that_it_takes(record: RoundRecord) -> None:
    told = {key: value for key, value in _values(record).items() if "global" in key}
    assert told == {
        "global/loss": 0.25, "global/train_loss": 0.5, "global/dice_mean": 0.7, "global/dice_liver": 0.9,
        "global/dice_tumour__any": 0.5, "global/pooled_dice_liver": 0.95, "global/pooled_dice_tumour__any": 0.625,
    }  # fmt: skip


def test_classes_whose_names_mlflow_could_not_tell_apart_go_by_their_numbers() -> None:
    names = ("mean", "a b", "a/b", "Liver", "liver", "spleen")
    classes = tuple(ClassDice(name=name, images=1, mean=0.5, pooled=0.5) for name in names)
    told = readings.series(SegmentationMetrics(count=1, loss=0.1, dice=0.25, classes=classes))
    assert {key for key in told if key.startswith("dice")} == {"dice_mean", "dice_spleen"} | {
        f"dice_class_{number}" for number in range(1, 6)
    }
    assert told["dice_mean"] == 0.25


def test_the_dice_figure_has_a_line_for_the_mean_and_each_class_that_is_there(
    record: RoundRecord, round_record: Make
) -> None:
    axes = Figure().subplots()
    _draw_dice(axes, [round_record(1, metrics=None), record, record.model_copy(update={"round": 3})])
    lines = {line.get_label(): [tuple(map(float, point)) for point in line.get_xydata()] for line in axes.lines}
    assert lines == {
        "mean": [(2, 0.7), (3, 0.7)], "liver": [(2, 0.9), (3, 0.9)], "tumour, any": [(2, 0.5), (3, 0.5)],
    }  # fmt: skip
    empty = Figure().subplots()
    _draw_dice(empty, [round_record(1, metrics=None)])
    assert empty.get_legend() is None


# --- publication -------------------------------------------------------------------------------------
def named(plan: StudyPlan, name: str, **changes: Any) -> StudyPlan:
    preprocessing = plan.preprocessing.model_copy(update=changes)
    update = {"name": "another", "model": ModelChoice(name=name, version=1), "preprocessing": preprocessing}
    return plan.model_copy(update=update)


def test_a_plan_whose_network_does_not_fit_is_not_published(federation: SimulatedFederation) -> None:
    unfit = {
        "model: resnet18 v1 is for classification of 2-D images": named(federation.plan, "resnet18"),
        "model: unet-3d v1 is for segmentation of 3-D images": named(federation.plan, "unet-3d"),
        "model: unet-small-2d v1 needs sides that 8 divides": named(federation.plan, "unet-small-2d", size=(16, 20)),
        "model: no model unet v1 here": named(federation.plan, "unet"),
    }
    for sentence, plan in unfit.items():
        with pytest.raises(InvalidPlan, match=sentence):
            publish(federation.coordinator, plan)
    with reading(federation.coordinator.store) as connection:
        assert [one.label for one in studies.every(connection)] == [federation.plan.label]
    published = publish(federation.coordinator, named(federation.plan, "unet-small-2d"))
    assert published.model.manifest == manifest(published.plan.model, 3)


def test_the_example_of_a_released_model_is_small() -> None:
    assert example_size(golden.plan()) == (64, 96)
    assert example_size(golden.segmentation_plan()) == (16, 16, 16)
