from inspect import isclass

from models import errors
from models.errors import (
    GradientsDiffer,
    InputIndivisible,
    InputTooSmall,
    LossMixesSamples,
    ModelError,
    NonFiniteLoss,
    SamplesMix,
    TrainingCancelled,
    UnfitNetwork,
    UnknownModel,
    WithoutGradient,
    WrongNetwork,
)


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
    assert str(InputTooSmall("unet-3d v1", (16, 64, 64), 32)).startswith("unet-3d v1 needs 32 x 32 x 32 pixels or more")
    uneven = InputIndivisible("unet-small-3d v1", (17, 64, 63), 8)
    assert str(uneven) == "unet-small-3d v1 needs sides that 8 divides, the plan has 17 x 64 x 63: take 24 x 64 x 64"
    wrong = WrongNetwork("resnet18 v1", "classification of 2-D images", "segmentation of 3-D images", ("a v1", "b v1"))
    assert str(wrong) == (
        "resnet18 v1 is for classification of 2-D images, the plan is segmentation of 3-D images: take a v1 or b v1"
    )
    assert NonFiniteLoss(3).step == 3
    assert TrainingCancelled(4).steps == 4


def test_errors_about_gradients_say_where_and_how_much() -> None:
    unfit = UnfitNetwork("layers.0", "BatchNorm2d", "statistics of the batch mix samples")
    assert str(unfit) == "layers.0 (BatchNorm2d): statistics of the batch mix samples"
    assert str(UnfitNetwork("", "ViT", "no tensor")) == "the network (ViT): no tensor"
    assert str(SamplesMix(0.25)) == "the answer to a sample changes by 0.25 of itself with another sample beside it"
    assert str(GradientsDiffer("fc.bias", 2e-3)) == "fc.bias: a sample's gradient by hooks is wrong by 0.002 of itself"
    assert str(WithoutGradient(("a.weight", "a.bias"))) == "no gradient reaches a.weight, a.bias"
    assert str(LossMixesSamples("DiceLoss", "batch=True")) == "DiceLoss: batch=True"
