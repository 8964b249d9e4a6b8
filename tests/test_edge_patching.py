"""Edges against patching: with all held they are the same; correlations are those of the pairs that were chosen."""

import numpy as np
import pytest

from experiments.edge_patching import Config, case, correlations
from experiments.toys import random_dictionary, random_model


def test_edges_are_what_happens_when_all_is_held():
    model, tokens = random_model("llama", n_layers=2, d_mlp=16, d_vocab=20), np.array([3, 1, 4, 1])
    d = random_dictionary(model, "plt-relu", tokens, d_feature=24, share=0.2)
    found = case(Config(max_features=40), model, d, tokens)
    size = np.abs(found["edges"]).sum(1, keepdims=True)
    assert np.abs((found["held"] + found["edges"]) / size).max() < 1e-5  # of the row, in float32
    assert np.abs((found["free"] + found["edges"]) / size).max() > 1e-3
    targets = found["target"].tolist()
    first, second = (np.flatnonzero(found["target"] == "logit")[i] for i in (0, 1))
    np.testing.assert_array_equal(found["edges"][-1], found["edges"][first] - found["edges"][second])
    assert (targets.count("difference"), targets[-1]) == (1, "difference")
    assert found["edges"].shape == (len(targets), len(found["source"]))


def test_correlations_are_of_the_pairs_of_a_kind():
    rng = np.random.default_rng(0)
    edges = rng.normal(size=(5, 8))
    edges[0, :3] = 0
    source, target = np.repeat(["feature", "token"], 4), np.array(["feature"] * 3 + ["logit"] * 2)
    changes = -2 * edges + rng.normal(size=edges.shape)
    rows = correlations([{"edges": edges, "way": changes, "source": source, "target": target}], "way")
    row = next(r for r in rows if (r["source"], r["target"]) == ("feature", "feature"))
    kept = edges[:3, :4] != 0
    expected = np.corrcoef(-edges[:3, :4][kept], changes[:3, :4][kept])[0, 1]
    assert (row["pairs"], row["pearson"]) == (9, pytest.approx(expected))
