"""Patching sweeps against single edits made one by one."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.toys import random_model
from tcircuits.circuits.patching import patching_sweep, strongest
from tcircuits.models.edits import edit
from tcircuits.models.forward import forward
from tcircuits.types import InputError

from .cases import metric_of, random_behaviour
from .test_running import SIZES, sized

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_place_is_one_edit(direction, x64):
    model = sized("llama")
    cfg, behaviour = model.cfg, random_behaviour(model)
    sweep = patching_sweep(model, behaviour, sites=("resid_pre", "v", "z"), direction=direction, batch=1)
    p = behaviour["report"]
    assert {k: v.shape for k, v in sweep.places.items()} == {"resid_pre": (2, 6), "v": (2, 1, 6), "z": (2, 2, 6)}
    np.testing.assert_array_equal(sweep.tokens, p.valid.sum(0))
    for site, at in (
        ("resid_pre", (1, 5)),
        ("resid_pre", (0, 3)),
        ("v", (1, 0, 3)),
        ("z", (0, 1, 4)),
        ("z", (1, 0, 1)),
    ):
        layer, *head, t = at
        values, ends = [], []
        for i, start in enumerate(p.padding):
            rows = {"clean": p.clean[i, start:], "other": p.other[i, start:]}
            runs = {k: forward(cfg, model.params, jnp.asarray(v)[None], sites=(site,)) for k, v in rows.items()}
            ends.append([metric_of(behaviour.metric, runs[k].logits[0, -1], p.right[i], p.wrong[i]) for k in runs])
            base, source = ("other", "clean") if direction == "denoise" else ("clean", "other")
            if t < start:
                values.append(ends[-1][["clean", "other"].index(base)])
                continue
            value = runs[source].acts[site][layer, 0, t - start]
            where = None
            if head:
                where = np.broadcast_to(np.arange(len(value))[:, None] == head[0], value.shape)
            one = edit(site, layer, value, position=int(t - start), where=where)
            out = forward(cfg, model.params, jnp.asarray(rows[base])[None], edits=(one,)).logits[0, -1]
            values.append(metric_of(behaviour.metric, out, p.right[i], p.wrong[i]))
        clean, other = np.mean(ends, 0)
        assert (sweep.clean, sweep.other) == pytest.approx((clean, other))
        gain = np.mean(values) - other if direction == "denoise" else clean - np.mean(values)
        assert sweep.places[site][at] == pytest.approx(gain / (clean - other), abs=1e-10)
    assert sweep.places["resid_pre"][0].sum() != 0
    best = strongest(sweep, 3)
    assert [abs(row[2]) for row in best] == sorted((abs(row[2]) for row in best), reverse=True)
    site, where, share = best[0]
    assert sweep.places[site][(*where[:-1], where[-1] + 6)] == share


def test_what_cannot_be_patched_is_refused():
    model = random_model("gpt2", **SIZES, n_kv_heads=2)
    behaviour = random_behaviour(model)
    for given, words in (
        ({"direction": "sideways"}, "'sideways' is unknown"),
        ({"sites": ("logits",)}, "without"),
        ({"sites": ()}, "at least one"),
        ({"sites": ("soul",)}, "'soul'"),
    ):
        with pytest.raises(InputError, match=words):
            patching_sweep(model, behaviour, **given)
