"""Rows about speed and size for the table of figures in README.md."""

from experiments.reading import Row, read


def speed_rows() -> list[Row]:
    """Attribution against circuit-tracer in the same run."""
    out: list[Row] = []
    for c in read("bench_attribution")["figures"]["cases"]:
        if c.get("rival"):
            ours, rival, times = c["ours"], c["rival"], c["times_faster"]
            text = (
                f"{ours['warm']:.2f} s against {rival['best']:.1f} s: {times['warm']:.1f}x ({times['cold']:.1f}x with "
                f"compiling); with pruning {times['both']:.1f}x; {100 * ours['fraction_of_peak']:.0f} % of the peak of "
                "matrix products, by the least work that the graph needs"
            )
            what = f"attribution of {ours['features']:,} features ({c['case']}), against circuit-tracer 0.5.0"
            out.append((f"{what} in batches of {rival['best_batch']}", text, "experiments.bench.attribution"))
    for c in read("bench_attribution_gpu")["figures"]["cases"]:
        ours = c["ours"]
        if c["case"] == "Gemma-2-2B":
            what = (
                f"attribution on one {ours['hardware']['device']}, float32: random weights in the shape of {c['case']}"
            )
            what += f", 64 tokens, {ours['features']:,} of {ours['n_active']:,} features with rows of their own"
            text = (
                f"{ours['warm']:.1f} s ({ours['stages']['attribute']:.1f} of them the sweep), "
                f"{ours['cold']:.0f} s with compiling; pruning {ours['prune']:.2f} s; "
                f"{100 * ours['fraction_of_peak']:.0f} % of the peak; {ours['peak_device_gb']:.0f} GB"
            )
            out.append((what, text, "experiments.bench.attribution --cases Gemma-2-2B"))
    return [*out, *long_rows(), long_rival_row(), cross_layer_row(), *mesh_rows(), *precision_rows()]


def long_rows() -> list[Row]:
    """Prompts whose attention patterns are not kept."""
    rows = read("bench_long_prompts")["figures"]["rows"]
    last = rows[-1]
    what = f"a prompt of {last['tokens']:,} tokens, random weights in SmolLM2's shape, {last['n_active'] / 1e6:.1f}M "
    what += f"features active, logits and the {last['features']} that matter most with rows"
    text = f"{last['seconds'] / 60:.0f} minutes, peak {last['peak_rss_gb']:.1f} GB (patterns would take "
    text += f"{last['patterns_gb']:.0f}, decoder rows {last['decoders_gb']:.0f}); "
    text += ", ".join(f"{r['tokens']:,} tokens {r['seconds']:.0f} s" for r in rows[:-1])
    return [(what, f"{text}; exponent {last['exponent']:.2f} at the end", "experiments.bench.long_prompts")]


def long_rival_row() -> Row:
    """The same shape beside circuit-tracer."""
    found = read("bench_long_prompts_rival")
    rows = [r for r in found["figures"]["rows"] if "seconds" in r]
    busy = ", both beside other work" if found["hardware"]["load_average"] > found["hardware"]["cores"] else ""
    what = (
        f"prompts of that shape, {found['config']['max_features']} features with rows, against circuit-tracer 0.5.0 in "
    )
    what += f"the largest batch that fits, first call{busy}"
    parts = [
        f"{r['tokens']} tokens {r['our_seconds']:.0f} s against {r['seconds']:.0f}: {r['times_faster']:.0f}x, peak "
        f"{r['our_peak_rss_gb']:.1f} GB against {r['peak_rss_gb']:.1f}"
        for r in rows
    ]
    return what, "; ".join(parts), "experiments.bench.long_prompts --rival-python PATH"


def cross_layer_row() -> Row:
    """A prompt through a set whose decoders lie in a file."""
    f = read("bench_cross_layer_prompt")["figures"]
    s = f["sizes"]
    what = f"{f['tokens']} tokens through a cross-layer set of {s['n_layers']} x {s['d_feature']:,} features in "
    what += f"{s['d_model']:,} dimensions, {f['n_active'] / 1e6:.1f}M features active, decoders "
    what += f"({f['decoders_gb']:.0f} GB) in a scratch file"
    text = f"{f['seconds'] / 60:.0f} minutes, {f['anonymous_gb']:.1f} GB of its own and {f['mapped_gb']:.1f} GB of the "
    text += f"file in memory; rows balance within {f['max_row_gap']:.0e}"
    return what, text, "experiments.bench.cross_layer_prompt"


def mesh_rows() -> list[Row]:
    """One graph on several devices, and what each of them does."""
    f, where = read("attribution_meshes")["figures"], "experiments.attribution_meshes"
    meshes = ", ".join(r["mesh"] for r in f["meshes"])
    text = f"edges within {max(r['edges'] for r in f['meshes']):.1e} of their row's mass, the same features in "
    text += f"{100 * min(r['features'] for r in f['meshes']):.0f} %, pruned nodes in "
    text += f"{100 * min(r['nodes'] for r in f['meshes']):.0f} %"
    rows: list[Row] = [
        (f"a graph of SmolLM2 with its neurons on meshes of devices ({meshes}), against one", text, where)
    ]
    for planned in dict.fromkeys(w["planned"] for w in f["work"]):
        shares = [(w["mesh"], w["share"]) for w in f["work"] if w["planned"] == planned and w["mesh"] != "1x1"]
        what = f"work of a device of meshes, a trace of {planned}, by the compiled programs, against one device's"
        rows.append((what, ", ".join(f"{mesh} {share:.3f}" for mesh, share in shares), where))
    return rows


def precision_rows() -> list[Row]:
    """Graphs in float32 and bfloat16 against float64."""
    out: list[Row] = []
    for r in read("precision")["figures"]["rows"]:
        what = f"graphs of {r['prompts']} prompts on `{r['model']}` in {r['way']}, against float64"
        text = f"a row moves by {r['row_error_median']:.1e} of its mass (at most {r['row_error_max_worst']:.1e}), "
        text += f"influence by {100 * r['influence_error']:.2g} %; of the nodes that pruning keeps "
        text += f"{100 * r['nodes']:.0f} % are the same (at least {100 * r['nodes_worst']:.0f} %), "
        text += f"of the edges {100 * r['edges']:.1f} %"
        out.append((what, text, "experiments.precision"))
    return out


def extraction_rows() -> list[Row]:
    """What extraction takes at the sizes of the second paper, by the compiler's count."""
    out: list[Row] = []
    for r in read("plan_extraction")["figures"]["rows"]:
        model, transcoders, topology, *dtype = r["plan"].split()
        what = f"extraction of a behaviour, {model} with {transcoders} on {topology}{', bfloat16' if dtype else ''}"
        what += "" if r["compiler"] == "libtpu" else " (estimate)"
        text = f"{r['device_gb']:.0f} of {r['of_gb']:.0f} GB a device{'' if r['fits'] else ': does not fit'}; "
        text += f"{r['tflop']:,.0f} TFLOP a device, {r['chip_hours']:.2g} chip-hours"
        out.append((what, text, "experiments.plan_extraction"))
    return out


def edge_rows() -> list[Row]:
    """What methods over single edges take at the sizes of the second paper."""
    out: list[Row] = []
    rows = read("plan_edges")["figures"]["rows"]
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = {r["method"]: r for r in rows if r["model"] == model}
        what = (
            f"methods over the {mine['acdc']['edges']:,} edges of {model}, 8 prompts of 64 tokens, one H100 (estimate)"
        )
        parts = [f"{name} {r['device_gb']:.0f} GB, {_time(3600 * r['hours'])}" for name, r in mine.items()]
        out.append((what, f"{'; '.join(parts)}; of {mine['acdc']['of_gb']:.0f} GB", "experiments.plan_edges"))
    return out


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.0f} hours" if seconds >= 7200 else f"{seconds:,.0f} s"
