"""What a round says about itself: client drift, agreement of updates, the bias of averaging A and B apart."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedit import lora, seeds, tensors
from fedit.types import ClientUpdate, Tensors

EXACT_RANK = 256
"""Up to this sum of ranks over the cohort the aggregation bias is exact; beyond it, a sketch estimates it."""

SKETCH_COLUMNS = 64


class Drift:
    """How far clients moved and how much they agree; holds two sets of tensors, whatever the cohort."""

    def __init__(self) -> None:
        self.norms: dict[str, float] = {}
        self._mean = tensors.RunningMean()
        self._directions = tensors.RunningMean()
        self._weighted_squares = 0.0

    def observe(self, update: ClientUpdate) -> None:
        """Take one accepted update into account."""
        norm = tensors.norm(update.delta)
        self.norms[update.client_id] = norm
        self._mean.add(update.delta, update.weight)
        self._weighted_squares += update.weight * norm**2
        if norm > 0:
            self._directions.add({name: t / norm for name, t in update.delta.items()}, 1.0)

    def report(self) -> dict[str, float]:
        """Return update norms, the mean pairwise cosine of updates, and gradient diversity.

        Diversity is sum p_k |d_k|^2 / |mean d|^2: 1 when all clients agree, larger as they cancel.
        """
        if not self.norms:
            return {}
        mean_norm = tensors.norm(self._mean.value())
        report = {
            "update_norm_mean": sum(self.norms.values()) / len(self.norms),
            "update_norm_max": max(self.norms.values()),
            "mean_update_norm": mean_norm,
        }
        count = self._directions.weight
        if count > 1:
            # |sum of unit vectors|^2 = count + sum over ordered pairs of their cosines
            squared = (count * tensors.norm(self._directions.value())) ** 2
            report["pairwise_cosine"] = (squared - count) / (count * (count - 1))
        if mean_norm > 0:
            report["diversity"] = self._weighted_squares / self._mean.weight / mean_norm**2
        return report


class AggregationBias:
    """|sum p dB dA - mean dB mean dA| over |sum p B A - B_t A_t|: what averaging factors apart loses.

    d is the client's delta from the round's adapter. The numerator is the weighted covariance
    of the factors' drifts, the difference between the mean of the products and the product of
    the means (arXiv:2305.05644 averages factors; arXiv:2410.09432 names the difference).
    Exact while the cohort's ranks sum to at most `EXACT_RANK`, otherwise from a seeded
    Gaussian sketch with its standard error.
    """

    def __init__(self, adapter: Tensors, cohort_size: int, seed: int) -> None:
        self._adapter = adapter
        self._mean = tensors.RunningMean()
        self._modules = [m for m in lora.modules(adapter) if f"{m}.A" in adapter and f"{m}.B" in adapter]
        rank = max((adapter[f"{m}.A"].shape[0] for m in self._modules), default=0)
        self.exact = cohort_size * rank <= EXACT_RANK
        self._deltas: list[tuple[Tensors, float]] = []
        self._sketches: dict[str, Tensor] = {}
        self._probes = {} if self.exact else {m: self._probe(m, seed) for m in self._modules}

    def observe(self, update: ClientUpdate) -> None:
        """Take one accepted update into account; those that lack a factor have no product to compare."""
        if any(name not in update.delta for name in self._adapter):
            return
        self._mean.add(update.delta, update.weight)
        if self.exact:
            self._deltas.append((update.delta, update.weight))
            return
        for module, probe in self._probes.items():
            a, b = update.delta[f"{module}.A"].double(), update.delta[f"{module}.B"].double()
            product = update.weight * (b @ (a @ probe))
            self._sketches[module] = self._sketches[module] + product if module in self._sketches else product

    def report(self) -> dict[str, float]:
        """Return ``aggregation_bias`` and, from a sketch, ``aggregation_bias_error`` (one standard error)."""
        if self._mean.weight == 0:
            return {}
        mean = self._mean.value()
        if self.exact:
            lost = math.sqrt(sum(self._exact(m, mean, lost=True) ** 2 for m in self._modules))
            moved = math.sqrt(sum(self._exact(m, mean, lost=False) ** 2 for m in self._modules))
            return {"aggregation_bias": lost / moved} if moved > 0 else {}
        lost_squares, moved_squares = self._sketched(mean)
        if float(moved_squares.sum()) == 0:
            return {}
        bias = math.sqrt(float(lost_squares.sum() / moved_squares.sum()))
        return {
            "aggregation_bias": bias,
            "aggregation_bias_error": bias * _ratio_error(lost_squares, moved_squares),
        }

    def _exact(self, module: str, mean: Mapping[str, Tensor], *, lost: bool) -> float:
        mean_a, mean_b = mean[f"{module}.A"], mean[f"{module}.B"]
        left = [(weight / self._mean.weight) * delta[f"{module}.B"] for delta, weight in self._deltas]
        right = [delta[f"{module}.A"] for delta, _ in self._deltas]
        if lost:
            left, right = [*left, -mean_b], [*right, mean_a]
        else:
            left += [self._adapter[f"{module}.B"], mean_b]
            right += [mean_a, self._adapter[f"{module}.A"]]
        return lora.product_norm(torch.cat(left, dim=1), torch.cat(right, dim=0))

    def _sketched(self, mean: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        lost = torch.zeros(SKETCH_COLUMNS, dtype=torch.float64)
        moved = torch.zeros(SKETCH_COLUMNS, dtype=torch.float64)
        for module, probe in self._probes.items():
            a, b = self._adapter[f"{module}.A"].double(), self._adapter[f"{module}.B"].double()
            mean_a, mean_b = mean[f"{module}.A"].double(), mean[f"{module}.B"].double()
            products = self._sketches[module] / self._mean.weight
            lost += (products - mean_b @ (mean_a @ probe)).square().sum(0)
            moved += (products + b @ (mean_a @ probe) + mean_b @ (a @ probe)).square().sum(0)
        return lost, moved

    def _probe(self, module: str, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seeds.derive(seed, "sketch", module))
        width = self._adapter[f"{module}.A"].shape[1]
        return torch.randn(width, SKETCH_COLUMNS, generator=generator, dtype=torch.float64)


def _ratio_error(numerator: Tensor, denominator: Tensor) -> float:
    """Return the relative standard error of sqrt(sum numerator / sum denominator) over paired columns."""
    count = len(numerator)
    relative = (
        numerator / numerator.mean() - denominator / denominator.mean() if float(numerator.sum()) > 0 else None
    )
    return 0.0 if relative is None else 0.5 * float(relative.std()) / math.sqrt(count)
