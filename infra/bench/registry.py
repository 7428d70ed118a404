"""All benchmarks by name. A new one: a function that returns rows, in a file of its own, and one line here."""

from collections.abc import Callable
from dataclasses import dataclass

from infra.bench import (
    audit,
    demo,
    footprint,
    intake,
    masked,
    memory,
    partial,
    private,
    robustness,
    rounds,
    stragglers,
    strategies,
    tiny,
    upload,
    verification,
)
from infra.bench.rows import Row


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`minutes` is what to expect on two quiet cores."""

    run: Callable[[], list[Row]]
    summary: str
    minutes: float


BENCHMARKS: dict[str, Benchmark] = {
    "round-25mb": Benchmark(rounds.round_25mb, "overhead of a round: 25 MB model, three agents that return at once", 1),
    "round-100mb": Benchmark(rounds.round_100mb, "the same with a model of 100 MB", 2),
    "tiny-training": Benchmark(tiny.tiny_training, "a small network, federated and in one plain PyTorch process", 2),
    "partial-training": Benchmark(
        partial.partial_training, "bytes of a round: a part of DenseNet121, adapters on the ViT, bfloat16 down", 4
    ),
    "upload": Benchmark(upload.upload, "100 MB from a hospital to the relay beside a plain TLS copy; the long poll", 1),
    "memory": Benchmark(memory.memory, "the coordinator's memory for 3, 10 and 30 hospitals", 1),
    "masks": Benchmark(masked.masks, "masked sums: masks, encoding, both sides' parts, beside Flower's functions", 2),
    "private-step": Benchmark(private.private_step, "noise, and a private step beside Opacus' own, time and memory", 2),
    "private-learning": Benchmark(private.private_learning, "AUROC without noise, at epsilon 8 and at epsilon 3", 3),
    "privacy-audit": Benchmark(audit.privacy_audit, "membership inference without noise and at epsilon 8", 4),
    "strategies": Benchmark(strategies.strategies, "AUROC of every strategy on five hospitals that differ", 10),
    "robustness": Benchmark(robustness.robustness, "what one hospital that spoils rounds can do to a study", 9),
    "stragglers": Benchmark(
        stragglers.stragglers, "AUROC with a sample of five hospitals, and with one always late", 2
    ),
    "verification": Benchmark(verification.verification, "verifying 100,000 entries; appending one to a log", 2),
    "agent-footprint": Benchmark(footprint.agent_footprint, "the hospital's daemon: start-up and memory", 0.5),
    "intake": Benchmark(intake.intake, "an archive's headers and images beside bare pydicom; all of it once more", 4),
    "demo": Benchmark(demo.demo, "`wardround demo` on its clock", 2),
}
