"""Makes tests/golden/paper_transcoders/*: checkpoints as the transcoder paper's code writes them with PyTorch 2.13.0.

Run from the top of the repository with Python 3.11, torch 2.13.0 and NumPy 2:

    python -m tests.golden.make_paper_transcoders

`expected.npz` has the tensors under "FILE:NAME". What is written and how: `save_model` of
github.com/jacobdunefsky/transcoder_circuits.
"""

import gzip
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

OUT = Path(__file__).parent / "paper_transcoders"
D, F = 6, 16
NAME = "final_sparse_autoencoder_gpt2-small_blocks.{}.ln2.hook_normalized_16"
SPARSE = {
    "is_sparse_connection": False, "sparse_connection_sae_path": None, "sparse_connection_l1_coeff": None,
    "sparse_connection_use_W_enc": True,
}  # fmt: skip


def config(layer: int, **fields: Any) -> Any:
    """An instance of a class whose module exists only while this runs."""
    module = types.ModuleType("sae_training.config")
    cls = type("LanguageModelSAERunnerConfig", (), {"__module__": module.__name__})
    setattr(module, cls.__name__, cls)
    sys.modules["sae_training"], sys.modules[module.__name__] = types.ModuleType("sae_training"), module
    cfg = cls()
    known = {
        "model_name": "gpt2-small", "hook_point": f"blocks.{layer}.ln2.hook_normalized", "hook_point_layer": layer,
        "hook_point_head_index": None, "dataset_path": "Skylion007/openwebtext", "is_dataset_tokenized": False,
        "context_size": 128, "d_in": D, "total_training_tokens": 60_000_000, "device": torch.device("cuda:0"),
        "seed": 42, "dtype": torch.float32, "is_transcoder": True, "out_hook_point": f"blocks.{layer}.hook_mlp_out",
        "out_hook_point_layer": layer, "d_out": D, "expansion_factor": F / D, "from_pretrained_path": None,
        "lr": 4e-4, "l1_coefficient": 1.4e-4, "d_sae": F, "tokens_per_buffer": 1 << 20,
        "run_name": "16-L1-0.00014-LR-0.0004",
    }  # fmt: skip
    vars(cfg).update(known | fields)
    return cfg


def checkpoint(layer: int, without: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """Configuration and random weights of one layer."""
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "b_dec_out": (D,)}
    state = OrderedDict((name, torch.randn(shape)) for name, shape in shapes.items() if name not in without)
    return {"cfg": config(layer, **fields), "state_dict": state}


def main() -> None:
    """All files."""
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(0)
    expected: dict[str, np.ndarray] = {}

    def write(name: str, value: dict[str, Any]) -> None:
        path, tensors = OUT / name, value.get("state_dict", value)
        if name.endswith(".pt"):
            torch.save(value, path)
        elif name.endswith(".pkl"):
            path.write_bytes(pickle.dumps(value))
        else:
            path.write_bytes(gzip.compress(pickle.dumps(value), mtime=0))
        expected.update({f"{name}:{key}": t.numpy() for key, t in tensors.items() if isinstance(t, torch.Tensor)})

    write(NAME.format(0) + ".pt", checkpoint(0))
    write(NAME.format(1) + ".pkl", checkpoint(1, **SPARSE))
    write(NAME.format(2) + ".pkl.gz", checkpoint(2, **SPARSE))
    write("one_bias.pt", checkpoint(0, without=("b_dec_out",)))
    write("autoencoder.pt", checkpoint(0, without=("b_dec_out",), is_transcoder=False))
    write("state_dict.pt", checkpoint(0)["state_dict"])
    frequency = torch.rand(F).square()
    frequency[3] = 0
    bare = torch.log10(frequency + 1e-10)
    torch.save(bare, OUT / (NAME.format(0) + "_log_feature_sparsity.pt"))
    expected["log_feature_sparsity"] = bare.numpy()
    write(NAME.format(1) + "_log_feature_sparsity.pkl", {"freqs": frequency})
    np.savez_compressed(OUT / "expected.npz", **expected)


if __name__ == "__main__":
    main()
