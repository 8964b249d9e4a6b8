"""The other side of `experiments.bench.circuits`: auto-circuit on the same weights, prompts and circuits.

That module starts this one with an interpreter of its own (`--rival-python`), which needs auto-circuit 1.0.1 and a
TransformerLens of version 2 (`pip install auto-circuit==1.0.1 "transformer-lens<3"`). Torch and both exist there only:
they are imported by name.

    PYTHON -m experiments.bench.rival_auto_circuit EXCHANGE.npz OUT.npy REPEATS

reads a Llama-like model, prompts with counterfactuals and a ranking of all edges from EXCHANGE.npz, runs its public
`run_circuits` (nested circuits by that ranking, everything outside resampled), writes the last logits by circuit and
prompt, and prints one JSON object.
"""

import importlib
import importlib.metadata
import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from experiments.bench.rival_circuit_tracer import model_config, weights


def build(cfg: SimpleNamespace, stored: dict[str, np.ndarray]) -> Any:
    """The model with the switches that edges need."""
    torch, lens = importlib.import_module("torch"), importlib.import_module("transformer_lens")
    config = model_config(cfg, "cpu")
    config.use_attn_result = config.use_split_qkv_input = config.use_hook_mlp_in = True
    model = lens.HookedTransformer(config)
    ours = {k.replace("old_mlp.", "").replace("old_unembed.", ""): w for k, w in weights(cfg, stored).items()}
    for name, p in model.named_parameters():
        w = ours.pop(name, None)
        p.data = torch.zeros_like(p) if w is None else torch.tensor(w).reshape(p.shape)
    if ours:
        raise ValueError(f"weights that the rival's model has no place for: {sorted(ours)}")
    return model


def scores(cfg: SimpleNamespace, rank: np.ndarray) -> dict[str, Any]:
    """Our ranking [readers, writers] (NaN where there is no edge) as its tensors by module."""
    torch, found = importlib.import_module("torch"), {}
    per, heads = cfg.n_heads + 1, cfg.n_heads
    for layer in range(cfg.n_layers):
        rows, before = rank[layer * (3 * heads + 1) :], 1 + layer * per
        for i, role in enumerate("qkv"):
            found[f"blocks.{layer}.hook_{role}_input"] = torch.tensor(rows[i * heads : (i + 1) * heads, :before])
        found[f"blocks.{layer}.hook_mlp_in"] = torch.tensor(rows[3 * heads, : before + heads])
    found[f"blocks.{cfg.n_layers - 1}.hook_resid_post"] = torch.tensor(rank[-1])
    return found


def main(exchange: str, out: str, repeats: int) -> dict[str, Any]:
    """Run all circuits, `repeats` times."""
    torch = importlib.import_module("torch")
    data, types = importlib.import_module("auto_circuit.data"), importlib.import_module("auto_circuit.types")
    graphs, prune = (importlib.import_module(f"auto_circuit.{m}") for m in ("utils.graph_utils", "prune"))
    with np.load(exchange, allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    cfg = SimpleNamespace(**json.loads(str(stored["cfg"])))
    model = graphs.patchable_model(build(cfg, stored), True, "last_seq", None, True)
    clean, other = (torch.tensor(stored[name]).long() for name in ("clean", "other"))
    answers = [torch.zeros(1, dtype=torch.long)] * len(clean)
    rows = data.PromptDataset(clean, other, answers, answers)
    loader = data.PromptDataLoader(rows, None, 0, batch_size=len(clean), shuffle=False)
    ranking, counts, seconds, found = scores(cfg, stored["rank"].astype(np.float32)), stored["counts"].tolist(), [], {}
    for _ in range(repeats):
        start = time.perf_counter()
        found = prune.run_circuits(model, loader, counts, ranking, types.PatchType.TREE_PATCH)
        seconds.append(time.perf_counter() - start)
    logits = [next(iter(found[count].values())).numpy() for count in sorted(found)]
    np.save(out, np.stack(logits))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "auto-circuit", "transformer-lens")}
    return {"seconds": min(seconds), "edges": len(model.edges), "counts": sorted(found), "versions": versions}


if __name__ == "__main__":
    path, target, count = sys.argv[1:]
    print(json.dumps(main(path, target, int(count))))
