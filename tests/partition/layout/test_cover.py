import networkx
import numpy as np
import pytest
from networkx.algorithms import bipartite

from hpcgnn.partition.layout.cover import vertex_cover


def random_rows(num_rows, num_columns, num_edges, seed):
    """Return edges by row, some of them repeated: first edge of each row, columns."""
    ends = np.random.default_rng(seed).integers(0, (num_rows, num_columns), (num_edges, 2))
    rows, columns = ends[np.argsort(ends[:, 0], kind="stable")].T
    return np.searchsorted(rows, np.arange(num_rows + 1)), rows, columns


def matching_size(rows, columns):
    graph = networkx.Graph()
    graph.add_nodes_from(("row", r) for r in rows)
    graph.add_edges_from((("row", r), ("column", c)) for r, c in zip(rows, columns, strict=True))
    top = {node for node in graph if node[0] == "row"}
    return len(bipartite.hopcroft_karp_matching(graph, top)) // 2


@pytest.mark.parametrize(
    ("num_rows", "num_columns", "num_edges"),
    [(9, 7, 0), (1, 8, 5), (8, 1, 5), (40, 60, 50), (60, 40, 90), (50, 50, 120), (200, 190, 300)],
)
def test_covers_every_edge_with_as_many_rows_as_a_maximum_matching(
    num_rows, num_columns, num_edges
):
    for seed in range(10):
        begin, rows, columns = random_rows(num_rows, num_columns, num_edges, seed)
        rows_in, columns_in = vertex_cover(begin, columns, num_columns)
        assert (rows_in[rows] | columns_in[columns]).all()
        assert rows_in.sum() + columns_in.sum() == matching_size(rows, columns)


def test_covers_with_as_few_columns_as_possible():
    # A chain row 0 - column 0 - row 1 - column 1: one of each pair, whatever the matching.
    rows_in, columns_in = vertex_cover(np.array([0, 1, 3]), np.array([0, 0, 1]), 2)
    assert rows_in.tolist() == [True, True]
    assert columns_in.tolist() == [False, False]


def test_covers_long_paths():
    """Row i reads columns i + 1 and i around a ring without one edge: a path through all rows."""
    count = 20_000
    columns = np.stack([np.arange(1, count + 1), np.arange(count)]).T.flatten()[:-1]
    columns = np.where(columns == count, 0, columns)
    begin = np.minimum(2 * np.arange(count + 1), len(columns))
    rows_in, columns_in = vertex_cover(begin, columns, count)
    rows = np.repeat(np.arange(count), np.diff(begin))
    assert (rows_in[rows] | columns_in[columns]).all()
    assert rows_in.sum() + columns_in.sum() == count
