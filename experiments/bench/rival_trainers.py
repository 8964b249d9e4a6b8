"""The rivals' side of `bench.trainers`: one training step of a PyTorch library, timed in a process of its own.

    INTERPRETER experiments/bench/rival_trainers.py '{"rival": "dictionary-learning", "batch": 4096, ...}'
    INTERPRETER experiments/bench/rival_trainers.py '[{"rival": ..., "device": "cuda", "precision": "bfloat16"}, ...]'

A list is timed one after the other in one process, since a GPU's libraries take long to start; a rival that fails then
leaves an `error` in its place. It runs in an environment that has the libraries and not this package, hence the
imports by name. What to install (Python 3.11): torch==2.13.0 (CPU), eai-sparsify==1.3.3, dictionary-learning==0.1.0,
sae-lens==6.54.12, decode-clt==0.0.1; then remove torchvision and torchaudio, whose builds for that torch do not match.

Each rival gets the same activations, batch, widths and k. Steps are whole: forward, backward, optimiser, and what the
library itself does after it. The model's own forward pass is on neither side.

bfloat16 is what each library's own trainer does: autocast around the forward pass with weights and moments in float32
(dictionary-learning: around the whole update, its activations rounded first). eai-sparsify's forward pass always is
under autocast on a GPU; for float32 that is taken off. float32 products on a GPU may use TF32.
"""

import gc
import importlib
import importlib.metadata
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

Step = Callable[[Any, Any], Any]  # cross-layer: the first returns how many features are on for a token, L0


def load(name: str) -> Any:
    """A module by name."""
    return importlib.import_module(name)


def device(c: dict[str, Any]) -> str:
    """Where it is trained: cpu or cuda."""
    return c.get("device", "cpu")


def bfloat16(c: dict[str, Any]) -> bool:
    """Whether it is trained in bfloat16."""
    return c.get("precision", "float32") == "bfloat16"


def autocast(c: dict[str, Any]) -> Any:
    """The context of a forward pass."""
    torch = load("torch")
    return torch.autocast(device(c), dtype=torch.bfloat16, enabled=bfloat16(c))


def sparsify(c: dict[str, Any], optimizer: str = "signum") -> Step:
    """eai-sparsify's transcoder: TopK, gradients of active rows only."""
    torch, library = load("torch"), load("sparsify")
    torch.set_float32_matmul_precision("high")  # as its Trainer sets it
    config = library.SparseCoderConfig(num_latents=c["features"], k=c["k"], transcode=True, skip_connection=False)
    m = library.SparseCoder(c["width"], config, device=device(c), dtype=torch.float32)
    forward = m if bfloat16(c) or device(c) == "cpu" else partial(library.SparseCoder.forward.__wrapped__, m)
    if optimizer == "adam":
        opt = torch.optim.Adam(m.parameters(), lr=1e-3)
    else:
        lr = 5e-3 / (c["features"] / 2**14) ** 0.5
        sign = load("sparsify.sign_sgd").SignSGD([{"params": m.parameters(), "lr": lr}])
        opt = load("schedulefree").ScheduleFreeWrapper(sign, momentum=0.95)
        opt.train()
    fired = torch.zeros(c["features"], dtype=torch.bool, device=device(c))

    def step(x: Any, y: Any) -> None:
        variance = (y - y.mean(0)).pow(2).sum()
        with autocast(c):
            out = forward(x=x, y=y, dead_mask=None, total_variance=variance)
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        opt.step()
        opt.zero_grad()

    return step


def dictionary_learning(c: dict[str, Any]) -> Step:
    """dictionary-learning's TopK SAE (it has no trainer from input to output)."""
    torch, module = load("torch"), load("dictionary_learning.trainers.top_k")
    trainer = module.TopKTrainer(
        steps=100_000, activation_dim=c["width"], dict_size=c["features"], k=c["k"], layer=0, lm_name="x",
        device=device(c), seed=0,
    )  # fmt: skip
    count, kind = iter(range(1, 10**9)), torch.bfloat16 if bfloat16(c) else torch.float32

    def step(x: Any, y: Any) -> None:
        with autocast(c):
            trainer.update(next(count), x.to(dtype=kind))

    return step


def sae_lens(c: dict[str, Any]) -> Step:
    """SAELens' TopK SAE with its defaults (it trains no transcoders)."""
    library = load("sae_lens")
    trainers = load("sae_lens.training.sae_trainer")
    sizes = {"d_in": c["width"], "d_sae": c["features"], "k": c["k"], "device": device(c)}
    sae = library.TopKTrainingSAE(library.TopKTrainingSAEConfig(**sizes))
    settings = load("sae_lens.config").SAETrainerConfig(
        total_training_samples=10**8, train_batch_size_samples=c["batch"], lr_end=3e-5,
        **_trainer_defaults() | {"device": device(c), "autocast": bfloat16(c)},
    )  # fmt: skip
    trainer = trainers.SAETrainer(settings, sae, iter([]))

    def step(x: Any, y: Any) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def _trainer_defaults() -> dict[str, Any]:
    """What SAETrainerConfig asks for without a default, by release."""
    fields = load("sae_lens.config").SAETrainerConfig.__dataclass_fields__
    usual = {
        "n_checkpoints": 0, "checkpoint_path": None, "save_final_checkpoint": False, "lr": 3e-4,
        "lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "adam_beta1": 0.9, "adam_beta2": 0.999,
        "lr_decay_steps": 0, "n_restart_cycles": 1, "dead_feature_window": 1000, "feature_sampling_window": 2000,
    }  # fmt: skip
    missing = load("dataclasses").MISSING
    return {n: v for n, v in usual.items() if n in fields and fields[n].default is missing}


def decode_clt(c: dict[str, Any], activation: str = "relu") -> Step:
    """decode-clt's cross-layer transcoder with its loss manager and AdamW."""
    torch, library = load("torch"), load("clt.config")
    cfg = library.CLTConfig(
        num_features=c["features"], num_layers=c["layers"], d_model=c["width"], activation_fn=activation
    )
    training = library.TrainingConfig(
        learning_rate=1e-4, training_steps=10_000, activation_path="/x", normalization_method="none"
    )
    m = load("clt.models.clt").CrossLayerTranscoder(cfg, process_group=None, device=torch.device(device(c)))
    losses = load("clt.training.losses").LossManager(training, clt_config=cfg)
    opt = torch.optim.AdamW(m.parameters(), lr=1e-4)
    dead = torch.zeros(c["layers"], c["features"], dtype=torch.bool, device=device(c))
    count = iter(range(1, 10**9))

    def step(x: Any, y: Any) -> float | None:
        number = next(count)
        with autocast(c):
            a = m.get_feature_activations(x)
            total, _ = losses.compute_total_loss(
                m, x, y, number, 10_000, precomputed_activations=a, dead_neuron_mask=dead
            )
        total.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        m.decoder_module._cached_decoder_norms = None
        return sum(float((v > 0).float().sum(1).mean()) for v in a.values()) if number == 1 else None

    return step


RIVALS: dict[str, tuple[str, Callable[[dict[str, Any]], Step]]] = {
    "eai-sparsify signum": ("eai-sparsify", sparsify),
    "eai-sparsify adam": ("eai-sparsify", lambda c: sparsify(c, "adam")),
    "dictionary-learning": ("dictionary-learning", dictionary_learning),
    "sae-lens": ("sae-lens", sae_lens),
    "decode-clt relu": ("decode-clt", decode_clt),
    "decode-clt jumprelu": ("decode-clt", lambda c: decode_clt(c, "jumprelu")),
}


def batches(c: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Three batches of Gaussian activations in rotation: tensors, or for cross-layer a dict by layer."""
    torch = load("torch")
    torch.manual_seed(0)

    def draw() -> Any:
        if "layers" not in c:
            return torch.randn(c["batch"], c["width"]).to(device(c))
        return {i: torch.randn(c["batch"], c["width"]).to(device(c)) for i in range(c["layers"])}

    return [(draw(), draw()) for _ in range(3)]


def measure(c: dict[str, Any]) -> dict[str, Any]:
    """Time one rival: `warmup` steps, then `repeats` samples of `steps` steps each, of which each counts as the mean.

    After `seconds` no further sample is begun, but three are always taken.
    """
    cuda, n, most = load("torch").cuda, c.get("steps", 1), c.get("seconds", float("inf"))
    package, make = RIVALS[c["rival"]]
    step, rows = make(c), batches(c)
    wait = cuda.synchronize if device(c) == "cuda" else lambda: None
    l0 = [step(*rows[i % 3]) for i in range(c["warmup"])]
    timed: list[float] = []
    while len(timed) < c["repeats"] and (len(timed) < 3 or sum(timed) * n < most):
        wait()
        start, first = time.perf_counter(), c["warmup"] + len(timed) * n
        for i in range(first, first + n):
            step(*rows[i % 3])
        wait()
        timed.append((time.perf_counter() - start) / n)
    found = {
        "l0": l0[0], "median": statistics.median(timed), "min": min(timed), "max": max(timed),
        "threads": load("torch").get_num_threads(),
        "versions": {n: importlib.metadata.version(n) for n in ("torch", package)},
    }  # fmt: skip
    return found | ({"peak_gpu_gb": cuda.max_memory_allocated() / 1e9} if device(c) == "cuda" else {})


def attempt(c: dict[str, Any]) -> dict[str, Any]:
    """The same, or the error; what it held on the GPU is given back before and after."""
    torch = load("torch")
    if device(c) == "cuda":
        torch.cuda.reset_peak_memory_stats()
    what = " ".join(str(c.get(n, "")) for n in ("rival", "width", "precision"))
    try:
        found = measure(c)
        say(f"{what}: {found['median'] * 1e3:.2f} ms a step")
    except Exception as error:  # the others must still be timed
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"[:300]}
        say(f"{what}: {found['error']}")
    gc.collect()
    if device(c) == "cuda":
        torch.cuda.empty_cache()
    return found


def say(text: str) -> None:
    """Progress, at once."""
    print(f"  {text}", file=sys.stderr, flush=True)


def peak(where: str, precision: str, size: int = 8192, chain: int = 8) -> float:
    """The most FLOP/s of products of two [size, size] matrices, `chain` of them between two waits."""
    torch = load("torch")
    wait = torch.cuda.synchronize if where == "cuda" else lambda: None
    a, seconds = torch.randn(size, size).to(where, getattr(torch, precision)), []
    for _ in range(6):
        b = a
        wait()
        start = time.perf_counter()
        for _ in range(chain):
            b = b @ a
        wait()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 * chain / min(seconds[1:])


def several(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """All cases in turn (on a GPU TF32 is allowed), and the peak of each precision among them."""
    torch = load("torch")
    on_gpu = device(cases[0]) == "cuda"
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    sizes = {} if on_gpu else {"size": 512}
    kinds = sorted({c["precision"] for c in cases})
    return {
        "peak_gflops": {kind: peak(device(cases[0]), kind, **sizes) / 1e9 for kind in kinds},
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "cases": [attempt(c) for c in cases],
    }


def main(c: Any) -> None:
    """Time one rival, or a list, and print what came out as JSON."""
    print(json.dumps(several(c) if isinstance(c, list) else measure(c)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
