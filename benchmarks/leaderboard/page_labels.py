"""Where names go beside their points, so that none covers another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

GAP = 5.0
"""Room between a point and its nearest name."""
_STEP, _DIRECTIONS = 5.0, 24


class Box(NamedTuple):
    """A rectangle in points, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share an area."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def within(self, other: Box) -> bool:
        """Whether all of it lies in the other."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )

    def nearest(self, point: tuple[float, float]) -> tuple[float, float]:
        """The place of the rectangle that is nearest to a point."""
        return min(max(point[0], self.left), self.right), min(max(point[1], self.bottom), self.top)

    def crossed(self, start: tuple[float, float], end: tuple[float, float]) -> bool:
        """Whether a straight line goes through it (Liang and Barsky's clipping)."""
        first, last = 0.0, 1.0
        for low, high, origin, way in (
            (self.left, self.right, start[0], end[0] - start[0]),
            (self.bottom, self.top, start[1], end[1] - start[1]),
        ):
            if abs(way) < 1e-9:
                if not low < origin < high:
                    return False
                continue
            enter, leave = sorted(((low - origin) / way, (high - origin) / way))
            first, last = max(first, enter), min(last, leave)
        return first < last


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    obstacles: Sequence[Box] = (),
) -> list[Box]:
    """Puts a name near each point: in the frame, over no other name, no point and no line from a point to its name.

    The most crowded choose first, each the nearest free place; where there is none that no line crosses, one that
    lines cross, and where the frame is full, one outside of it.

    Args:
        points: Centres of the markers.
        sizes: Width and height of the names.
        frame: Where names may be.
        obstacles: What else they must not cover.

    Returns:
        The rectangles of the names, in the order of the points.
    """
    taken = [*(Box(x - GAP, y - GAP, x + GAP, y + GAP) for x, y in points), *obstacles]
    order = sorted(range(len(points)), key=lambda index: -_neighbours(points, index))
    placed: dict[int, Box] = {}
    for index in order:
        candidates = _candidates(points[index], sizes[index])
        free = [box for box in candidates if not any(box.overlaps(other) for other in (*placed.values(), *taken))]
        inside = [box for box in free if box.within(frame)]
        clear = (box for box in inside if _is_clear(index, box, points, placed))
        placed[index] = next(clear, None) or next(iter(inside), None) or next(iter(free), candidates[-1])
    return [placed[index] for index in range(len(points))]


def _neighbours(points: Sequence[tuple[float, float]], index: int) -> float:
    """How crowded a point is: near ones count most."""
    return sum(math.exp(-math.dist(points[index], other) / 40) for other in points)


def _candidates(point: tuple[float, float], size: tuple[float, float]) -> list[Box]:
    """Places around a point, the nearest first, to the right before to the left."""
    x, y = point
    width, height = size
    found = []
    for ring in range(60):
        distance = GAP + 1 + ring * _STEP
        for direction in range(_DIRECTIONS):
            angle = (direction + 1) // 2 * (-1) ** direction * 2 * math.pi / _DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            # the side of the name that faces the point touches the ring
            centre_x, centre_y = x + across * (distance + width / 2), y + up * (distance + height / 2)
            found.append(Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2))
    return sorted(found, key=lambda box: math.dist(box.nearest(point), point))


def _is_clear(index: int, box: Box, points: Sequence[tuple[float, float]], placed: dict[int, Box]) -> bool:
    """Whether lines and names stay apart, those that are there and the new ones."""
    mine = points[index], box.nearest(points[index])
    if any(other.crossed(*mine) for other in placed.values()):
        return False
    around = [Box(x - 3, y - 3, x + 3, y + 3) for at, (x, y) in enumerate(points) if at != index]
    if any(marker.crossed(*mine) for marker in around):
        return False
    return not any(box.crossed(points[other], found.nearest(points[other])) for other, found in placed.items())
