"""What Flower's own functions take for the same work; runs in an environment of its own and prints JSON.

Parameters as in Flower 1.41's `SecAggPlusWorkflow`: clipping range 8, target range 2^22, modulus 2^32.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_mod
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

MODULUS = 2**32


def seconds(what: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun


def main(parameters: int, hospitals: int, threshold: int) -> None:
    weights = [np.random.default_rng(1).standard_normal(parameters).astype(np.float32) * 1e-3]
    encode = min(seconds(lambda: quantize(weights, 8.0, 2**22)) for _ in range(3))
    seed, shape = os.urandom(32), [(parameters,)]
    expand = min(seconds(lambda: pseudo_rand_gen(seed, MODULUS, shape)) for _ in range(3))
    mask, total = pseudo_rand_gen(seed, MODULUS, shape), [np.zeros(parameters, np.int64)]
    add = min(seconds(lambda: parameters_mod(parameters_addition(total, mask), MODULUS)) for _ in range(3))
    share = seconds(lambda: [create_shares(os.urandom(32), threshold, hospitals) for _ in range(2)])
    shares = create_shares(os.urandom(32), threshold, hospitals)[:threshold]
    combine = seconds(lambda: combine_shares(shares))
    print(json.dumps({"encode": encode, "expand": expand, "add": add, "share": share, "combine": combine,
                      "version": sys.argv[4]}))  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
