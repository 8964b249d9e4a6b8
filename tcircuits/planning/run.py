"""`plan`: checks what was asked, finds sizes by name, and has the plan made in a process of its own.

In a process of its own because devices must be forced before JAX uses any, and because a plan for TPUs must not take
hold of the TPUs of the machine that it is made on.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tcircuits.files.typed import built
from tcircuits.models.config import ModelConfig
from tcircuits.models.model import Model
from tcircuits.planning.hardware import parse_topology
from tcircuits.planning.making import check_division
from tcircuits.planning.request import Extraction, Request, check
from tcircuits.planning.result import Plan
from tcircuits.planning.sources import dictionary_of, model_of
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import InputError


def plan(
    model: str | os.PathLike[str] | Model | ModelConfig,
    topology: str,
    transcoders: str | Transcoders | TranscoderConfig = "neurons",
    *,
    tokens: int = 64,
    max_features: int | None = 7500,
    active: int = 128,
    targets: int = 10,
    chunk: int | None = None,
    dtype: str = "float32",
    k: int | None = None,
    smallest: bool = True,
    behaviour: Extraction | None = None,
) -> Plan:
    """What `attribute` or `extract` would need on a machine: memory, work, time. No weights are read or allocated.

    Args:
        model: a name of `known` or built-in name, a folder with `config.json`, a `.gguf` file, a hub id, or a loaded
            model or its configuration.
        topology: `v5e:4x4`, `v5p:2x2x2`, `h100:8`, `cpu:8` ...; see `hardware`. All devices share heads, neurons and
            features.
        transcoders: `neurons`, the name of a published set, KIND:WIDTH (`transcoder:131072`, `skip:16384`,
            `clt:32768`), a folder, or a loaded set or its configuration.
        tokens: length of the prompt.
        max_features: features that are expanded; None is all.
        active: features active at the busiest layer and position; the plan takes all to be as busy.
        targets: logits that are explained.
        chunk: targets swept together.
        dtype: of parameters and dictionary.
        k: number that TopK keeps, for KIND:WIDTH.
        smallest: look for the smallest topology of the kind that fits, which may compile for several.
        behaviour: sizes of an extraction, whose programs are planned; None plans one trace.

    Raises:
        InputError: a topology that does not exist, sizes that do not divide or fit together, an unknown model.
    """
    where = parse_topology(topology)
    cfg = model.cfg if isinstance(model, Model) else model if isinstance(model, ModelConfig) else model_of(model)
    d = transcoders.cfg if isinstance(transcoders, Transcoders) else transcoders
    d = d if isinstance(d, TranscoderConfig) else dictionary_of(d, cfg, k)
    request = Request(cfg, d, tokens, max_features, active, targets, chunk, dtype, behaviour)
    check(request)
    check_division(request, where)
    return _elsewhere(request, where.name, smallest)


def _elsewhere(request: Request, topology: str, smallest: bool) -> Plan:
    """The plan, from a process of its own."""
    asked = {"request": asdict(request), "topology": topology, "smallest": smallest}
    top = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([top, *filter(None, sys.path)])  # an optional libtpu may lie anywhere on it
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tcircuits.planning"],
        input=json.dumps(asked),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        told = " ".join(done.stderr.split()[-60:])
        raise InputError(f"the plan for {topology} could not be made (exit code {done.returncode}): ...{told}")
    answer: dict[str, Any] = json.loads(lines[-1])
    if "problem" in answer:
        raise InputError(answer["problem"])
    return built(Plan, {f.name: answer[f.name] for f in fields(Plan)})
