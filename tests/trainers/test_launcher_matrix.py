"""A part of the launcher matrix in which every pair of values occurs; `make test-matrix` runs all of it."""

from collections.abc import Callable, Iterator
from itertools import combinations

import pytest
from launcher_matrix import CELLS, Cell, Matrix, covering_cells


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with Matrix(tmp_path_factory.mktemp("launchers") / "matrix") as matrix:
        yield matrix


@pytest.mark.slow
@pytest.mark.parametrize("cell", covering_cells(), ids=str)
def test_two_processes_train_save_and_resume_like_one_process(
    cell: Cell, matrix: Matrix, record_property: Callable[[str, object], None]
):
    matrix.run(cell)
    record_property("kills", 1)


def test_few_cells_cover_every_pair_of_values():
    def pairs(cells: list[Cell]) -> set[tuple[str, str]]:
        return {pair for cell in cells for pair in combinations(cell, 2)}

    assert pairs(covering_cells()) == pairs([*CELLS]) and len(covering_cells()) <= 16
