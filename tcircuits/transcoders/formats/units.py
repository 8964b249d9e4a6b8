"""From the units of a format to an open set: which layers are wanted, their files opened, their tensors told apart."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tcircuits.files.opening import open_tensors
from tcircuits.files.tensor_file import TensorFile
from tcircuits.transcoders.formats.found import Found, FoundSet, Layout, Said, Unit, Units, agreed
from tcircuits.transcoders.formats.place import Place, UnreachableError
from tcircuits.transcoders.options import Options
from tcircuits.types import InputError

Open = Callable[[str], TensorFile | None]


def opener(place: Place, options: Options, problems: list[str]) -> Open:
    """Opens files of a place by name, each once; None, and a problem, where one is damaged."""
    opened: dict[str, TensorFile | None] = {}

    def get(name: str) -> TensorFile | None:
        if name not in opened:
            opened[name] = None
            try:
                path = place.get(name)
                try:
                    opened[name] = open_tensors(path, max_decoded=options.max_decoded)
                except InputError as error:
                    why = str(error).removeprefix(f"{path}: ")
                    problems.append(f"{path.name} is damaged, cut off, or no file of tensors: {why}")
            except UnreachableError:
                raise  # nor would the other files be reached
            except InputError as error:
                problems.append(str(error))
        return opened[name]

    return get


def open_units(
    place: Place, units: Units, layouts: Iterable[Layout], options: Options, problems: list[str]
) -> FoundSet:
    """Open the files of the layers that are wanted.

    A layer with a missing or damaged file has no tensors. `layouts` are those of single files, for units that leave
    theirs open.
    """
    get = opener(place, options, problems)
    wanted = _wanted(_placed(units, get, layouts, options, problems), units, options, problems)
    layers: dict[int, dict[str, Found]] = {}
    files: dict[Path, TensorFile] = {}
    said: list[tuple[str, Said]] = []
    names: dict[int, list[tuple[str, Layout]]] = {}
    for layer, unit in wanted.items():
        tensors: dict[str, Found] | None = {}
        for name, given in unit.files:
            file = get(name)
            layout = None if file is None else _identify(file, given or layouts, problems)
            if file is None or layout is None:
                tensors = None
                continue
            files[file.path] = file
            names.setdefault(layer, []).append((file.path.name, layout))
            found = _found(file, layout, layer, unit, problems)
            tensors = None if tensors is None else tensors | found
            wrong: list[str] = []
            here = None if layout.about is None else layout.about(file.about, wrong)[1]
            problems += [f"{file.path.name}: {why}" for why in wrong]
            said += [(file.path.name, s) for s in (layout.said, here) if s is not None]
        layers[layer] = tensors or {}
        said.append((units.file_of(layer), unit.said))
    whole = units.said.over(agreed(said, _decided(units.said, options), problems))
    known = {layer: tuple(pairs) for layer, pairs in names.items()}
    return FoundSet(units.format, units.kind, layers, wanted, whole, files, known, units.weave)


def _decided(said: Said, options: Options) -> list[str]:
    """What layers may say differently, since the caller or the whole set's configuration says it."""
    return [name for name in Said.__dataclass_fields__ if getattr(options, name, None) or getattr(said, name)]


def _placed(
    units: Units, get: Open, layouts: Iterable[Layout], options: Options, problems: list[str]
) -> dict[int, Unit]:
    """Units by layer; the number comes from the name, from the file itself, or for a single one from the caller."""
    placed: dict[int, Unit] = {}
    for unit in units.units:
        layer = unit.layer
        if layer is None:
            layer = _own_number(unit, get, layouts)
        if layer is None and len(units.units) == 1 and options.layers is not None and len(options.layers) == 1:
            layer = options.layers[0]
        if layer is None and all(get(name) for name, _ in unit.files):
            names = ", ".join(name for name, _ in unit.files)
            problems.append(f"nothing says which layer {names} belongs to: give layers=(LAYER,)")
        elif layer is not None and layer in placed:
            names = ", ".join(name for u in (placed[layer], unit) for name, _ in u.files)
            if options.layers is None or layer in options.layers:
                problems.append(f"layer {layer} twice: {names}; give the folder or file of one, with layers=({layer},)")
        elif layer is not None:
            placed[layer] = replace(unit, layer=layer)
    return dict(sorted(placed.items()))


def _own_number(unit: Unit, get: Open, layouts: Iterable[Layout]) -> int | None:
    for name, given in unit.files:
        file = get(name)
        layout = None if file is None else _identify(file, given or layouts, [])
        if file is not None and layout is not None and layout.about is not None:
            return layout.about(file.about, [])[0]
    return None


def _wanted(placed: dict[int, Unit], units: Units, options: Options, problems: list[str]) -> dict[int, Unit]:
    """The layers to load: those asked for, those that were saved, or all of an unbroken numbering from 0.

    A set of a single layer may be any layer: people publish those.
    """
    found, own = set(placed), units.said.own
    if units.kind == "clt":
        if options.layers is not None and set(options.layers) != found:
            problems.append(f"layers={options.layers}, but a cross-layer transcoder covers all its {len(found)} layers")
        gaps = sorted(set(range(max(found, default=-1) + 1)) - found)
        if gaps:
            names = ", ".join(map(units.file_of, gaps))
            problems.append(f"missing files: {names}; a cross-layer transcoder covers all layers")
        return placed
    if options.layers is not None or own is not None:
        wanted = set(own.layers if options.layers is None and own else options.layers or ())
        missing, why = wanted - found, "" if options.layers is None else " (asked for by layers=)"
        if missing:
            problems.append(f"missing files: {', '.join(map(units.file_of, sorted(missing)))}{why}")
        if options.layers is None and found - wanted:
            extra = ", ".join(map(units.file_of, sorted(found - wanted)))
            problems.append(f"files that the configuration does not list among its layers: {extra}")
        return {i: placed[i] for i in sorted(wanted & found)}
    missing = set(range(max(found, default=-1) + 1)) - found
    if missing and len(found) > 1:
        problems.append(
            f"missing files: {', '.join(map(units.file_of, sorted(missing)))}; if it covers some layers only, "
            f"give layers={tuple(sorted(found))}"
        )
    return placed


def _identify(file: TensorFile, layouts: Iterable[Layout], problems: list[str]) -> Layout | None:
    """The layout whose required tensors the file has, and that knows all of its tensors (or most of them)."""
    names, fitting = set(file.headers), []
    choices = list(layouts)
    for layout in choices:
        wanted = set(layout.required)
        required = {theirs for theirs, (ours, _) in layout.tensors.items() if wanted & set(ours.split("+"))}
        if required <= names:
            fitting.append((len(names - set(layout.tensors)), layout))
    if fitting:
        return min(fitting, key=lambda pair: pair[0])[1]
    if len(choices) == 1:
        return choices[0]  # what it lacks, and what it has too much, is said tensor by tensor
    shown = ", ".join(sorted(names)[:12]) or "none"
    problems.append(f"{file.path.name} has the tensors {shown}: no format of dictionaries that is read")
    return None


def _found(file: TensorFile, layout: Layout, layer: int, unit: Unit, problems: list[str]) -> dict[str, Found]:
    """The tensors of a file by our names."""
    tensors: dict[str, Found] = {}
    if not file.headers:
        problems.append(f"{file.path.name} has no tensors")
    for tensor in sorted(file.headers):
        ours, axes = layout.tensors.get(tensor, (None, ""))
        names = [] if ours is None else [name for name in ours.split("+") if name not in tensors]
        if not names:
            problems.append(f"{file.path.name} has a tensor {tensor!r}; known are {', '.join(layout.tensors)}")
            continue
        first = layer if layout.first is None else layout.first
        for name in names:
            tensors[name] = Found(file.path, tensor, file.headers[tensor], axes, first, unit.scales.get(name, 1.0))
    return tensors
