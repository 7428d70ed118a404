"""Federated training of a tiny model against the same training in one plain PyTorch process, in the same run.

Three hospitals with 400 images of 64 x 64 each, densenet-small (96,850 parameters), one epoch in batches of 16, one
thread per hospital. A round is counted from commit to commit: orders, training, sums, evaluation of the held-back
images, Prefect. The plain process trains the same three data sets one after the other from the same weights, averages
them and evaluates the same held-back images. It may use as many threads as it likes: the faster of one and all cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from boundary.plan import to_json
from flows.demo.archive import DATASET, Site, find_sites
from flows.publication import pinned, publish
from infra.bench.federation import REAL_CHILD, federation, plan_text
from infra.bench.rounds import drive, seconds_between
from infra.bench.rows import Row, ratio_at_most

IMAGES = 400
ROUNDS = 5
_HOLDOUT = 0.05


def tiny_training() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as name:
        folder = Path(name)
        sites = _archives(folder)
        with federation(folder / "run", sites=sites, child=REAL_CHILD) as stage:
            silos = [site.silo for site in sites]
            text = plan_text(silos, DATASET, 100, holdout=_HOLDOUT)  # the caches of a finished study are removed
            plan = pinned(stage.coordinator, text)
            study = publish(stage.coordinator, plan)
            stage.approve_all(plan.label)
            drive(stage, "prefect", plan.label, ROUNDS + 1)
            shown = seconds_between(stage.records())
            caches = [str(stage.state_of(site) / "cache" / study.study) for site in sites]
            plan_json = to_json(plan).decode()
            plain = {threads: _plain(plan_json, caches, threads) for threads in sorted({1, os.cpu_count() or 1})}
    fastest = min(plain, key=lambda threads: median(plain[threads]))
    name = f"3 x {IMAGES} images, densenet-small"
    return [
        Row.of_runs(f"{name}, one round", shown, "s", against=f"plain PyTorch, {fastest} thread(s)",
                    reference=median(plain[fastest]), target=ratio_at_most(1.3)),
        *(Row.of_runs(f"{name}, plain PyTorch, {threads} thread(s)", runs, "s") for threads, runs in plain.items()),
    ]  # fmt: skip


def _archives(folder: Path) -> list[Site]:
    """As many images as leave 400 to train on: a hospital's own key decides who is held back."""
    from infra.hospitals.phantoms import make_phantom_hospitals

    make_phantom_hospitals(folder / "archives", 3, round(IMAGES / (1 - _HOLDOUT)))
    return find_sites(folder / "archives")


def _plain(plan_json: str, caches: list[str], threads: int) -> list[float]:
    command = [sys.executable, "-m", "infra.bench.tiny", str(threads), json.dumps(caches)]
    done = subprocess.run(command, input=plan_json, text=True, capture_output=True, check=True)
    return [float(seconds) for seconds in json.loads(done.stdout)]


def train_plainly(plan_json: str, caches: list[str], threads: int) -> list[float]:
    """Seconds of each round after one to warm up. In the measured process."""
    import numpy as np
    import torch

    from boundary.plan import parse_plan
    from models.catalogue import build
    from models.metrics import MetricLayout
    from models.parameters import initial_tensors, load_tensors, to_tensors
    from models.training import LocalData, evaluate, train
    from silo_agent.intake.cache import load_cache

    torch.set_num_threads(threads)
    plan = parse_plan(json.loads(plan_json))
    sets = []
    for cache in caches:
        arrays, _ = load_cache(Path(cache))
        parts = [np.flatnonzero(arrays.holdout == held) for held in (False, True)]
        sets.append([LocalData(arrays.images[rows], arrays.labels[rows], arrays.patients[rows]) for rows in parts])
    weights, seconds = initial_tensors(plan.model, 2), []
    for number in range(ROUNDS + 1):
        begun, trained = time.monotonic(), []
        for data, _ in sets:
            module = build(plan.model, 2)
            load_tensors(module, weights)
            train(module, data, plan.training, seed=number, on_step=lambda _step, _steps: None)
            trained.append(to_tensors(module))
        weights = {name: np.mean([one[name] for one in trained], axis=0, dtype=np.float32) for name in weights}
        module = build(plan.model, 2)
        load_tensors(module, weights)
        for _, held_back in sets:
            evaluate(module, held_back, MetricLayout(2))
        seconds.append(time.monotonic() - begun)
    return seconds[1:]


if __name__ == "__main__":
    print(json.dumps(train_plainly(sys.stdin.read(), json.loads(sys.argv[2]), int(sys.argv[1]))))
