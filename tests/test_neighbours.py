"""What stands out from the crowd is found, and a crowd alone is not accused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kagglekit import neighbours


def points(rows: int, dimensions: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, dimensions)))


def test_the_dimension_of_a_surface_is_read_from_two_ranks():
    flat = points(2000, 3) @ points(3, 20, seed=1)  # three dimensions in a space of twenty
    near = neighbours.nearest(flat, neighbours.OUTER)[0].numpy()
    assert 2.3 < np.median(neighbours.crowd(near).dimension) < 3.2


@pytest.mark.parametrize("dimensions", [1, 4, 12])
def test_of_rows_without_copies_no_more_are_flagged_than_chance_was_allowed(dimensions):
    found = neighbours.close_pairs(points(3000, dimensions), alpha=0.02)
    assert len(np.unique(np.concatenate([found.left, found.right]))) < 0.02 * 3000


def test_rows_with_a_little_noise_are_found_beside_their_originals():
    rows = points(1000, 6)
    both = torch.cat([rows, rows[:50] + 1e-3 * points(50, 6, seed=2)])
    found = neighbours.close_pairs(both, alpha=1e-4)
    assert set(zip(found.left.tolist(), found.right.tolist(), strict=True)) == {
        (row, 1000 + row) for row in range(50)
    }


def test_many_equal_rows_and_few_rows_are_no_error():
    assert len(neighbours.close_pairs(torch.zeros(200, 3), 0.1)) == 0
    assert len(neighbours.close_pairs(points(10, 3), 0.1)) == 0
    assert neighbours.whitened(np.ones((40, 5))).isfinite().all()


def test_cells_find_nearly_all_neighbours_that_comparing_all_with_all_finds(monkeypatch):
    rows = torch.nn.functional.normalize(points(4000, 8), dim=1)
    exact = neighbours.nearest(rows, 10)[1]
    monkeypatch.setattr(neighbours, "_FEW", 1000)
    monkeypatch.setattr(neighbours, "_CELL", 40)
    assert len(neighbours.index(rows).centres) == 100
    by_cells = neighbours.nearest(rows, 10)[1]
    same = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), by_cells.tolist(), strict=True)]
    assert np.mean(same) > 7
    twins = torch.cat([rows, rows[:100] + 1e-4])
    assert (neighbours.nearest(twins, 1)[1][4000:, 0] == torch.arange(100)).float().mean() > 0.97


def test_pairs_are_told_once_however_often_and_in_whatever_order_they_came():
    one, other = np.array([3, 1, 1]), np.array([1, 3, 2])
    found = neighbours.pairs(one, other, np.array([0.2, 0.1, 0.3]), np.array([0.0, 0.0, 1.0]))
    assert found.left.tolist() == [1, 1]
    assert found.right.tolist() == [3, 2]
    assert found.distance.tolist() == [0.1, 0.3]
    assert neighbours.clusters(5, found).tolist() == [0, 1, 1, 1, 2]
