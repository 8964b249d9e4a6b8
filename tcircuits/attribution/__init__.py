"""Attribution graphs: the local replacement model, its rows, influence, pruning, files.

The pure cores, for `jit`, `vmap` and meshes: `freeze`, `rows`, `expand`, `influence`, `prune_masks`, `effects`,
`influence_sketch`. On top of them, for one prompt or several: `attribute`, `attribute_batch`, `prune`, `scores`.
"""

from tcircuits.attribution.attribute import attribute
from tcircuits.attribution.batch import attribute_batch
from tcircuits.attribution.expand import expand
from tcircuits.attribution.frozen import Frozen, freeze
from tcircuits.attribution.graph import Graph, TargetNode
from tcircuits.attribution.influence import influence, prune_masks
from tcircuits.attribution.prune import GraphScores, prune, scores
from tcircuits.attribution.rows import Rows, effects, rows
from tcircuits.attribution.select import Selection, select_top
from tcircuits.attribution.sketch import influence_sketch
from tcircuits.attribution.specify import Difference, Direction, Feature, Logit
from tcircuits.attribution.targets import Targets, logit_vectors, output_targets
from tcircuits.attribution.timing import Timings

__all__ = [
    "Difference",
    "Direction",
    "Feature",
    "Frozen",
    "Graph",
    "GraphScores",
    "Logit",
    "Rows",
    "Selection",
    "TargetNode",
    "Targets",
    "Timings",
    "attribute",
    "attribute_batch",
    "effects",
    "expand",
    "freeze",
    "influence",
    "influence_sketch",
    "logit_vectors",
    "output_targets",
    "prune",
    "prune_masks",
    "rows",
    "scores",
    "select_top",
]
