"""What the tests of the page compute from the JSON alone, and how they read the page."""

from collections import Counter

import numpy as np

HOSTILE = "</script><img src=x onerror=window.hacked=1>"


def counts(page):
    return page.evaluate("tcircuits.counts()")


def settle(page):
    """Two frames and the delay before the address is written."""
    page.evaluate("new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(r, 120))))")


def visible_ids(graph, threshold):
    return {n["node_id"] for n in graph["nodes"] if n["influence"] is None or n["influence"] <= threshold}


def link_scores(graph):
    """Share of the target's input times the target's influence, by the dense matrix and its series."""
    ids = [n["node_id"] for n in graph["nodes"]]
    at = {name: i for i, name in enumerate(ids)}
    A = np.zeros((len(ids), len(ids)))
    for link in graph["links"]:
        A[at[link["target"]], at[link["source"]]] = abs(link["weight"])
    A /= np.maximum(A.sum(1, keepdims=True), 1e-300)
    w = np.array([n["token_prob"] if n["feature_type"] == "logit" else 0.0 for n in graph["nodes"]])
    influence, step = w.copy(), w.copy()
    while step.any():
        step = step @ A
        influence += step
    return np.array([A[at[e["target"]], at[e["source"]]] * influence[at[e["target"]]] for e in graph["links"]])


def visible_links(graph, node_threshold, edge_threshold):
    shown, scores = visible_ids(graph, node_threshold), link_scores(graph)
    order = np.argsort(-scores, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(scores[order])[:-1]]) / scores.sum()
    assert np.abs(before - edge_threshold).min() > 1e-9 or edge_threshold == 1  # no tie that rounding could turn
    kept = order if edge_threshold == 1 else order[before < edge_threshold]
    return [e for k in kept if (e := graph["links"][k]) and {e["source"], e["target"]} <= shown]


def busiest(graph):
    """A shown feature with many inputs and outputs."""
    shown = visible_ids(graph, graph["metadata"]["node_threshold"])
    features = [n for n in graph["nodes"] if n["feature_type"].startswith("cross") and n["node_id"] in shown]
    inputs, outputs = (Counter(e[end] for e in graph["links"]) for end in ("target", "source"))
    return max(features, key=lambda n: min(inputs[n["node_id"]], outputs[n["node_id"]]))


def read_rows(page, section):
    rows = page.query_selector_all(f'section[aria-label="{section}"] .row')
    texts = [(r.get_attribute("data-key"), r.query_selector(".row-weight").inner_text()) for r in rows]
    return [(key, float(text.replace("−", "-"))) for key, text in texts]
