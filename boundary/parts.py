"""Which of a network's parameters move between the hospitals, stay home in each, or stay as the study begins.

The plan says so by patterns of names (`plan.ModelChoice`), and both sides work out the same three parts from them and
from the network's manifest. Only what moves is in a round's model and in its sum.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from boundary.errors import BadTensors, InvalidPlan
from boundary.learning import ModelChoice
from boundary.low_rank import check_adapters
from boundary.tensors import TensorManifest, Vector, flatten, unflatten


@dataclass(frozen=True, slots=True)
class Parts:
    """`whole` is the network's manifest; `moving` and `home` are the trained parameters, each in one of them.

    `moves_whole` is the plan's (`ModelChoice.moves_whole`), whatever its patterns happen to fit: both sides know from
    the plan alone whether there is a base.
    """

    whole: TensorManifest
    moving: TensorManifest
    home: TensorManifest
    moves_whole: bool

    @property
    def trained(self) -> frozenset[str]:
        """Names of what is trained; every other parameter is frozen."""
        return frozenset(spec.name for part in (self.moving, self.home) for spec in part.tensors)

    def moving_of(self, whole: Vector) -> Vector:
        """What moves of a whole vector, float32 [moving.size]; a copy. Raises `BadTensors`."""
        return _of(whole, self.whole, self.moving)

    def home_of(self, whole: Vector) -> Vector:
        """What stays home of a whole vector, float32 [home.size]; a copy. Raises `BadTensors`."""
        return _of(whole, self.whole, self.home)

    def joined(self, base: Vector | None, moving: Vector, home: Vector | None = None) -> Vector:
        """The whole network: `base` float32 [whole.size] with `moving` and, if it is given, `home` in their places.

        `base` may be None where the plan has everything move. Raises `BadTensors` for vectors of other sizes.
        """
        if self.moves_whole:
            unflatten(moving, self.whole)  # its size
            return moving
        if base is None:
            raise BadTensors("not all of this model moves: what it begins with is needed too")
        tensors = dict(unflatten(base, self.whole)) | unflatten(moving, self.moving)
        if home is not None:
            tensors |= unflatten(home, self.home)
        return flatten(tensors, self.whole)


def parts_of(choice: ModelChoice, whole: TensorManifest) -> Parts:
    """Part a network as the plan says. Raises `InvalidPlan` where a pattern fits no parameter, or nothing moves.

    Also where adapters could not learn, or what they adapt would be trained (`boundary.low_rank`).
    """
    names = [spec.name for spec in whole.tensors]
    for which, patterns in (("trained", choice.trained), ("home", choice.home)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InvalidPlan(
                    f"model.{which}: {pattern!r} fits no parameter of {choice.name}@{choice.version}, which has "
                    f"{', '.join(names[:3])} ... {names[-1]} (all of them: wardround plan models {choice.name})"
                )
    trained = _fitting(names, choice.trained)
    home = trained & _fitting(names, choice.home)
    check_adapters(names, trained)
    if not trained - home:
        raise InvalidPlan("model.home: every trained parameter stays home, so there is nothing to learn together")
    return Parts(whole, _only(whole, trained - home), _only(whole, home), choice.moves_whole)


def tuned_of(parts: Parts, patterns: tuple[str, ...]) -> frozenset[str]:
    """Names of the trained parameters that a hospital personalises. Raises `InvalidPlan` where a pattern fits none."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parts.trained):
            raise InvalidPlan(f"personalisation.parameters: {pattern!r} fits no parameter that is trained")
    return _fitting(parts.trained, patterns)


def _fitting(names: Iterable[str], patterns: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def _only(whole: TensorManifest, names: frozenset[str]) -> TensorManifest:
    return TensorManifest(tensors=tuple(spec for spec in whole.tensors if spec.name in names))


def _of(whole: Vector, manifest: TensorManifest, part: TensorManifest) -> Vector:
    views = unflatten(whole, manifest)
    if not part.tensors:
        return np.empty(0, np.float32)
    return flatten({spec.name: views[spec.name] for spec in part.tensors}, part)
