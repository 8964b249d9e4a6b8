"""The rivals' side of `bench.trainers`: one training step of a PyTorch library, timed in a process of its own.

    INTERPRETER experiments/bench/rival_trainers.py '{"rival": "dictionary-learning", "batch": 4096, ...}'

It runs in an environment that has the libraries and not this package, hence the imports by name. What to install
(Python 3.11): torch==2.13.0 (CPU), eai-sparsify==1.3.3, dictionary-learning==0.1.0, sae-lens==6.54.12,
decode-clt==0.0.1; then remove torchvision and torchaudio, whose builds for that torch do not match.

Each rival gets the same activations, batch, widths and k. Steps are whole: forward, backward, optimiser, and what the
library itself does after it. The model's own forward pass is on neither side.
"""

import importlib
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Step = Callable[[Any, Any], Any]  # cross-layer: the first returns how many features are on for a token, L0


def load(name: str) -> Any:
    """A module by name."""
    return importlib.import_module(name)


def sparsify(c: dict[str, Any], optimizer: str = "signum") -> Step:
    """eai-sparsify's transcoder: TopK, gradients of active rows only."""
    torch, library = load("torch"), load("sparsify")
    torch.set_float32_matmul_precision("high")  # as its Trainer sets it
    config = library.SparseCoderConfig(num_latents=c["features"], k=c["k"], transcode=True, skip_connection=False)
    m = library.SparseCoder(c["width"], config, dtype=torch.float32)
    if optimizer == "adam":
        opt = torch.optim.Adam(m.parameters(), lr=1e-3)
    else:
        lr = 5e-3 / (c["features"] / 2**14) ** 0.5
        sign = load("sparsify.sign_sgd").SignSGD([{"params": m.parameters(), "lr": lr}])
        opt = load("schedulefree").ScheduleFreeWrapper(sign, momentum=0.95)
        opt.train()
    fired = torch.zeros(c["features"], dtype=torch.bool)

    def step(x: Any, y: Any) -> None:
        variance = (y - y.mean(0)).pow(2).sum()
        out = m(x=x, y=y, dead_mask=None, total_variance=variance)
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        opt.step()
        opt.zero_grad()

    return step


def dictionary_learning(c: dict[str, Any]) -> Step:
    """dictionary-learning's TopK SAE (it has no trainer from input to output)."""
    module = load("dictionary_learning.trainers.top_k")
    trainer = module.TopKTrainer(
        steps=100_000, activation_dim=c["width"], dict_size=c["features"], k=c["k"], layer=0, lm_name="x",
        device="cpu", seed=0,
    )  # fmt: skip
    count = iter(range(1, 10**9))
    return lambda x, y: trainer.update(next(count), x)


def sae_lens(c: dict[str, Any]) -> Step:
    """SAELens' TopK SAE with its defaults (it trains no transcoders)."""
    library = load("sae_lens")
    trainers = load("sae_lens.training.sae_trainer")
    sae = library.TopKTrainingSAE(library.TopKTrainingSAEConfig(d_in=c["width"], d_sae=c["features"], k=c["k"]))
    settings = load("sae_lens.config").SAETrainerConfig(
        total_training_samples=10**8, train_batch_size_samples=c["batch"], lr_end=3e-5, **_trainer_defaults()
    )
    trainer = trainers.SAETrainer(settings, sae, iter([]))

    def step(x: Any, y: Any) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def _trainer_defaults() -> dict[str, Any]:
    """What SAETrainerConfig asks for without a default, by release."""
    fields = load("sae_lens.config").SAETrainerConfig.__dataclass_fields__
    usual = {
        "n_checkpoints": 0, "checkpoint_path": None, "save_final_checkpoint": False, "device": "cpu",
        "autocast": False, "lr": 3e-4, "lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "adam_beta1": 0.9,
        "adam_beta2": 0.999, "lr_decay_steps": 0, "n_restart_cycles": 1, "dead_feature_window": 1000,
        "feature_sampling_window": 2000,
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
    m = load("clt.models.clt").CrossLayerTranscoder(cfg, process_group=None, device=torch.device("cpu"))
    losses = load("clt.training.losses").LossManager(training, clt_config=cfg)
    opt = torch.optim.AdamW(m.parameters(), lr=1e-4)
    dead = torch.zeros(c["layers"], c["features"], dtype=torch.bool)
    count = iter(range(1, 10**9))

    def step(x: Any, y: Any) -> float | None:
        a, number = m.get_feature_activations(x), next(count)
        total, _ = losses.compute_total_loss(m, x, y, number, 10_000, precomputed_activations=a, dead_neuron_mask=dead)
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
            return torch.randn(c["batch"], c["width"])
        return {i: torch.randn(c["batch"], c["width"]) for i in range(c["layers"])}

    return [(draw(), draw()) for _ in range(3)]


def main(c: dict[str, Any]) -> None:
    """Time one rival and print what came out as JSON."""
    package, make = RIVALS[c["rival"]]
    step, rows = make(c), batches(c)
    seconds, l0 = [], []
    for i in range(c["warmup"] + c["repeats"]):
        start = time.perf_counter()
        l0.append(step(*rows[i % 3]))
        seconds.append(time.perf_counter() - start)
    timed = seconds[c["warmup"] :]
    found = {
        "l0": l0[0], "median": statistics.median(timed), "min": min(timed), "max": max(timed),
        "threads": load("torch").get_num_threads(),
        "versions": {n: importlib.metadata.version(n) for n in ("torch", package)},
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
