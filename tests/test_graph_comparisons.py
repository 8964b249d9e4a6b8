"""How experiments compare graphs of two precisions, or of two meshes: by hand on graphs of a few nodes."""

import numpy as np
import pytest

from experiments import attribution_meshes, precision

TARGET = -(1 << 40)


def read(columns, rows, influence, kept, leaves=(0.0, 0.0), values=(2.0,)):
    """Rows as {row: {column: weight}}; the target's last."""
    places = {name: i for i, name in enumerate(columns)}
    source = [places[c] for edges in rows.values() for c in edges]
    weight = [w for edges in rows.values() for w in edges.values()]
    start = np.cumsum([0, *(len(edges) for edges in rows.values())])
    return {
        "columns": np.array(columns), "rows": np.array(list(rows)), "start": start, "source": np.array(source),
        "weight": np.array(weight), "leaves": np.array(leaves), "influence": np.array(influence, float),
        "kept": np.array(kept), "edges": np.array([[TARGET] * len(kept), kept]), "values": np.array(values),
        "n_active": np.array(len(columns)),
    }  # fmt: skip


def test_rows_are_compared_over_all_sources_of_both():
    truth = read([7, 9, -1], {7: {-1: 2.0}, TARGET: {7: 3.0, 9: -1.0}}, [6, 2, 2], [7, -1], leaves=(0.0, 1.0))
    other = read([7, 8, -1], {7: {-1: 1.5}, TARGET: {7: 3.5, 8: 0.5}}, [6, 1, 3], [7, 8], leaves=(0.0, 1.0))
    found = precision.against(truth, other)
    # 0.5 of 2; and 0.5 + 1 + 0.5 of 3 + 1 + 1: the sources that one of them lacks count whole
    assert found["row_error_max"] == pytest.approx(0.4)
    assert found["row_error_median"] == pytest.approx((0.25 + 0.4) / 2)
    assert found["influence_error"] == pytest.approx((0.2 + 0.1 + 0.1) / 2)
    assert found["features"] == pytest.approx(1 / 3)
    assert found["nodes"] == found["edges"] == pytest.approx(1 / 3)
    assert found["carried"] == pytest.approx(0.6 / 0.8)
    assert precision.against(truth, truth)["row_error_max"] == 0


def test_meshes_are_compared_over_the_features_of_both():
    def graph(features, dense, influence, kept):
        full = {"values": np.array([4.0]), "gap": 1e-7, "mass": np.abs(dense).sum(1)}
        return full | {"features": np.array(features), "dense": dense, "influence": influence, "kept": kept}

    # columns: the features in their order, then one error; rows: the features, then one target
    one = graph([(0, 1, 5), (1, 1, 6)], np.array([[0, 0, 2.0], [1, 0, 1], [1, 2, 1]]), np.array([1.0, 3, 2]),
                np.array([1, 1, 0, 1], bool))  # fmt: skip
    two = graph([(0, 1, 4), (1, 1, 6)], np.array([[0, 0, 9.0], [9, 0, 1.5], [9, 2, 1]]), np.array([9.0, 3.3, 2]),
                np.array([1, 1, 1, 1], bool))  # fmt: skip
    found = attribution_meshes.against(one, two)
    assert found["features"] == pytest.approx(1 / 3)
    assert found["edges"] == pytest.approx(0.5 / 2)  # the feature's row: 1.5 for 1, of its mass 2
    assert found["influence"] == pytest.approx(0.1)
    assert found["nodes"] == pytest.approx(1 / 2)  # feature 6 in both, the error in one
    assert found["logits"] == 0
