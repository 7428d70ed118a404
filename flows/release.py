"""The released model: the catalogue's network with the last global weights, exported without any pickle."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

from boundary.images import Normalisation
from boundary.plan import StudyPlan
from boundary.tensors import Vector, unflatten, unpack
from compliance.records import RoundRecord
from flows import pages
from flows.store.studies import Study

if TYPE_CHECKING:
    from torch import nn

    from models.parameters import Tensors

# what one needs to load the exported program; given, because inferring them takes MLflow half a minute
REQUIREMENTS = ["torch==2.13.0"]


def example_size(plan: StudyPlan) -> tuple[int, ...]:
    """The sides of the example that is registered with a model: MLflow writes it as text, so no whole volume."""
    from models.catalogue import entry_of

    if plan.task == "classification":
        return plan.preprocessing.size
    return (entry_of(plan.model).smallest_side,) * len(plan.preprocessing.size)


def _signature(plan: StudyPlan, example: Any, output: Any) -> Any:
    """Any number of images; for segmentation also of any sides that the network's stride divides, not the example's."""
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import Schema, TensorSpec

    if plan.task == "classification":
        return infer_signature(example, output)
    free = (-1,) * len(plan.preprocessing.size)
    taken, given = (
        Schema([TensorSpec(array.dtype, (-1, array.shape[1], *free))]) for array in (example, output)
    )  # fmt: skip
    return ModelSignature(inputs=taken, outputs=given)


def final_weights(study: Study, record: RoundRecord, open_blob: Callable[[str], BinaryIO]) -> Vector:
    """The whole network after a round, float32 [n]; what stays home in hospitals is as the study began."""
    parts, base = study.parts, None
    with open_blob(record.model_out.digest) as source:
        moving = unpack(source.read(), parts.moving, study.plan.aggregation.downlink)
    if not parts.moves_whole:
        with open_blob(study.model.initial.digest) as source:
            base = unpack(source.read(), parts.whole)
    return parts.joined(base, moving)


def released(plan: StudyPlan, tensors: "Tensors", scale: Normalisation | None) -> "nn.Module":
    """The network that is registered: the catalogue's plain one, which takes images as the plan's window leaves them.

    Adapters are merged into the weights that they adapt, so who loads it needs to know nothing of them.
    """
    from models.catalogue import build
    from models.low_rank import merge
    from models.networks import Normalised
    from models.parameters import load_tensors

    module = build(plan.model, len(plan.labels.classes))
    load_tensors(module, tensors)
    merge(module)
    if scale is not None:
        module = Normalised(module, scale.mean, scale.deviation)
    return module.eval()


def log_global_model(
    client: Any, run: str, study: Study, record: RoundRecord, open_blob: Callable[[str], BinaryIO]
) -> str:
    """Log and register; returns the version. A study that was registered before keeps its version."""
    import mlflow
    import numpy as np
    import torch

    plan = study.plan
    known = client.search_model_versions(f"name = '{plan.name}'")
    for version in known:
        if version.tags.get("wardround.study") == study.study:
            return str(version.version)
    module = released(
        plan, unflatten(final_weights(study, record, open_blob), study.model.manifest), study.normalisation
    )
    example = np.zeros((2, 1, *example_size(plan)), dtype=np.float32)
    with torch.inference_mode():
        output = module(torch.from_numpy(example)).numpy()
    with mlflow.start_run(run_id=run):
        mlflow.pytorch.log_model(
            module,
            name="model",
            serialization_format="pt2",
            input_example=example,
            signature=_signature(plan, example, output),
            registered_model_name=plan.name,
            pip_requirements=REQUIREMENTS,
        )
    newest = max(client.search_model_versions(f"name = '{plan.name}'"), key=lambda one: int(one.version))
    tags = {
        "wardround.study": study.study,
        "wardround.plan_digest": study.plan_digest,
        "wardround.model_digest": record.model_out.digest,
        "wardround.round": str(record.round),
    }
    for key, value in tags.items():
        client.set_model_version_tag(plan.name, newest.version, key, value)
    client.update_model_version(
        plan.name,
        newest.version,
        f"Global model of study {study.study} ({study.label}) after round {record.round}. "
        f"{pages.guarantee(plan, [record])} Weights {record.model_out.digest}.",
    )
    return str(newest.version)
