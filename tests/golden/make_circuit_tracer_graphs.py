"""Makes tests/golden/circuit_tracer_graphs/*: graph files of circuit-tracer 0.5.0, as it saves them and as it once did.

Run from the top of the repository, in the environment that `make_circuit_tracer.py` names:

    python -m tests.golden.make_circuit_tracer_graphs

Models, dictionaries and the first tokens of the prompt are those of tests/golden/circuit_tracer. `{name}.pt` is what
`Graph.to_pt` writes; `plt@{generation}.pt` is the graph of `plt.pt` under the keys and classes of another time:

- `ids`: `logit_targets` is a tensor, no text of targets; the model library's own configuration (its module of 2026),
- `tokens`: `logit_tokens` and no `vocab_size`, the configuration under its module's name of 2025,
- `scan_name`: the key `scan` has the name that it got later.

`{name}.npz` has what circuit-tracer reads from `{name}.pt` (as float64): its arrays, masks, cumulative scores, scores.
"""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circuit_tracer.graph import Graph, compute_graph_scores, prune_graph

from tests.golden.make_circuit_tracer import THRESHOLDS, hooked_config, traced
from tests.reference import golden

OUT = Path(__file__).parent / "circuit_tracer_graphs"
LENGTH = 4
TENSORS = ("adjacency_matrix", "activation_values", "logit_probabilities")
# name: case, dtype, name of the dictionaries, options
GRAPHS: dict[str, tuple[str, torch.dtype, Any, dict[str, Any]]] = {
    "plt": ("gpt2-plt-relu", torch.float32, "tiny/plt", {}),
    "clt": ("llama-clt-jumprelu", torch.float64, None, {}),
    "ranked": ("gpt2-plt-relu", torch.float32, ["tiny/0", "tiny/1", "tiny/2"],
               {"max_feature_nodes": 20, "batch_size": 4, "update_interval": 2}),
    "direction": ("llama-plt-skip-direction", torch.bfloat16, "tiny/plt", {}),
}  # fmt: skip


def converted(graph: Graph, dtype: torch.dtype, scan: Any) -> Graph:
    """The graph in another precision, with another name of its dictionaries."""
    for name in TENSORS:
        setattr(graph, name, getattr(graph, name).detach().to(dtype))
    graph.scan = scan
    return graph


def expected(path: Path) -> dict[str, np.ndarray]:
    """What circuit-tracer makes of a file."""
    graph = Graph.from_pt(str(path))
    graph = converted(graph, torch.float64, graph.scan)
    made = {name: getattr(graph, name) for name in (*TENSORS, "active_features", "selected_features", "input_tokens")}
    made |= {"target_ids": graph.logit_token_ids, "scores": torch.tensor(compute_graph_scores(graph))}
    for label, thresholds in THRESHOLDS.items():
        pruned = prune_graph(graph, *thresholds)
        made |= {f"node_mask{label}": pruned.node_mask, f"edge_mask{label}": pruned.edge_mask}
        made["cumulative"] = pruned.cumulative_scores
    return {name: x.numpy() for name, x in made.items()}


def config_of_2025(config: Any) -> Any:
    """The configuration as an instance of a class that had another module then."""
    module = types.ModuleType("transformer_lens.HookedTransformerConfig")
    cls = type("HookedTransformerConfig", (), {"__module__": module.__name__})
    setattr(module, cls.__name__, cls)
    sys.modules[module.__name__] = module
    old = cls()
    old.__dict__.update(vars(config))
    return old


def save_generations(path: Path, case: Any) -> None:
    """The graph in a file, as other generations would have saved it."""
    saved = torch.load(path, weights_only=False)
    ids, config = torch.tensor([t.vocab_idx for t in saved["logit_targets"]]), hooked_config(case.cfg)
    generations = {
        "ids": saved | {"logit_targets": ids, "cfg": config},
        "tokens": saved | {"logit_tokens": ids, "cfg": config_of_2025(config)},
        "scan_name": saved | {"scan_name": saved["scan"]},
    }
    dropped = {"tokens": ("logit_targets", "vocab_size"), "scan_name": ("scan",)}
    for name, values in generations.items():
        kept = {key: x for key, x in values.items() if key not in dropped.get(name, ())}
        torch.save(kept, path.with_name(f"{path.stem}@{name}.pt"))


def main() -> None:
    """Make every file."""
    torch.set_default_dtype(torch.float64)
    OUT.mkdir(exist_ok=True)
    for name, (source, dtype, scan, options) in GRAPHS.items():
        case, stored = golden.load(source)
        if "vector" in stored:
            options = options | {"vector": stored["vector"]}
        _, graph = traced(case.cfg, case.params, case.d, case.tokens[:LENGTH], **options)
        path = OUT / f"{name}.pt"
        converted(graph, dtype, scan).to_pt(str(path))
        made = expected(path)
        np.savez_compressed(path.with_suffix(".npz"), case=np.array(source), **made)
        if name == "plt":
            save_generations(path, case)
        print(path.name, made["adjacency_matrix"].shape, len(made["selected_features"]), made["scores"])


if __name__ == "__main__":
    main()
