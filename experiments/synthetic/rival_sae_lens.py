"""SAELens, whose benchmark SynthSAEBench is, on its own data: what `synthetic_truth` should find at the same settings.

    INTERPRETER experiments/synthetic/rival_sae_lens.py '{"part": 8, "samples": 1024000, "batch": 256, "lr": 3e-3}'

It runs in an environment that has sae-lens (6.54.12) and torch and not this package, hence the imports by name, and
prints one line of JSON: the figures of BatchTopK as the library trains and measures it, and how often true features
fire. Other settings: `l0` at full size, `seed`, `start` (the norm of first decoder rows, the library's is 0.1),
`measured` (samples), `threads` and `device`. One seed of weights and data; the world is drawn with the published seed.
"""

import importlib
import importlib.metadata
import json
import sys
from itertools import pairwise
from typing import Any

DEFAULTS = {"part": 8, "l0": 25.0, "samples": 3_072_000, "batch": 256, "lr": 3e-3, "seed": 1, "start": 0.1}
DEFAULTS |= {"measured": 20_480, "threads": 1, "device": "cpu"}


def world(library: Any, part: int) -> Any:
    """SynthSAEBench-16k's configuration, its sizes divided as `world.scaled` does."""
    forest = library.HierarchyConfig(
        total_root_nodes=128 // part,
        branching_factor=4,
        max_depth=3,
        mutually_exclusive_portion=1.0,
        compensate_probabilities=True,
        scale_children_by_parent=True,
    )
    return library.SyntheticModelConfig(
        num_features=16_384 // part,
        hidden_dim=768 // part,
        firing_probability=library.ZipfianFiringProbabilityConfig(
            exponent=0.5, max_prob=0.4 * part**-0.5, min_prob=5e-4
        ),
        hierarchy=forest,
        orthogonalization=library.OrthogonalizationConfig(num_steps=100, lr=3e-4),
        correlation=library.LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=library.LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=library.FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5,
        seed=42,
    )


def main(given: dict[str, Any]) -> dict[str, Any]:
    """Train one dictionary and measure it."""
    c: dict[str, Any] = DEFAULTS | given
    torch, sae_lens, library = (importlib.import_module(name) for name in ("torch", "sae_lens", "sae_lens.synthetic"))
    torch.set_num_threads(c["threads"])
    torch.manual_seed(c["seed"])
    law, part = world(library, c["part"]), c["part"]
    dictionary = sae_lens.BatchTopKTrainingSAEConfig(
        k=c["l0"] / part, d_in=768 // part, d_sae=4096 // part, decoder_init_norm=c["start"]
    )
    runner = library.SyntheticSAERunner(
        library.SyntheticSAERunnerConfig(
            synthetic_model=law,
            sae=dictionary,
            training_samples=c["samples"],
            batch_size=c["batch"],
            lr=c["lr"],
            device=c["device"],
            output_path=None,
            eval_samples=c["measured"],
            logger=sae_lens.LoggingConfig(log_to_wandb=False),
        )
    )
    found = runner.run()
    on = found.synthetic_model.activation_generator.sample(4096) > 0
    shares = on.float().mean(0).cpu()
    edges = [0, *(int(128 // part * (4 ** (level + 1) - 1) / 3) for level in range(4)), len(shares)]
    levels = [float(shares[a:b].sum()) for a, b in pairwise(edges)]
    figures = found.final_eval.to_dict()
    own = {"levels": levels, "version": importlib.metadata.version("sae-lens")}
    return {"settings": c, "figures": figures} | own


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})) + "\n")
