"""The NumPy float64 oracle of evaluations: every figure from its definition, one row, layer and position at a time."""

from types import SimpleNamespace

import numpy as np

from tests.reference import builders
from tests.reference import dictionary as dic
from tests.reference import model as ref


def case(family, name="plt-relu", n_rows=5, length=7, seed=0, **changes):
    """A tiny model, a dictionary and rows; `changes` are of the dictionary's configuration."""
    cfg = builders.model_config(family)
    params = builders.make_params(cfg, seed)
    rows = np.random.default_rng(seed + 7).integers(0, cfg.d_vocab, (n_rows, length))
    d = builders.make_dictionary(cfg, params, rows[0], name, seed + 1, **changes)
    return SimpleNamespace(name=f"{family}-{name}", cfg=cfg, params=params, d=d, rows=rows)


def sae(family, site, **options):
    """A case whose dictionary reconstructs a site."""
    return case(family, "plt-relu", kind="sae", reads=site, writes=site, **options)


def values(c, layer, x):
    """Features [T,F] of a layer for what it reads."""
    if c.d.cfg.kind == "neurons":
        factor, linear = ref.neurons(c.cfg, ref.layer_of(c.params["blocks"]["mlp"], layer), x)
        return factor * linear
    slot = c.d.cfg.layers.index(layer)
    pre = x @ c.d.array("w_enc", slot).T + c.d.array("b_enc", slot)
    return np.stack([dic.activate(c.d.cfg, one, c.d.array("threshold", slot)) for one in pre])


def written(c, layer, read):
    """What the dictionary of a layer writes, given what each layer up to it reads: a dict of [T,D]."""
    total = 0.0
    for source in range(layer + 1):
        for out, weights in dic.decoders(c.params, c.d, source):
            if out == layer:
                total = total + values(c, source, read[source]) @ weights
    total = ref.plus(total, dic.constant(c.params, c.d, layer))
    w = dic.skip(c.d, layer)
    return total if w is None else total + read[layer] @ w


def run(c, row, by=(), mean=None, start=1):
    """Logits [T,V], and by layer what dictionaries read and the site they write; `by` names a layer's replacement."""
    reads, writes = c.d.cfg.reads, c.d.cfg.writes
    read, real = {}, {}

    def edit(site, layer, value):
        if site == reads:
            read[layer] = value
        if site != writes:
            return value
        real[layer] = value
        how = dict(by).get(layer)
        if how is None:
            return value
        new = {"dictionary": lambda: written(c, layer, read), "zero": lambda: 0 * value, "mean": lambda: mean[layer]}
        out = np.broadcast_to(new[how](), value.shape).copy()
        out[:start] = value[:start]
        return out

    return ref.run(c.cfg, c.params, row, edit=edit).logits, read, real


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def means(c):
    """The mean of every written site, without position 0."""
    real = [run(c, row)[2] for row in c.rows]
    return {layer: np.concatenate([r[layer][1:] for r in real]).mean(0) for layer in real[0]}


def losses(c, layers, how, start=1):
    """(CE, KL, share of equal top tokens) by row with layers replaced; (CE,) of the original where there are none."""
    mean, out = means(c), []
    for row in c.rows:
        q = log_softmax(run(c, row, [(i, how) for i in layers], mean, start)[0])
        p = log_softmax(run(c, row)[0])
        at = range(1, len(row) - 1)
        ce = np.mean([-q[t, row[t + 1]] for t in at])
        kl = np.mean([np.sum(np.exp(p[t]) * (p[t] - q[t])) for t in at])
        out.append((ce, kl, np.mean([p[t].argmax() == q[t].argmax() for t in at])))
    return np.array(out).T


def figures(c):
    """Figures by layer from their definitions, over all positions but the first of each row."""
    found = {}
    passes = [run(c, row) for row in c.rows]
    for layer in c.d.cfg.layers:
        f = np.concatenate([values(c, layer, read[layer])[1:] for _, read, _ in passes])
        y = np.concatenate([real[layer][1:] for _, _, real in passes])
        guess = np.concatenate([written(c, layer, read)[1:] for _, read, _ in passes])
        on = f != 0
        found[layer] = {
            "fvu": ((y - guess) ** 2).sum() / ((y - y.mean(0)) ** 2).sum(),
            "l0": np.mean([row.sum() for row in on]),
            "dead": np.mean([not column.any() for column in on.T]),
            "bias": np.mean((guess**2).sum(1)) / np.mean((guess * y).sum(1)),
            "l2_ratio": np.mean([np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(guess, y, strict=True)]),
            "shrinkage": 1 - guess.std(0).dot(guess.std(0)) ** 0.5 / y.std(0).dot(y.std(0)) ** 0.5,
            "frequency": on.mean(0),
            "mean_active": np.array([v[o].mean() if o.any() else 0 for v, o in zip(f.T, on.T, strict=True)]),
            "largest": f.max(0),
        }
    return found
