"""Does JAX work on every host of a slice, and does tcircuits? Run the same command on all hosts: see tpu/README.md.

On a TPU slice the processes find each other when TCIRCUITS_DISTRIBUTED=1 (tpu/run.sh sets it). Elsewhere say where
process 0 listens, how many there are, and which this is. Exit code 0, or 1 with what failed, or 2 for wrong arguments.
"""

import argparse
import os
import platform
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

import tcircuits as tc
from tcircuits import parallel
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import init

TOKENS = (3, 14, 15, 92, 65, 35)
TINY = ModelConfig("llama", 3, 32, 4, 2, 8, 64, 97, 16, rotary_dim=8)
ROW_GAP = 1e-5  # of the largest row's absolute sum: rounding in float32 is some 1e-7


def join(args: argparse.Namespace) -> None:
    """Start JAX here and join the other processes, as the arguments or the environment say."""
    given = (args.coordinator, args.num_processes, args.process_id)
    names = ("TCIRCUITS_COORDINATOR", "TCIRCUITS_NUM_PROCESSES", "TCIRCUITS_PROCESS_ID")
    os.environ.update({name: str(value) for name, value in zip(names, given, strict=True) if value is not None})
    parallel.initialize()


def describe() -> str:
    """This process, its host and its devices, in one line."""
    devices = jax.local_devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    place = f"process {jax.process_index() + 1} of {jax.process_count()} on {platform.node()}"
    ids = ", ".join(str(device.id) for device in devices)
    return f"{place}: {len(devices)} of {jax.device_count()} devices ({kinds}; {ids}), jax {jax.__version__}"


def check_sum() -> str | None:
    """Add 1, 2, ... n, one from each device, over all devices; what is wrong with the sum, or None."""
    n = jax.device_count()
    mesh = parallel.make_mesh((n, 1))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    numbers = np.arange(1, n + 1, dtype=np.float32)
    array = jax.make_array_from_callback((n,), sharding, lambda index: numbers[index])
    total = jax.jit(jnp.sum, out_shardings=jax.NamedSharding(mesh, jax.P()))(array)
    found, wanted = float(total.addressable_data(0)), n * (n + 1) / 2
    return None if found == wanted else f"the sum over {n} devices is {found}, not {wanted}"


def trace() -> np.ndarray:
    """Figures of one graph of a tiny random model, computed on this host alone; it must not depend on the host."""
    model = tc.Model(TINY, init(TINY, jax.random.key(0)), None, "tiny")
    graph = tc.attribute(model, tc.load_transcoders("neurons", model=model), list(TOKENS))
    found, (sums, mass) = tc.scores(graph), graph.row_sums()
    gap = np.abs(sums - graph.row_value).max() / mass.max()
    return np.array([found.replacement, found.completeness, gap, len(graph.features), np.abs(sums).sum(), mass.sum()])


def check_traces(figures: np.ndarray) -> list[str]:
    """What is wrong with the graphs of all hosts, one row of `figures` each."""
    wrong = [] if np.isfinite(figures).all() else [f"the graphs hold numbers that are not finite: {figures.tolist()}"]
    same = np.allclose(figures[:, :2], figures[0, :2], atol=1e-5)  # scores
    if not (same and np.allclose(figures[:, 3:], figures[0, 3:], rtol=1e-5)):
        wrong.append(f"the hosts got different graphs: {figures.tolist()}")
    if figures[:, 2].max() > ROW_GAP:
        wrong.append(f"a row of a graph misses its value by {figures[:, 2].max():.1e} of the largest row")
    return wrong


def main() -> int:
    """Run the checks; exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    start = time.perf_counter()
    try:
        join(parser.parse_args())
    except ValueError as error:
        print(f"preflight: {error}", file=sys.stderr)
        return 2
    print(describe(), flush=True)
    wrong = [text for text in [check_sum()] if text]
    figures = np.atleast_2d(multihost_utils.process_allgather(trace()))
    wrong += check_traces(figures)
    for text in wrong:
        print(f"preflight: process {jax.process_index() + 1}: {text}", file=sys.stderr)
    if parallel.is_lead() and not wrong:
        graph = (
            f"{int(figures[0, 3])} features, replacement score {figures[0, 0]:.4f}, row gap {figures[:, 2].max():.1e}"
        )
        print(
            f"preflight passed: {jax.device_count()} devices, {graph}, {time.perf_counter() - start:.1f} s", flush=True
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
