"""The other side of `experiments.bench.attribution`: circuit-tracer on the same weights, dictionary and prompt.

That module starts this one with an interpreter of its own (`--rival-python`), which needs what
`tests/golden/make_circuit_tracer.py` says. Torch and circuit-tracer exist there only: they are imported by name, so
that neither the package nor its type checker ever sees them.

    PYTHON -m experiments.bench.rival_circuit_tracer EXCHANGE.npz ADJACENCY.npy BATCHES REPEATS DEVICE

reads the model from EXCHANGE.npz (Llama-like, per-layer ReLU transcoders from `mlp_in` to `mlp_out`, or TopK ones where
the file has `k`), writes the adjacency matrix and, beside it, `.nodes.npy` (the features' layer, position, index), and
prints one JSON object. Where the file has `max_features`, so many get rows, only what the logits have from errors and
tokens is written of the matrix, and what the machine has no memory for is reported with what it said.
"""

import importlib
import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

NAMES = {
    "w_q": "attn.W_Q", "w_k": "attn.{g}W_K", "w_v": "attn.{g}W_V", "w_o": "attn.W_O",
    "w_in": "mlp.old_mlp.W_in", "w_gate": "mlp.old_mlp.W_gate", "w_out": "mlp.old_mlp.W_out",
}  # fmt: skip


def model_config(cfg: SimpleNamespace, device: str) -> Any:
    """The same model in the other library's words."""
    torch = importlib.import_module("torch")
    return importlib.import_module("transformer_lens").HookedTransformerConfig(
        n_layers=cfg.n_layers,
        d_model=cfg.d_model,
        n_ctx=cfg.n_ctx,
        d_head=cfg.d_head,
        n_heads=cfg.n_heads,
        n_key_value_heads=cfg.n_kv_heads if cfg.n_kv_heads < cfg.n_heads else None,
        d_mlp=cfg.d_mlp,
        d_vocab=cfg.d_vocab,
        eps=cfg.norm_eps,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=cfg.rotary_dim,
        rotary_base=int(cfg.rope_theta),
        dtype=torch.float32,
        device=device,
        model_name="random-llama",
    )


def weights(cfg: SimpleNamespace, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights under the other library's names."""
    out = {
        "embed.W_E": stored["embed"],
        "unembed.old_unembed.W_U": stored["unembed"] if "unembed" in stored else stored["embed"].T,
        "ln_final.w": stored["final_norm.w"],
    }
    grouped = "_" if cfg.n_kv_heads < cfg.n_heads else ""
    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}."
        for ours, theirs in (("norm1", "ln1"), ("norm2", "ln2")):
            out[f"{at}{theirs}.w"] = stored[f"blocks.{ours}.w"][layer]
        for ours, theirs in NAMES.items():
            w = stored[f"blocks.{'attn' if theirs.startswith('attn') else 'mlp'}.{ours}"][layer]
            w = w.swapaxes(0, 1) if ours in ("w_q", "w_k", "w_v") else w
            out[at + theirs.format(g=grouped)] = w
    return out


def transcoders(cfg: SimpleNamespace, stored: dict[str, np.ndarray]) -> Any:
    """The per-layer transcoders."""
    torch, module = importlib.import_module("torch"), importlib.import_module("circuit_tracer.transcoder")
    layers, act = {}, torch.nn.functional.relu
    if "k" in stored:
        act = importlib.import_module("circuit_tracer.transcoder.activation_functions").TopK(int(stored["k"]))
    for layer in range(cfg.n_layers):
        sizes = (cfg.d_model, stored["d.w_enc"].shape[1])
        t = module.SingleLayerTranscoder(*sizes, act, layer, False, dtype=torch.float32)
        for theirs, ours in (("W_enc", "w_enc"), ("b_enc", "b_enc"), ("W_dec", "w_dec"), ("b_dec", "b_dec")):
            getattr(t, theirs).data = torch.tensor(stored[f"d.{ours}"][layer])
        layers[layer] = t
    return module.TranscoderSet(layers, "mlp.hook_in", "hook_mlp_out", scan="random")


def tokenizer(n: int) -> Any:
    """Words w0 ...; the first is special."""
    tokenizers, models = importlib.import_module("tokenizers"), importlib.import_module("tokenizers.models")
    inner = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(n)}, unk_token="w1"))
    fast = importlib.import_module("transformers").PreTrainedTokenizerFast
    return fast(tokenizer_object=inner, bos_token="w0", eos_token="w0", unk_token="w1")


def build(cfg: SimpleNamespace, stored: dict[str, np.ndarray], device: str) -> Any:
    """The replacement model with the weights in their places."""
    torch = importlib.import_module("torch")
    module = importlib.import_module("circuit_tracer.replacement_model.replacement_model_transformerlens")
    model = module.TransformerLensReplacementModel.from_config(model_config(cfg, device), transcoders(cfg, stored))
    model.tokenizer = tokenizer(cfg.d_vocab)
    ours = weights(cfg, stored)
    for name, p in model.named_parameters():
        if not name.startswith("transcoders"):
            w = ours.pop(name, None)
            p.data = torch.zeros_like(p) if w is None else torch.tensor(w).reshape(p.shape)
    if ours:
        raise ValueError(f"weights that the rival's model has no place for: {sorted(ours)}")
    return model.to(device)


def timed(f: Any, repeats: int) -> tuple[float, Any]:
    """The least of some wall times, and the last result."""
    seconds, value = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        value = f()
        seconds.append(time.perf_counter() - start)
    return min(seconds), value


def read(exchange: str) -> tuple[SimpleNamespace, dict[str, np.ndarray]]:
    """The model's configuration, and everything else."""
    with np.load(exchange, allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    return SimpleNamespace(**json.loads(str(stored["cfg"]))), stored


def about(graph: Any) -> dict[str, Any]:
    """What made a graph, and its nodes."""
    torch = importlib.import_module("torch")
    return {
        "nodes": int(graph.adjacency_matrix.shape[0]),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "circuit-tracer": importlib.metadata.version("circuit-tracer")},
    }


def main(exchange: str, adjacency: str, batches: list[int], repeats: int, device: str) -> dict[str, Any]:
    """Attribute and prune, at every batch size."""
    torch = importlib.import_module("torch")
    attribute = importlib.import_module("circuit_tracer").attribute
    prune = importlib.import_module("circuit_tracer.graph").prune_graph
    cfg, stored = read(exchange)
    model, tokens = build(cfg, stored, device), torch.tensor(stored["tokens"]).to(device)
    if "max_features" in stored:
        return limited(model, tokens, int(stored["max_features"]), batches, adjacency)
    by_batch, graph = {}, None
    for batch in batches:
        by_batch[str(batch)], graph = timed(lambda b=batch: attribute(tokens, model, batch_size=b), repeats)
    assert graph is not None
    pruning, _ = timed(lambda: prune(graph, 0.8, 0.98), repeats)
    np.save(adjacency, graph.adjacency_matrix.cpu().numpy())
    np.save(
        adjacency.removesuffix(".npy") + ".nodes.npy",
        graph.active_features[graph.selected_features].int().cpu().numpy(),
    )
    return {"seconds_by_batch": by_batch, "prune": pruning} | about(graph)


def limited(model: Any, tokens: Any, max_features: int, batches: list[int], rows: str) -> dict[str, Any]:
    """Rows for some features, batches from the largest on until one fits in this machine's memory; then pruning."""
    attribute = importlib.import_module("circuit_tracer").attribute
    prune = importlib.import_module("circuit_tracer.graph").prune_graph
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    size = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))  # an error instead of a killed process
    found: dict[str, Any] = {"seconds_by_batch": {}, "failed": {}}
    for batch in sorted(batches, reverse=True):
        try:
            seconds, graph = timed(
                lambda b=batch: attribute(tokens, model, batch_size=b, max_feature_nodes=max_features), 1
            )
        except (MemoryError, RuntimeError) as error:
            found["failed"][str(batch)] = str(error)[-200:]
            continue
        found["seconds_by_batch"][str(batch)] = seconds
        found |= about(graph) | {"n_active": int(graph.active_features.shape[0]), "prune": None}
        n, k = len(graph.selected_features), len(graph.logit_targets)
        np.save(rows, graph.adjacency_matrix[-k:, n:-k].cpu().numpy())
        found["features"] = graph.active_features[graph.selected_features].int().tolist()
        try:
            found["prune"] = timed(lambda g=graph: prune(g, 0.8, 0.98), 1)[0]
        except (MemoryError, RuntimeError) as error:
            found["failed"]["prune"] = str(error)[-200:]
        break
    return found


if __name__ == "__main__":
    path, out, sizes, count, where = sys.argv[1:]
    print(json.dumps(main(path, out, [int(b) for b in sizes.split(",")], int(count), where)))
