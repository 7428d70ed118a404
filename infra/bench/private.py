"""What a guarantee per patient costs: the noise, a step beside Opacus' own, memory, and what is learnt under it."""

import secrets
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from boundary.guarantee import PatientPrivacy
from boundary.learning import ModelChoice, Training
from compliance.terms import PlanTerms
from infra.bench.rows import Row, Target, at_most, ratio_at_most
from models.catalogue import build
from models.metrics import MetricLayout, read
from models.parameters import initial_tensors, load_tensors
from models.private.gaussian import LatticeGaussian
from models.private.keystream import KeyStream
from models.private.optimizer import PatientOptimizer
from models.private.prepare import prepare
from models.private.training import PrivateSteps, PrivateTraining
from models.training import LocalData, evaluate, train

SAMPLES, BATCH, REPEATS = 10_000_000, 16, 5
ARCHIVE = Path(__file__).parents[2].parent / "shared/data/pneumonia-cxr-28/pneumoniamnist_dev.npz"
ROUNDS, SHARES = 15, (0.32, 0.25, 0.19, 0.14, 0.10)
_STEP = "import sys; from infra.bench.private import one_step; print(one_step(sys.argv[1], sys.argv[2], 3))"
Step = Callable[[], None]


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The networks that are timed: by name, with the shape of one image."""
    torch.manual_seed(0)
    if name == "unet-3d":
        from monai.networks.nets import UNet

        net = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(16, 32, 64), strides=(2, 2))
        return nn.Sequential(prepare(net), nn.AdaptiveAvgPool3d(1), nn.Flatten()), (1, 32, 32, 32)
    return build(ModelChoice(name=name, version=1), 2), (1, 64, 64)


def step_of(kind: str, name: str) -> Step:
    """One step on `BATCH` patients with one image each: forward, backward, clipping, noise, update."""
    module, shape = network(name)
    images, labels = torch.rand(BATCH, *shape), torch.randint(0, 2, (BATCH,))
    base = torch.optim.SGD(module.parameters(), lr=0.0)
    hooked = GradSampleModule(module, loss_reduction="sum")
    if kind == "ours":
        return _ours(hooked, base, images, labels)
    theirs = DPOptimizer(
        base, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=None, loss_reduction="sum"
    )  # fmt: skip

    def step() -> None:
        nn.functional.cross_entropy(hooked(images), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        theirs.step()
        theirs.zero_grad(set_to_none=True)

    return step


def _ours(hooked: GradSampleModule, base: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Step:
    mine = PatientOptimizer(
        base, noise_multiplier=1.0, max_grad_norm=1.0, denominator=BATCH, stream=KeyStream(secrets.token_bytes(32))
    )  # fmt: skip

    def step() -> None:
        nn.functional.cross_entropy(hooked(images), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        mine.accumulate((1,) * BATCH, unfinished=False)
        mine.step()
        mine.zero_grad(set_to_none=True)

    return step


def one_step(kind: str, name: str, repeats: int) -> str:
    """Give processor seconds of the fastest step, and by how many bytes the steps made a process of their own grow."""
    from infra.bench.memory import grown_by

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    step, took = step_of(kind, name), []

    def steps() -> None:
        took.extend(_seconds(step) for _ in range(repeats))

    grown = grown_by(steps)
    return f"{min(took)} {grown}"


def private_step() -> list[Row]:
    """The noise source, and a step beside Opacus' hook mode; about two minutes."""
    out, stream = np.empty(SAMPLES, np.int32), KeyStream(secrets.token_bytes(32))
    noise = LatticeGaussian(2.0**16, stream)
    torch.set_num_threads(1)
    ours = min(_seconds(lambda: noise.fill(out)) for _ in range(REPEATS))
    torchs = min(_seconds(lambda: torch.normal(0.0, 1.0, (SAMPLES,))) for _ in range(REPEATS))
    rows = [
        Row("noise from AES bits on a lattice, one thread", SAMPLES / ours / 1e6, "M/s", "torch.normal, predictable",
            SAMPLES / torchs / 1e6, Target("value", "at least", 40))
    ]  # fmt: skip
    for name in ("cnn-small", "densenet-small", "densenet121", "resnet18", "unet-3d"):
        seconds: dict[str, float] = {}
        memory: dict[str, float] = {}
        for _ in range(2):
            for kind in ("opacus", "ours"):
                took, peak = map(float, _in_a_process(kind, name).split())
                seconds[kind] = min(took, seconds.get(kind, took))
                memory[kind] = min(peak / 1e6, memory.get(kind, peak / 1e6))
        rows += [
            Row(f"private step of {name}, {BATCH} patients", seconds["ours"], "s", "Opacus, hook mode",
                seconds["opacus"], ratio_at_most(1.15)),
            Row(f"memory that the steps take, {name}", memory["ours"], "MB", "Opacus, hook mode", memory["opacus"],
                ratio_at_most(1.0)),
        ]  # fmt: skip
    return rows


def private_learning() -> list[Row]:
    """AUROC of five hospitals, no noise and epsilon 8 and 3; the sum is a plain mean here, masking adds 1e-7."""
    if not ARCHIVE.exists():
        raise FileNotFoundError(f"{ARCHIVE} is not there: the figure is of real images")
    sites, test = _split()
    plain = _rounds(sites, test, None)
    rows = [Row(f"AUROC after {ROUNDS} rounds, no noise", plain, "")]
    for epsilon, bound in ((8.0, 0.03), (3.0, None)):
        found = _rounds(sites, test, epsilon)
        target = None if bound is None else at_most(bound)
        rows += [
            Row(f"AUROC at epsilon {epsilon:g} per patient", found, "", "no noise", plain),
            Row(f"what epsilon {epsilon:g} costs", plain - found, "AUROC", target=target),
        ]
    return rows


def _split() -> tuple[list[LocalData], LocalData]:
    """Patients of one to four images of one class, over five hospitals; a fifth of the patients is held back."""
    with np.load(ARCHIVE, allow_pickle=False) as file:
        images = np.concatenate([file["train_images"], file["val_images"]]).astype(np.float32) / 255
        labels = np.concatenate([file["train_labels"], file["val_labels"]]).reshape(-1).astype(np.int64)
    images = nn.functional.interpolate(torch.from_numpy(images)[:, None], size=(32, 32), mode="bilinear").numpy()
    rng = np.random.default_rng(0)
    patients, number = np.zeros(len(images), np.int64), 0
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        while len(rows):
            take = int(rng.integers(1, 5))
            patients[rows[:take]], rows, number = number, rows[take:], number + 1
    place, held = rng.choice(len(SHARES), size=number, p=SHARES), rng.random(number) < 0.2

    def part(mask: np.ndarray) -> LocalData:
        return LocalData(images[mask], labels[mask], patients[mask])

    sites = [part((place[patients] == site) & ~held[patients]) for site in range(len(SHARES))]
    return sites, part(held[patients])


def _rounds(sites: list[LocalData], test: LocalData, epsilon: float | None) -> float:
    choice, layout = ModelChoice(name="cnn-small", version=1, initial_seed=7), MetricLayout(2)
    module = build(choice, 2)
    load_tensors(module, initial_tensors(choice, 2))
    for number in range(ROUNDS):
        begin = {name: p.detach().clone() for name, p in module.named_parameters()}
        ends = []
        for data in sites:
            module.load_state_dict(begin, strict=False)
            _train(module, data, number, epsilon)
            ends.append({name: p.detach().clone() for name, p in module.named_parameters()})
        mean = {name: torch.stack([end[name] for end in ends]).mean(dim=0) for name in begin}
        module.load_state_dict(mean, strict=False)
    return float(read(evaluate(module, test, layout), layout).auroc or 0.0)


def _train(module: nn.Module, data: LocalData, number: int, epsilon: float | None) -> None:
    if epsilon is None:
        plan = Training(rounds=ROUNDS, learning_rate=2e-3)
        train(module, data, plan, seed=number, on_step=_quiet)
        return
    privacy = PatientPrivacy(mechanism="patient-dp", epsilon=epsilon, patients_per_step=128, steps=4)
    most = int(np.ceil(len(np.unique(data.patients)) * 1.25 / 20) * 20)  # the held-back ones are patients too
    terms = PlanTerms.of(privacy, ROUNDS, most)
    steps = PrivateSteps(
        steps=privacy.steps, rate=terms.rate, denominator=terms.denominator, clip=privacy.clip,
        noise_multiplier=terms.noise_multiplier, images=privacy.images_per_patient,
    )  # fmt: skip
    plan = Training(rounds=ROUNDS, optimizer="sgd", learning_rate=0.5, weighting="equal")
    PrivateTraining(steps, secrets.token_bytes(32), at_once=64).run(module, data, plan, on_step=_quiet)


def _quiet(_step: int, _steps: int) -> None:
    pass


def _seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _in_a_process(kind: str, name: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _STEP, kind, name], capture_output=True, text=True,
                          check=True)  # fmt: skip
    return done.stdout.split("\n")[-2]
