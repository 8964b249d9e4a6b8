"""Graphs in the viewers' JSON form for the tests of the page; random numbers, real shapes."""

import numpy as np

PROMPT = ["The", " capital", " of", " France", " is"]
WORDS = [" Paris", " France", " French", " city", " capital", " the", " Lyon", " Europe", "ville", " is", "\n", " a"]


def cantor(layer, feature):
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def node(node_id, kind, layer, pos, clerp="", influence=None, **extra):
    feature = extra.pop("feature", -1)
    return {
        "node_id": node_id,
        "feature": feature,
        "layer": str(layer),
        "ctx_idx": pos,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{feature}-0",
        "clerp": clerp,
        "influence": influence,
        "activation": None,
        **extra,
    }


def falling(rng):
    return np.sort(rng.gamma(2, 1, 5))[::-1]


def random_graph(
    tokens=PROMPT, n_layers=6, n_features=60, n_links=600, targets=((" Paris", 0.77), (" a", 0.05)), seed=0, labels=True
):
    """Features with a taste for late positions, one error a few cells, links upward and rightward only."""
    rng = np.random.default_rng(seed)
    T = len(tokens)
    nodes, seen = [], set()
    while len(seen) < n_features:
        pos = min(T - 1, int(T * rng.beta(2.2, 1.0)))
        layer = int(n_layers * rng.beta(1.1, 1.2))
        f = int(rng.integers(0, 1536))
        if (layer, f, pos) in seen:
            continue
        seen.add((layer, f, pos))
        words = rng.permutation(WORDS)
        clerp = f"concept {f}" if labels and rng.random() < 0.3 else ""
        nodes.append(
            node(
                f"{layer}_{f}_{pos}",
                "cross layer transcoder",
                layer,
                pos,
                clerp,
                feature=cantor(layer, f),
                activation=float(rng.gamma(2.0, 1.5)),
                bias=float(rng.normal() * 0.2),
                unexpanded=float(rng.normal() * 0.1),
                top_logits=[[str(w), float(v)] for w, v in zip(words[:5], falling(rng), strict=True)],
                bottom_logits=[[str(w), float(-v)] for w, v in zip(words[5:10], falling(rng), strict=True)],
            )
        )
    for layer in range(n_layers):
        for pos in range(T):
            if rng.random() < 0.4:
                nodes.append(node(f"{layer}_-1_{pos}", "mlp reconstruction error", layer, pos))
    nodes += [node(f"E_{t + 7}_{t}", "embedding", "E", t, f'Emb: "{tok}"', feature=t) for t, tok in enumerate(tokens)]
    for k, (word, prob) in enumerate(targets):
        nodes.append(
            node(
                f"{n_layers + 1}_{k + 40}_{T - 1}",
                "logit",
                n_layers + 1,
                T - 1,
                f'Output "{word}" (p={prob:.3f})',
                feature=k + 40,
                token_prob=prob,
                is_target_logit=k == 0,
            )
        )
    links = random_links(nodes, n_links, rng)
    for item, value in zip(nodes, rng.permutation(len(nodes)) / len(nodes), strict=True):
        if item["feature_type"] != "logit":
            item["influence"] = float(value)
    return {
        "metadata": {
            "slug": "random",
            "scan": "random-model",
            "transcoder_list": [],
            "prompt_tokens": list(tokens),
            "prompt": "".join(tokens),
            "node_threshold": 0.8,
            "schema_version": 1,
            "tcircuits": {
                "model": "SmolLM2-135M",
                "transcoders": "neurons",
                "replacement_score": 0.612,
                "completeness_score": 0.843,
                "completeness_score_inputs": 0.731,
                "unexpanded_share": 0.087,
                "bias_share": 0.041,
                "max_row_gap": 4.2e-8,
                "n_features": 46080,
                "n_selected": 7500,
                "n_edges": len(links),
                "n_layers": n_layers,
            },
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": links,
    }


def height(item):
    """Rank of a node in the order of computation."""
    kind = item["feature_type"]
    return -1 if kind == "embedding" else 10**6 if kind == "logit" else int(item["layer"])


def random_links(nodes, n_links, rng):
    """Random pairs that respect order; each target and each source that could take part has a link."""
    levels = np.array([height(n) for n in nodes])
    pos = np.array([n["ctx_idx"] for n in nodes])
    leaf = np.array([n["feature_type"] in ("embedding", "mlp reconstruction error") for n in nodes])
    error = np.array([n["feature_type"] == "mlp reconstruction error" for n in nodes])
    appeal = rng.gamma(0.6, 1.0, len(nodes)) + 0.05
    targets = np.flatnonzero(~leaf)
    share = np.maximum(1, np.round(n_links * appeal[targets] / appeal[targets].sum()).astype(int))
    links = []
    for t, n in zip(targets, share, strict=True):
        # An error of a layer is written after that layer's features read.
        able = np.flatnonzero((levels < levels[t]) & (pos <= pos[t]) & ~(error & (levels >= levels[t])))
        p = appeal[able] / appeal[able].sum()
        for s in rng.choice(able, size=min(n, len(able)), replace=False, p=p):
            weight = float(rng.normal() * rng.gamma(1.0, 1.0) * appeal[s])
            links.append({"source": nodes[s]["node_id"], "target": nodes[t]["node_id"], "weight": weight})
    return links
