"""`tcircuits plan`."""

from dataclasses import dataclass

import tyro

from tcircuits.cli.common import print_json
from tcircuits.types import InputError


@dataclass(frozen=True)
class Plan:
    """What a trace or an extraction needs on a machine that is not there: memory, work and time, compiled for it."""

    model: tyro.conf.Positional[str]
    """A well-known name (gemma-2-2b, llama-2-70b ...), a folder with config.json, a .gguf file, or a hub id."""
    topology: tyro.conf.Positional[str]
    """v5e:4x4, v5p:2x2x2, v6e:4x8, v4:2x2x1, tpu7x:2x2x1; a100:8, h100:8, h200:4, b200:1; cpu:8."""
    transcoders: str = "neurons"
    """`neurons`, the name of a published set, KIND:WIDTH (transcoder:131072, skip:16384, clt:32768), or a folder."""
    k: int | None = None
    """Features that TopK keeps, with KIND:WIDTH; default: ReLU."""
    tokens: int = 64
    """Length of the prompt."""
    max_features: int | None = 7500
    """Features that are expanded; `None` is all."""
    active: int = 128
    """Features active at the busiest layer and position; the plan takes all to be as busy."""
    targets: int = 10
    """Logits that are explained."""
    chunk: int | None = None
    """Targets swept together; default: 64 on a CPU, 256 elsewhere."""
    dtype: str = "float32"
    """Of parameters and transcoders."""
    smallest: bool = True
    """Look for the smallest topology of the kind that fits; it may compile for several."""
    extract: bool = False
    """Plan the extraction of a behaviour's circuit, with its graph, its search, gates and network, not one trace."""
    prompts: int = 64
    """Of the attribution split, with --extract."""
    evaluations: int = 256
    """Circuits run on all of these prompts, with --extract."""
    nodes: int = 4000
    """Units in the tree, with --extract."""
    steps: int = 1000
    """Of the gates' training, with --extract."""
    json: bool = False
    """Print one JSON object instead of a table."""


def plan(cfg: Plan) -> None:
    """Run `tcircuits plan`."""
    from tcircuits.planning.request import Extraction
    from tcircuits.planning.run import plan as make
    from tcircuits.planning.words import advice, facts, table
    from tcircuits.view.terminal import show_facts, show_rows

    batch = max(1, min(16, cfg.prompts))
    sizes = Extraction(prompts=cfg.prompts, batch=batch, evaluations=cfg.evaluations, nodes=cfg.nodes, steps=cfg.steps)
    found = make(
        cfg.model,
        cfg.topology,
        cfg.transcoders,
        tokens=cfg.tokens,
        max_features=cfg.max_features,
        active=cfg.active,
        targets=cfg.targets,
        chunk=cfg.chunk,
        dtype=cfg.dtype,
        k=cfg.k,
        smallest=cfg.smallest,
        behaviour=sizes if cfg.extract else None,
    )
    if cfg.json:
        print_json(found.as_dict())
    else:
        show_rows(f"{cfg.model} on {found.topology}", table(found))
        show_facts("in all", facts(found))
    if not found.fits:
        raise InputError(advice(found, looked=cfg.smallest))
