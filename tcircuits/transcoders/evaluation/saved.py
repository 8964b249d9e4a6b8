"""An evaluation as one file: sums and losses by row, so that comparisons need no second pass over the text."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.evaluation.measure import LayerSums
from tcircuits.transcoders.evaluation.results import VERSION, Evaluation, Losses
from tcircuits.types import InputError

FORMAT = "tcircuits.evaluation"


def save_evaluation(e: Evaluation, path: Path) -> None:
    """Write `path` (.npz), which appears whole or not at all."""
    about = {"format": FORMAT, "version": VERSION, "model": e.model, "dictionary": e.dictionary, "cfg": asdict(e.cfg)}
    about |= {"about": e.about, "n_rows": e.n_rows, "context": e.context, "sets": e.sets}
    arrays = {f"sums.{f.name}": getattr(e.sums, f.name) for f in fields(LayerSums)}
    arrays |= {f"losses.{f.name}": getattr(e.losses, f.name) for f in fields(Losses)}
    draft = path.with_name(f".{path.name}")
    with draft.open("wb") as file:
        np.savez(file, about=json.dumps(about), largest=e.largest, **arrays)
    draft.replace(path)


def load_evaluation(path: Path) -> Evaluation:
    """What `save_evaluation` wrote.

    Raises:
        InputError: another file, or a damaged one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if (about["format"], about["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {about['format']!r}, version {about['version']}")
            sums = LayerSums(*(file[f"sums.{f.name}"] for f in fields(LayerSums)))
            losses = Losses(*(file[f"losses.{f.name}"] for f in fields(Losses)))
            largest = file["largest"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as problem:
        raise InputError(f"{path} cannot be read as an evaluation: {problem}") from None
    cfg = TranscoderConfig(**about["cfg"] | {"layers": tuple(about["cfg"]["layers"])})
    plain = {name: about[name] for name in ("model", "dictionary", "about", "n_rows", "context")}
    sets = tuple(tuple(s) for s in about["sets"])
    return Evaluation(**plain, cfg=cfg, sets=sets, sums=sums, largest=largest, losses=losses)
