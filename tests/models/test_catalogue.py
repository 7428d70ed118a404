import subprocess
import sys

import pytest
import torch

from boundary.plan import ModelChoice
from models.catalogue import Entry, build, check_input_size, describe, names
from models.errors import InputTooSmall, UnknownModel

CHOICES = [ModelChoice(name=entry.name, version=entry.version) for entry in describe()]
every_network = pytest.mark.parametrize(("choice", "entry"), list(zip(CHOICES, describe(), strict=True)), ids=names())


def test_the_catalogue_lists_what_there_is() -> None:
    assert names() == ("cnn-small v1", "densenet-small v1", "densenet121 v1", "resnet18 v1", "vit-small v1")
    assert [entry.label for entry in describe()] == list(names())


@every_network
def test_a_network_answers_logits_for_any_plan_size_from_the_smallest(choice: ModelChoice, entry: Entry) -> None:
    network = build(choice, 3).eval()
    for size in ((entry.smallest_side, entry.smallest_side), (entry.smallest_side + 5, 70)):
        check_input_size(choice, size)
        logits = network(torch.rand(2, 1, *size))
        assert logits.shape == (2, 3)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()


@every_network
def test_sizes_below_the_smallest_are_refused(choice: ModelChoice, entry: Entry) -> None:
    with pytest.raises(InputTooSmall, match=f"needs {entry.smallest_side} x {entry.smallest_side} pixels"):
        check_input_size(choice, (256, entry.smallest_side - 1))


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
    images = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


@every_network
def test_opacus_per_sample_gradients_are_those_of_one_sample_at_a_time(choice: ModelChoice, entry: Entry) -> None:
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    network = build(choice, 2).double()
    assert ModuleValidator.validate(network, strict=False) == []
    images, labels = torch.rand(2, 1, 32, 32, dtype=torch.float64), torch.tensor([0, 1])
    expected = [
        torch.autograd.grad(
            torch.nn.functional.cross_entropy(network(images[i, None]), labels[i, None]),
            list(network.parameters()),
        )
        for i in range(2)
    ]
    private = GradSampleModule(network)
    # torch warns of hooks on a first layer whose input asks for no gradient; so it asks
    torch.nn.functional.cross_entropy(private(images.requires_grad_()), labels).backward()
    for position, (name, parameter) in enumerate(network.named_parameters()):
        for i in range(2):
            error = (parameter.grad_sample[i] - expected[i][position]).norm()
            assert error <= 1e-6 * expected[i][position].norm() + 1e-12, name


@pytest.mark.parametrize(("name", "version"), [("densenet-small", 2), ("segresnet", 1)])
def test_what_is_not_in_the_catalogue_is_refused_by_name(name: str, version: int) -> None:
    choice = ModelChoice(name=name, version=version)
    with pytest.raises(UnknownModel, match=f"there is {', '.join(names())}"):
        build(choice, 2)
    with pytest.raises(UnknownModel):
        check_input_size(choice, (64, 64))


def test_one_class_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="two or more"):
        build(CHOICES[0], 1)


def test_listing_networks_and_reading_metrics_imports_neither_torch_nor_monai() -> None:
    code = (
        "import sys, models.catalogue, models.metrics, models.preprocessing;"
        "sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_training_does_not_import_monai() -> None:
    code = "import sys, models.parameters, models.training; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_building_a_network_asks_for_no_opacus_which_the_coordinator_does_not_install() -> None:
    code = (
        "import sys; from boundary.plan import ModelChoice; from models.catalogue import build;"
        "build(ModelChoice(name='densenet-small', version=1), 2); sys.exit('opacus' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
