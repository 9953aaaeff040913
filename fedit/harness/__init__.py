"""Benchmarks by lm-evaluation-harness: its tasks and metrics, over fedit's resident base and its arms.

The harness (extra ``harness``) is imported where it is used, so that everything else runs without it.
"""

from fedit.harness.run import Progress, bench

__all__ = ["Progress", "bench"]
