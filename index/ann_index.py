"""The approximate index of a large table: from how many rows on, of which kind, and how thoroughly it is searched.

The figures come from `benchmarks/vector_search.py`, which measures recall@10 against the exact search.
"""

import numpy as np
from lancedb.index import IvfSq
from lancedb.query import LanceVectorQueryBuilder
from lancedb.table import Table


COLUMN = "vector"
EXACT_UP_TO = 50_000  # rows among which a query is compared with all
PROBED = 0.05  # share of the partitions that a query looks into
FEWEST_PROBES = 20
REFINED = 4  # times as many rows as asked for, whose full vectors are compared in the end
OUTSIDE = 0.1  # most rows that may be outside the index, as a share; a query is compared with all of them


def partitions(rows: int) -> int:
    """As many partitions as each has rows: the square root of their number."""
    return round(rows**0.5)


def probes(rows: int) -> int:
    """How many partitions a query looks into."""
    return max(FEWEST_PROBES, round(PROBED * partitions(rows)))


def build(table: Table) -> None:
    """Make the index, in place of one that is there: inverted lists of vectors in 8 bits a dimension."""
    config = IvfSq(distance_type="cosine", num_partitions=partitions(table.count_rows()))
    table.create_index(COLUMN, config=config)


def outdated(table: Table) -> bool:
    """Whether the table is large and has no index, or one that lacks too many of its rows."""
    rows = table.count_rows()
    if rows <= EXACT_UP_TO:
        return False
    missing = [index.num_unindexed_rows for index in table.list_indices() if index.columns == [COLUMN]]
    return not missing or missing[0] > OUTSIDE * rows


def nearest(table: Table, vector: np.ndarray, k: int, exact: bool) -> LanceVectorQueryBuilder:
    """The query for the `k` rows nearest to a vector by cosine.

    Args:
        table (`Table`): Where to look.
        vector (`np.ndarray` of shape `(dimensions,)`): The query.
        k (`int`): How many rows.
        exact (`bool`): Compare the query with all rows, or, where a filter follows, with all that pass it.
    """
    query = table.search(vector, vector_column_name=COLUMN).distance_type("cosine").limit(k)
    if exact:
        return query.bypass_vector_index()
    # Where few rows pass a filter, the query looks into further partitions until it has k of them.
    return query.minimum_nprobes(probes(table.count_rows())).maximum_nprobes(0).refine_factor(REFINED)
