from inspect import isclass

from models import errors
from models.errors import InputTooSmall, ModelError, NonFiniteLoss, TrainingCancelled, UnknownModel


def test_every_error_has_a_code_of_its_own() -> None:
    kinds = [kind for kind in vars(errors).values() if isclass(kind)]
    assert all(issubclass(kind, ModelError) for kind in kinds)
    assert len({kind.code for kind in kinds}) == len(kinds) > 5


def test_errors_carry_data_and_a_sentence() -> None:
    unknown = UnknownModel("vit", 2, ("resnet18 v1", "densenet121 v1"))
    assert str(unknown) == "no model vit v2 here; there is resnet18 v1, densenet121 v1"
    assert (unknown.name, unknown.version) == ("vit", 2)
    small = InputTooSmall("resnet18 v1", (16, 64), 32)
    assert str(small) == "resnet18 v1 needs 32 x 32 pixels or more, the plan has 16 x 64"
    assert NonFiniteLoss(3).step == 3
    assert TrainingCancelled(4).steps == 4
