"""Plans: work against closed formulas and unrolled programs, memory against arrays, bad input, the command."""

import importlib.util
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.models.known import KNOWN, known_config
from tcircuits.models.params import count
from tcircuits.planning import extraction, making, sources, words
from tcircuits.planning.counting import cost
from tcircuits.planning.devices import mesh_of
from tcircuits.planning.hardware import DEVICES, Topology, larger_first, parse_topology
from tcircuits.planning.hlo import parse
from tcircuits.planning.host_memory import COMPILER, pairs
from tcircuits.planning.programs import abstracted, stages
from tcircuits.planning.request import Extraction, Request, check
from tcircuits.planning.result import Line, Plan, refused_bytes
from tcircuits.planning.sweep import sweeps
from tcircuits.transcoders.config import TranscoderConfig

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of jax[tpu]")
CPU = parse_topology("cpu:1")


def work(f, *shapes, top=1.0, **static):
    args = [jax.ShapeDtypeStruct(s, d) for s, d in shapes]
    return cost(parse(jax.jit(f, static_argnames=tuple(static)).lower(*args, **static).compile().as_text()), top)


def chain(x, w, n, unroll):
    """A product and a tanh for each layer, and again n times with the first."""
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=unroll)
    return jax.lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ w[0]), x)


@pytest.mark.parametrize("unroll", [False, True])
def test_work_grows_with_the_layers_and_is_the_unrolled_programs(unroll):
    T, D, n = 16, 128, 3
    for L in (1, 10, 40):
        shapes = (((T, D), "float32"), ((L, D, D), "float32"), ((), "int32"))
        found = work(chain, *shapes, top=n, unroll=L if unroll else 1)
        assert found.flops == (L + n) * (2 * T * D * D + T * D)
        # Each layer's matrix is copied out of the stack (read and written), and read.
        least, most = (L + n) * 4 * D * D, (L + n) * (3 * 4 * D * D + 12 * 4 * T * D)
        assert least <= found.n_bytes <= most


def test_loops_within_loops_of_unknown_length_are_triangles():
    def f(x, w, n):
        def outer(i, x):
            return jax.lax.fori_loop(0, n - i, lambda _, x: jnp.sin(x @ w), x)

        return jax.lax.fori_loop(0, n, outer, x)

    found = work(f, ((8, 64), "float32"), ((64, 64), "float32"), ((), "int32"), top=7)
    assert found.flops == 7 * 8 / 2 * (2 * 8 * 64 * 64 + 8 * 64)


@pytest.mark.parametrize(
    ("equation", "a", "b", "flops"),
    [
        ("ij,jk->ik", (3, 5), (5, 7), 2 * 3 * 5 * 7),
        ("hij,hkj->hik", (4, 3, 5), (4, 6, 5), 2 * 4 * 3 * 5 * 6),
        ("BTD,TCD->BTC", (2, 3, 16), (3, 5, 16), 2 * 2 * 3 * 5 * 16),
        ("LTHK,LHKD->LTD", (2, 3, 4, 5), (2, 4, 5, 6), 2 * 2 * 3 * 4 * 5 * 6),
    ],
)
def test_products_in_every_order_of_axes(equation, a, b, flops):
    found = work(lambda x, y: jnp.einsum(equation, x, y), (a, "float32"), (b, "float32"))
    assert found.flops == flops


# As the TPU compiler writes a batch of 16 products [64, 64] x [64, 64], and one product.
CONVOLUTIONS = """
ENTRY %main (a: f32[16,64,64], b: f32[16,64,64], c: f32[64,128], d: f32[32,128]) -> f32[16,64,64] {
  %a = f32[16,64,64]{2,1,0:T(8,128)} parameter(0)
  %b = f32[16,64,64]{2,1,0:T(8,128)S(1)} parameter(1)
  %c = f32[64,128]{1,0} parameter(2)
  %d = f32[32,128]{1,0} parameter(3)
  %e = f32[64,32]{1,0} convolution(%c, %d), dim_labels=bf_oi->bf
  ROOT %f = f32[16,64,64]{2,1,0:T(8,128)} convolution(%a, %b), WINDOW, dim_labels=0bf_0oi->0bf
}
""".replace("WINDOW", "window={size=16 stride=15 lhs_dilate=16}")


def test_products_that_a_tpu_program_writes_as_convolutions():
    found = cost(parse(CONVOLUTIONS))
    assert found.flops == 2 * 16 * 64**3 + 2 * 64 * 128 * 32
    # What lies in a core's own memory takes none of the main memory's bytes.
    assert found.n_bytes == 4 * (64 * 128 + 32 * 128 + 64 * 32 + 2 * 16 * 64 * 64)


COLLECTIVES = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %v = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %r = f32[8,16]{1,0} all-reduce(%v), replica_groups={{0,1}}, to_apply=%add
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%i, %r)
}

%condition (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %n = s32[] constant(12)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: s32[], b: f32[8,16]) -> f32[16,16] {
  %a = s32[] parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  %t = (s32[], f32[8,16]{1,0}) tuple(%a, %b)
  %w = (s32[], f32[8,16]{1,0}) while(%t), condition=%condition, body=%body
  %v = f32[8,16]{1,0} get-tuple-element(%w), index=1
  ROOT %g = f32[16,16]{1,0} all-gather(%v), dimensions={0}
}
"""


def test_collectives_in_loops():
    found = cost(parse(COLLECTIVES))
    assert dict(found.runs) == {"all-reduce": 12, "all-gather": 1}
    assert dict(found.moved) == {"all-reduce": 12 * 2 * 512, "all-gather": 1024}


def small(**changes):
    cfg = tc.load_model("tiny").cfg
    d = sources.dictionary_of("tiny-transcoders", cfg, None)
    return replace(Request(cfg, d, tokens=12, max_features=300, active=24, chunk=64), **changes)


@pytest.fixture(scope="module")
def lines():
    r = small()
    a = abstracted(r, mesh_of(CPU))
    return r, a, {stage.name: stage for stage in stages(a)}


def test_stages_hold_what_the_arrays_take(lines):
    r, a, found = lines
    model = tc.load_model("tiny")
    d = tc.load_transcoders("tiny-transcoders", model=model)
    assert a.persistent == sum(x.nbytes for x in jax.tree.leaves((model.params, d)))
    tokens = np.arange(r.tokens, dtype=np.int32)
    frozen = tc.freeze(model.cfg, model.params, d, tokens, n_slots=r.slots)
    arrays = sum(x.nbytes for x in jax.tree.leaves(frozen))
    assert arrays <= found["forward, encode, freeze"].memory.results <= arrays + 8192  # and a table of pointers
    assert found["target vectors"].memory.held == a.persistent + found["forward, encode, freeze"].memory.results


def test_the_sweep_costs_what_its_formula_says(lines):
    """The documented model: B T (D H K + D G K + H T K) for attention and B T C D for the reads, of each layer."""
    r, _, found = lines
    m, B, C = r.model, 64, r.slots
    D, H, G, K = m.d_model, m.n_heads, m.n_kv_heads, m.d_head
    wanted = 0.0
    for width, layers in sweeps(r, "cpu", r.slots).by_width.items():
        macs = B * width * (D * H * K + D * G * K + H * width * K) + B * width * C * D + 3 * B * width * C
        below = sum(layer * n for layer, n in layers.items()) + sum(
            n for layer, n in layers.items() if layer < m.n_layers
        )
        wanted += 2 * macs * below
    got = sum(s.cost.flops for name, s in found.items() if name.startswith("rows"))
    assert 0.85 * wanted < got < 1.15 * wanted


SIZES = Extraction(prompts=6, batch=3, evaluations=32, circuits=8, nodes=40, steps=5, behaviours=2)


@pytest.fixture(scope="module")
def extracted(lines):
    _, _, trace = lines
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "stages", lambda _: iter(trace.values()))  # compiled already
        found = list(extraction.extraction_stages(abstracted(small(behaviour=SIZES), mesh_of(CPU))))
    return trace, {stage.name: stage for stage in found}


def test_an_extraction_traces_every_prompt_and_runs_every_circuit(extracted):
    trace, found = extracted
    for name, stage in trace.items():
        mine = found[f"graph: {name}"]
        assert (mine.runs, mine.memory) == (6 * stage.runs, stage.memory)
        assert mine.cost.flops == 6 * stage.cost.flops
    others = {name: stage.runs for name, stage in found.items() if not name.startswith("graph: ")}
    assert others == {"importance": 2, "8 circuits": 2 * 4, "gates, 5 steps": 1, "network, 300 steps": 1}


def test_circuits_and_gates_cost_their_forward_passes(extracted):
    """One pass: 2 T a weight of attention, MLP, dictionary and unembedding, and attention's two products of T by T."""
    r, (_, found) = small(), extracted
    m, T, F = r.model, r.tokens, r.dictionary.d_feature
    D, H, G, K = m.d_model, m.n_heads, m.n_kv_heads, m.d_head
    per_layer = 2 * D * H * K + 2 * D * G * K + 3 * D * m.d_mlp + 2 * D * F
    unembed = m.d_vocab * D
    least, most = (2 * T * m.n_layers * (per_layer + 2 * T * H * K) + 2 * n * unembed for n in (1, T))
    # Every batch of 3 prompts runs on them and on their counterfactuals, then 8 circuits; 2 batches, 4 calls.
    passes = 2 * 4 * 3 * (2 + 8)
    assert passes * least < found["8 circuits"].cost.flops < 1.15 * passes * most
    # Gates: both prompts once, then 5 steps of 3 prompts, forward and backward (without the weights' gradients: twice).
    passes = 2 * 6 + 5 * 3 * 2
    assert passes * least < found["gates, 5 steps"].cost.flops < 1.3 * passes * most


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 0}, "prompts=0 must be at least 1"),
        ({"batch": 7}, "batch=7 is above the 6 prompts"),
        ({"nodes": 1}, "nodes=1: a tree is of at least 2 units"),
    ],
)
def test_extractions_that_are_refused(changes, message):
    with pytest.raises(tc.InputError, match=message):
        check(small(behaviour=replace(SIZES, **changes)))


def test_chunks_are_those_that_attribute_sweeps():
    r = small()
    plan = sweeps(r, "cpu", r.slots, by_layer=True)
    assert plan.runs == 1 + 3 * 2  # 75 features in each of 4 layers; those of layer 0 need no sweep
    assert sweeps(r, "cpu", r.slots).runs == 5  # 3 * 75 and 10 targets, 64 together, by how far their sources reach
    assert sum(n for layers in plan.by_width.values() for n in layers.values()) == plan.runs
    assert max(plan.by_width) == r.tokens


@pytest.mark.parametrize("parallel", [False, True])
def test_edges_of_an_evenly_spread_graph(parallel):
    r = small(max_features=4 * 12 * 5, targets=3)
    r = replace(r, model=replace(r.model, parallel=parallel))
    places = [(layer, t) for layer in range(4) for t in range(12)]

    def reached(layer, t, m, p):
        return m < layer and p <= t and (not parallel or m < layer - 1 or p == t)

    fed = [sum(reached(layer, t, m, p) for m, p in places) for layer, t in places]
    tokens = sum(1 if parallel and layer == 0 else t + 1 for layer, t in places)
    features, others = pairs(r)
    read = 48 - 11  # of the last layer, outputs read their own position alone
    assert features == 25 * sum(fed) + 3 * 5 * read
    assert others == pytest.approx(5 * sum(fed) + 5 * tokens + 3 * (read + 12))


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_shapes_have_the_published_number_of_parameters(name):
    published = {
        "gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558, "pythia-70m": 70.4, "pythia-410m": 405,
        "pythia-1.4b": 1415, "pythia-2.8b": 2775, "pythia-6.9b": 6857, "pythia-12b": 11846, "llama-2-7b": 6738,
        "llama-2-13b": 13016, "llama-2-70b": 68977, "llama-3.1-8b": 8030, "llama-3.1-70b": 70554,
        "llama-3.2-1b": 1236, "llama-3.2-3b": 3213, "gemma-2-2b": 2614, "gemma-2-9b": 9242, "gemma-2-27b": 27227,
        "qwen3-0.6b": 596, "qwen3-1.7b": 1721, "qwen3-4b": 4022, "qwen3-8b": 8191, "qwen3-14b": 14768,
    }  # fmt: skip
    cfg = known_config(name)
    assert cfg is not None
    assert count(cfg) / 1e6 == pytest.approx(published[name], rel=0.005)


def test_names_of_known_models():
    assert known_config("google/gemma-2-2b") == known_config("gemma-2-2b")
    assert known_config("meta-llama/Llama-2-70b-hf") == known_config("llama-2-70b")
    assert known_config("nobody/nothing") is None


def test_topologies():
    assert parse_topology("V5E:4x4").devices == 16
    assert parse_topology("v5e:16").name == "v5e:4x4"
    assert parse_topology("tpu7x:2x2x1").devices == 8
    for kind in DEVICES:
        sizes = [t.devices for t in larger_first(kind)]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e:3x5", r"'v5e:3x5' does not exist; of v5e there are v5e:1x1, v5e:2x2"),
        ("v9:2x2", r"'v9' is no kind of device; there are v4, v5e"),
        ("h100", r"of h100 there are h100:1, h100:2"),
        ("", r"there are v4"),
    ],
)
def test_topologies_that_do_not_exist(text, message):
    with pytest.raises(tc.InputError, match=message):
        parse_topology(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_features": 0}, "max_features=0; give at least 1"),
        (
            {"max_features": 4 * 12 * 24 + 1},
            r"max_features=1,153 is above the 1,152 features that are active: 4 layers x",
        ),
        ({"tokens": 0}, "no tokens"),
        ({"tokens": 5000}, "5000 tokens; the model's context is"),
        ({"active": 0}, "active=0.* must be at least 1"),
        ({"dtype": "int8"}, "int8"),
        ({"dictionary": TranscoderConfig("transcoder", 2, 8, 16, (0, 1))}, "2 layers of width 8, the model has 4"),
    ],
)
def test_requests_that_are_refused(changes, message):
    with pytest.raises(tc.InputError, match=message):
        check(small(**changes))


@pytest.mark.parametrize("changes", [{"tokens": 1, "max_features": 8}, {"max_features": None, "tokens": 2}])
def test_short_prompts_are_planned(changes):
    r = small(**changes)
    names = [stage.name for stage in stages(abstracted(r, mesh_of(CPU)))]
    assert ("influence sketch" in names) == (changes["max_features"] is not None)
    assert names[-1] == f"rows, {r.tokens} positions"


def test_a_model_of_one_layer_is_planned():
    r = small()
    one = replace(
        r,
        model=replace(r.model, n_layers=1),
        dictionary=replace(r.dictionary, n_layers=1, layers=(0,)),
        max_features=20,
    )
    found = list(stages(abstracted(one, mesh_of(CPU))))
    assert found[-1].cost.flops > 0
    assert pairs(one)[0] == one.targets * 20 // 12  # those at the last of 12 positions


def test_features_that_devices_do_not_divide():
    r = small(dictionary=replace(small().dictionary, d_feature=1020))
    with pytest.raises(
        tc.InputError, match=r"8 devices, which do not divide the 1,020 features .*: cpu:1, cpu:2, cpu:4$"
    ):
        making.check_division(r, parse_topology("cpu:8"))


def test_arrays_that_stay_whole_are_named():
    found = making.whole_arrays(small(), 64)
    assert any(name.startswith("blocks.attn.w_k") for name in found)
    assert making.whole_arrays(small(), 1) == ()


def a_plan(**changes):
    line = Line("rows, 12 positions", 3, 10, 2, 5, 0, 1e9, 1e8, {"all-reduce": 3.0}, 1e6, 0.5)
    usual = Plan("v5e:2x2", 4, "libtpu", 100.0, 10, (line,), 50, 400, ())
    return replace(usual, **changes)


def test_what_fits_and_what_is_said_where_it_does_not():
    assert a_plan().fits
    assert a_plan().peak == 17
    assert refused_bytes("Used 34.49G of 15.75G hbm. Exceeded") == 34.49 * 2**30
    refused = a_plan(refused="Used 1.00K of 0.1K hbm", smallest="v5e:4x4")
    assert not refused.fits
    assert refused.needs == 1024
    assert "the smallest that fits is v5e:4x4" in words.advice(refused)
    assert "--dtype bfloat16" in words.advice(a_plan(persistent=101, lines=()))
    assert "no v5e that can be planned here fits" in words.advice(a_plan(capacity=5.0))
    shared = a_plan(topology="cpu:4", host=4 * COMPILER)
    assert shared.peak == 17 + COMPILER  # the rows' program beside what the host holds meanwhile
    assert dict(words.facts(a_plan()))["bytes between devices"] == "1 MB (3 all-reduce)"


@pytest.mark.slow
def test_the_library_makes_a_plan_in_a_process_of_its_own():
    found = tc.plan("tiny", "h100:2", "tiny-transcoders", tokens=6, max_features=40, active=16, smallest=False)
    assert (found.devices, found.exact, found.fits) == (2, False, True)
    assert found.moved > 0
    assert found.lines[-1].runs >= 4
    whole = tc.plan("tiny", "h100:1", "tiny-transcoders", tokens=6, max_features=40, active=16, smallest=False)
    assert whole.moved == 0
    assert found.flops < whole.flops < 2.2 * found.flops
    json.dumps(found.as_dict())


def test_the_command_refuses_with_what_would_fit(capsys):
    from tcircuits.cli import main

    code = main(["plan", "llama-2-70b", "h100:8", "--transcoders", "transcoder:131072", "--no-smallest"])
    told = capsys.readouterr()
    assert code == 2
    assert "parameters and transcoders alone" in told.err
    assert "--dtype bfloat16" in told.err


@needs_libtpu
def test_a_tpu_program_is_the_same_work():
    asked = {"tokens": 6, "max_features": 40, "active": 16, "smallest": False}
    tpu = tc.plan("tiny", "v5e:1x1", "tiny-transcoders", **asked)
    host = tc.plan("tiny", "h100:1", "tiny-transcoders", **asked)
    assert tpu.compiler == "libtpu"
    assert tpu.flops == pytest.approx(host.flops, rel=0.1)
    assert Topology(DEVICES["v5e"], "1x1").devices == tpu.devices


def test_a_folder_needs_no_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(KNOWN["llama-3.2-1b"])))
    assert sources.model_of(tmp_path) == known_config("llama-3.2-1b")
    with pytest.raises(tc.InputError, match=r"'nothing' is unknown; give one of tiny, .*llama-2-70b"):
        sources.model_of("nothing")


@pytest.mark.parametrize(
    ("text", "k", "wanted"),
    [
        ("neurons", None, ("neurons", 8192, "relu", False)),
        ("skip:4096", None, ("transcoder", 4096, "relu", True)),
        ("clt:512", 16, ("clt", 512, "topk", False)),
        ("llama-3.2-1b-skip", None, ("transcoder", 131072, "topk", True)),
    ],
)
def test_dictionaries_by_kind_and_by_name(text, k, wanted):
    cfg = known_config("llama-3.2-1b")
    assert cfg is not None
    d = sources.dictionary_of(text, cfg, k)
    assert (d.kind, d.d_feature, d.activation, d.skip) == wanted
    assert (d.n_layers, d.d_model) == (16, 2048)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sae:64", "write transcoder:WIDTH, skip:WIDTH or clt:WIDTH"),
        ("transcoder:8", "k=16 is outside"),
        ("gemma-scope-2b", "for 26 layers .*, the model has 16"),
        ("qwen3-14b", "width of 'qwen3-14b' stands in its files alone"),
    ],
)
def test_dictionaries_that_are_refused(text, message):
    cfg = known_config("llama-3.2-1b")
    assert cfg is not None
    with pytest.raises(tc.InputError, match=message):
        sources.dictionary_of(text, cfg, 16)


def test_no_stage_is_compiled_where_parameters_do_not_fit(monkeypatch):
    monkeypatch.setattr(making, "stages", None)
    big = replace(DEVICES["h100"], memory=1e6)
    plan = making.make(small(), Topology(big, "1"))
    assert (plan.lines, plan.fits) == ((), False)
    assert making.persistent_bytes(small(), 2) < plan.persistent
