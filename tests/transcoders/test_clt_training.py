"""Sets of clt-training against the sums that its own runner takes, layer by layer."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tcircuits.transcoders.describing import inspect
from tcircuits.transcoders.lazy import narrow
from tcircuits.transcoders.loading import load_transcoders, open_transcoders
from tcircuits.transcoders.saving import save_transcoders
from tcircuits.types import InputError

from . import format_files as files
from .comparing import D, F, L, agrees, compute, inputs, load, sites, top, wide

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")


def runner(raw, x, *, cross=L, tied="none", divided=False, normalised=True, per_layer=False):
    """What each layer decodes, and what of earlier layers is added to it, in the order in which the trainer runs."""
    raw, out = [wide(t) for t in raw], []
    root = np.sqrt(D) if normalised else 1.0
    inside = [x[i] * root / (t["in_norm"] if normalised else 1.0) for i, t in enumerate(raw)]
    a = [top(inside[i] @ t["encoder.weight"].T + t["encoder.bias"], 3) for i, t in enumerate(raw)]
    for m, mine in enumerate(raw):
        alive = [m] if per_layer else [i for i in range(m + 1) if m - i < min(cross, L - i)]
        total, before = 0.0, max(1, len(alive) - 1) if divided else 1
        for block, i in enumerate(alive):
            t, step = raw[i], "" if per_layer else f".{m - i}"
            s = "" if per_layer else "s"
            sent = (a[i] + t[f"post_enc{s}{step}"] * (a[i] > 0)) * t.get(f"post_enc_scale{s}{step}", 1.0)
            if tied in ("concat", "per-layer"):
                w = mine["W_dec"] if tied == "concat" else mine["W_dec"][block * F : (block + 1) * F]
                part = sent @ w
            else:
                w = t["W_dec"] if tied == "source" or per_layer else t[f"W_decs{step}"]
                part = sent @ w + t[f"b_dec{s}{step}"]
                part = part + inside[i] @ t[f"W_skip{s}{step}"].T if "W_skip" in t else part
            total = total + part / (before if i < m and tied not in ("concat", "per-layer") else 1)
        if tied in ("concat", "per-layer"):
            total = total + mine["b_dec"]
            total = total + inside[m] @ mine["W_skip"].T if "W_skip" in mine else total
        f = a[m] + mine["post_enc"] * (a[m] > 0) if per_layer else a[m]
        out.append((f, total * (mine["out_norm"] if normalised else 1.0) / root))
    return out


CROSS = {
    "untied": {},
    "untied, without skip": {"skip": "none"},
    "untied, divided": {"divided": True},
    "untied, two layers far": {"cross": 2},
    "untied, not affine": {"affine": False},
    "source": {"tied": "source", "divided": True},
    "concat": {"tied": "concat"},
    "concat, not affine, two layers far": {"tied": "concat", "affine": False, "cross": 2},
    "per-layer": {"tied": "per-layer", "skip": "none", "affine": False},
    "per-layer, two layers far": {"tied": "per-layer", "cross": 2},
    "not normalised": {"normalised": False},
}


def write(folder, divided=False, normalised=True, **options):
    return files.clt_training(folder, divide_cross_layer=divided, normalize_io=normalised, **options)


@pytest.mark.parametrize("case", CROSS)
def test_cross_layer(tmp_path, case):
    options = CROSS[case]
    raw, x = write(tmp_path, **options), inputs()
    d = load(tmp_path)
    assert sites(d) == ("clt", "mlp_in", "mlp_out", "topk")
    assert (d.cfg.k, d.cfg.signed_topk, d.cfg.skip) == (3, False, options.get("skip") != "none")
    about = {key: v for key, v in options.items() if key in ("cross", "tied", "divided", "normalised")}
    agrees(d, x, runner(raw, x, **about))
    facts = inspect(tmp_path)
    assert (facts["format"], facts["model"]) == ("clt-training", "meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_per_layer(tmp_path, normalised, affine):
    raw, x = write(tmp_path, per_layer=True, normalised=normalised, affine=affine), inputs()
    d = load(tmp_path)
    assert sites(d) == ("transcoder", "mlp_in", "mlp_out", "topk")
    wanted = runner(raw, x, per_layer=True, normalised=normalised)
    agrees(d, x, wanted)
    one = load(tmp_path / "layers.1.mlp", layers=(1,))
    assert one.cfg.layers == (1,)
    agrees(one, x[1:2], wanted[1:2])
    agrees(load(tmp_path, layers=(0, 2)), x[[0, 2]], [wanted[0], wanted[2]])


@pytest.mark.parametrize("transcode", [True, None])
def test_offsets_of_features_that_are_on(tmp_path, transcode):
    """TopK chooses without them; values may be negative with them. Each layer's own, and nothing else changes."""
    raw, x = write(tmp_path, per_layer=True, transcode=transcode), inputs()
    rng = np.random.default_rng(0)
    for i, t in enumerate(raw):
        t["post_enc"] = rng.normal(size=F).astype(np.float32)
        change(tmp_path, i, post_enc=t["post_enc"])
    for t in raw if transcode is None else []:
        t["encoder.bias"] = t["encoder.bias"] - wide(t)["encoder.weight"] @ wide(t)["b_dec"]
    wanted = runner(raw, x, per_layer=True)
    assert min(f.min() for f, _ in wanted) < 0
    d = load(tmp_path)
    assert (d.cfg.activation, d.cfg.k, d.cfg.margin) == ("topk", 3, True)
    agrees(d, x, wanted)
    few = narrow(open_transcoders(tmp_path, dtype=np.float64), x)
    np.testing.assert_allclose(compute(few.transcoders, x)[1], [y for _, y in wanted], rtol=0, atol=1e-12)
    save_transcoders(d, tmp_path / "orbax", "orbax")
    back = load_transcoders(tmp_path / "orbax")
    assert back.cfg == d.cfg
    np.testing.assert_allclose(back.threshold, d.threshold, rtol=1e-7)
    for other in ("circuit-tracer", "saelens"):
        with pytest.raises(InputError, match=f"{other} has no TopK that ranks by the distance to a threshold"):
            save_transcoders(d, tmp_path / "out", other)
    relu = load(tmp_path, activation="jumprelu")
    assert (relu.cfg.activation, relu.cfg.k, relu.cfg.margin) == ("jumprelu", None, False)
    with pytest.raises(InputError, match="it has thresholds, but activation 'relu' uses none"):
        load(tmp_path, activation="relu")


def test_a_bias_that_is_subtracted_inside(tmp_path):
    """Without `transcode` the decoder's bias is subtracted from the normalised input."""
    raw, x = write(tmp_path, per_layer=True, affine=False, transcode=None), inputs()
    shifted = [
        t | {"encoder.bias": t["encoder.bias"] - wide(t)["encoder.weight"] @ wide(t)["b_dec"]} for t in map(wide, raw)
    ]
    agrees(load(tmp_path), x, runner(shifted, x, per_layer=True))


def test_tensors_that_the_trainer_puts_in_itself(tmp_path):
    """One decoder under its own name is that of the layer itself; the others are zero, as are later factors."""
    raw, x = write(tmp_path), inputs()
    for i, t in enumerate(raw):
        lists = ("W_decs", "W_skips", "b_decs", "post_enc_scales", "post_encs")
        files.save(
            {n: v for n, v in t.items() if n.partition(".")[0] not in lists},
            tmp_path / f"layers.{i}.mlp/sae.safetensors",
        )
        for name in t:
            kind, _, step = name.partition(".")
            if kind in lists and step != "0":
                t[name] = np.zeros_like(t[name])
            elif kind == "post_enc_scales":
                t[name] = np.ones_like(t[name])
    agrees(load(tmp_path), x, runner(raw, x))


@pytest.mark.parametrize("case", ["untied, two layers far", "concat", "per-layer, two layers far"])
def test_left_on_disk(tmp_path, case):
    """Rows of the active features alone, in the order of their numbers."""
    write(tmp_path, **CROSS[case])
    x = inputs()
    whole, lazy = load(tmp_path), open_transcoders(tmp_path, dtype=np.float64)
    few = narrow(lazy, x[:, :2])
    got, wanted = compute(few.transcoders, x[:, :2]), compute(whole, x[:, :2])
    np.testing.assert_allclose(got[1], wanted[1], rtol=0, atol=1e-12)
    for slot in range(L):
        on = few.features[slot]
        np.testing.assert_allclose(got[0][slot][:, : len(on)], np.asarray(wanted[0][slot])[:, on], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("module", "reads"),
    [("post_attention_layernorm", "resid_mid"), ("pre_feedforward_layernorm", "resid_mid"), ("mlp", "mlp_in")],
)
def test_what_a_run_reads(tmp_path, module, reads):
    write(tmp_path, top={"hookpoints_in": [f"layers.{i}.{module}" for i in range(L)]})
    assert sites(load(tmp_path))[1] == reads


def change(folder, layer, **tensors):
    path = folder / f"layers.{layer}.mlp" / "sae.safetensors"
    files.save(load_file(path) | {name.replace("__", "."): t for name, t in tensors.items()}, path)


@pytest.mark.parametrize(
    ("options", "tensors", "message"),
    [
        ({}, {"post_encs__1": np.eye(1, F, 3)[0]}, "post_encs.1 of layer 1 is not zero: an offset, for one target, of"),
        ({"per_layer": True, "activation": "relu"}, {"post_enc": np.ones(F)}, "activation: 'relu'"),
        ({"skip": "all"}, {}, "W_skips.1 of layer 0 is not zero: an affine path to a later layer"),
        ({}, {"in_norm": np.zeros(1)}, "in_norm of layer 1 is no number above zero"),
        ({}, {"out_norm": np.full(1, np.nan)}, "out_norm of layer 1 is no number above zero"),
        ({"activation": "batchtopk"}, {}, "activation: 'batchtopk'; of sparsify's only 'topk' is read"),
        ({"tied": "concat", "topk_coalesced": True}, {}, "cfg.json has topk_coalesced: True, which cannot be read"),
        ({"secondary_target_tied": True}, {}, "secondary_target_tied: True"),
        ({"coalesce_topk": "group"}, {}, "coalesce_topk: 'group'"),
        ({"transcode": False}, {}, "n_targets without transcode"),
        ({"top": {"hookpoints_in": ["layers.1.mlp"] * L}}, {}, "layers.0.mlp reads the input of 'layers.1.mlp'"),
    ],
)
def test_what_is_refused(tmp_path, options, tensors, message):
    write(tmp_path, **options)
    change(tmp_path, 1, **{name: np.asarray(t, np.float32) for name, t in tensors.items()})
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_folders_that_do_not_belong_together(tmp_path):
    write(tmp_path, tied="per-layer")
    change(tmp_path, 2, W_dec=np.zeros((F, D), np.float32))
    with pytest.raises(InputError, match=r"W_dec of sae.safetensors is \(12, 4\), not \(36, 4\)"):
        load(tmp_path)
    (tmp_path / "mixed").mkdir()
    files.sparsify(tmp_path / "mixed")
    (tmp_path / "layers.2.mlp").rename(tmp_path / "mixed" / "layers.3.mlp")
    with pytest.raises(InputError, match=r"trained by clt-training \(layers.3.mlp/cfg.json\), others by sparsify"):
        load(tmp_path / "mixed", 4)


def test_a_missing_layer(tmp_path):
    write(tmp_path)
    (tmp_path / "layers.1.mlp" / "sae.safetensors").unlink()
    with pytest.raises(InputError, match="missing files: layer 1; a cross-layer transcoder covers all layers"):
        load_transcoders(tmp_path)
