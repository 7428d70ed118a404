"""What can go wrong with a model. As in `boundary`, the stable `code` may leave the hospital, the sentence never."""


class ModelError(Exception):
    """Root of everything `models` raises on purpose. A plain `ValueError` is a mistake in the calling code."""

    code = "MODEL"


class UnknownModel(ModelError):
    """A plan names a network or a version that is not in this installation's catalogue."""

    code = "UNKNOWN_MODEL"

    def __init__(self, name: str, version: int, known: tuple[str, ...]) -> None:
        super().__init__(f"no model {name} v{version} here; there is {', '.join(known)}")
        self.name, self.version, self.known = name, version, known


class WrongNetwork(ModelError):
    """The plan's network is for another task, or for images of another number of dimensions."""

    code = "WRONG_NETWORK"

    def __init__(self, label: str, made_for: str, wanted: str, fitting: tuple[str, ...]) -> None:
        super().__init__(f"{label} is for {made_for}, the plan is {wanted}: take {' or '.join(fitting)}")
        self.label, self.fitting = label, fitting


class InputTooSmall(ModelError):
    """The plan's image size is below what the network can halve down to a feature map."""

    code = "INPUT_TOO_SMALL"

    def __init__(self, label: str, size: tuple[int, ...], smallest: int) -> None:
        needed = _sides((smallest,) * len(size))
        super().__init__(f"{label} needs {needed} pixels or more, the plan has {_sides(size)}")
        self.label, self.size, self.smallest = label, size, smallest


class InputIndivisible(ModelError):
    """A network that answers every voxel halves and doubles its sides: its total stride must divide them."""

    code = "INPUT_INDIVISIBLE"

    def __init__(self, label: str, size: tuple[int, ...], stride: int) -> None:
        fitting = tuple(-(-side // stride) * stride for side in size)
        super().__init__(
            f"{label} needs sides that {stride} divides, the plan has {_sides(size)}: take {_sides(fitting)}"
        )
        self.label, self.size, self.stride = label, size, stride


def _sides(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


class UnfitAdapters(ModelError):
    """Low-rank adapters for layers that the network does not have, or of a rank that is not low."""

    code = "UNFIT_ADAPTERS"


class PretrainedMissing(ModelError):
    """The file of weights that a plan begins with is not where this party keeps such files."""

    code = "PRETRAINED_MISSING"

    def __init__(self, name: str, sha256: str, reason: str) -> None:
        super().__init__(f"the plan begins with {name} (SHA-256 {sha256}), and {reason}")
        self.name, self.sha256 = name, sha256


class PretrainedDiffers(ModelError):
    """A file of that name is there, and it is not the one that the plan pins."""

    code = "PRETRAINED_DIFFERS"

    def __init__(self, name: str, wanted: str, found: str) -> None:
        super().__init__(f"{name} has SHA-256 {found}, the plan pins {wanted}: put that file in its place")
        self.name, self.wanted, self.found = name, wanted, found


class PretrainedUnfit(ModelError):
    """The pinned file does not hold what the plan's network needs of it."""

    code = "PRETRAINED_UNFIT"


class UnsharedState(ModelError):
    """A network keeps state that an exchange of its parameters alone would lose, or not carry exactly."""

    code = "UNSHARED_STATE"


class WrongTensors(ModelError):
    """Tensors whose names, shapes or dtypes are not those of the network."""

    code = "WRONG_TENSORS"


class UnfitNetwork(ModelError):
    """A network, or a layer of it, cannot have its gradients taken sample by sample."""

    code = "UNFIT_NETWORK"

    def __init__(self, place: str, kind: str, reason: str) -> None:
        super().__init__(f"{place or 'the network'} ({kind}): {reason}")
        self.place, self.kind, self.reason = place, kind, reason


class SamplesMix(ModelError):
    """A network's answer to a sample depends on what is beside it in the batch, or on chance."""

    code = "SAMPLES_MIX"

    def __init__(self, change: float) -> None:
        super().__init__(f"the answer to a sample changes by {change:.2g} of itself with another sample beside it")
        self.change = change


class GradientsDiffer(ModelError):
    """A sample's gradient by Opacus' hooks is not that of the sample alone."""

    code = "GRADIENTS_DIFFER"

    def __init__(self, parameter: str, error: float) -> None:
        super().__init__(f"{parameter}: a sample's gradient by hooks is wrong by {error:.2g} of itself")
        self.parameter, self.error = parameter, error


class WithoutGradient(ModelError):
    """Parameters that are to be trained but that the network does not use."""

    code = "WITHOUT_GRADIENT"

    def __init__(self, parameters: tuple[str, ...]) -> None:
        super().__init__(f"no gradient reaches {', '.join(parameters)}")
        self.parameters = parameters


class LossMixesSamples(ModelError):
    """A loss that is neither the mean nor the sum of its samples' own: no sample has a gradient to be clipped."""

    code = "LOSS_MIXES_SAMPLES"

    def __init__(self, loss: str, reason: str) -> None:
        super().__init__(f"{loss}: {reason}")
        self.loss, self.reason = loss, reason


class NoImages(ModelError):
    """Nothing to train on, or a sum over no image at all."""

    code = "NO_IMAGES"


class NonFiniteLogits(ModelError):
    """The network answered NaN or infinity: its weights have diverged."""

    code = "NON_FINITE_LOGITS"


class NonFiniteLoss(ModelError):
    """Local training diverged. The module's weights are of no use and must be dropped."""

    code = "NON_FINITE_LOSS"

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is not finite at step {step}")
        self.step = step


class TrainingCancelled(ModelError):
    """Somebody asked training to stop. The module holds a half-trained state that must be dropped."""

    code = "TRAINING_CANCELLED"

    def __init__(self, steps: int) -> None:
        super().__init__(f"cancelled after {steps} steps")
        self.steps = steps
