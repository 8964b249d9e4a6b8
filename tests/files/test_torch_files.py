"""Files that PyTorch wrote, against what was in them (tests/golden/make_torch_files.py)."""

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tcircuits.files.opening import open_tensors
from tcircuits.types import InputError
from tests.files.crafted import archive, call, pickled, read_all, stored, tensor, torch_zip

BITS = {"BF16": np.uint16, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8}
FILES = [
    "a name (1).of v2.0.pt", "bare-legacy.pt", "bare.pkl", "bare.pt", "freqs-legacy.pt", "freqs.pkl", "freqs.pt",
    "module-legacy.pt", "module.pkl", "module.pt", "newer.pt", "no-checksums.pt", "transcoder-2.pkl",
    "transcoder-5.pkl", "transcoder-legacy.pt", "transcoder.pkl", "transcoder.pkl.gz", "transcoder.pt",
    "transcoder.pt.gz", "types-legacy.pt", "types.pkl", "types.pt", "views-legacy.pt", "views.pkl", "views.pt",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "torch_files"


@pytest.fixture(scope="module")
def expected(folder):
    with np.load(folder / "expected.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def of(expected, file):
    return {name.removeprefix(f"{file}:"): x for name, x in expected.items() if name.startswith(f"{file}:")}


def test_no_file_is_forgotten(folder):
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, "expected.npz"])


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_is_read(name, folder, expected):
    file, wanted = open_tensors(folder / name), of(expected, name)
    assert file.headers.keys() == wanted.keys()
    for tensor_name, header in file.headers.items():
        found, right = file.read(tensor_name, None), wanted[tensor_name]
        assert found.shape == header.shape == right.shape
        assert found.flags.writeable
        assert found.flags.c_contiguous
        bits = found.view(BITS[header.dtype]) if header.dtype in BITS else found
        assert bits.dtype == right.dtype
        np.testing.assert_array_equal(bits, right)


@pytest.mark.parametrize("name", ["views.pt", "views-legacy.pt", "views.pkl", "types.pt"])
def test_parts_and_rows(name, folder, expected):
    file, rng = open_tensors(folder / name), np.random.default_rng(0)
    for tensor_name, right in of(expected, name).items():
        for _ in range(20):
            part = tuple(slice(*sorted(rng.integers(0, n + 1, 2).tolist())) for n in right.shape)
            found = file.read(tensor_name, part)
            found = found.view(BITS.get(file.headers[tensor_name].dtype, found.dtype))
            np.testing.assert_array_equal(found, right[part])
        if right.ndim and len(right):
            for _ in range(20):
                rows = np.flatnonzero(rng.random(len(right)) < rng.random())
                found = file.read_rows(tensor_name, rows)
                found = found.view(BITS.get(file.headers[tensor_name].dtype, found.dtype))
                np.testing.assert_array_equal(found, right[rows])


CFG = {
    "__class__": "sae_training.config.LanguageModelSAERunnerConfig",
    "model_name": "gpt2-small", "hook_point": "blocks.3.ln2.hook_normalized", "hook_point_layer": 3, "d_in": 6,
    "d_out": 5, "d_sae": 16, "device": "cuda:0", "dtype": "torch.float32", "lr": 4e-4, "seed": 42,
    "is_transcoder": True, "from_pretrained_path": None, "sizes": [2, 3], "schedule": [1, 2.5, "x"],
    "path": "checkpoints/a", "names": ["a", "b"], "counts": {"x": 1}, "mean": 0.25,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("transcoder")])
def test_configurations_become_plain_values_and_import_nothing(name, folder):
    import sys

    about = open_tensors(folder / name).about
    about["cfg"]["names"].sort()
    assert about == {"cfg": CFG, "state_dict": {}}
    assert not any(module.split(".")[0] in ("sae_training", "torch") for module in sys.modules)


def test_tied_tensors_have_all_their_names(folder):
    tensors = read_all(folder / "module.pt")
    assert tensors["tied.0"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(tensors["tied.0"], tensors["state.0.weight"])
    np.testing.assert_array_equal(tensors["tied.1"], tensors["parameters.0"])


def rewritten(data, change, method=zipfile.ZIP_STORED):
    """An archive of PyTorch whose members went through `change(name, content)`."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    return archive([(change(n, c)[0], change(n, c)[1]) for n, c in members], method=method)


def test_the_archive_s_name_does_not_matter_and_members_may_be_deflated(folder, expected, tmp_path):
    path, data = tmp_path / "x.bin", (folder / "types.pt").read_bytes()
    for name in ("pytorch_model", "x.y (2)", "\u00fcber"):
        path.write_bytes(rewritten(data, lambda n, c, to=name: (n.replace("archive/", to + "/"), c), method=8))
        for tensor_name, right in of(expected, "types.pt").items():
            found = read_all(path)[tensor_name]
            np.testing.assert_array_equal(found.view(right.dtype), right)


def test_big_endian_files(folder, expected, tmp_path):
    """Storages and the member that names the order are turned round; values stay the same."""
    path = tmp_path / "big.pt"
    items = [1, 2, 4, 8]
    right = np.arange(24).reshape(4, 6)
    for item, kind in zip(items, ("CharStorage", "ShortStorage", "IntStorage", "LongStorage"), strict=True):
        data = right.astype(f">i{item}").tobytes()
        path.write_bytes(torch_zip(tensor(stored(24, kind=kind), 6, (6, 2), (1, 6)), [data], order=b"big"))
        np.testing.assert_array_equal(read_all(path)[""], right[1:3].T)
        assert read_all(path)[""].dtype == np.dtype(f"i{item}")


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "fits"),
    [
        ((3, 4), (4, 1), 0, True), ((3, 4), (4, 1), 1, False), ((12,), (1,), 0, True), ((13,), (1,), 0, False),
        ((2, 2), (10, 1), 0, True), ((2, 2), (11, 1), 0, False), ((0, 2**40), (1, 1), 12, True), ((), (), 11, True),
        ((), (), 12, False), ((2**62,), (0,), 0, False), ((2**31, 2**31), (0, 0), 0, False), ((5,), (-1,), 4, False),
        ((5,), (1,), -1, False), ((-5,), (1,), 0, False), ((5, 5), (1,), 0, False), ((2**63,), (1,), 0, False),
        ((1,) * 33, (1,) * 33, 0, False), ((2,), (2**63,), 0, False), ((1000, 1000), (0, 0), 3, True),
    ],
)  # fmt: skip
def test_a_tensor_lies_within_its_storage(shape, strides, offset, fits, tmp_path):
    path, base = tmp_path / "a.pt", np.arange(12, dtype=np.float32)
    path.write_bytes(torch_zip(tensor(stored(12), offset, shape, strides), [base.tobytes()]))
    if fits:
        view = np.lib.stride_tricks.as_strided(base[min(offset, 11) :], shape, [4 * s for s in strides])
        np.testing.assert_array_equal(read_all(path)[""], view)
    else:
        with pytest.raises(InputError, match=r"a\.pt: '': (a tensor|it has)"):
            open_tensors(path)


def test_repeated_values_count_against_the_cap(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(tensor(stored(1), 0, (2**28,), (0,)), [b"\0\0\x80\x3f"]))
    with pytest.raises(InputError, match="max_decoded"):
        open_tensors(path)
    with pytest.raises(InputError, match="max_decoded"):
        open_tensors(path, max_decoded=2**30 - 1)
    file = open_tensors(path, max_decoded=2**30)
    np.testing.assert_array_equal(file.read("", (slice(2**27, 2**27 + 3),)), [1, 1, 1])


@pytest.mark.parametrize(
    ("value", "storages", "message"),
    [
        (tensor(stored(12), 0, (3,), (1,)), [], "storage '0' is missing"),
        (tensor(stored(12), 0, (3,), (1,)), [bytes(44)], "storage '0' has 44 bytes instead of 48"),
        (tensor(stored(2**62), 0, (3,), (1,)), [bytes(48)], "no storage"),
        (tensor(stored(-1), 0, (3,), (1,)), [bytes(48)], "no storage"),
        (tensor(stored(12, "../0"), 0, (3,), (1,)), [bytes(48)], "storage '../0' is missing"),
        (tensor(stored(12, kind="QInt8Storage"), 0, (3,), (1,)), [bytes(12)], "torch.QInt8Storage"),
        (tensor(stored(12, kind="UntypedStorage"), 0, (3,), (1,)), [bytes(12)], "names no type"),
        (stored(12), [bytes(48)], "bare storage"),
        (b"N", [], None),
    ],
)
def test_storages_that_do_not_fit(value, storages, message, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(value, storages))
    if message is None:
        assert (open_tensors(path).headers, open_tensors(path).about) == ({}, None)
        return
    with pytest.raises(InputError, match=message):
        open_tensors(path)


@pytest.mark.parametrize("cut", [1, 9, 50, 200, 1000])
@pytest.mark.parametrize("name", ["views-legacy.pt", "views.pt", "views.pkl", "transcoder.pkl.gz"])
def test_a_file_that_was_cut_off(name, cut, folder, tmp_path):
    path = tmp_path / name
    path.write_bytes((folder / name).read_bytes()[:-cut])
    with pytest.raises(InputError, match=str(path)):
        open_tensors(path)


def test_a_stream_s_storages_are_those_of_its_tensors(folder, tmp_path):
    data = (folder / "bare-legacy.pt").read_bytes()
    keys = data.rindex(b"\x80\x02]")
    path = tmp_path / "a.pt"
    for change, message in (
        (data + b"\0", "bytes follow the last"),
        (data[:keys] + pickled(b"]") + data[keys + 1 :], "list of storages"),
        (data[:-36] + (8).to_bytes(8, "little") + data[-28:], "has 8 values, not 7"),
        (data.replace(b"M\xe9\x03", b"M\xea\x03"), "version 1002"),
    ):
        path.write_bytes(change)
        with pytest.raises(InputError, match=message):
            open_tensors(path)


def test_a_program_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(archive([("m/data.pkl", pickled(b"N")), ("m/constants.pkl", pickled(b")"))]))
    with pytest.raises(InputError, match="TorchScript"):
        open_tensors(path)


def test_a_storage_inside_a_pickle_is_a_storage(tmp_path):
    path = tmp_path / "a.pkl"
    inner = pickled(b"K\3")
    value = call("torch.storage", "_load_from_bytes", b"B" + len(inner).to_bytes(4, "little") + inner + b"\x85")
    path.write_bytes(pickled(value))
    with pytest.raises(InputError, match="whose bytes are something else"):
        open_tensors(path)
    nested = pickled(value)
    value = call("torch.storage", "_load_from_bytes", b"B" + len(nested).to_bytes(4, "little") + nested + b"\x85")
    path.write_bytes(pickled(value))
    with pytest.raises(InputError, match="_load_from_bytes"):
        open_tensors(path)
