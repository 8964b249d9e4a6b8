"""Attribution graphs: the local replacement model, its rows, influence, pruning, files; and weights without a prompt.

The pure cores, for `jit`, `vmap` and meshes: `freeze`, `rows`, `expand`, `influence`, `prune_masks`, `effects`,
`influence_sketch`; of one prompt's heads `head_sources`, `head_loadings`, `qk_pairs`; without a prompt `pullback`,
`through_heads`, `deembed`, `ov_norms`, `direct_logits`, `virtual_weights`, with denominators of `unit_hold`, `hold_of`
or `mean_hold`. On top of them, for people: `attribute`, `attribute_batch`, `prune`, `scores`, `feature_weights`,
`corpus_effects`, `attention_report`, `edge_report`.
"""

from tcircuits.attribution.attribute import attribute
from tcircuits.attribution.batch import attribute_batch
from tcircuits.attribution.corpus import CorpusEffects, corpus_effects, mean_hold, top_overlap
from tcircuits.attribution.edge_report import edge_report
from tcircuits.attribution.expand import expand
from tcircuits.attribution.feature_weights import feature_weights
from tcircuits.attribution.forward_weights import direct_logits, written_streams
from tcircuits.attribution.frozen import Frozen, freeze
from tcircuits.attribution.graph import Graph, TargetNode
from tcircuits.attribution.head_report import attention_report
from tcircuits.attribution.heads import (
    HeadLoadings,
    HeadSources,
    error_source,
    feature_source,
    head_loadings,
    head_sources,
    head_values,
    token_source,
)
from tcircuits.attribution.influence import influence, prune_masks
from tcircuits.attribution.prune import GraphScores, prune, scores
from tcircuits.attribution.qk import QKPairs, qk_pairs
from tcircuits.attribution.rows import Rows, effects, rows
from tcircuits.attribution.select import Selection, select_top
from tcircuits.attribution.sketch import influence_sketch
from tcircuits.attribution.specify import Difference, Direction, Feature, Logit
from tcircuits.attribution.targets import Targets, logit_vectors, output_targets
from tcircuits.attribution.timing import Timings
from tcircuits.attribution.weights import (
    deembed,
    feature_covectors,
    hold_of,
    output_covectors,
    ov_norms,
    pullback,
    through_heads,
    unit_hold,
    virtual_weights,
)

__all__ = [
    "CorpusEffects",
    "Difference",
    "Direction",
    "Feature",
    "Frozen",
    "Graph",
    "GraphScores",
    "HeadLoadings",
    "HeadSources",
    "Logit",
    "QKPairs",
    "Rows",
    "Selection",
    "TargetNode",
    "Targets",
    "Timings",
    "attention_report",
    "attribute",
    "attribute_batch",
    "corpus_effects",
    "deembed",
    "direct_logits",
    "edge_report",
    "effects",
    "error_source",
    "expand",
    "feature_covectors",
    "feature_source",
    "feature_weights",
    "freeze",
    "head_loadings",
    "head_sources",
    "head_values",
    "hold_of",
    "influence",
    "influence_sketch",
    "logit_vectors",
    "mean_hold",
    "output_covectors",
    "output_targets",
    "ov_norms",
    "prune",
    "prune_masks",
    "pullback",
    "qk_pairs",
    "rows",
    "scores",
    "select_top",
    "through_heads",
    "token_source",
    "top_overlap",
    "unit_hold",
    "virtual_weights",
    "written_streams",
]
