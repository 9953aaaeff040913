"""What a client-round costs beyond training: the intercept of time against trained tokens."""

from collections.abc import Sequence

CLIENTS = 10
SIZES = [[10, 1], [32, 1], [160, 1], [32, 3]]
"""[tokens of a client's one row, optimizer steps over it]; the intercept uses two that differ in steps only."""
FITTED = ((32, 1), (32, 3))


def intercept(points: Sequence[tuple[float, float]]) -> float:
    """Return where the least-squares line through (tokens, seconds) meets zero tokens.

    >>> round(intercept([(32, 1.5), (96, 2.5)]), 9)
    1.0
    """
    if len({x for x, _ in points}) < 2:
        raise ValueError("a line needs two different numbers of tokens")
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x


def fixed_seconds(sizes: Sequence[dict[str, float]], clock: str) -> float:
    """Return a client-round's fixed seconds from a script's sizes; clock: "cpu_s" or "wall_s"."""
    return intercept([(s["tokens"] * s["steps"], s[clock]) for s in sizes if (s["tokens"], s["steps"]) in FITTED])


def end_to_end(sizes: Sequence[dict[str, float]], clock: str) -> dict[int, float]:
    """Return tokens -> seconds of a whole client-round of one step."""
    return {int(s["tokens"]): s[clock] for s in sizes if s["steps"] == 1}
