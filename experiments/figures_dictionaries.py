"""Rows about dictionaries, the small models that they explain, and their training for README.md's table of figures."""

from typing import Any

from experiments.reading import RESULTS, Row, read


def _dictionary_rows(result: str, model: str, command: str) -> list[Row]:
    """What is left of a small model where its MLPs are replaced."""
    rows: list[Row] = []
    for name, s in read(result)["figures"]["sets"].items():
        every, alive = s["all"], f"{s['dead_features']} of {s['features']:,} features dead"
        what = f"`{model}` with all MLPs replaced: {name.split('-')[0]}, {s['mean_l0']:.1f} features on"
        recovered = every["recovered"]["zero"]
        text = f"{100 * recovered['value']:.1f} % of the loss recovered [{100 * recovered['low']:.1f}, "
        text += f"{100 * recovered['high']:.1f}], same top token {100 * every['agree']['dictionary']:.0f} %, {alive}"
        if "dead_over_positions" in s:
            text += f" over {s['dead_over_positions']:,} positions"
        rows.append((what, text, command))
    return rows


def embedded_rows() -> list[Row]:
    """The embedded model, its dictionaries, and its trace."""
    rows = _dictionary_rows("tiny_dictionaries", "tiny", "experiments.tiny_dictionaries")
    warm, cold = (read("trace_tiny")["figures"][k] for k in ("warm", "cold"))
    text = (
        f"{cold['wall']:.0f} s the first time, {warm['wall']:.1f} s with compiled programs on disk; replacement score "
    )
    text += f"{warm['replacement_score']:.2f}, completeness {warm['completeness_score']:.2f}"
    rows.append((f"trace of `tiny`, {warm['n_features']} features, all expanded", text, "experiments.trace_tiny"))
    return rows


def family_rows() -> list[Row]:
    """Models of other families and seeds: what they have learned, and their transcoders."""
    rows: list[Row] = []
    for path in sorted(RESULTS.glob("tiny_lm_*.json")):
        name = path.stem.removeprefix("tiny_lm_")
        family, seed = name.rsplit("-", 1)
        f = read(path.stem)["figures"]
        of = f["accuracy_held_out"]
        told = (
            f"{part.replace('_', '-')} {100 * of[part]['all']:.1f} %" for part in ("ioi", "greater_than", "induction")
        )
        text = f"{', '.join(told)}, agreement {100 * of['agreement']['all']:.1f} %; prose "
        text += f"{f['held_out_ce']['prose_bits_per_byte']:.2f} bits a byte; {f['training']['minutes']:.0f} min"
        what = f"`tiny-{name}`, the same corpus, accuracy on held-out content"
        rows.append((what, text, f"experiments.tiny_lm --family {family} --seed {seed}"))
    for path in sorted(RESULTS.glob("tiny_dictionaries_*.json")):
        name = path.stem.removeprefix("tiny_dictionaries_")
        rows += _dictionary_rows(path.stem, name, f"experiments.tiny_dictionaries --model experiments/models/{name}")
    return rows


def claim_rows() -> list[Row]:
    """Transcoders against SAEs; cross-layer transcoders that skip hops."""
    rows: list[Row] = []
    for path in sorted(RESULTS.glob("transcoder_against_sae*.json")):
        name = path.stem.removeprefix("transcoder_against_sae").removeprefix("_")
        a = read(path.stem)["figures"]["against_sae"]
        what = f"`{name or 'tiny'}`, one MLP replaced: transcoder no worse than an SAE at equal L0"
        text = f"{a['hold']} of {a['pairs']} pairs of layer, seed and L0 ({a['below_zero']} told from zero; the "
        text += f"reverse in {a['above_zero']})"
        command = f"experiments.transcoder_against_sae{f' --model experiments/models/{name}' if name else ''}"
        rows.append((what, text, command))
    by = {(r["row"]["kind"], r["row"]["l1"]): r["row"] for r in read("cross_layer_shortcut")["figures"]["rows"]}
    l1 = max(value for _, value in by)
    plt, clt = by["transcoder", l1], by["clt", l1]
    what = "two-hop Boolean network: share of its answer that survives when the step between is taken out"
    text = f"per-layer {max(plt['intervention'], 0.0):.2f}, cross-layer {clt['intervention']:.2f} (right: 0), "
    text += f"unexplained variance {plt['fvu']:.3f} and {clt['fvu']:.3f}"
    return [*rows, (what, text, "experiments.cross_layer_shortcut")]


def truth_rows() -> list[Row]:
    """Dictionaries against known features."""
    f = read("synthetic_truth")["figures"]
    by = {r["method"]: r for r in f["summary"] if r["l0_asked"] == 25.0}
    sizes = f["sizes"]["world"]
    what = f"dictionaries against {sizes['features']:,} known features (SynthSAEBench at an eighth, "
    what += (
        f"{f['sizes']['tokens']:,} samples, L0 25/8, {by['batchtopk']['seeds']} seeds; not comparable with full size)"
    )
    names = {"batchtopk": "BatchTopK", "matryoshka": "Matryoshka", "finer": "six prefixes"}
    parts = [f"{names[k]} F1 {by[k]['f1']:.2f}, MCC {by[k]['mcc']:.2f}" for k in names if k in by]
    full = read("synthetic_truth_full")["figures"]
    large, of = (
        f"the same at full size, {full['sizes']['tokens']:,} of the published 200 million samples, L0 25",
        {r["method"]: r for r in full["summary"]}["small"],
    )
    found = f"BatchTopK F1 {of['f1']:.2f}, MCC {of['mcc']:.2f}, still rising (published .73, .76)"
    beside = read("synthetic_truth_calibration")["figures"]
    mine, theirs = {r["method"]: r for r in beside["summary"]}["batchtopk"], beside["rival"]["figures"]
    told = f"F1 {mine['f1']:.3f} (sd {mine['f1_sd']:.3f}), MCC {mine['mcc']:.3f} ({mine['mcc_sd']:.3f}); SAELens "
    told += f"{theirs['classification']['f1_score']:.3f}, {theirs['mcc']:.3f}"
    again = f"BatchTopK beside SAELens's, the same sizes, {beside['sizes']['tokens']:,} samples, "
    again += f"{mine['seeds']} seeds and 1"
    return [
        (what, "; ".join(parts), "experiments.synthetic_truth"),
        (again, told, "experiments.synthetic_truth --rival-python PATH"),
        (large, found, "experiments.synthetic_truth --scale full"),
    ]


def trainer_rows() -> list[Row]:
    """Training steps against those of others."""
    f = read("bench_trainers")["figures"]
    rows = []
    for name, own in (
        ("eai-sparsify adam", "topk"), ("dictionary-learning", "topk sae"), ("sae-lens", "topk sae"),
        ("decode-clt relu", "clt relu"), ("decode-clt jumprelu", "clt jumprelu"),
    ):  # fmt: skip
        both, ratio = f["theirs"][name], f["ratios"][name]
        package, version = list(both["default"]["versions"].items())[1]
        what = f"training step, {own}, against {name.replace(package, f'{package} {version}')}, tokens a second"
        text = f"{f['ours'][own]['tokens_per_second']:,.0f} against {both['default']['tokens_per_second']:,.0f}: "
        text += f"{ratio['default']:.2f}x ({ratio['tuned']:.2f}x with its allocator tuned)"
        rows.append((what, text, "experiments.bench.trainers"))
    return rows


def gpu_rows() -> list[Row]:
    """The same on a GPU."""
    result = read("bench_trainers_gpu")
    f, card = result["figures"], result["hardware"]["device"]
    rows: list[Row] = []
    for size, what in (("small", "576 wide, 4,608 features"), ("large", "2,048 wide, 32,768 features")):
        ours, by = f["ours"]["bfloat16"][size], f["ratios"]["bfloat16"][size]
        ratios = ", ".join(f"{name} {ratio:.1f}x" for name, ratio in by.items())
        text = f"{ours['topk']['tokens_per_second']:,.0f}, {100 * ours['topk']['share_of_peak_dense']:.0f} % of the "
        text += f"peak by the dense count; times faster than {ratios}"
        what = f"training step on one {card}, TopK transcoder {what}, bfloat16 with float32 masters, tokens a second"
        rows.append((what, text, "experiments.bench.trainers --device gpu"))
    return rows


def smollm2_rows() -> list[Row]:
    """SmolLM2's transcoders."""
    f = read("smollm2_transcoders")["figures"]
    t, held, fvu = f["training"], f["held_out"], f["training"]["fvu"][-1]
    what = f"transcoders of SmolLM2's {len(fvu['by_layer'])} layers, {t['tokens'] / 1e6:.0f}M tokens, 8 features a "
    what += "dimension, 32 on: training"
    rate, mean = t["tokens_per_second"]["median"], sum(fvu["by_layer"]) / len(fvu["by_layer"])
    text = (
        f"{t['seconds_of_fills'] / 60:.1f} min on one {t['hardware']['device']}, {rate:,.0f} tokens a second, mean FVU "
    )
    text += f"of the last batches {mean:.2f}"
    rows: list[Row] = [(what, text, "experiments.smollm2_transcoders")]
    rows.append((f"the same on held-out prose, {held['positions']:,} positions", *_layers_told(held, "")))
    small = read("smollm2_transcoders_export")["figures"]
    what = f"the export that is kept with the source, trained on {small['training']['tokens']:,} tokens on a CPU"
    return [*rows, (what, *_layers_told(small["held_out"], " --layers 2,6 --expansion 3 ..."))]


def _layers_told(held: dict[str, Any], options: str) -> tuple[str, str]:
    """What replacing each layer, and all of them, leaves; and the command."""
    parts = [
        f"layer {r['layers'][0]}: FVU {fvu:.3f}, {100 * r['recovered']['zero']['value']:.0f} % of the loss recovered"
        for r, fvu in zip(held["each"], held["fvu"], strict=True)
    ]
    every = held["all"]["recovered"]["zero"]
    parts.append(f"together: {100 * every['value']:.0f} % [{100 * every['low']:.0f}, {100 * every['high']:.0f}]")
    return "; ".join(parts), f"experiments.smollm2_transcoders{options}"
