"""Select features and give all rows of a graph in one pure function: what batches and a user's own code build on."""

from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.rows import Rows, rows
from tcircuits.attribution.select import Selection, chunk_features, select_top
from tcircuits.attribution.sketch import influence_sketch
from tcircuits.attribution.targets import Targets, join, pad_targets
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params
from tcircuits.transcoders.dictionary import Transcoders


def expand(
    cfg: ModelConfig,
    params: Params,
    dictionary: Transcoders,
    frozen: Frozen,
    outputs: Targets,
    n_features: int,
    *,
    chunk: int = 64,
) -> tuple[Selection, Rows]:
    """The rows of `outputs` and of the `n_features` that have the most influence on them. Pure, with static caps."""
    score = influence_sketch(cfg, params, dictionary, frozen, outputs)
    selection = select_top(score, frozen.valid, n_features)
    n = selection.flat.shape[0]
    features = chunk_features(cfg, params, dictionary, frozen, selection, chunk, n // chunk + cfg.n_layers)
    size = max(chunk, outputs.pos.shape[1])
    targets = join(pad_targets(outputs, size), pad_targets(features, size))
    return selection, rows(cfg, params, dictionary, frozen, targets, selection)
