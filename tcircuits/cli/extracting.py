"""`tcircuits extract`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tcircuits.cli import common
from tcircuits.cli.circuiting import BEHAVIOUR, CIRCUIT, REPORT
from tcircuits.cli.common import Repeated, check_folder, print_json, write_text
from tcircuits.types import InputError

STAGES = "stages"


@dataclass(frozen=True)
class Extract:
    """Find a circuit by the hierarchy of a behaviour's graph, and test it; cut off, the same command goes on."""

    task: str
    """As in `tcircuits discover`."""
    out: Path
    """Folder for behaviour, circuit, report, pages, and the stages that a command that goes on starts from."""
    model: str = common.MODEL
    """A built-in name, a folder, a .gguf file, or a hub id."""
    transcoders: str | None = None
    """The dictionary; default: the model's own set, or its neurons."""
    choose: Repeated = ()
    """What the files of transcoders leave open, NAME=VALUE (repeatable)."""
    positions: bool = False
    """Units are apart by position, counted from the prompt's end, instead of pooled over positions."""
    budget: int = 250
    """Circuits run on all prompts of the attribution split, at most; scores and controls count."""
    share: float = 0.05
    """Of all units, that the largest circuit has."""
    tolerance: float = 0.1
    """How far from 1 the faithfulness may be on the selection split; the smallest such circuit is taken."""
    mode: Literal["sound", "faithful", "hem", "variation"] = "sound"
    """How the tree is made: cuts from the top down, the paper's levels, matchings by heavy edges or local variation."""
    nodes: int = 4000
    """Units in the tree, the most important."""
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
    random: int = 100
    """Random circuits that the report compares with."""
    seed: int = 0
    """Of prompts, the tree and random circuits."""
    json: bool = False
    """Print one JSON object instead of tables."""


def extract(cfg: Extract) -> None:
    """Run `tcircuits extract`."""
    from tcircuits.tasks import SPLITS, TASKS, own_choices
    from tcircuits.transcoders.options import parse_choices

    if cfg.task not in TASKS:
        raise InputError(f"task {cfg.task!r} is unknown; there are {', '.join(TASKS)}")
    check_folder(cfg.out, "--out")
    if cfg.out.is_dir() and any(cfg.out.iterdir()) and not (cfg.out / STAGES).is_dir():
        raise InputError(f"--out {cfg.out} is not empty and has no stages to go on from; give a new folder")
    choices = parse_choices(cfg.choose)
    from tcircuits.circuits.extract import ExtractOptions

    names = ("budget", "share", "tolerance", "mode", "nodes", "ablation", "errors", "least", "seed")
    options = ExtractOptions(**{name: getattr(cfg, name) for name in names})
    common.start_jax()
    import tcircuits as tc
    from tcircuits.transcoders.presets import usual_set
    from tcircuits.view.circuit import show_choice, show_report, write_page
    from tcircuits.view.page import write_html
    from tcircuits.view.tree import tree_page

    model = tc.load_model(cfg.model)
    sizes = None if cfg.prompts is None else dict(zip(SPLITS, cfg.prompts, strict=True))
    behaviour = tc.make_behaviour(model, cfg.task, sizes=sizes, seed=cfg.seed)
    behaviour = own_choices(model, behaviour) if cfg.own_choices else behaviour
    name = cfg.transcoders or usual_set(cfg.model)
    d = tc.load_transcoders(name, model=model, **choices)
    units = tc.units_of(model.cfg, ("head", "feature"), d.cfg, behaviour.length if cfg.positions else None)
    stages = cfg.out / STAGES
    found = tc.extract(
        model, behaviour, units, dictionary=d, options=options, stages=stages, tell=None if cfg.json else _tell
    )
    where: dict[str, Any] = {"source": cfg.model, "transcoders": name, "choose": list(cfg.choose)}
    circuit = replace(found.circuit, about=dict(found.circuit.about) | where)
    tc.save_behaviour(behaviour, cfg.out / BEHAVIOUR)
    tc.save_circuit(circuit, cfg.out / CIRCUIT)
    report = tc.validate(model, behaviour, circuit, dictionary=d, random=cfg.random, seed=cfg.seed)
    write_text(cfg.out / f"{REPORT}.json", json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n")
    pages = [write_page(report, circuit, cfg.out / f"{REPORT}.html")]
    pages.append(write_html(tree_page(found.graph, found.tree, circuit), cfg.out / "tree.html").resolve())
    if cfg.json:
        told = {"seconds": dict(found.seconds), "evaluations": found.evaluations, "out": str(cfg.out)}
        print_json({"units": circuit.labels(), "of": units.n} | told | {"report": report.as_dict()})
        return
    show_choice(circuit, found.choice.counts, found.choice.faithfulness, found.choice.taken)
    show_report(report)
    print(f"{found.evaluations} evaluations; " + ", ".join(f"{k} {v:.1f} s" for k, v in found.seconds.items()))
    print(f"page: {pages[0]}\ntree: {pages[1]}")


def _tell(stage: str) -> None:
    print(f"{stage} ...", flush=True)
