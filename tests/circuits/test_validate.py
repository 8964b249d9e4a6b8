"""Discovery and validation on a model whose circuit is known: one head copies what decides, all else is noise."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.toys import random_model
from tcircuits.circuits.circuit import Circuit, load_circuit, save_circuit
from tcircuits.circuits.discover import discover
from tcircuits.circuits.units import units_of
from tcircuits.circuits.validate import validate
from tcircuits.tasks.behaviour import SPLITS, Behaviour, Prompts
from tcircuits.types import InputError

from .test_running import SIZES

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def planted():
    """Head 0.1 alone reads the first token, by its value and a flat pattern, and writes the answer."""
    model = random_model("gpt2", **SIZES | {"n_layers": 1, "d_vocab": 8}, n_kv_heads=2)
    p, width = model.params, model.cfg.d_model
    embed = np.zeros((8, width))
    embed[np.arange(8), np.arange(8)] = 1.0  # token i is direction i
    attn = p.blocks.attn
    zero = jnp.zeros_like
    w_v, w_o = np.zeros(attn.w_v.shape), np.zeros(attn.w_o.shape)
    w_v[0, np.arange(2), 1, np.arange(2)] = 20.0  # the second head reads tokens 0 and 1
    w_o[0, 1, np.arange(2), 8 + np.arange(2)] = 1.0
    unembed = np.zeros((width, 8))
    unembed[8, 6] = unembed[9, 7] = 1.0  # what it writes for them are tokens 6 and 7
    own = replace(
        attn, w_q=zero(attn.w_q), w_k=zero(attn.w_k), w_v=jnp.asarray(w_v, jnp.float32),
        w_o=jnp.asarray(w_o, jnp.float32), b_q=zero(attn.b_q), b_k=zero(attn.b_k), b_v=zero(attn.b_v),
        b_o=zero(attn.b_o),
    )  # fmt: skip
    norm1 = replace(p.blocks.norm1, w=jnp.ones_like(p.blocks.norm1.w), b=zero(p.blocks.norm1.b))
    blocks = replace(p.blocks, attn=own, norm1=norm1)
    params = replace(
        p, embed=jnp.asarray(embed, jnp.float32), pos_embed=zero(p.pos_embed), blocks=blocks,
        unembed=jnp.asarray(unembed, jnp.float32),
        final_norm=replace(p.final_norm, w=jnp.ones_like(p.final_norm.w), b=zero(p.final_norm.b)),
    )  # fmt: skip
    rng, splits = np.random.default_rng(0), {}
    for name, n in zip(SPLITS, (8, 8, 16), strict=True):
        first = np.arange(n) % 2
        rest = rng.integers(2, 6, (n, 3))
        clean, other = (np.concatenate([f[:, None], rest], 1).astype(np.int32) for f in (first, 1 - first))
        answers = [(6 + f)[:, None].astype(np.int32) for f in (first, 1 - first)]
        splits[name] = Prompts(clean, other, np.zeros(n, np.int32), *answers)
    return replace(model, params=params), Behaviour("first", model.name, "logit_difference", splits)


def test_the_planted_head_is_found_and_passes(planted, tmp_path):
    model, behaviour = planted
    units = units_of(model.cfg, ("head", "mlp"))
    circuit, scores, choice = discover(model, behaviour, units, method="exact", least=0.0)
    assert circuit.labels()[0] == "head 0.1"
    assert circuit.size <= 2
    assert choice.taken is not None
    assert abs(1 - choice.faithfulness[choice.taken]) <= 0.1
    assert scores.forwards == 8 * (3 + 3)
    save_circuit(circuit, tmp_path / "found")
    again = load_circuit(tmp_path / "found.json")
    np.testing.assert_array_equal(again.mask, circuit.mask)
    assert again.units == units
    report = validate(model, behaviour, again, random=20)
    assert report.circuit.faithfulness.value == pytest.approx(choice.faithfulness[choice.taken], abs=0.1)
    assert report.circuit.phi.value == 1.0
    assert report.nothing.faithfulness.value == 0.0
    assert abs(report.complement.faithfulness.value) < 0.1
    assert report.needed is not None
    assert report.needed > 0
    assert report.baselines["gradient"].units == circuit.size
    assert 0 < report.nulls.p_faithfulness <= 1
    assert report.curves["size"].faithfulness[-1] == pytest.approx(1.0)
    json.dumps(report.as_dict(), allow_nan=False, default=lambda x: x.tolist())


def test_circuits_that_cannot_be_tested_are_refused(planted, tmp_path):
    model, behaviour = planted
    units = units_of(model.cfg, ("head", "mlp"))
    nothing = Circuit(units, np.zeros(units.n, bool), model=model.name)
    with pytest.raises(InputError, match="no units"):
        validate(model, behaviour, nothing)
    some = replace(nothing, mask=np.ones(units.n, bool))
    with pytest.raises(InputError, match="of the model 'other'"):
        validate(model, behaviour, replace(some, model="other"))
    same = replace(behaviour, splits={k: replace(p, other=p.clean) for k, p in behaviour.splits.items()})
    with pytest.raises(InputError, match="too small to divide by"):
        discover(model, same, units, method="exact", least=0.0)
    with pytest.raises(InputError, match="give 1"):
        discover(model, behaviour, units, size=4, least=0.0)
    with pytest.raises(InputError, match="missing"):
        load_circuit(tmp_path / "absent")
    save_circuit(some, tmp_path / "c")
    (tmp_path / "c.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="no file of tensors"):
        load_circuit(tmp_path / "c")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(InputError, match="no circuit of version"):
        load_circuit(tmp_path / "c")
