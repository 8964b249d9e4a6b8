"""Edges: all of them are the model, none the counterfactual, each against a run made of plain edits and matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.toys import random_model
from tcircuits.circuits import edge_forward
from tcircuits.circuits.circuit import Circuit, load_circuit, save_circuit
from tcircuits.circuits.edges import Edges, edges_of
from tcircuits.circuits.running import run_circuits
from tcircuits.circuits.scores import unit_scores
from tcircuits.models.edits import edit
from tcircuits.models.forward import forward
from tcircuits.types import InputError

from .cases import metric_of, random_behaviour
from .test_running import SIZES, sized

pytestmark = pytest.mark.usefixtures("quick_compile")


def writers(model, tokens):
    """What the embedding, every head and every MLP writes, [W, T, D], from the sites."""
    cfg, p = model.cfg, model.params.blocks
    acts = forward(cfg, model.params, jnp.asarray(tokens)[None], sites=("resid_pre", "z", "mlp_out")).acts
    found = [np.asarray(acts["resid_pre"][0, 0], np.float64)]
    for layer in range(cfg.n_layers):
        z, w_o = np.asarray(acts["z"][layer, 0], np.float64), np.asarray(p.attn.w_o[layer], np.float64)
        bias = 0.0 if p.attn.b_o is None else np.asarray(p.attn.b_o[layer], np.float64) / cfg.n_heads
        found += [z[:, h] @ w_o[h] + bias for h in range(cfg.n_heads)]
        found.append(np.asarray(acts["mlp_out"][layer, 0], np.float64))
    return np.stack(found)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "qwen3"])
def test_all_edges_are_the_model_and_none_the_counterfactual(family, x64):
    model = sized(family)
    edges, behaviour = edges_of(model.cfg), random_behaviour(model)
    runs = run_circuits(model, behaviour, np.stack([np.ones(edges.n), np.zeros(edges.n)]), edges)
    np.testing.assert_allclose(runs.circuits.metric[0], runs.model.metric, atol=1e-10)
    p = behaviour["report"]
    for i, (clean, other, start) in enumerate(zip(p.clean, p.other, p.padding, strict=True)):
        for found, tokens in ((runs.circuits.metric[0, i], clean), (runs.circuits.metric[1, i], other)):
            logits = forward(model.cfg, model.params, jnp.asarray(tokens[start:])[None]).logits[0, -1]
            np.testing.assert_allclose(found, metric_of(behaviour.metric, logits, p.right[i], p.wrong[i]), atol=1e-10)


def test_an_edge_into_an_mlp_is_an_edit_of_what_it_hears(x64):
    """The MLP of layer 1 hears one writer as on the counterfactual: its input is set, all before it is as it was."""
    model = sized("gpt2")
    cfg, edges, behaviour = model.cfg, edges_of(model.cfg), random_behaviour(model)
    labels = [edges.label(u) for u in range(edges.n)]
    chosen = [labels.index(f"{name} -> mlp 1") for name in ("embed", "head 0.1", "mlp 0", "head 1.0")]
    masks = np.ones((len(chosen), edges.n))
    masks[np.arange(len(chosen)), chosen] = 0
    runs = run_circuits(model, behaviour, masks, edges, split="attribution")
    p = behaviour["attribution"]
    norm = jax.tree.map(lambda a: np.asarray(a[1], np.float64), model.params.blocks.norm2)
    for i in range(p.n):
        own, other = writers(model, p.clean[i]), writers(model, p.other[i])
        stream = own[: 1 + cfg.n_heads + 1 + cfg.n_heads].sum(0)
        for c, unit in enumerate(chosen):
            writer = edges.pairs[unit, 1]
            heard = stream + other[writer] - own[writer]
            centred = heard - heard.mean(-1, keepdims=True)
            bare = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + cfg.norm_eps)
            edits = [edit("mlp_in", 1, bare[t] * norm.w + norm.b, position=t) for t in range(len(bare))]
            logits = forward(cfg, model.params, jnp.asarray(p.clean[i])[None], edits=tuple(edits)).logits[0, -1]
            expected = metric_of(behaviour.metric, logits, p.right[i], p.wrong[i])
            np.testing.assert_allclose(runs.circuits.metric[c, i], expected, atol=1e-9)


def test_an_edge_into_a_query_is_an_edit_of_that_query(x64):
    model = sized("llama")
    cfg, edges, behaviour = model.cfg, edges_of(model.cfg), random_behaviour(model)
    labels = [edges.label(u) for u in range(edges.n)]
    masks, p = np.ones((2, edges.n)), behaviour["attribution"]
    masks[0, labels.index("head 0.0 -> head 1.1 q")] = 0
    masks[1, labels.index("mlp 0 -> head 1.0 v")] = 0
    runs = run_circuits(model, behaviour, masks, edges, split="attribution")
    block = jax.tree.map(lambda a: np.asarray(a[1], np.float64), model.params.blocks)
    for i in range(p.n):
        own, other = writers(model, p.clean[i]), writers(model, p.other[i])
        stream = own[: 1 + edges.per_layer].sum(0)
        for c, (writer, site, w, head) in enumerate(
            ((1, "q", block.attn.w_q, 1), (edges.per_layer, "v", block.attn.w_v, 0))
        ):
            heard = stream + other[writer] - own[writer]
            bare = heard / np.sqrt((heard**2).mean(-1, keepdims=True) + cfg.norm_eps) * block.norm1.w
            value = np.zeros((len(heard), w.shape[1], cfg.d_head))
            value[:, head] = bare @ w[:, head]
            where = np.broadcast_to(np.arange(w.shape[1])[:, None] == head, value.shape[1:])
            edits = [edit(site, 1, value[t], position=t, where=where) for t in range(len(value))]
            logits = forward(cfg, model.params, jnp.asarray(p.clean[i])[None], edits=tuple(edits)).logits[0, -1]
            expected = metric_of(behaviour.metric, logits, p.right[i], p.wrong[i])
            np.testing.assert_allclose(runs.circuits.metric[c, i], expected, atol=1e-9)


def test_edge_attribution_patching_is_the_gradient_at_the_reader(x64):
    """EAP's formula: (out - out') times the gradient at the reader's input, for readers whose input is a site."""
    model = sized("gpt2")
    cfg, edges, behaviour = model.cfg, edges_of(model.cfg), random_behaviour(model)
    found, p = unit_scores(model, behaviour, edges, method="gradient"), behaviour["attribution"]
    for i in range(p.n):
        tokens = jnp.asarray(p.clean[i])
        gap = writers(model, p.clean[i]) - writers(model, p.other[i])

        def metric(add, tokens=tokens, i=i):
            edits = tuple(edit("resid_post", cfg.n_layers - 1, add[t], position=t, mode="add") for t in range(len(add)))
            logits = forward(cfg, model.params, tokens[None], edits=edits).logits[0, -1]
            right, wrong = (ids[ids >= 0] for ids in (p.right[i], p.wrong[i]))
            return logits[right].mean() - logits[wrong].mean()

        slope = np.asarray(jax.grad(metric)(jnp.zeros((len(tokens), cfg.d_model))))
        into_logits = edges.pairs[:, 0] == len(edges.allowed) - 1
        expected = np.einsum("WTD,TD->W", gap, slope)
        np.testing.assert_allclose(found.by_prompt[i, into_logits], expected, atol=1e-7)
    exact = unit_scores(model, behaviour, edges, method="exact")
    linear = np.corrcoef(found.values[into_logits], exact.values[into_logits])[0, 1]
    assert linear > 0.9  # only the final norm is between


@pytest.mark.parametrize(
    ("family", "ablation"), [("llama", "resample"), ("gpt2", "zero"), ("neox", "mean"), ("qwen3", "resample")]
)
def test_gradients_of_edges_are_finite_differences(family, ablation, x64):
    model = sized(family)
    edges, behaviour = edges_of(model.cfg), random_behaviour(model)
    found = unit_scores(model, behaviour, edges, method="gradient", ablation=ablation)
    labels = [edges.label(u) for u in range(edges.n)]
    chosen = [next(i for i, name in reversed([*enumerate(labels)]) if name.endswith(end)) for end in ("q", "k", "v")]
    chosen += [labels.index(name) for name in ("embed -> mlp 1", "head 0.1 -> head 1.0 k", "mlp 0 -> logits")]
    step = 2.0**-10  # exact in float32, as 1 - step is
    masks = np.ones((2 * len(chosen), edges.n))
    for i, unit in enumerate(chosen):
        masks[2 * i, unit], masks[2 * i + 1, unit] = 1 + step, 1 - step
    m = run_circuits(model, behaviour, masks, edges, ablation=ablation, split="attribution").circuits.metric
    slope = (m[::2] - m[1::2]) / (2 * step)
    # a central difference of this step is off by step**2 / 6 times a third derivative of the metric's size
    np.testing.assert_allclose(found.by_prompt[:, chosen].T, slope, rtol=1e-4, atol=1e-6)


def test_eap_ig_averages_that_gradient_over_inputs(x64):
    model = sized("llama")
    cfg, edges, behaviour = model.cfg, edges_of(model.cfg), random_behaviour(model)
    found = unit_scores(model, behaviour, edges, method="eap-ig", points=2)
    assert (found.forwards, found.backwards) == (3 * 4, 3 * 2)
    into_logits, p = edges.pairs[:, 0] == len(edges.allowed) - 1, behaviour["attribution"]

    @jax.jit
    def slope(tokens, start, right, wrong):
        def metric(add):
            first = [edit("resid_pre", 0, start[t], position=t) for t in range(6)]
            last = [edit("resid_post", cfg.n_layers - 1, add[t], position=t, mode="add") for t in range(6)]
            logits = forward(cfg, model.params, tokens[None], edits=(*first, *last)).logits[0, -1]

            def side(ids):
                return jnp.sum(jnp.where(ids >= 0, logits[ids], 0)) / jnp.sum(ids >= 0)

            return side(right) - side(wrong)

        return jax.grad(metric)(jnp.zeros((6, cfg.d_model)))

    for i in range(p.n):
        clean, other = writers(model, p.clean[i]), writers(model, p.other[i])
        mean = 0.0
        for point in (0.5 - 0.5 / np.sqrt(3), 0.5 + 0.5 / np.sqrt(3)):  # Gauss-Legendre, two points of weight 1/2
            start = other[0] + point * (clean[0] - other[0])
            mean = mean + 0.5 * np.asarray(slope(jnp.asarray(p.clean[i]), jnp.asarray(start), p.right[i], p.wrong[i]))
        expected = np.einsum("WTD,TD->W", clean - other, mean)
        np.testing.assert_allclose(found.by_prompt[i, into_logits], expected, atol=1e-9)
    with pytest.raises(InputError, match="eap-ig is for edges"):
        unit_scores(model, behaviour, edges, method="eap-ig", ablation="zero")


def test_edges_are_numbered_named_and_refused(x64, tmp_path):
    sizes = SIZES | {"attn_only": True, "d_mlp": 0}
    neox, attention = edges_of(sized("neox").cfg), edges_of(random_model("gpt2", **sizes, n_kv_heads=2).cfg)
    # per layer 2 queries, 2 keys, 2 values, 1 MLP: layer 0 hears the embedding, layer 1 that, 2 heads and an MLP
    assert neox.n == 7 * 1 + 7 * 4 + 7
    assert attention.n == 6 * 1 + 6 * 3 + 5
    assert neox.label(0) == "embed -> head 0.0 q"
    assert neox.label(neox.n - 1) == "mlp 1 -> logits"
    assert "head 0.1 -> mlp 0" not in {neox.label(u) for u in range(neox.n)}  # parallel: it does not hear them
    assert "head 0.1 -> mlp 0" in {edges_of(sized("gpt2").cfg).label(u) for u in range(42)}
    with pytest.raises(InputError, match="outside"):
        neox.label(neox.n)
    with pytest.raises(InputError, match="do not add to the stream"):
        edges_of(sized("gemma2").cfg)
    save_circuit(Circuit(neox, np.arange(neox.n) < 3, model="m"), tmp_path / "c")
    assert load_circuit(tmp_path / "c").units == neox
    model = random_model("gpt2", **SIZES, n_kv_heads=2)
    with pytest.raises(InputError, match="another model"):
        run_circuits(model, random_behaviour(model), np.ones((1, neox.n)), neox)
    sizes = unit_scores(model, random_behaviour(model), edges_of(model.cfg), method="activation")
    own = np.mean(
        [np.linalg.norm(writers(model, row), axis=-1).mean(1) for row in random_behaviour(model)["attribution"].clean],
        0,
    )
    np.testing.assert_allclose(sizes.values, own[edges_of(model.cfg).pairs[:, 1]], rtol=1e-5)


@pytest.mark.parametrize("switches", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 4, 2), (3, 6, 1), (5, 3, 3)])
def test_the_number_of_edges_is_that_of_the_pairs(sizes, switches):
    units = Edges(*sizes, *switches)
    assert units.n == len(units.pairs) == units.allowed.sum()


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "qwen3"])
def test_derivatives_by_the_mask_are_those_of_the_plain_loop(family, x64, monkeypatch):
    """Layers computed anew on the way back, against JAX's own derivative of the scan, and a finite difference."""
    model = sized(family)
    cfg, edges = model.cfg, edges_of(model.cfg)
    tokens, valid = jnp.array([0, 3, 1, 2, 5, 4]), jnp.array([False, True, True, True, True, True])
    reference = edge_forward.record(cfg, model.params, tokens[::-1], valid)[1]
    rng = np.random.default_rng(0)
    mask, by = jnp.asarray(rng.uniform(size=edges.n)), rng.normal(size=edges.n)

    def metric(m):
        logits = edge_forward.run(cfg, model.params, edges, tokens, valid, edges.split(m), reference)
        return jnp.sin(logits[-1]).sum()

    found = jax.grad(metric)(mask)
    near = (metric(mask + 1e-5 * by) - metric(mask - 1e-5 * by)) / 2e-5
    assert found @ by == pytest.approx(float(near), rel=1e-7)  # the difference's own error is about 1e-10 of it
    monkeypatch.setattr(edge_forward, "swept", edge_forward.swept.fun)
    np.testing.assert_allclose(found, jax.grad(metric)(mask), rtol=1e-9, atol=1e-12)
