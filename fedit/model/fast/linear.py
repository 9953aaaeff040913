"""Low-rank updates of frozen linear layers: small products beside the one that a group's layers share."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedit.model.examples import Examples
from fedit.model.fast.frozen import Group

Gradients = list[dict[str, Tensor]]
"""Per client: canonical name -> gradient in the adapter's own precision, or (examples, *shape) of its examples."""


@dataclass(slots=True)
class Ledger:
    """Frozen low-rank corrections of a group's weights, in compute dtype, at their own full size.

    a:     (clients, sum of ranks, in), the layers' A on top of each other; one client where all have the same.
    b:     per layer (clients, out, rank). Lower ranks are filled up with zeros.
    ranks: per layer.
    """

    a: Tensor
    b: list[Tensor]
    ranks: list[int]

    def forward(self, group: Group, x: Tensor, y: Tensor, spans: "Spans") -> None:
        """Add the corrections' output for x (rows, in) to y (rows, out)."""
        if len(self.a) == 1:
            u = torch.mm(x, self.a[0].T)
            for (_, low, high), b, part in zip(group.adapted, self.b, u.split(self.ranks, 1), strict=True):
                y[:, low:high].addmm_(part, b[0].T)
            return
        u = torch.bmm(spans.batch(x), self.a.transpose(1, 2))
        for (_, low, high), b, part in zip(group.adapted, self.b, u.split(self.ranks, 2), strict=True):
            spans.add_product(y[:, low:high], part, b.transpose(1, 2))

    def backward(self, group: Group, dy: Tensor, dx: Tensor, spans: "Spans") -> None:
        """Add the gradient of the input that goes through the corrections to dx (rows, in)."""
        if len(self.a) == 1:
            du = [torch.mm(dy[:, low:high], b[0]) for (_, low, high), b in zip(group.adapted, self.b, strict=True)]
            dx.addmm_(torch.cat(du, 1), self.a[0])
            return
        upstream = spans.batch(dy, zeros=True)
        parts = zip(group.adapted, self.b, strict=True)
        spans.add_product(
            dx, torch.cat([torch.bmm(upstream[:, :, low:high], b) for (_, low, high), b in parts], 2), self.a
        )


@dataclass(slots=True)
class Factors:
    """All clients' low-rank factors for a group, in compute dtype; lower ranks are filled up with zeros.

    a:      (clients, sum of ranks, in), the layers' A on top of each other.
    b:      per layer (clients, out, rank), the scales folded in.
    ranks:  per layer, the largest of all clients; own_ranks: per client and layer.
    scales: of all clients, or (clients, 1, 1) where they differ; trains_a, trains_b: per client and layer.
    ledger: of the clients, where one has any.
    """

    a: Tensor
    b: list[Tensor]
    ranks: list[int]
    own_ranks: list[list[int]]
    scales: Tensor | float
    trains_a: list[list[bool]]
    trains_b: list[list[bool]]
    ledger: Ledger | None = None

    @property
    def trained(self) -> bool:
        """Whether any factor is trained."""
        return any(map(any, self.trains_a)) or any(map(any, self.trains_b))


@dataclass(slots=True)
class Saved:
    """What the backward pass of a group needs besides its input.

    u:     (clients, longest, sum of ranks), the input times A; None where the group has no factors.
    masks: per layer (clients, longest, in), which inputs dropout kept; empty without dropout.
    """

    u: Tensor | None = None
    masks: list[Tensor] = field(default_factory=list)


class Spans:
    """Where each client's rows lie in a pass, and the same rows as one batch (clients, longest, width).

    examples: where the rows of each example lie, if gradients are to tell them apart.
    """

    def __init__(
        self, bounds: Sequence[tuple[int, int]], device: torch.device, examples: Examples | None = None
    ) -> None:
        self.bounds = tuple(bounds)
        self.examples = examples
        lengths = [end - start for start, end in bounds]
        self.clients, self.longest = len(bounds), max(lengths)
        self._even = min(lengths) == self.longest
        if not self._even:
            # A batch's empty places hold a row of their own client: what one client computes reaches no other.
            steps = torch.arange(self.longest)
            starts = torch.tensor([start for start, _ in bounds]).unsqueeze(1)
            last = torch.tensor(lengths).unsqueeze(1) - 1
            self._row_of_place = (starts + torch.minimum(steps, last.clamp(min=0))).flatten().to(device)
            filled = (steps <= last).flatten()
            self._place_of_row = filled.nonzero().squeeze(1).to(device)
            self._empty = (~filled).nonzero().squeeze(1).to(device)

    def batch(self, x: Tensor, *, zeros: bool = False) -> Tensor:
        """Return x (rows, width) as (clients, longest, width), a view if it can be; zeros: in empty places."""
        if self._even:
            return x.view(self.clients, self.longest, x.shape[1])
        filled = x.index_select(0, self._row_of_place)
        if zeros:
            filled.index_fill_(0, self._empty, 0)
        return filled.view(self.clients, self.longest, x.shape[1])

    def rows(self, batch: Tensor) -> Tensor:
        """Return a batch's rows as (rows, width)."""
        flat = batch.reshape(self.clients * self.longest, batch.shape[2])
        return flat if self._even else flat.index_select(0, self._place_of_row)

    def add_product(self, y: Tensor, one: Tensor, other: Tensor) -> None:
        """Add (clients, longest, n) times (clients, n, width), a product a client, to y (rows, width)."""
        if self._even:
            y.unflatten(0, (self.clients, self.longest)).baddbmm_(one, other)
        else:
            y.add_(self.rows(torch.bmm(one, other)))


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout before the factors, drawn per client from its own generator (None: PyTorch's)."""

    rate: float
    generators: Sequence[torch.Generator | None]

    def masks(self, client: int, shape: tuple[int, ...], count: int, device: torch.device) -> list[Tensor]:
        """Return one mask of kept inputs a layer."""
        keep = 1 - self.rate
        return [
            torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(keep, generator=self.generators[client])
            for _ in range(count)
        ]


def forward(
    group: Group,
    factors: Factors | None,
    x: Tensor,
    spans: Spans,
    dropout: Dropout | None,
    redo: Saved | None = None,
) -> tuple[Tensor, Saved]:
    """Return the group's output (tokens, out) for x (tokens, in), and what its backward pass needs.

    redo: what an earlier pass over the same input saved; its dropout masks are used again.
    """
    y = group.product(x)
    if factors is None:
        return y, Saved()
    if factors.ledger is not None:
        factors.ledger.forward(group, x, y, spans)
    batch = spans.batch(x)
    masks: list[Tensor] = []
    if dropout is None:
        u = torch.bmm(batch, factors.a.transpose(1, 2))
    else:
        masks = redo.masks if redo else _masks(dropout, spans, batch, len(factors.b))
        parts = zip(masks, factors.a.split(factors.ranks, dim=1), strict=True)
        u = torch.cat([torch.bmm(_drop(batch, m, dropout.rate), a.transpose(1, 2)) for m, a in parts], dim=2)
    for (_, low, high), b, part in zip(group.adapted, factors.b, u.split(factors.ranks, dim=2), strict=True):
        spans.add_product(y[:, low:high], part, b.transpose(1, 2))
    return y, Saved(u, masks)


def backward(
    group: Group,
    factors: Factors | None,
    x: Tensor | None,
    dy: Tensor,
    saved: Saved,
    spans: Spans,
    gradients: Gradients,
    *,
    needs_dx: bool,
    rate: float = 0.0,
) -> Tensor | None:
    """Add the factors' gradients to ``gradients`` and return that of the input (tokens, in), if it is needed.

    x: the input of the forward pass; only read where the group has factors.
    """
    dx = group.product_back(dy) if needs_dx else None
    if factors is None:
        return dx
    if dx is not None and factors.ledger is not None:
        factors.ledger.backward(group, dy, dx, spans)
    if x is None or saved.u is None:
        raise ValueError("a group with factors needs its input")
    upstream = spans.batch(dy, zeros=True)
    du = torch.empty_like(saved.u)
    parts = zip(saved.u.split(factors.ranks, dim=2), du.split(factors.ranks, dim=2), strict=True)
    for place, (u, du_own) in enumerate(parts):
        name, low, high = group.adapted[place]
        own = upstream[:, :, low:high]
        torch.bmm(own, factors.b[place], out=du_own)
        if any(trains[place] for trains in factors.trains_b):
            db = _outputs_products(own, u, spans, factors.scales)
            for client, trains in enumerate(factors.trains_b):
                if trains[place]:
                    gradients[client][f"{name}.B"] = db[client][..., : factors.own_ranks[client][place]]
    _inputs_backward(group, factors, spans.batch(x), du, saved.masks, rate, spans, gradients, dx)
    return dx


def _outputs_products(dy: Tensor, u: Tensor, spans: Spans, scales: Tensor | float) -> Tensor | list[Tensor]:
    """Return per client the gradient of B (out, rank), or those of its examples (examples, out, rank).

    dy: of the outputs (clients, longest, out); u: the inputs times A.
    """
    if spans.examples is not None:
        found = spans.examples.outer(spans.rows(u), spans.rows(dy))
        each = [scales] * len(found) if isinstance(scales, float | int) else scales
        return [_precise(own).transpose(1, 2) * scale for own, scale in zip(found, each, strict=True)]
    if dy.is_cuda:  # as the gradients lie in memory, so that they are added in one call
        return _precise(torch.bmm(dy.transpose(1, 2), u)) * scales
    # The other way round it is slow on a CPU.
    return _precise(torch.bmm(u.transpose(1, 2), dy).transpose(1, 2)) * scales


def _inputs_products(du: Tensor, x: Tensor, spans: Spans) -> Tensor | list[Tensor]:
    """Return per client the gradient of A (rank, in), or those of its examples (examples, rank, in)."""
    if spans.examples is not None:
        return [_precise(own) for own in spans.examples.outer(spans.rows(du), spans.rows(x))]
    return _precise(torch.bmm(du.transpose(1, 2), x))


def _inputs_backward(
    group: Group,
    factors: Factors,
    x: Tensor,
    du: Tensor,
    masks: list[Tensor],
    rate: float,
    spans: Spans,
    gradients: Gradients,
    dx: Tensor | None,
) -> None:
    """Add the gradients of A to ``gradients`` and, through A, that of the input to ``dx`` (tokens, in)."""
    trained = any(map(any, factors.trains_a))
    da: list[list[Tensor]] = []  # per layer and client
    if not masks:
        if trained:
            found = [own.split(factors.ranks, dim=-2) for own in _inputs_products(du, x, spans)]
            da = [[own[place] for own in found] for place in range(len(factors.ranks))]
        if dx is not None:
            spans.add_product(dx, du, factors.a)
    else:
        parts = zip(masks, du.split(factors.ranks, dim=2), factors.a.split(factors.ranks, dim=1), strict=True)
        for mask, du_own, a in parts:
            if trained:
                da.append(list(_inputs_products(du_own, _drop(x, mask, rate), spans)))
            if dx is not None:
                dx.add_(spans.rows(_drop(torch.bmm(du_own, a), mask, rate)))
    for place, own in enumerate(da):
        for client, trains in enumerate(factors.trains_a):
            if trains[place]:
                rank = factors.own_ranks[client][place]
                gradients[client][f"{group.adapted[place][0]}.A"] = own[client][..., :rank, :]


def _masks(dropout: Dropout, spans: Spans, batch: Tensor, count: int) -> list[Tensor]:
    """Return one mask (clients, longest, in) a layer; every client draws as many numbers as it would alone."""
    masks = [torch.zeros(batch.shape, dtype=torch.bool, device=batch.device) for _ in range(count)]
    for client, (start, end) in enumerate(spans.bounds):
        shape = (end - start, batch.shape[2])
        for mask, drawn in zip(masks, dropout.masks(client, shape, count, batch.device), strict=True):
            mask[client, : end - start] = drawn
    return masks


def _drop(x: Tensor, mask: Tensor, rate: float) -> Tensor:
    return (x * mask).mul_(1 / (1 - rate))


def _precise(gradient: Tensor) -> Tensor:
    """Return it in the adapter's precision: float64 stays, everything else becomes float32."""
    return gradient if gradient.dtype == torch.float64 else gradient.float()
