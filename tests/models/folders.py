"""Model folders made from the golden files, as transformers would have written them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MODELS = Path(__file__).parents[1] / "golden" / "models"
CASES = sorted(p.stem for p in MODELS.glob("*-*.npz"))


def read(case: str) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """config.json, tensors, and the reference's tokens and logits."""
    with np.load(MODELS / f"{case}.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    config = json.loads(str(arrays.pop("config")))
    weights = {n.removeprefix("weight:"): arrays.pop(n) for n in list(arrays) if n.startswith("weight:")}
    return config, weights, arrays


def write(folder: Path, config: dict, weights: dict[str, np.ndarray], shards: int = 1) -> Path:
    """A folder with one safetensors file, or with shards and their index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    index = {}
    for i in range(shards):
        names = sorted(weights)[i::shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: weights[n] for n in names}, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def folder_of(case: str, path: Path) -> Path:
    """The folder of one golden model."""
    config, weights, _ = read(case)
    return write(path / case, config, weights)
