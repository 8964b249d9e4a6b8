"""An evaluation as one file: sums and losses by row, so that comparisons need no second pass over the text."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from tcircuits.files.archive import Wanted, fitting, open_archive, read_all
from tcircuits.files.storage import MalformedError
from tcircuits.files.typed import checked
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.evaluation.measure import LayerSums
from tcircuits.transcoders.evaluation.replacement import check_sets
from tcircuits.transcoders.evaluation.results import NAMES, VERSION, Evaluation, Losses
from tcircuits.types import InputError

FORMAT = "tcircuits.evaluation"
ABOUT = {
    "model": str, "dictionary": str, "cfg": TranscoderConfig, "about": dict, "n_rows": int, "context": int,
    "sets": tuple[tuple[int, ...], ...],
}  # fmt: skip
SHAPES: dict[str, tuple[str | int, ...]] = {"drift": ("S", "D"), "guess_drift": ("S", "D")}
SHAPES |= {"fired": ("S", "F"), "total": ("S", "F"), "original": ("R",)}
WANTED: Wanted = {
    **{f"sums.{f.name}": ("fiu", SHAPES.get(f.name, ("S",))) for f in fields(LayerSums)},
    **{f"losses.{f.name}": ("f", SHAPES.get(f.name, (len(NAMES), "N", "R"))) for f in fields(Losses)},
    "largest": ("f", ("S", "F")),
}


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
        about, file = open_archive(path, "about", FORMAT, VERSION)
        said = checked(about, ABOUT)
        cfg, sets = said["cfg"], check_sets(said["cfg"], said["sets"])
        sizes = {"S": len(cfg.layers), "D": cfg.d_model, "F": cfg.d_feature, "N": len(sets), "R": said["n_rows"]}
        if sets != said["sets"] or said["n_rows"] < 1 or said["context"] < 1:
            raise MalformedError(f"sets {said['sets']!s:.80}, {said['n_rows']} rows of {said['context']} tokens")
        fitting(file, WANTED, sizes)
        arrays = read_all(file)
    except (InputError, MalformedError) as problem:
        raise InputError(f"{path} cannot be read as an evaluation: {problem}") from None
    sums = LayerSums(*(arrays[f"sums.{f.name}"] for f in fields(LayerSums)))
    losses = Losses(*(arrays[f"losses.{f.name}"] for f in fields(Losses)))
    return Evaluation(**said, sums=sums, largest=arrays["largest"], losses=losses)
