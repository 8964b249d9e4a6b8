"""Makes tests/golden/torch_files/*: small files of tensors as PyTorch 2.13.0 writes them, and what is in them.

Run from the top of the repository with Python 3.11, torch 2.13.0 and NumPy 2:

    python -m tests.golden.make_torch_files

`expected.npz` has the arrays of every file under "FILE:NAME"; bfloat16 stands there as the bits, uint16.
"""

import gzip
import io
import pickle
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

OUT = Path(__file__).parent / "torch_files"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NEWER = (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)
BITS = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}


def types_of_numbers() -> dict[str, Any]:
    """One tensor of each type, a lone number, one without values."""
    tensors: dict[str, Any] = {str(t).split(".")[1]: torch.randn(3, 5).to(t) for t in FLOATS}
    tensors |= {str(t).split(".")[1]: torch.randint(0, 100, (4, 2), dtype=t) for t in INTEGERS}
    tensors |= {"bool": torch.tensor([True, False, True]), "lone": torch.tensor(2.5), "none": torch.zeros(0, 7)}
    return tensors | {"complex64": torch.randn(3, dtype=torch.complex64)}


def views() -> dict[str, Any]:
    """Tensors that share one storage in all ways: offsets, strides, permuted, repeated and overlapping axes."""
    base = torch.arange(240, dtype=torch.float32).reshape(12, 20)
    whole = torch.arange(120, dtype=torch.int16).reshape(2, 3, 4, 5)
    return {
        "base": base,
        "rows": base[3:9],
        "columns": base[:, 4:7],
        "steps": base[1::3, ::4],
        "transposed": base.T,
        "one": base[5, 6],
        "permuted": whole.permute(2, 0, 3, 1),
        "repeated": base[2].expand(4, 20),
        "between": whole[:, 1].unsqueeze(1).expand(2, 3, 4, 5),
        "windows": base.flatten().as_strided((10, 6), (2, 1), 30),
        "reversed_rows": base[:, 2:3].T,
    }


def config() -> Any:
    """An instance of a class whose module exists only while this runs, as the paper's checkpoints hold one."""
    module = types.ModuleType("sae_training.config")
    cls = type("LanguageModelSAERunnerConfig", (), {"__module__": module.__name__})
    setattr(module, cls.__name__, cls)
    sys.modules["sae_training"], sys.modules[module.__name__] = types.ModuleType("sae_training"), module
    cfg = cls()
    vars(cfg).update(
        model_name="gpt2-small", hook_point="blocks.3.ln2.hook_normalized", hook_point_layer=3, d_in=6, d_out=5,
        d_sae=16, device=torch.device("cuda:0"), dtype=torch.float32, lr=4e-4, seed=42, is_transcoder=True,
        from_pretrained_path=None, sizes=torch.Size([2, 3]), schedule=(1, 2.5, "x"), path=Path("checkpoints/a"),
        names={"b", "a"}, counts=defaultdict(int, {"x": 1}), mean=np.float32(0.25), table=np.arange(6).reshape(2, 3),
    )  # fmt: skip
    return cfg


def transcoder() -> dict[str, Any]:
    """The paper's checkpoint with six inputs, five outputs and sixteen features."""
    shapes = {"W_enc": (6, 16), "b_enc": (16,), "W_dec": (16, 5), "b_dec": (6,), "b_dec_out": (5,)}
    state = OrderedDict((name, torch.randn(shape)) for name, shape in shapes.items())
    return {"cfg": config(), "state_dict": state}


def module() -> Any:
    """The state dict of a module (with versions as an attribute), and its parameters as they are."""
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)).to(torch.bfloat16)
    return {"state": net.state_dict(), "parameters": list(net.parameters()), "tied": [net[0].weight, net[0].weight]}


def arrays(value: Any, path: str = "") -> dict[str, np.ndarray]:
    """The tensors in a value as NumPy arrays, by the dotted path to them."""
    if isinstance(value, np.ndarray):
        return {path: value}
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return {path: value.contiguous().view(BITS.get(value.dtype, value.dtype)).numpy().copy()}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    if hasattr(value, "d_sae"):
        items = vars(value).items()
    found: dict[str, np.ndarray] = {}
    for key, x in items:
        found |= arrays(x, f"{path}.{key}" if path else str(key))
    return found


def saved(value: Any, **options: Any) -> bytes:
    """The bytes of `torch.save`; the archive's folder is named "archive", as always where no path is known."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def main() -> None:
    """All files."""
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(0)
    values = {"types": types_of_numbers(), "views": views(), "transcoder": transcoder(), "module": module()}
    values |= {"bare": torch.randn(7), "freqs": {"freqs": torch.rand(16)}}
    newer = {str(t).split(".")[1]: torch.randint(0, 9, (2, 3)).to(torch.float32).to(t) for t in NEWER}
    expected: dict[str, np.ndarray] = {}

    def write(file: str, value: Any, data: bytes) -> None:
        (OUT / file).write_bytes(data)
        expected.update({f"{file}:{name}": array for name, array in arrays(value).items()})

    for name, value in values.items():
        write(f"{name}.pt", value, saved(value))
        write(f"{name}-legacy.pt", value, saved(value, _use_new_zipfile_serialization=False))
        write(f"{name}.pkl", value, pickle.dumps(value))
    write("newer.pt", newer, saved(newer))
    write("transcoder-2.pkl", values["transcoder"], pickle.dumps(values["transcoder"], 2))
    write("transcoder-5.pkl", values["transcoder"], pickle.dumps(values["transcoder"], 5))
    write("transcoder.pkl.gz", values["transcoder"], gzip.compress(pickle.dumps(values["transcoder"]), mtime=0))
    write("transcoder.pt.gz", values["transcoder"], gzip.compress(saved(values["transcoder"]), mtime=0))
    odd = OUT / "a name (1).of v2.0.pt"
    torch.save(values["freqs"], odd)
    write(odd.name, values["freqs"], odd.read_bytes())
    torch.serialization.set_crc32_options(False)
    write("no-checksums.pt", values["freqs"], saved(values["freqs"]))
    np.savez_compressed(OUT / "expected.npz", **expected)


if __name__ == "__main__":
    main()
