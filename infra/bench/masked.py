"""What masking costs: expansion of masks, a hospital's part, the coordinator's part, and the bytes.

Beside it in the same run: this machine's cache-hot AES-256-CTR keystream, which is the ceiling of ours, and Flower's
own functions, installed by this script in an environment of their own (kept in `.venv/bench-flower`).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from boundary.layout import VectorLayout
from boundary.secagg.encoding import Quantiser, decode_mean
from boundary.secagg.graph import thresholds
from boundary.secagg.masks import AES_BLOCK, BLOCK, Masking, apply_everywhere, keystream_of
from boundary.secagg.ring import Encoding, exponent_for
from boundary.secagg.secrets import MaskKey, Sign
from flows.summing import masked_total, unmasked
from infra.bench.memory import grown_by
from infra.bench.rows import Row, Target, at_most, ratio_at_least
from infra.cohort import Cohort

PARAMETERS, HOSPITALS, LOST = 10_000_000, 50, 10
FLOWER = "1.41.0"
_REPEATS = 3


def masks() -> list[Row]:
    """All rows; about two minutes, and one more to install Flower the first time."""
    ceiling = keystream_ceiling()
    weights = (np.random.default_rng(1).standard_normal(PARAMETERS) * 1e-3).astype(np.float32)
    encoding = Encoding(exponent=exponent_for(1.0, 32, HOSPITALS), most=HOSPITALS)
    words = np.empty(PARAMETERS, np.uint32)
    encode = best(lambda: Quantiser(encoding, os.urandom(32)).encode(weights, words))
    one_thread = best(lambda: mask(words, HOSPITALS, threads=1))
    client, session = hospital_part(weights, words, encoding)
    server = coordinator_part(words)
    error = relative_error(weights[:1_000_000], encoding)
    flower = flower_seconds()
    rate = HOSPITALS * words.nbytes / one_thread / 1e9
    per_mask = flower["expand"] + flower["add"]
    peer = f"Flower {FLOWER}" if flower["expand"] else f"Flower {FLOWER} (not installed)"
    return [
        Row("masks expanded and added, one thread", rate, "GB/s", "cached AES-256-CTR", ceiling, ratio_at_least(0.75)),
        Row("the same beside Flower's (28-bit seeds)", rate, "GB/s", peer, _rate(4 * PARAMETERS, flower["expand"])),
        Row("encode, one thread", PARAMETERS / encode / 1e6, "M/s", peer, _rate(PARAMETERS, flower["encode"], 1e6),
            Target("value", "at least", 400)),
        Row("hospital: encode, 50 masks, shares; 10 M parameters", client, "s", peer,
            flower["encode"] + HOSPITALS * per_mask + flower["share"], at_most(0.5)),
        Row("of which keys, sharing and opening the shares of 49 others", session, "s"),
        Row("coordinator: 440 masks off, 10 of 50 lost", server, "s", peer,
            440 * per_mask + (40 + 10) * flower["combine"], at_most(4.5)),
        Row("upload per parameter", 4.0, "B", peer, 8.0, at_most(4)),
        Row("mean against the same in float64, relative error", error, "", "", None, at_most(1e-5)),
        Row("coordinator: peak memory of taking the masks off", memory(), "vectors", "one vector", 1.0, at_most(3)),
    ]  # fmt: skip


def _rate(amount: float, seconds: float, unit: float = 1e9) -> float | None:
    return amount / seconds / unit if seconds else None


def best(what: Callable[[], Any], repeats: int = _REPEATS) -> float:
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        what()
        found.append(time.perf_counter() - begun)
    return min(found)


def keystream_ceiling() -> float:
    """GB/s of one core into a buffer that stays in the cache: nothing that uses AES-CTR can be faster."""
    stream = keystream_of(bytes(32), 0)
    zeros, buffer = bytes(BLOCK), bytearray(BLOCK + AES_BLOCK)
    blocks = 8000
    return blocks * BLOCK / best(lambda: [stream.update_into(zeros, buffer) for _ in range(blocks)]) / 1e9


def mask(words: Any, count: int, *, threads: int, sign: Sign = 1) -> None:
    keys = [MaskKey(os.urandom(32), sign) for _ in range(count)]
    apply_everywhere(words.view(np.uint8), Masking(keys, numbers_bytes=0, ring=32), threads=threads)


def hospital_part(weights: Any, words: Any, encoding: Encoding) -> tuple[float, float]:
    """Seconds of one hospital of fifty between "trained" and its vector on disk, without input and output."""
    cohort = Cohort.of(HOSPITALS)
    ours, *others = cohort.silos
    begun = time.perf_counter()
    cohort.announce(ours)
    keys_made = time.perf_counter() - begun
    for silo in others:
        cohort.announce(silo)
    for silo in others:
        cohort.share(silo)
    sharing = frozenset(cohort.silos)
    begun = time.perf_counter()
    cohort.share(ours)
    keys = cohort.sessions[ours].mask(sharing, cohort.parts_for(ours, sharing))
    shared = keys_made + time.perf_counter() - begun
    begun = time.perf_counter()
    Quantiser(encoding, os.urandom(32)).encode(weights, words)
    apply_everywhere(words.view(np.uint8), Masking(keys, numbers_bytes=0, ring=32))
    return shared + time.perf_counter() - begun, shared


def coordinator_part(words: Any) -> float:
    """Seconds from revealed shares to the plain sum; `words` stands for the summed vectors."""
    cohort = Cohort.of(HOSPITALS, weights=4)
    sharing, surviving = cohort.until_masked(no_vector=LOST)
    for silo in surviving:
        cohort.agree(silo, cohort.named(surviving))
    for silo in sorted(surviving)[: thresholds(HOSPITALS).shares]:
        cohort.reveal(silo)
    begun = time.perf_counter()
    keys = cohort.opening(sharing, surviving).masks()
    apply_everywhere(words.view(np.uint8), Masking(keys, numbers_bytes=0, ring=32))
    return time.perf_counter() - begun


def relative_error(weights: Any, encoding: Encoding) -> float:
    """Of the mean of 20 hospitals' vectors, in the Euclidean norm; the bound is a thousand times the typical weight."""
    total, exact = np.zeros(len(weights), np.uint32), np.zeros(len(weights))
    encoding = encoding.model_copy(update={"most": 20, "exponent": exponent_for(float(np.abs(weights).max()), 32, 20)})
    for hospital in range(20):
        vector = np.roll(weights, hospital)
        words = np.empty(len(weights), np.uint32)
        Quantiser(encoding, os.urandom(32)).encode(vector, words)
        total += words
        exact += vector
    found, _ = decode_mean(total, encoding, 20)
    return float(np.linalg.norm(found - exact / 20) / np.linalg.norm(exact / 20))


def memory() -> float:
    """Peak of a process that sums 50 vectors of 10 M words from a file and takes the masks off, in vectors."""
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder:
        done = subprocess.run([sys.executable, "-m", "infra.bench.masked", folder], check=True, capture_output=True)
    return float(done.stdout)


def _measured(folder: Path) -> float:
    vector = folder / "vector"
    with vector.open("wb") as file:
        for _ in range(40):
            file.write(os.urandom(PARAMETERS // 10))
    mask(np.zeros(1000, np.uint32), 1, threads=2)  # what the libraries take once
    return grown_by(lambda: _sum_and_unmask(vector)) / (4 * PARAMETERS)


def _sum_and_unmask(vector: Path) -> None:
    layout, encoding = VectorLayout(sections=(), weights=PARAMETERS), Encoding(exponent=20, most=HOSPITALS)
    total = masked_total([partial(vector.open, "rb")] * HOSPITALS, layout, encoding.ring)
    masks = [MaskKey(os.urandom(32), -1) for _ in range(44)]
    decode_mean(unmasked(total, masks, layout, encoding).words, encoding, 1)


def flower_seconds() -> dict[str, float]:
    """Flower's functions for the same vector; zeros where it cannot be installed."""
    home = Path(sys.prefix) / "bench-flower"
    python = home / "bin" / "python"
    try:
        if not (home / "installed").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", f"flwr=={FLOWER}"],
                           check=True, capture_output=True)  # fmt: skip
            (home / "installed").touch()
        script = Path(__file__).with_name("flower_masks.py")
        numbers = [str(PARAMETERS), str(HOSPITALS), str(thresholds(HOSPITALS).shares), FLOWER]
        done = subprocess.run([python, script, *numbers], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        return dict.fromkeys(("encode", "expand", "add", "share", "combine"), 0.0)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(_measured(Path(sys.argv[1])))
