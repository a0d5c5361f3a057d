"""The approximate nearest-neighbour index of a large table: when it is built, its type, and its search settings.

`benchmarks/vector_search.py` produced these settings; it measures recall@10 against exact search.
"""

import numpy as np
from lancedb.index import IvfSq
from lancedb.query import LanceVectorQueryBuilder
from lancedb.table import Table


COLUMN = "vector"
MAX_EXACT_ROWS = 50_000  # up to this many rows, a query is compared with every row
PROBED_SHARE = 0.05  # share of the partitions that a query searches
MIN_PROBES = 20
REFINE_FACTOR = 4  # re-rank this many times k rows by their full vectors
MAX_UNINDEXED_SHARE = 0.1  # a query is compared with every row outside the index


def num_partitions(num_rows: int) -> int:
    """Return the number of partitions: the square root of the number of rows."""
    return round(num_rows**0.5)


def num_probes(num_rows: int) -> int:
    """Return the number of partitions that a query searches."""
    return max(MIN_PROBES, round(PROBED_SHARE * num_partitions(num_rows)))


def build(table: Table) -> None:
    """Build or replace the index: inverted lists of vectors quantized to 8 bits per dimension."""
    config = IvfSq(distance_type="cosine", num_partitions=num_partitions(table.count_rows()))
    table.create_index(COLUMN, config=config)


def needs_build(table: Table) -> bool:
    """Return whether the table is large and either has no index or one that lacks too many of its rows."""
    num_rows = table.count_rows()
    if num_rows <= MAX_EXACT_ROWS:
        return False
    unindexed = [index.num_unindexed_rows for index in table.list_indices() if index.columns == [COLUMN]]
    return not unindexed or unindexed[0] > MAX_UNINDEXED_SHARE * num_rows


def nearest(table: Table, vector: np.ndarray, k: int, exact: bool) -> LanceVectorQueryBuilder:
    """Return the query for the `k` rows with the highest cosine similarity to a vector.

    Args:
        table (`Table`): Table to search.
        vector (`np.ndarray` of shape `(dimensions,)`): Query embedding.
        k (`int`): Number of rows.
        exact (`bool`): Compare the vector with every row that passes the query's filter instead of using the index.
    """
    query = table.search(vector, vector_column_name=COLUMN).distance_type("cosine").limit(k)
    if exact:
        return query.bypass_vector_index()
    # With a selective filter, the query probes further partitions until it has k rows.
    return query.minimum_nprobes(num_probes(table.count_rows())).maximum_nprobes(0).refine_factor(REFINE_FACTOR)
