"""The short list of globals that files of tensors need, and the plain values that stand for them here.

Tensors, their storages and NumPy's arrays become records of where their numbers lie. Classes of the tools that saved a
configuration along with the tensors are never imported: an instance is kept as its class's name, arguments and state.
Any other global is an error that names it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from tcircuits.files.limits import Budget
from tcircuits.files.pickle_machine import SLOT, Global, Raw, check_key
from tcircuits.files.storage import MIB, MalformedError, Storage, of_bytes, part
from tcircuits.files.strided import DTYPES, MAX_BYTES

# Modules whose classes may stand in a file beside its tensors.
FOREIGN = ("sae_training.", "transformer_lens.", "circuit_tracer.", "sae_lens.")
# Names that are only ever mentioned: types and formats.
MENTIONED = frozenset(
    f"{module}.{name}"
    for modules, names in (
        (("builtins", "__builtin__"), "int long float str unicode bool object"),
        (("torch",), "Tensor float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool"),
        (("torch",), "float half double int long short complex64 complex128 float8_e4m3fn float8_e5m2 strided"),
        (("torch.nn.parameter",), "Parameter"),
        (("numpy",), "ndarray"),
    )
    for module in modules
    for name in names.split()
)
STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32", "Short": "I16",
    "Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64", "Untyped": None, "Typed": None,
}  # fmt: skip
TORCH_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
NUMPY_DTYPES = {f"{d.kind}{d.itemsize}": name for name, d in DTYPES.items() if d.kind in "fciub"}
MEMORY = 16 * MIB  # for values, beside some for each byte of the file
SIZED = (list, tuple, dict, set, frozenset)


@dataclass(eq=False)
class Stored:
    """A storage of PyTorch: the type of its values, its bytes, and where they are once that is known."""

    dtype: str | None
    size: int
    data: Storage | None = None
    base: "Stored | None" = None  # of which it is a part, from byte `start` on
    start: int = 0
    big_endian: bool = False

    @property
    def swapped(self) -> bool:
        """Whether its values are in big-endian order."""
        return self.big_endian if self.base is None else self.base.swapped

    def bytes(self) -> Storage:
        """Where its numbers lie.

        Raises:
            MalformedError: the file has none for it.
        """
        if self.base is not None:
            return part(self.base.bytes(), self.start, self.size)
        if self.data is None:
            raise MalformedError("it has a storage without numbers")
        return self.data


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of PyTorch, not yet compared with its storage; offset and strides count values."""

    stored: Stored
    dtype: str
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    offset: Any


@dataclass(eq=False)
class NumpyType:
    """A type of NumPy, such as f4, and the order of its bytes."""

    code: str
    order: str = "<"


@dataclass(eq=False)
class NumpyArray:
    """An array of NumPy; what it holds comes after it."""

    dtype: NumpyType | None = None
    shape: tuple[Any, ...] = ()
    fortran: bool = False
    data: Storage | None = None


@dataclass(eq=False)
class Instance:
    """An instance of a class that is not imported."""

    cls: Global
    arguments: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)


def bad(what: Any) -> MalformedError:
    """The error for arguments that a whitelisted name never gets."""
    return MalformedError(f"the pickle is damaged: {what} has arguments that it never has")


class Reader:
    """The `World` of files of tensors.

    Attributes:
        budget: memory that values may still take.
        load: what `torch.storage._load_from_bytes` gives for bytes; None where that cannot stand.
    """

    def __init__(self, budget: Budget, load: Callable[[Storage], Any] | None = None) -> None:
        self.budget, self.load = budget, load

    def find(self, name: Global) -> Any:
        """The name itself, if it is on the list.

        Raises:
            MalformedError: it is not.
        """
        text = str(name)
        if text not in CALLS and text not in MENTIONED and not is_foreign(name) and storage_type(name) is None:
            raise MalformedError(f"it asks for {text!s:.100}, which no file of tensors needs: it is not loaded")
        return name

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The record that stands for a call.

        Raises:
            MalformedError: something that is never called, or never with these arguments.
        """
        if type(function) is not Global:
            raise MalformedError(f"the pickle is damaged: it calls a {type(function).__name__}")
        self.budget.spend(sum(map(_copied, arguments)))
        if str(function) in CALLS:
            return CALLS[str(function)](self, *_checked(function, arguments))
        if is_foreign(function):
            return Instance(function, arguments)
        raise bad(function)

    def new(self, cls: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The record that stands for a new instance.

        Raises:
            MalformedError: a class whose instances are not made like that.
        """
        self.budget.spend(_copied(options))
        if type(cls) is Global and is_foreign(cls):
            return Instance(cls, arguments, dict(options))
        if options:
            raise bad(cls)
        return self.call(cls, arguments)

    def build(self, value: Any, state: Any) -> None:
        """Give a record its state.

        Raises:
            MalformedError: a value that has none, or another kind of state.
        """
        self.budget.spend(sum(map(_copied, state)) if type(state) is tuple else _copied(state))
        match value, state:
            case Instance(), (dict() | None as fields, dict() | None as slots):
                value.state |= _named(fields or {}) | _named(slots or {})
            case Instance(), dict():
                value.state |= _named(state)
            case Instance(), _:
                value.state["__state__"] = state
            case dict(), dict():  # attributes of an ordered dict, such as the versions of a module's parts
                pass
            case NumpyType(), (int(), ("<" | ">" | "|" | "=") as order, None, None, None, *_):
                value.order = order
            case NumpyArray(), (int(), tuple(shape), NumpyType() as dtype, bool(fortran), Raw() as raw):
                value.shape, value.dtype, value.fortran, value.data = shape, dtype, fortran, raw.storage
            case _:
                raise MalformedError(f"the pickle gives a {type(value).__name__} a state, which it never has")

    def persistent(self, name: Any) -> Any:
        """A storage that lies outside of the pickle: there are none.

        Raises:
            MalformedError: always.
        """
        raise MalformedError("it is a plain pickle that refers to something outside of itself")


def _copied(value: Any) -> int:
    """Memory that a copy of a value may take: one in the memo can be copied by a few bytes of a file."""
    return 8 * len(value) if type(value) is str else SLOT * len(value) if isinstance(value, SIZED) else 0


def _checked(function: Global, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    low, high = ARITY[str(function)]
    if not low <= len(arguments) <= high:
        raise bad(function)
    return arguments


def _named(state: dict[Any, Any]) -> dict[str, Any]:
    if not all(isinstance(name, str) for name in state):
        raise MalformedError("the pickle gives an object attributes whose names are no texts")
    return state


def is_foreign(name: Global) -> bool:
    """Whether a name is of one of the tools whose configurations stand in files."""
    return name.module.startswith(FOREIGN)


def storage_type(name: Any) -> str | None:
    """The kind of a storage class such as `torch.FloatStorage`: "Float"; None for other names."""
    match = re.fullmatch(r"torch(?:\.storage|\.cuda)?\.(\w+)Storage", str(name)) if type(name) is Global else None
    return match[1] if match and match[1] in STORAGES else None


def stored_of(name: Any) -> tuple[str, Stored, Any]:
    """Key, storage and view of the persistent name ("storage", type, key, location, number of values[, view]).

    Raises:
        MalformedError: another kind of name.
    """
    match name:
        case ("storage", kind, str(key), _, int(count), *view) if storage_type(kind) and 0 <= count <= MAX_BYTES:
            dtype = STORAGES[storage_type(kind) or ""]
            return key, Stored(dtype, count * (DTYPES[dtype].itemsize if dtype else 1)), view[0] if view else None
    raise MalformedError("it refers to something outside of the pickle that is no storage")


def _tensor(_: Reader, stored: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    if not (isinstance(stored, Stored) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise bad("a tensor")
    dtype = stored.dtype
    if len(more) >= 3:  # the third form names the type, since its storage has none
        if type(more[2]) is not Global or more[2].module != "torch" or more[2].name not in TORCH_DTYPES:
            raise bad("a tensor")
        dtype = TORCH_DTYPES[more[2].name]
    if dtype is None:
        raise MalformedError("it has a tensor whose storage names no type")
    return Tensor(stored, dtype, shape, strides, offset)


def _tensor_v2(reader: Reader, *arguments: Any) -> Tensor:
    return _tensor(reader, *arguments[:4])  # what follows concerns gradients


def _parameter(_: Reader, tensor: Any, *more: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise bad("a parameter")
    return tensor


def _typed(reader: Reader, function: Any, cls: Any, arguments: Any, state: Any) -> Tensor:
    """A tensor with attributes, which are left out."""
    if str(cls) not in ("torch.Tensor", "torch.nn.parameter.Parameter") or not isinstance(arguments, tuple):
        raise bad("a tensor")
    value = reader.call(function, arguments)
    return _parameter(reader, value)


def _loaded(reader: Reader, raw: Any) -> Stored:
    if not isinstance(raw, Raw) or reader.load is None:
        raise bad("torch.storage._load_from_bytes")
    value = reader.load(raw.storage)
    if not isinstance(value, Stored):
        raise MalformedError("it has a storage whose bytes are something else")
    return value


def _size(_: Reader, sizes: Any = ()) -> tuple[int, ...]:
    if not isinstance(sizes, tuple | list) or not all(type(n) is int for n in sizes):
        raise bad("torch.Size")
    return tuple(sizes)


def _device(_: Reader, kind: Any, index: Any = None) -> str:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise bad("torch.device")
    return kind if index is None else f"{kind}:{index}"


def _dict(_: Reader, items: Any = ()) -> dict[Any, Any]:
    if not isinstance(items, list | tuple) or not all(isinstance(x, list | tuple) and len(x) == 2 for x in items):
        raise bad("a dict")
    return {check_key(key): value for key, value in items}


def _default_dict(_: Reader, factory: Any = None) -> dict[Any, Any]:
    return {}


def _items(kind: Any) -> Callable[..., Any]:
    def make(_: Reader, items: Any = ()) -> Any:
        if not isinstance(items, list | tuple | set | frozenset):
            raise bad(f"a {kind.__name__}")
        return kind(items) if kind in (list, tuple) else kind(map(check_key, items))

    return make


def _complex(_: Reader, real: Any, imaginary: Any = 0.0) -> complex:
    if not isinstance(real, int | float) or not isinstance(imaginary, int | float):
        raise bad("a complex number")
    try:
        return complex(real, imaginary)
    except OverflowError:
        raise bad("a complex number") from None


def _inert(name: str) -> Callable[..., Instance]:
    module, _, short = name.rpartition(".")
    return lambda _, *arguments: Instance(Global(module, short), arguments)


def _path(_: Reader, *parts: Any) -> str:
    if not all(type(p) is str for p in parts):
        raise bad("a path")
    return "/".join(p.rstrip("/") if p != "/" else "" for p in parts) or "."


def _encoded(_: Reader, text: Any, encoding: Any) -> Raw:
    """Byte strings as protocol 2 writes them."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise bad("_codecs.encode")
    try:
        return Raw(of_bytes(text.encode("latin-1")))
    except UnicodeEncodeError:
        raise bad("_codecs.encode") from None


def _byte_array(reader: Reader, value: Any = None, encoding: Any = None) -> Raw:
    if value is None or isinstance(value, Raw):
        return value or Raw(of_bytes(b""))
    return _encoded(reader, value, encoding)


def _reconstructor(reader: Reader, cls: Any, base: Any, state: Any) -> Any:
    return reader.new(cls, () if state is None else (state,), {})


def _new(reader: Reader, cls: Any, *arguments: Any) -> Any:
    return reader.new(cls, arguments, {})


def _numpy_type(_: Reader, code: Any, *flags: Any) -> NumpyType:
    if type(code) is not str or code not in NUMPY_DTYPES:
        raise MalformedError(f"it has NumPy values of type {str(code)!r:.40}, which are not read")
    return NumpyType(code)


def _numpy_array(_: Reader, cls: Any, shape: Any, kind: Any) -> NumpyArray:
    if cls != Global("numpy", "ndarray"):
        raise bad("an array")
    return NumpyArray()


def _numpy_buffer(_: Reader, raw: Any, dtype: Any, shape: Any, order: Any) -> NumpyArray:
    if not (isinstance(raw, Raw) and isinstance(dtype, NumpyType) and isinstance(shape, tuple) and order in ("C", "F")):
        raise bad("an array")
    return NumpyArray(dtype, shape, order == "F", raw.storage)


def _numpy_scalar(_: Reader, dtype: Any, raw: Any) -> NumpyArray:
    if not isinstance(dtype, NumpyType) or not isinstance(raw, Raw):
        raise bad("a NumPy number")
    return NumpyArray(dtype, (), False, raw.storage)


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.storage._load_from_bytes": _loaded,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _default_dict,
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
    "copyreg.__newobj__": _new,
    "numpy.dtype": _numpy_type,
}
for _module in ("builtins", "__builtin__"):
    CALLS |= {f"{_module}.{_kind.__name__}": _items(_kind) for _kind in (list, tuple, set, frozenset)}
    CALLS |= {f"{_module}.{name}": _inert(f"builtins.{name}") for name in ("slice", "range")}
    CALLS |= {f"{_module}.complex": _complex, f"{_module}.dict": _dict, f"{_module}.bytearray": _byte_array}
    CALLS |= {f"{_module}.bytes": _byte_array}
for _module in ("pathlib", "pathlib._local"):
    CALLS |= {f"{_module}.{_kind}Path": _path for _kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")}
for _module in ("numpy.core", "numpy._core"):
    CALLS |= {f"{_module}.multiarray._reconstruct": _numpy_array, f"{_module}.multiarray.scalar": _numpy_scalar}
    CALLS |= {f"{_module}.numeric._frombuffer": _numpy_buffer}
EXACT = {"torch._utils._rebuild_tensor": (4, 4), "torch._utils._rebuild_tensor_v2": (6, 7)}


def _arity(function: Callable[..., Any]) -> tuple[int, int]:
    """Fewest and most arguments behind the reader."""
    parameters = list(signature(function).parameters.values())[1:]
    fixed = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    return sum(p.default is p.empty for p in fixed), len(fixed) + 16 * (len(fixed) < len(parameters))


ARITY = {name: _arity(function) for name, function in CALLS.items()} | EXACT
