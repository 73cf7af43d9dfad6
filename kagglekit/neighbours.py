"""Which rows are nearer to each other than the crowd around them explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

INNER, OUTER = 30, 100  # ranks of the neighbours that tell how dense the crowd around a row is
FEWEST = 30  # rows; among fewer nothing can be said of a crowd

_BLOCK = 1 << 22  # distances held at once, no more than a cache of the processor takes
_FEW = 20_000  # rows that are all compared with all
_CELL = 500  # rows a cell
_SHARE = 6  # of the cells, one in so many is searched
_COMPONENTS = 32


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows, each once, `left` < `right`; sorted by `expected`, then by `distance`.

    `expected` is how many rows chance would bring so near to one of the two.
    """

    left: np.ndarray  # (pairs,) int64
    right: np.ndarray
    distance: np.ndarray  # (pairs,) float64
    expected: np.ndarray

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.left)

    def take(self, chosen: np.ndarray) -> Pairs:
        """The pairs at positions, or where a mask is True."""
        return Pairs(*(part[chosen] for part in self._parts))

    @property
    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.left, self.right, self.distance, self.expected


def pairs(left: np.ndarray, right: np.ndarray, distance: np.ndarray, expected: np.ndarray) -> Pairs:
    """`Pairs` of what may name a pair twice, in either order; the likelier of both is kept."""
    low, high = np.minimum(left, right), np.maximum(left, right)
    order = np.lexsort((distance, expected, high, low))
    low, high = low[order], high[order]
    first = np.ones(len(low), bool)
    first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    order, low, high = order[first], low[first], high[first]
    best = np.lexsort((distance[order], expected[order]))
    order = order[best]
    return Pairs(low[best], high[best], distance[order], expected[order])


def together(found: Sequence[Pairs]) -> Pairs:
    """All of several lists of pairs, each pair once."""
    names = ("left", "right", "distance", "expected")
    left, right, *rest = (np.concatenate([getattr(part, name) for part in found]) for name in names)
    return pairs(left, right, *rest)


@dataclass(frozen=True)
class Crowd:
    """How dense the rows lie around each of them, (rows,) each.

    Where rows lie densely on a surface of dimension m, the number of rows within a distance grows
    as its m-th power. So two ranks give the dimension (Levina and Bickel 2004, "Maximum likelihood
    estimation of intrinsic dimension"), and with it the number to expect within any distance.
    Ranks from 30 on are beyond most groups of copies or of pictures of one thing, and near enough
    that classes do not matter.
    """

    radius: np.ndarray  # distance of the neighbour of rank `inner`
    dimension: np.ndarray
    inner: int

    def expected(self, rows: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """How many rows chance brings within `distance` of each of `rows`; both (n,)."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            shares = distance / self.radius[rows]
            expected = self.inner * shares ** self.dimension[rows]
        # where neighbours of rank 30 are equal to the row, nothing can stand out
        return np.where(np.isfinite(expected), expected, np.inf)


def crowd(distances: np.ndarray) -> Crowd:
    """The crowd around each row by the sorted distances to its neighbours, (rows, ranks)."""
    outer = distances.shape[1]
    inner = max(1, round(outer * INNER / OUTER))
    near, far = distances[:, inner - 1], distances[:, outer - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        dimension = np.log(outer / inner) / np.log(far / near)
    known = dimension[np.isfinite(dimension)]
    usual = float(np.median(known)) if len(known) else 0.0
    # an estimate above the usual one is more often chance than a denser place
    dimension = np.minimum(np.where(np.isfinite(dimension), dimension, usual), usual)
    return Crowd(np.where(dimension > 0, near, 0.0), dimension, inner)


def ranks(rows: int) -> int:
    """How many neighbours of a row are looked at, where there are so many rows."""
    return min(OUTER, rows // 3)


@dataclass(frozen=True)
class Index:
    """Points sorted into cells, so that of many only those in the cells around are compared."""

    points: Tensor  # (rows, numbers)
    centres: Tensor  # (cells, numbers)
    members: tuple[Tensor, ...]  # of each cell: the rows in it
    around: Tensor  # (cells, near cells): each cell and those next to it

    def search(
        self, queries: Tensor, count: int, owners: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The `count` rows nearest to each query: squared distances and positions, (rows, count).

        Query i is a version of point i, which therefore does not count; nor do those that share
        its number in `owners`, (rows,).
        """
        owners = torch.arange(len(queries), device=queries.device) if owners is None else owners
        found = queries.new_full((len(queries), count), torch.inf)
        places = torch.zeros((len(queries), count), dtype=torch.int64, device=queries.device)
        home = _closest(queries, self.centres)
        for cell in range(len(self.centres)):
            asked = torch.nonzero(home == cell)[:, 0]
            rows = torch.cat([self.members[near] for near in self.around[cell].tolist()])
            squares = self.points[rows].square().sum(1)
            for part in asked.split(max(1, _BLOCK // max(1, len(rows)))):
                scores = torch.addmm(squares[None, :], queries[part], self.points[rows].T, alpha=-2)
                scores.masked_fill_(owners[rows][None, :] == owners[part][:, None], torch.inf)
                few = min(count, len(rows))
                best = scores.topk(few, dim=1, largest=False) if few > 1 else _least(scores)
                found[part, :few] = best[0] + queries[part].square().sum(1, keepdim=True)
                places[part, :few] = rows[best[1]]
        return found, places


def _least(scores: Tensor) -> tuple[Tensor, Tensor]:
    values, places = scores.min(dim=1, keepdim=True)
    return values, places


def index(points: Tensor) -> Index:
    """`points` (rows, numbers) in cells: one where they are few, and else about 500 rows each."""
    rows = torch.arange(len(points), device=points.device)
    if len(points) <= _FEW:
        nothing = torch.zeros((1, 1), dtype=torch.int64, device=points.device)
        return Index(points, points[:1], (rows,), nothing)
    centres = _centres(points, len(points) // _CELL)
    home = _closest(points, centres)
    members = tuple(torch.nonzero(home == cell)[:, 0] for cell in range(len(centres)))
    near = torch.cdist(centres, centres).topk(max(1, len(centres) // _SHARE), largest=False)
    return Index(points, centres, members, near.indices)


def _centres(points: Tensor, count: int) -> Tensor:
    """Lloyd's k-means on some of the points, from points spread over all rows."""
    sample = points[:: max(1, len(points) // _FEW)]
    centres = sample[:: max(1, len(sample) // count)][:count].clone()
    for _ in range(8):
        home = _closest(sample, centres)
        sums = torch.zeros_like(centres).index_add_(0, home, sample)
        sizes = torch.bincount(home, minlength=len(centres))[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return centres


def _closest(points: Tensor, centres: Tensor) -> Tensor:
    return torch.addmm(centres.square().sum(1)[None, :], points, centres.T, alpha=-2).argmin(1)


def nearest(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest other rows of each: distances, ascending, and positions, (rows, count).

    `points` are (rows, numbers). Distances are computed from differences, so that small ones are
    exact. Of very many points nearly all such neighbours are found, and the rest replaced by next
    ones.
    """
    places = index(points).search(points, count)[1]
    exact = distances(points, torch.arange(len(points), device=points.device), places)
    order = exact.argsort(dim=1)
    return exact.gather(1, order), places.gather(1, order)


def distances(points: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """From each of `rows` (n,) to each of its `others` (n, count), in double precision."""
    result = torch.empty(others.shape, dtype=torch.float64, device=points.device)
    step = max(1, _BLOCK // max(1, others.shape[1] * points.shape[1]))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        own = points[rows[part]].double()[:, None, :]
        result[part] = (points[others[part]].double() - own).norm(dim=2)
    return result


def whitened(features: np.ndarray, components: int = _COMPONENTS) -> Tensor:
    """Directions of (rows, numbers) features from their mean, in a space where all vary alike.

    The first principal components (fewer where rows are few), each scaled to variance one, and
    each row to length one: what all rows share says nothing, and no component outweighs another.
    """
    points = torch.from_numpy(np.ascontiguousarray(features, np.float64))
    points = points - points.mean(0)
    values, vectors = torch.linalg.eigh(points.T @ points / max(1, len(points)))
    count = max(1, min(components, len(points) // 8, int((values > values[-1] * 1e-9).sum())))
    turned = points @ vectors[:, -count:] / values[-count:].clamp_min(1e-30).sqrt()
    return torch.nn.functional.normalize(turned, dim=1).float()


def close_pairs(points: Tensor, alpha: float) -> Pairs:
    """Pairs of which both rows see the other where chance brings fewer than `alpha` rows.

    `points` are (rows, numbers). None among fewer rows than `FEWEST`.
    """
    if len(points) < FEWEST:
        nothing = np.zeros(0)
        return Pairs(nothing.astype(np.int64), nothing.astype(np.int64), nothing, nothing)
    near, places = (part.cpu().numpy() for part in nearest(points, ranks(len(points))))
    around = crowd(near)
    left = np.repeat(np.arange(len(points)), around.inner)
    right, distance = places[:, : around.inner].ravel(), near[:, : around.inner].ravel()
    expected = np.maximum(around.expected(left, distance), around.expected(right, distance))
    chosen = expected < alpha
    return pairs(left[chosen], right[chosen], distance[chosen], expected[chosen])


def clusters(rows: int, joined: Pairs) -> np.ndarray:
    """A number for each row, (rows,): rows that pairs join, one after another, share it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(joined)), (joined.left, joined.right)), shape=(rows, rows))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)
