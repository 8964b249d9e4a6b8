"""From a prompt to its paths: checks, the frozen prompt, the compiled search, the graph."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from tcircuits.attribution import specify
from tcircuits.attribution.attribute import describe, origin_rule
from tcircuits.attribution.checks import check_finite, check_match, check_prompt
from tcircuits.attribution.frozen import Frozen, freeze
from tcircuits.attribution.graph import TargetNode
from tcircuits.attribution.memory import free_gb
from tcircuits.attribution.narrowing import narrowed
from tcircuits.attribution.outputs import resolve, top_logits
from tcircuits.attribution.paths.filters import (
    Filters,
    Rules,
    check_filters,
    check_layer,
    parse_filters,
    plain,
    rules,
    shown,
)
from tcircuits.attribution.paths.graph import PathGraph, assemble
from tcircuits.attribution.paths.progress import begin, tables
from tcircuits.attribution.paths.search import Root, root_from, search
from tcircuits.attribution.settings import Settings
from tcircuits.attribution.slots import default_slots
from tcircuits.attribution.timing import Timings
from tcircuits.compiling import compiled
from tcircuits.numerics import bucket
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.lazy import LazyTranscoders, Narrow
from tcircuits.types import InputError

SLOTS = 128  # active features at a position that are expected; where there are more, the prompt is frozen again
ARRAYS_A_CANDIDATE = 8  # of 4 or 8 bytes, that a level holds of each of its paths' continuations


@partial(compiled, static_argnames=("cfg", "n_slots", "depth"))
def _freeze(cfg: Any, params: Any, d: Transcoders, ids: Any, n_slots: int | None, depth: int | None) -> Frozen:
    """A frozen prompt without what paths do not read (it is not computed either): constant streams, layers above.

    Of a layer's own decoder paths read few rows, so that they are not kept for all positions.
    """
    f = freeze(cfg, params, d, ids, n_slots=n_slots, depth=depth)
    if d.cfg.kind == "transcoder" and d.cfg.fill == "error":
        f = replace(f, decoder=None)
    said = f.logits if depth is None else f.logits[:, :0]
    return replace(f, constant=f.constant[:, :0], origin=f.origin[:, :0], logits=said)


_root_from = compiled(root_from, static_argnums=0)
_search = compiled(search, static_argnames=("cfg", "iterations", "branches", "cap", "positive"))


def find_paths(
    model: Any,
    transcoders: Transcoders | LazyTranscoders,
    prompt: Any,
    *,
    target: Any = None,
    iterations: int = 5,
    branches: int | None = 15,
    cap: bool = False,
    positive: bool = False,
    filters: Any = (),
    infix: Any = (),
    not_infix: Any = (),
    suffix: Any = (),
    bos_source: bool | None = None,
    timings: Timings | None = None,
) -> PathGraph:
    """The computational paths that contribute most to one output or feature.

    Args:
        model: from `load_model`.
        transcoders: from `load_transcoders`, in memory or on disk.
        prompt: a text or token ids.
        target: what paths lead to: None is the likeliest next token; else a token id, a text, `Logit`, `Difference`,
            `Direction` or `Feature`, at any position.
        iterations: nodes below the root at most.
        branches: paths kept at each level; None keeps all that there are, for small models.
        cap: rank by contributions capped at the least activation of the features above on the path, as a zero ablation
            there could undo no more (the reference's default). Values and sums are those without the cap.
        positive: only positive contributions, as in the paper; otherwise the largest of either sign.
        filters: conditions on every node below the root, such as `"layer<8,kind!=embed"` (see `filters`).
        infix: a pattern such as `"kind=feature <- head=7"`, or several, each somewhere in the path.
        not_infix: patterns, none of which is anywhere in the path.
        suffix: a pattern that the path ends in.
        bos_source: whether heads may lead to position 0; None allows it where the prompt does not start with the BOS
            token.
        timings: gets the seconds of each stage.

    Raises:
        InputError: see `check_prompt`, `check_match`, `specify`, `filters`; or no path is as the filters want it.
    """
    options = Options(iterations, branches, cap, positive, bos_source)
    times = Timings() if timings is None else timings
    return _find(model, transcoders, prompt, target, (filters, infix, not_infix, suffix), options, times)


@dataclass(frozen=True)
class Options:
    """What decides a search beside target and filters; see `find_paths`."""

    iterations: int
    branches: int | None
    cap: bool
    positive: bool
    bos_source: bool | None

    def __post_init__(self) -> None:
        if self.iterations < 1 or (self.branches is not None and self.branches < 1):
            given = f"iterations={self.iterations}, branches={self.branches}"
            raise InputError(f"{given}: give at least 1 (branches: or None for all)")


def _find(
    model: Any, transcoders: Any, prompt: Any, target: Any, filters: Any, options: Options, times: Timings
) -> PathGraph:
    """`find_paths`, its arguments bundled: everything is checked before the model is run."""
    check_match(model, transcoders)
    ids, text = check_prompt(model, prompt)
    wanted = parse_filters(*filters, length=len(ids))
    check_filters(wanted, model, transcoders)
    spec = _checked_target(model, transcoders, target, len(ids))
    d, some = narrowed(model, transcoders, [ids], [False], None, times)
    with times.stage("forward"):
        frozen = freeze_for_paths(model, d, ids, spec.layer + 1 if isinstance(spec, specify.Feature) else None)
        root, node = root_of(model, d, frozen, spec, some)
    if options.bos_source is None:
        options = replace(options, bos_source=not origin_rule(model, ids, Settings(None)))
    with times.stage("search"):
        names, encoded = _names(frozen, some), rules(wanted)
        check_matches(wanted, encoded, frozen, names, root, model.cfg.n_heads, not options.bos_source)
        levels = _wide_enough(model, d, frozen, root, encoded, names, options)
    graph = assemble(
        levels,
        model=model.name,
        transcoders=transcoders.source,
        prompt=text,
        n_layers=model.cfg.n_layers,
        tokens=ids,
        token_text=tuple(model.token(int(i)) for i in ids),
        target=node,
        settings=_settings(d, frozen) | asdict(options) | {"filters": plain(wanted)},
    )
    if wanted != Filters() and not graph.n_paths:
        raise InputError("no path is as the filters want it; give weaker filters, or more branches or iterations")
    return graph


def _settings(d: Transcoders, frozen: Frozen) -> dict[str, Any]:
    """What `describe` says of dictionary and prompt."""
    of_graph = describe(d, Settings(None), False, bool(frozen.overflow))
    return {name: of_graph[name] for name in ("dictionary", "layers_without_dictionary", "fill", "overflow")}


def _checked_target(model: Any, transcoders: Any, target: Any, length: int) -> Any:
    """The one target as `specify` names it, or None; a feature must be one that the dictionary can have."""
    specs = specify.listed(target, -1)
    specify.check(model, specs, -1, length)
    if specs is None:
        return None
    if len(specs) != 1:
        raise InputError(f"{len(specs)} targets; paths lead to one: call find_paths once for each")
    (spec,) = specs
    if isinstance(spec, specify.Feature):
        check_layer(spec.layer, transcoders)
        c = transcoders.cfg
        n = model.cfg.d_mlp if c.fill == "neurons" and spec.layer not in c.layers else c.d_feature
        if not 0 <= spec.index < n:
            raise InputError(f"feature {spec.index} of layer {spec.layer} does not exist: there are 0..{n - 1}")
    return spec


def freeze_for_paths(model: Any, d: Transcoders, ids: np.ndarray, depth: int | None = None) -> Frozen:
    """Freeze with every position as nodes; with as many slots as the prompt needs, found out by trying few.

    With a `depth` only so many layers, which is all that paths to a feature of the last of them read, and no logits.
    """
    most = default_slots(d)
    frozen = _freeze(model.cfg, model.params, d, ids, n_slots=None if most <= SLOTS else SLOTS, depth=depth)
    if bool(frozen.overflow):
        needed = min(bucket(int(frozen.n_active.max())), most)
        frozen = _freeze(model.cfg, model.params, d, ids, n_slots=needed, depth=depth)
    check_finite(model, frozen if depth is None else replace(frozen, logits=frozen.final))
    return frozen


def root_of(model: Any, d: Transcoders, frozen: Frozen, spec: Any, some: Narrow | None) -> tuple[Root, TargetNode]:
    """The root of paths to a target, and the target's node."""
    if spec is None:
        spec = specify.Logit(top_logits(host(frozen.logits[-1], np.float64), Settings(None, 1))[0])
    (chunk,), (node,) = resolve(model, d, frozen, [spec], Settings(None), some)
    return _root_from(model.cfg, chunk, spec.index if isinstance(spec, specify.Feature) else None), node


def _names(frozen: Frozen, some: Narrow | None) -> Any:
    """The features' numbers in the whole set."""
    if some is None:
        return frozen.index
    there, names = host(frozen.valid), host(frozen.index).copy()
    names[there] = some.whole(np.nonzero(there)[0], names[there])
    return names


_tables = compiled(tables, static_argnames=("n_heads",))
_begin = compiled(begin)


def check_matches(
    wanted: Filters, encoded: Rules, frozen: Frozen, names: Any, root: Root, n_heads: int, skip: bool
) -> None:
    """Raise where a filter matches nothing that there is on this prompt.

    Raises:
        InputError: naming the filter.
    """
    there = host(frozen.valid)

    def some(t: Any) -> np.ndarray:
        features, heads = host(t.feature) & there, host(t.head)[..., int(skip) :]
        return np.asarray(features.any((-1, -2, -3)) | heads.any((-1, -2, -3)) | host(t.embed).any(-1))

    if wanted.nodes and not some(_tables(encoded.node, names, n_heads=n_heads)):
        raise InputError(f"no node of this prompt matches the filter {shown(wanted.nodes)}")
    if not wanted.patterns:
        return
    found = some(_tables(encoded.step, names, n_heads=n_heads))
    found[:, 0] |= host(_begin(encoded, tuple(root.fields)).state)[:, 1]
    for i, (_, pattern) in enumerate(wanted.patterns):
        for step, matches in zip(pattern, found[i], strict=False):
            if not matches:
                raise InputError(f"no node of this prompt matches {shown(step)}, a step of a pattern")


def _wide_enough(
    model: Any, d: Transcoders, frozen: Frozen, root: Root, encoded: Rules, names: Any, options: Options
) -> Any:
    """The levels of the search; where every path is kept, with as many lanes as the widest level has paths."""
    width = options.branches or 256
    fixed = {"iterations": options.iterations, "cap": options.cap, "positive": options.positive}
    while True:
        _check_room(model, frozen, width)
        more = {"branches": width, "skip_first": not options.bos_source, "names": names}
        levels = _search(model.cfg, model.params, d, frozen, root, encoded, **fixed, **more)
        found = jax.tree.map(host, levels)
        needed = int(found.wanted.max())
        if options.branches is not None or needed <= width:
            return found
        width = bucket(max(needed, 2 * width), 256)


def _check_room(model: Any, frozen: Frozen, width: int) -> None:
    """Raise where the continuations of one level would not fit into memory."""
    L, T, C = frozen.index.shape
    each = L * C + L * model.cfg.n_heads * T + 1
    need = ARRAYS_A_CANDIDATE * width * each * frozen.value.dtype.itemsize / 1e9
    if need > 0.6 * free_gb() or width * each >= 2**31:
        raise InputError(
            f"{width:,} paths a level with {each:,} continuations each take about {need:,.1f} GB: give fewer branches, "
            "fewer iterations, or filters"
        )
