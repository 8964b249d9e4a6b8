"""Circuit discovery in language models, as pure JAX functions.

>>> import tcircuits as tc
>>> [name for name in dir(tc) if name.startswith("load_t") or name.startswith("save_t")]
['load_transcoders', 'save_transcoders']

Names are imported when they are first used: `import tcircuits` starts no JAX backend and loads none of the heavy
libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tcircuits._version import __version__

if TYPE_CHECKING:
    from tcircuits.attribution import (
        Difference,
        Direction,
        Feature,
        Graph,
        Logit,
        Timings,
        attention_report,
        attribute,
        attribute_batch,
        corpus_effects,
        deembed,
        direct_logits,
        edge_report,
        effects,
        expand,
        feature_covectors,
        feature_weights,
        freeze,
        head_loadings,
        head_sources,
        hold_of,
        influence,
        influence_sketch,
        mean_hold,
        ov_norms,
        prune,
        prune_masks,
        pullback,
        qk_pairs,
        rows,
        scores,
        through_heads,
        unit_hold,
        virtual_weights,
    )
    from tcircuits.attribution.graph_io import load_graph, save_graph
    from tcircuits.attribution.paths import PathGraph, find_paths, load_paths, save_paths
    from tcircuits.circuits import (
        BehaviourGraph,
        Circuit,
        ExtractOptions,
        Hierarchy,
        Report,
        build_graph,
        discover,
        edge_effects,
        edges_of,
        eliminate,
        extract,
        group_search,
        hierarchy,
        interchange,
        load_behaviour_graph,
        load_circuit,
        load_hierarchy,
        patching_sweep,
        path_sweep,
        run_circuits,
        save_behaviour_graph,
        save_circuit,
        save_hierarchy,
        trim,
        unit_scores,
        units_of,
        validate,
    )
    from tcircuits.interventions import feature_edit, intervene, steer
    from tcircuits.models.edits import Edit, edit
    from tcircuits.models.folding import fold
    from tcircuits.models.forward import Output, forward
    from tcircuits.models.generate import generate
    from tcircuits.models.loading import load_model
    from tcircuits.models.model import Model, save_model
    from tcircuits.planning import Plan, plan
    from tcircuits.tasks import Behaviour, check_capability, load_behaviour, make_behaviour, save_behaviour
    from tcircuits.transcoders.dictionary import Transcoders
    from tcircuits.transcoders.lazy import LazyTranscoders
    from tcircuits.transcoders.loading import load_transcoders, open_transcoders
    from tcircuits.transcoders.saving import save_transcoders
    from tcircuits.transcoders.statistics.run import feature_statistics
    from tcircuits.types import InputError
    from tcircuits.view.page import write_page

_HOME = {
    "tcircuits.attribution": (
        "Difference",
        "Direction",
        "Feature",
        "Graph",
        "Logit",
        "Timings",
        "attention_report",
        "attribute",
        "attribute_batch",
        "corpus_effects",
        "deembed",
        "direct_logits",
        "edge_report",
        "effects",
        "expand",
        "feature_covectors",
        "feature_weights",
        "freeze",
        "head_loadings",
        "head_sources",
        "hold_of",
        "influence",
        "influence_sketch",
        "mean_hold",
        "ov_norms",
        "prune",
        "prune_masks",
        "pullback",
        "qk_pairs",
        "rows",
        "scores",
        "through_heads",
        "unit_hold",
        "virtual_weights",
    ),
    "tcircuits.attribution.graph_io": ("load_graph", "save_graph"),
    "tcircuits.attribution.paths": ("PathGraph", "find_paths", "load_paths", "save_paths"),
    "tcircuits.circuits": (
        "BehaviourGraph",
        "Circuit",
        "Hierarchy",
        "Report",
        "build_graph",
        "discover",
        "edge_effects",
        "edges_of",
        "group_search",
        "hierarchy",
        "load_behaviour_graph",
        "eliminate",
        "extract",
        "ExtractOptions",
        "load_circuit",
        "interchange",
        "path_sweep",
        "patching_sweep",
        "load_hierarchy",
        "run_circuits",
        "save_behaviour_graph",
        "save_circuit",
        "save_hierarchy",
        "trim",
        "unit_scores",
        "units_of",
        "validate",
    ),
    "tcircuits.interventions": ("feature_edit", "intervene", "steer"),
    "tcircuits.models.edits": ("Edit", "edit"),
    "tcircuits.models.folding": ("fold",),
    "tcircuits.models.forward": ("Output", "forward"),
    "tcircuits.models.generate": ("generate",),
    "tcircuits.models.loading": ("load_model",),
    "tcircuits.models.model": ("Model", "save_model"),
    "tcircuits.planning": ("Plan", "plan"),
    "tcircuits.tasks": ("Behaviour", "check_capability", "load_behaviour", "make_behaviour", "save_behaviour"),
    "tcircuits.transcoders.dictionary": ("Transcoders",),
    "tcircuits.transcoders.lazy": ("LazyTranscoders",),
    "tcircuits.transcoders.loading": ("load_transcoders", "open_transcoders"),
    "tcircuits.transcoders.saving": ("save_transcoders",),
    "tcircuits.transcoders.statistics.run": ("feature_statistics",),
    "tcircuits.types": ("InputError",),
    "tcircuits.view.page": ("write_page",),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Behaviour",
    "BehaviourGraph",
    "Circuit",
    "Difference",
    "Direction",
    "Edit",
    "ExtractOptions",
    "Feature",
    "Graph",
    "Hierarchy",
    "InputError",
    "LazyTranscoders",
    "Logit",
    "Model",
    "Output",
    "PathGraph",
    "Plan",
    "Report",
    "Timings",
    "Transcoders",
    "__version__",
    "attention_report",
    "attribute",
    "attribute_batch",
    "build_graph",
    "check_capability",
    "corpus_effects",
    "deembed",
    "direct_logits",
    "discover",
    "edge_effects",
    "edge_report",
    "edges_of",
    "edit",
    "effects",
    "eliminate",
    "expand",
    "extract",
    "feature_covectors",
    "feature_edit",
    "feature_statistics",
    "feature_weights",
    "find_paths",
    "fold",
    "forward",
    "freeze",
    "generate",
    "group_search",
    "head_loadings",
    "head_sources",
    "hierarchy",
    "hold_of",
    "influence",
    "influence_sketch",
    "interchange",
    "intervene",
    "load_behaviour",
    "load_behaviour_graph",
    "load_circuit",
    "load_graph",
    "load_hierarchy",
    "load_model",
    "load_paths",
    "load_transcoders",
    "make_behaviour",
    "mean_hold",
    "open_transcoders",
    "ov_norms",
    "patching_sweep",
    "path_sweep",
    "plan",
    "prune",
    "prune_masks",
    "pullback",
    "qk_pairs",
    "rows",
    "run_circuits",
    "save_behaviour",
    "save_behaviour_graph",
    "save_circuit",
    "save_graph",
    "save_hierarchy",
    "save_model",
    "save_paths",
    "save_transcoders",
    "scores",
    "steer",
    "through_heads",
    "trim",
    "unit_hold",
    "unit_scores",
    "units_of",
    "validate",
    "virtual_weights",
    "write_page",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _WHERE:
        raise AttributeError(f"module 'tcircuits' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    if name in _HOME["tcircuits.attribution"] or name == "load_graph":  # whatever a graph can come from
        importlib.import_module("tcircuits.attribution.graph").HTML.setdefault("fragment", _fragment)
    return value


def _fragment(graph_json: dict[str, Any]) -> str:
    """What a graph shows in a notebook; the graph itself must not import the page, which stands above it."""
    return importlib.import_module("tcircuits.view.page").html_fragment(graph_json)


def __dir__() -> list[str]:
    return __all__
