import subprocess
import sys

import pytest
import torch

from boundary.learning import ModelChoice
from boundary.plan import StudyPlan
from infra import golden
from models.catalogue import Entry, build, check_model, describe, names
from models.errors import InputIndivisible, InputTooSmall, UnknownModel, WrongNetwork
from models.losses import mean_loss
from models.private.proof import class_labels, prove, voxel_labels

CHOICES = [ModelChoice(name=entry.name, version=entry.version) for entry in describe()]
every_network = pytest.mark.parametrize(("choice", "entry"), list(zip(CHOICES, describe(), strict=True)), ids=names())


def sides(entry: Entry) -> tuple[int, ...]:
    """Of images that are small, but not so small that nothing is left of them."""
    return (32, 32) if entry.task == "classification" else (entry.smallest_side,) * entry.dimensions


def plan_for(entry: Entry, size: tuple[int, ...], choice: ModelChoice | None = None) -> StudyPlan:
    """A plan of the entry's task for images of `size`, without asking whether they fit."""
    plan = golden.plan() if entry.task == "classification" else golden.segmentation_plan()
    preprocessing = plan.preprocessing.model_copy(update={"size": size})
    chosen = choice or ModelChoice(name=entry.name, version=entry.version)
    return plan.model_copy(update={"model": chosen, "preprocessing": preprocessing})


def test_the_catalogue_lists_what_there_is() -> None:
    assert names() == (
        "cnn-small v1", "densenet-small v1", "densenet121 v1", "resnet18 v1", "vit-small v1",
        "unet-small-2d v1", "unet-small-3d v1", "unet-2d v1", "unet-3d v1",
        "segresnet-small-2d v1", "segresnet-small-3d v1", "segresnet-2d v1", "segresnet-3d v1",
    )  # fmt: skip
    assert [entry.label for entry in describe()] == list(names())


@every_network
def test_a_network_answers_logits_for_any_plan_size_from_the_smallest(choice: ModelChoice, entry: Entry) -> None:
    network = build(choice, 3).eval()
    smallest = (entry.smallest_side,) * entry.dimensions
    longer = (*smallest[:-1], entry.smallest_side + (entry.stride if entry.stride > 1 else 5))
    for size in (smallest, longer):
        check_model(plan_for(entry, size))
        with torch.no_grad():
            logits = network(torch.rand(2, 1, *size))
        assert logits.shape == ((2, 3) if entry.task == "classification" else (2, 3, *size))
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()


@every_network
def test_sizes_below_the_smallest_are_refused(choice: ModelChoice, entry: Entry) -> None:
    size = (256,) * (entry.dimensions - 1) + (entry.smallest_side - 1,)
    with pytest.raises(InputTooSmall, match=f"needs {entry.smallest_side} x {entry.smallest_side}.* pixels"):
        check_model(plan_for(entry, size))


@pytest.mark.parametrize("entry", [entry for entry in describe() if entry.stride > 1], ids=lambda entry: entry.label)
def test_sides_that_the_stride_does_not_divide_are_refused_with_those_that_fit(entry: Entry) -> None:
    size = (entry.smallest_side,) * (entry.dimensions - 1) + (entry.smallest_side + 1,)
    fitting = " x ".join(map(str, (*size[:-1], entry.smallest_side + entry.stride)))
    with pytest.raises(InputIndivisible, match=f"sides that {entry.stride} divides, .*: take {fitting}$"):
        check_model(plan_for(entry, size))
    with pytest.raises(RuntimeError), torch.no_grad():
        build(ModelChoice(name=entry.name, version=1), 2)(torch.rand(1, 1, *size))


MASKS, CLASSES = golden.segmentation_plan(), golden.plan()
WRONG = {
    "a classifier for masks": ("resnet18", MASKS, "segmentation of 3-D images: take unet-small-3d v1 or"),
    "a network of slices for volumes": ("unet-small-2d", MASKS, "take unet-small-3d v1 or unet-3d v1 or"),
    "a segmenter for classes": ("unet-small-2d", CLASSES, "plan is classification of 2-D images: take cnn-small v1 or"),
}


@pytest.mark.parametrize(("name", "plan", "sentence"), WRONG.values(), ids=WRONG)
def test_a_network_for_something_else_is_refused_with_those_that_fit(name: str, plan: StudyPlan, sentence: str) -> None:
    with pytest.raises(WrongNetwork, match=sentence):
        check_model(plan.model_copy(update={"model": ModelChoice(name=name, version=1)}))


@every_network
def test_it_has_the_listed_number_of_parameters(choice: ModelChoice, entry: Entry) -> None:
    assert sum(parameter.numel() for parameter in build(choice, 2).parameters()) == entry.parameters


@every_network
def test_nothing_mixes_samples_or_works_in_place(choice: ModelChoice, entry: Entry) -> None:
    modules = list(build(choice, 2).modules())
    assert not [m for m in modules if isinstance(m, torch.nn.modules.batchnorm._NormBase)]
    assert any(isinstance(m, torch.nn.GroupNorm | torch.nn.LayerNorm) for m in modules)
    assert not [m for m in modules if getattr(m, "inplace", False)]


@every_network
def test_a_sample_is_answered_the_same_in_any_company(choice: ModelChoice, entry: Entry) -> None:
    network = build(choice, 2).train()
    images = torch.rand(3, 1, *sides(entry))
    with torch.no_grad():
        alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


@every_network
def test_opacus_per_sample_gradients_are_those_of_one_sample_at_a_time(choice: ModelChoice, entry: Entry) -> None:
    from opacus.validators import ModuleValidator

    network = build(choice, 3)
    assert ModuleValidator.validate(network, strict=False) == []
    targets = class_labels if entry.task == "classification" else voxel_labels
    generator = torch.Generator().manual_seed(5)
    proof = prove(network, (1, *sides(entry)), mean_loss, generator=generator, targets=targets)
    assert proof.reduction == "mean"
    assert proof.parameters == len(list(network.parameters()))
    assert proof.largest_error < 1e-8


@pytest.mark.parametrize(("name", "version"), [("densenet-small", 2), ("segresnet", 1)])
def test_what_is_not_in_the_catalogue_is_refused_by_name(name: str, version: int) -> None:
    choice = ModelChoice(name=name, version=version)
    with pytest.raises(UnknownModel, match=f"there is {', '.join(names())}"):
        build(choice, 2)
    with pytest.raises(UnknownModel):
        check_model(plan_for(describe()[0], (64, 64), choice))


def test_one_class_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="two or more"):
        build(CHOICES[0], 1)


def test_listing_networks_and_reading_metrics_imports_neither_torch_nor_monai() -> None:
    code = (
        "import sys, models.catalogue, models.measuring, models.preprocessing;"
        "sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_training_does_not_import_monai() -> None:
    code = "import sys, models.parameters, models.training; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_building_a_network_asks_for_no_opacus_which_the_coordinator_does_not_install() -> None:
    code = (
        "import sys; from boundary.learning import ModelChoice; from models.catalogue import build;"
        "build(ModelChoice(name='densenet-small', version=1), 2); sys.exit('opacus' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
