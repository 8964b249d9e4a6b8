"""Pickles that ask for more than tensors: nothing is run or imported, the message names what was asked for."""

import os
import pickle
import struct
import sys
import tracemalloc

import numpy as np
import pytest

from tcircuits.files.opening import open_tensors
from tcircuits.types import InputError
from tests.files.crafted import call, number, numbers, pickled, stored, tensor, text, torch_zip

GLOBALS = [
    "os.system", "posix.system", "nt.system", "os.popen", "os._exit", "os.remove", "builtins.eval", "builtins.exec",
    "builtins.compile", "builtins.open", "builtins.getattr", "builtins.setattr", "builtins.__import__", "builtins.vars",
    "builtins.globals", "builtins.print", "builtins.input", "builtins.map", "builtins.type", "builtins.super",
    "__builtin__.eval", "__builtin__.apply", "operator.attrgetter", "operator.methodcaller", "operator.itemgetter",
    "functools.partial", "functools.reduce", "itertools.starmap", "subprocess.Popen", "subprocess.check_output",
    "runpy.run_path", "runpy._run_code", "importlib.import_module", "pickle.loads", "marshal.loads", "shelve.open",
    "types.FunctionType", "types.CodeType", "ctypes.CDLL", "socket.socket", "shutil.rmtree", "pty.spawn", "pdb.run",
    "timeit.timeit", "code.interact", "codecs.open", "webbrowser.open", "sys.exit", "sys.modules", "signal.alarm",
    "torch.load", "torch.hub.load", "torch.jit.load", "torch.nn.modules.linear.Linear", "torch.ops.load_library",
    "torch.utils.cpp_extension.load", "torch.storage._new_shared", "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_qtensor", "torch.FloatTensor", "torch.serialization.load", "numpy.load", "numpy.fromfile",
    "numpy.memmap", "numpy.core.multiarray.fromfile", "numpy.testing._private.utils.runstring", "pandas.read_pickle",
    "numpy.f2py.crackfortran.getlincoef", "joblib.load", "dill._dill._create_function", "cloudpickle.loads",
    "copyreg.add_extension", "copyreg.__newobj_ex__", "collections.Counter", "collections.namedtuple", "datetime.date",
    "sae_training_x.config.A", "transformer_lensX.A", "xtransformer_lens.A", "tcircuits.load_model", "__main__.A",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """Fails the test if the interpreter imports something or runs a command."""
    seen, on = [], [True]
    strangers = {name.split(".")[0] for name in GLOBALS} - {"numpy"} | {"sae_training", "transformer_lens"}

    def hook(event, arguments):
        foreign = event == "import" and str(arguments[0]).split(".")[0] in strangers
        if on and (foreign or event.startswith(("os.system", "subprocess", "pickle.find_class", "socket.", "os.exec"))):
            seen.append((event, arguments))

    monkeypatch.chdir(tmp_path)
    sys.addaudithook(hook)
    yield
    on.clear()  # a hook cannot be removed
    assert seen == []
    assert not os.path.exists("CANARY")


def refused(path, data, message):
    path.write_bytes(data)
    with pytest.raises(InputError, match=message or None) as error:
        open_tensors(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", GLOBALS)
def test_a_global_that_no_tensor_file_needs(name, tmp_path):
    module, _, short = name.rpartition(".")
    said = rf"asks for {name}, which no file of tensors needs: it is not loaded"
    run = call(module, short, b"(" + text("touch CANARY") + b"t")
    for body in (run, b"}" + text("w") + run + b"s", text(module) + text(short) + b"\x93)R", run[:-1] + b"\x81"):
        refused(tmp_path / "a.pkl", pickled(body), said)
        refused(tmp_path / "a.pt", torch_zip(body), said)
    stream = pickled(b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")) + pickled(b"M\xe9\3")
    facts = pickled(b"}" + text("little_endian") + b"\x88s")
    refused(tmp_path / "b.pt", stream + facts + pickled(run) + pickled(b"]"), said)
    refused(tmp_path / "b.pt", stream + pickled(run), said)
    refused(tmp_path / "b.pt", stream + facts + pickled(b"N") + pickled(run), said)


class Runs:
    def __reduce__(self):
        return os.system, ("touch CANARY",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_python_itself_pickles(protocol, tmp_path):
    refused(tmp_path / "a.pkl", pickle.dumps({"x": [Runs()]}, protocol), r"asks for (posix|nt)\.system")
    refused(tmp_path / "a.pkl", pickle.dumps(open_tensors, protocol), r"tcircuits\.files\.opening\.open_tensors")
    refused(tmp_path / "a.pkl", pickle.dumps(print, protocol), r"(builtins|__builtin__)\.print")


def test_python_s_own_values_are_read(tmp_path):
    value = {
        "a": [1, -1, 2**31, -(2**62), 2.5, float("inf"), True, None, "text", "\u00fc\U0001f600"], "t": (1, (2, 3)),
        3: "three", (1, "k"): "tuple", "s": {"only"}, "f": frozenset([7]), "e": [[], {}, (), ""], "b": b"xy",
        "c": 1 - 2j, "range": slice(1, None, 2), "n": np.float32(0.5), "i": np.int64(-3), "z": bytearray(b"ab"),
    }  # fmt: skip
    right = {
        "a": value["a"], "t": [1, [2, 3]], 3: "three", "(1, 'k')": "tuple", "s": ["only"], "f": [7],
        "e": [[], {}, [], ""], "b": "xy", "c": [1.0, -2.0], "n": 0.5, "i": -3, "z": "ab",
        "range": {"__class__": "builtins.slice", "__args__": [1, None, 2]},
    }  # fmt: skip
    for protocol in (2, 3, 4, 5):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
        assert open_tensors(tmp_path / "a.pkl").about == right


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i2", "|b1", "<c8", "|u1", "<f2"])
def test_arrays_of_numpy_in_a_pickle(kind, protocol, tmp_path):
    x = np.arange(24).reshape(2, 3, 4).astype(kind)
    value = {"c": x, "f": np.asfortranarray(x), "none": x[:0], "part": x[:, 1], "lone": np.array(x[1, 1, 1])}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    file = open_tensors(tmp_path / "a.pkl")
    for name in ("c", "f", "none", "part"):
        np.testing.assert_array_equal(file.read(name, None), value[name])
    lone = file.about["lone"]
    assert (complex(*lone) if isinstance(lone, list) else lone) == value["lone"].item()


@pytest.mark.parametrize(
    "x", [np.array([Runs()]), np.array(["a"]), np.zeros(2, "V3"), np.zeros(1, "f4,i4"), np.longdouble(1)]
)
def test_arrays_of_other_things_are_refused(x, tmp_path):
    refused(tmp_path / "a.pkl", pickle.dumps(x), "not read|not loaded|damaged")


HOOKS = call("collections", "OrderedDict", b")")
V2 = ("torch._utils", "_rebuild_tensor_v2")
ONE = stored(3)
WRONG = {
    "no arguments": call(*V2, b")"),
    "too few": call(*V2, b"(" + ONE + b"K\0K\1\x85t"),
    "too many": call(*V2, b"(" + ONE + b"K\0" + b"N" * 9 + b"t"),
    "no storage": call(*V2, b"(NK\0))\x89Nt"),
    "arguments no tuple": call(*V2, b"]"),
    "shape no tuple": call(*V2, b"(" + ONE + b"K\0]K\1\x85\x89" + HOOKS + b"t"),
    "shape of texts": call(*V2, b"(" + ONE + b"K\0" + text("x") + b"\x85K\1\x85\x89" + HOOKS + b"t"),
    "shape of flags": call(*V2, b"(" + ONE + b"K\0\x88\x85K\1\x85\x89" + HOOKS + b"t"),
    "offset no number": call(*V2, b"(" + ONE + b"NK\1\x85K\1\x85\x89" + HOOKS + b"t"),
    "offset a flag": call(*V2, b"(" + ONE + b"\x88K\1\x85K\1\x85\x89" + HOOKS + b"t"),
    "state for a tensor": tensor(ONE, 0, (3,), (1,)) + b"}b",
    "items for a tensor": tensor(ONE, 0, (3,), (1,)) + b"K\1K\2s",
    "a tensor is called": tensor(ONE, 0, (3,), (1,)) + b")R",
    "a text is called": text("x") + b")R",
    "a type is called": call("torch", "float32", b")"),
    "a storage is called": call("torch", "FloatStorage", b"K\3\x85"),
    "an array is made": call("numpy", "ndarray", b"J\xff\xff\xff\x7f\x85"),
    "a parameter of none": call("torch._utils", "_rebuild_parameter", b"N\x88N\x87"),
    "a subclass": call("torch._tensor", "_rebuild_from_type_v2", b"(c" + b"torch._utils\n_rebuild_tensor_v2\nN)}t"),
    "another function for a subclass": call(
        "torch._tensor", "_rebuild_from_type_v2", b"(ctorch\ndevice\nctorch\nTensor\n" + text("cpu") + b"\x85}t"
    ),
    "a size of texts": call("torch", "Size", text("x") + b"\x85\x85"),
    "a device of numbers": call("torch", "device", b"K\1\x85"),
    "pairs that are none": call("collections", "OrderedDict", b"K\3\x85"),
    "a set of a number": call("builtins", "set", b"K\3\x85"),
    "a set of lists": call("builtins", "set", b"]]a\x85"),
    "many bytes": call("builtins", "bytearray", b"J\xff\xff\xff\x7f\x85"),
    "another codec": call("_codecs", "encode", text("x") + text("rot13") + b"\x86"),
    "letters beyond the codec": call("_codecs", "encode", text("\u20ac") + text("latin1") + b"\x86"),
    "an inner file that is none": call("torch.storage", "_load_from_bytes", b"C\4abcd\x85"),
    "an inner archive that is none": call("torch.storage", "_load_from_bytes", b"C\x08PK\3\4abcd\x85"),
    "an inner path": call("torch.storage", "_load_from_bytes", text("/etc/passwd") + b"\x85"),
    "options that are no dict": b"csae_training.config\nA\n)N\x92",
    "names that are no texts": b"csae_training.config\nA\n)R}K\1K\2sb",
    "another persistent name": b"K\1Q",
    "a module": b"(" + text("module") + b"NNNtQ",
    "a key that is a list": b"}]Ns",
    "a key that is a deep tuple": b"})" + b"\x85" * 5000 + b"Ns",
    "a key that is a huge integer": b"}\x8a\x20" + b"\x7f" * 32 + b"Ns",
    "a global that is no text": b"K\1K\2\x93",
    "a memo that is empty": b"h\3",
    "an empty stack": b"R",
    "no mark": b"t",
    "a value without key": b"}(K\1u",
    "items for a tuple": b")K\1a",
    "items of a number": b"K\1(K\2e",
    "nothing": b"",
    "an extension": b"\x82\1",
    "an old instance": b"(ios\nsystem\n",
    "old text": b"S'x'\n",
    "a buffer outside": b"\x97",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_whitelisted_names_with_wrong_arguments(name, tmp_path):
    refused(tmp_path / "a.pt", torch_zip(WRONG[name], [bytes(12)]), "")
    (tmp_path / "a.pkl").write_bytes(pickled(WRONG[name]))
    with pytest.raises(InputError):
        open_tensors(tmp_path / "a.pkl")


def test_a_class_of_a_tool_stays_a_name_whatever_is_called(tmp_path):
    """The module's prefix is allowed, but nothing is imported: names that look like ways out lead nowhere."""
    run = call("sae_training.config", "os.system", b"(" + text("touch CANARY") + b"t")
    (tmp_path / "a.pkl").write_bytes(pickled(b"}" + text("x") + run + b"s"))
    about = open_tensors(tmp_path / "a.pkl").about
    assert about == {"x": {"__class__": "sae_training.config.os.system", "__args__": ["touch CANARY"]}}


BOMBS = {
    "bytes of 2^63": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "byte array of 2^40": b"\x96" + (2**40).to_bytes(8, "little"),
    "text of 2^40": b"\x8d" + (2**40).to_bytes(8, "little"),
    "text of 2^31": b"X\xff\xff\xff\x7f",
    "integer of 2^31 bytes": b"\x8b\xff\xff\xff\x7f",
    "integer of -1 bytes": b"\x8b\xff\xff\xff\xff",
    "integer of 255 bytes": b"\x8a\xff" + b"\x7f" * 255,
    "frame of 2^63": b"\x95" + b"\xff" * 7 + b"\x7fN",
    "lists": b"]" * 400_000,
    "dicts": b"}" * 400_000,
    "sets": b"\x8f" * 400_000,
    "marks": b"(" * 400_000,
    "copies": b"N" + b"2" * 1_500_000,
    "nested tuples": b")" + b"\x85" * 400_000,
    "nested lists": b"]" * 2000 + b"a" * 1999,
    "pairs of pairs": text("x") + b"2\x86" * 64,
    "lists of lists": b"]" + b"".join(b"\x94](h%ch%ce" % (i, i) for i in range(62)),
    "a list in itself": b"]\x94h\0a",
    "a dict in itself": b"}\x94K\1h\0s",
    "sets of one list": b"](" + b"K\1" * 50_000 + b"e\x94\x85" + b"0cbuiltins\nset\nh\0\x85R" * 20_000,
    "states of one dict": b"}(" + b"".join(text(str(i)) + b"N" for i in range(20_000)) + b"u\x94"
    + b"0csae_training.config\nA\n)Rh\0b" * 20_000,
    "encoded texts": text("a" * 1_000_000) + b"\x94" + b"0c_codecs\nencode\nh\0" + text("latin1") + b"\x86R" * 1
    + (b"0c_codecs\nencode\nh\0" + text("latin1") + b"\x86R") * 500,
    "a global's name": b"c" + b"a" * 400_000,
    "long texts many times": text("a" * 100_000) + b"\x94](" + b"h\0" * 100_000 + b"e",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_little_that_becomes_much(name, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled(BOMBS[name], 4))
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            open_tensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (64 << 20) + 3 * path.stat().st_size


def test_a_memo_may_have_any_number(tmp_path):
    """Python's own unpickler makes a table of 2^32 entries of this."""
    (tmp_path / "a.pkl").write_bytes(pickled(text("x") + b"r\xff\xff\xff\xff" + b"0j\xff\xff\xff\xff"))
    assert open_tensors(tmp_path / "a.pkl").about == "x"


def test_a_pickle_of_many_tensors_is_read(tmp_path):
    n = 3000
    body = b"}(" + b"".join(text(f"w{i}") + tensor(stored(n), i, (1,), (1,)) for i in range(n)) + b"u"
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(body, [np.arange(n, dtype=np.float32).tobytes()]))
    file = open_tensors(path)
    assert len(file.headers) == n
    assert file.read("w1234", None).tolist() == [1234.0]


def test_keys_of_all_kinds_name_tensors(tmp_path):
    t = tensor(stored(3), 0, (3,), (1,))
    body = b"}(K\3" + t + text("a.b") + b"}" + text("c") + t + b"s" + text("l") + b"](N" + t + b"eu"
    (tmp_path / "a.pt").write_bytes(torch_zip(body, [bytes(12)]))
    file = open_tensors(tmp_path / "a.pt")
    assert sorted(file.headers) == ["3", "a.b.c", "l.1"]
    assert file.about == {"a.b": {}, "l": [None, None]}
    body = b"}(" + text("a.b") + t + text("a") + b"}" + text("b") + t + b"su"
    refused(tmp_path / "a.pt", torch_zip(body, [bytes(12)]), "two tensors have the name 'a.b'")


def test_numbers_of_the_third_form(tmp_path):
    """Types that have no storage of their own are named beside the tensor."""
    storage = stored(8, kind="UntypedStorage")
    arguments = storage + number(0) + numbers(4) + numbers(1) + b"\x89" + HOOKS + b"ctorch\nuint16\n"
    body = call("torch._utils", "_rebuild_tensor_v3", b"(" + arguments + b"t")
    (tmp_path / "a.pt").write_bytes(torch_zip(body, [struct.pack("<4H", 1, 2, 3, 65535)]))
    assert open_tensors(tmp_path / "a.pt").read("", None).tolist() == [1, 2, 3, 65535]
    body = body.replace(b"uint16", b"qint32")
    refused(tmp_path / "a.pt", torch_zip(body, [bytes(8)]), "torch.qint32")
