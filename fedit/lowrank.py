"""Exact sums of low-rank products: clients' factors side by side, their SVD, and factors of what is left over.

Nothing here forms a matrix of a layer's size unless the factors together have that layer's full rank.
Every set of factors holds "m.A" (rank, in) and "m.B" (out, rank) and stands for the products B A.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit import lora, seeds
from fedit.errors import ConfigError, NoUpdates
from fedit.types import Broadcast, ClientInfo, ServerState, Tensors

DEAD = 1e-6
"""Directions whose singular value is below this share of the largest one count as dead."""

PRECISE_COST = 5e8
"""Floating point operations up to which a module is decomposed in float64: a tenth of a second on one core."""

BATCH_ENTRIES = 2**24
"""Entries of factors that are decomposed in one call; modules of equal shapes go together."""


class Stack:
    """The weighted sum of clients' products as one product: [w_1 s_1/s B_1 | w_2 s_2/s B_2 ...] [A_1; A_2; ...].

    A weight goes into B alone; in both factors it would count squared. Where the ranks add up to more than
    a module's smaller side, its dense sum takes less room than the factors and is kept instead, so that memory
    is bounded whatever the cohort.

    scale:  s, that the sum will be multiplied by; each client's own scale is converted to it.
    weight: of all clients that were added.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.weight = 0.0
        self._left: dict[str, list[Tensor]] = {}
        self._right: dict[str, list[Tensor]] = {}
        self._dense: dict[str, Tensor] = {}
        self._squares: dict[str, float] = {}

    def add(
        self, factors: Mapping[str, Tensor], weight: float, scale: float, shares: Tensor | None = None
    ) -> None:
        """Add ``weight * scale / self.scale * B A`` of every module.

        shares: what each rank-one term of a module counts besides, one number a term; None: 1.
        """
        self.weight += weight
        factor = weight * scale / self.scale
        for module in lora.modules(factors):
            a, b = factors[f"{module}.A"], factors[f"{module}.B"]
            self._append(module, b * (factor if shares is None else factor * shares[: b.shape[1]].to(b.dtype)), a)

    def subtract(self, factors: Mapping[str, Tensor]) -> None:
        """Take ``B A``, which has the stack's scale, off the mean; after all clients were added."""
        for module in lora.modules(factors):
            self._append(module, -self.weight * factors[f"{module}.B"], factors[f"{module}.A"])

    def mean(self) -> Tensors:
        """Return factors of the sum over ``weight``; those of dense sums are float64.

        Raises:
            NoUpdates: no client was added.
        """
        if self.weight == 0:
            raise NoUpdates("no client of the cohort delivered a usable update")
        factors: Tensors = {}
        for module, right in self._right.items():
            factors[f"{module}.A"] = torch.cat(right)
            factors[f"{module}.B"] = torch.cat(self._left[module], dim=1) / self.weight
        for module, total in self._dense.items():
            out, width = total.shape
            identity = torch.eye(min(out, width), dtype=total.dtype)
            factors[f"{module}.A"] = total / self.weight if out <= width else identity
            factors[f"{module}.B"] = identity if out <= width else total / self.weight
        return factors

    def sizes(self) -> dict[str, float]:
        """Return for every module the norm of the mean if all rank-one terms were orthogonal (`Spectrum.size`)."""
        return {module: math.sqrt(squares) / self.weight for module, squares in self._squares.items()}

    def _append(self, module: str, b: Tensor, a: Tensor) -> None:
        self._squares[module] = self._squares.get(module, 0.0) + float(_squares(b, a))
        if module in self._dense:
            self._dense[module].addmm_(b.double(), a.double())
            return
        left, right = self._left.setdefault(module, []), self._right.setdefault(module, [])
        left.append(b)
        right.append(a)
        if sum(map(len, right)) > min(b.shape[0], a.shape[1]):
            self._dense[module] = torch.cat(left, dim=1).double() @ torch.cat(right).double()
            del self._left[module], self._right[module]


def truncate(adapter: Mapping[str, Tensor], rank: int) -> Tensors:
    """Return the first ``rank`` rows of every A and columns of every B; what has no more is kept as it is."""
    return {name: tensor[:rank] if name.endswith(".A") else tensor[:, :rank] for name, tensor in adapter.items()}


def rescale(adapter: Tensors, scale: float, to: float) -> Tensors:
    """Return the adapter whose products times ``to`` are those of ``adapter`` times ``scale``."""
    if scale == to:
        return adapter
    return {name: tensor * (scale / to) if name.endswith(".B") else tensor for name, tensor in adapter.items()}


def for_client(server: ServerState, client: ClientInfo) -> Broadcast:
    """Return the server's model at the client's rank and scale: the leading directions, B in the client's units.

    Raises:
        ConfigError: the client's rank is more than the server's.
    """
    adapter, scale = server.adapter, server.scale if client.scale is None else client.scale
    if client.rank is not None:
        most = lora.rank_of(adapter)
        if client.rank > most:
            raise ConfigError(
                f"client '{client.client_id}' has rank {client.rank}, the server {most}; "
                "set lora_r to the largest rank of any client."
            )
        if client.rank < most:
            adapter = truncate(adapter, client.rank)
    return Broadcast(rescale(adapter, server.scale, scale), server.ledger, scale=scale)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """One module's product as U diag(S) V^T.

    left:   (out, k), orthonormal columns whose largest entry is positive; right: (k, in), orthonormal rows.
    values: all singular values, falling, float64; there may be more of them than vectors.
    size:   Frobenius norm that the product would have if its rank-one terms were orthogonal: what rounding
            errors are measured by where the terms cancel.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    size: float

    def energy(self, start: int, end: int | None = None) -> float:
        """Return the sum of the squares of the singular values from ``start`` to ``end``."""
        return float(self.values[start:end].square().sum())


def decompose(
    factors: Mapping[str, Tensor],
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    sizes: Mapping[str, float] | None = None,
) -> dict[str, Spectrum]:
    """Return the singular value decomposition of every module's product.

    rank:  so many singular vectors are wanted at most; None: all.
    dtype: of the factors' triangles and of the vectors; None: float64 for modules of up to ``PRECISE_COST``,
           float32 beyond. The small core between the triangles is always float64.
    sizes: of the modules' products (see `Spectrum.size`), where their terms were added up before; None: of
           these factors.
    """
    found: dict[str, Spectrum] = {}
    for names in _batches(factors):
        b = torch.stack([factors[f"{name}.B"] for name in names])
        a = torch.stack([factors[f"{name}.A"] for name in names])
        cheap = _cost(b.shape[1], b.shape[2], a.shape[2], rank) <= PRECISE_COST
        kind = dtype or (torch.float64 if cheap else torch.float32)
        b, a = b.to(kind), a.to(kind)
        found_sizes = _squares(b, a).sqrt().tolist()
        left, values, right = _svd(b, a, rank)
        left, right = _with_signs(left, right)
        for index, name in enumerate(names):
            found[name] = Spectrum(
                left[index], values[index], right[index], sizes[name] if sizes else found_sizes[index]
            )
    return found


def orthonormal(spectrum: Spectrum, rank: int) -> tuple[Tensor, Tensor]:
    """Return ``A = V^T`` (rank, in) and ``B = U S`` (out, rank): the best product of this rank, float32.

    The rows of A have norm 1 whatever the singular values, so that a direction without energy still learns:
    its column of B is zero and gets a gradient. Rows that the spectrum lacks are completed, orthonormally
    where there is room.
    """
    left, values, right = _cut(spectrum, rank)
    return _completed(right.float(), rank), _widened((left * values).float(), rank)


def balanced(spectrum: Spectrum, rank: int) -> tuple[Tensor, Tensor]:
    """Return ``A = sqrt(S) V^T`` (rank, in) and ``B = U sqrt(S)`` (out, rank), float32.

    A direction of (almost) no energy would have a row of A and a column of B near zero, and a gradient
    near zero for ever; its row of A is V^T's instead and its column of B zero.
    """
    left, values, right = _cut(spectrum, rank)
    alive = (values > DEAD * spectrum.values[:1]) & (values > 0)
    root = values.sqrt()
    a = right * torch.where(alive, root, torch.ones_like(root))[:, None]
    b = left * torch.where(alive, root, torch.zeros_like(root))
    return _completed(a.float(), rank), _widened(b.float(), rank)


def compress(
    factors: Mapping[str, Tensor],
    tolerance: float,
    rank: int | None = None,
    sizes: Mapping[str, float] | None = None,
) -> Tensors:
    """Return factors of the same products, each of as low a rank as ``tolerance`` allows; zeros are left out.

    tolerance: what may be lost of a product, as a share of ``Spectrum.size``, in the Frobenius norm.
    rank:      that no product may exceed; beyond it, the smallest singular values go whatever they are.
    sizes:     as in `decompose`.
    """
    compressed: Tensors = {}
    for module, spectrum in decompose(factors, dtype=torch.float64, sizes=sizes).items():
        lost = spectrum.values.square().flip(0).cumsum(0).flip(0).sqrt()
        needed = int((lost > tolerance * spectrum.size).sum())
        if kept := needed if rank is None else min(needed, rank):
            root = spectrum.values[:kept].sqrt()
            compressed[f"{module}.A"] = (root[:, None] * spectrum.right[:kept]).float()
            compressed[f"{module}.B"] = (spectrum.left[:, :kept] * root).float()
    return compressed


def plus(
    ledger: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
    scale: float,
    tolerance: float,
    sizes: Mapping[str, float] | None = None,
) -> Tensors:
    """Return the ledger with ``scale * B A`` added to it, compressed (see `compress`).

    sizes: of the factors (see `Spectrum.size`), where their terms were added up before; None: of what is given.
    """
    total = dict(ledger)
    measured: dict[str, float] = {}
    for module in lora.modules({**ledger, **factors}):
        squares = 0.0
        if f"{module}.A" in ledger:
            squares += float(_squares(ledger[f"{module}.B"], ledger[f"{module}.A"]))
        if f"{module}.A" in factors:
            a, b = factors[f"{module}.A"], scale * factors[f"{module}.B"]
            squares += (scale * sizes[module]) ** 2 if sizes else float(_squares(b, a))
            if f"{module}.A" in ledger:
                a, b = torch.cat([ledger[f"{module}.A"], a]), torch.cat([ledger[f"{module}.B"], b], dim=1)
            total[f"{module}.A"], total[f"{module}.B"] = a, b
        measured[module] = math.sqrt(squares)
    return compress(total, tolerance, sizes=measured)


def check_tolerance(strategy: str, tolerance: float) -> None:
    """Raise ``ConfigError`` if ``tolerance`` is none that a ledger can be compressed with."""
    if not 0 <= tolerance < 1:
        raise ConfigError(
            f"option 'tolerance' of strategy '{strategy}' is {tolerance}; expected 0 or more and less than 1."
        )


def effective_rank(values: Tensor) -> float:
    """Return exp(entropy) of the energy's distribution over singular values: 1 to their number; 0 without energy.

    values: singular values. The definition is Roy & Vetterli's (2007), of squared singular values.
    """
    energy = values.double().square()
    if not (total := float(energy.sum())):
        return 0.0
    share = energy / total
    return math.exp(float(-torch.xlogy(share, share).sum()))


def _squares(b: Tensor, a: Tensor) -> Tensor:
    """Return the sum of the squared norms of the rank-one terms of ``b @ a``, float64."""
    lefts = torch.linalg.vector_norm(b, dim=-2, dtype=torch.float64)
    rights = torch.linalg.vector_norm(a, dim=-1, dtype=torch.float64)
    squares: Tensor = (lefts * rights).square().sum(-1)
    return squares


def _batches(factors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Yield names of modules of equal shapes, few enough of them to lie in memory together once more."""
    alike: dict[tuple[torch.Size, torch.Size], list[str]] = {}
    for module in lora.modules(factors):
        alike.setdefault((factors[f"{module}.B"].shape, factors[f"{module}.A"].shape), []).append(module)
    for (left, right), names in alike.items():
        step = max(1, BATCH_ENTRIES // max(1, left.numel() + right.numel()))
        for start in range(0, len(names), step):
            yield names[start : start + step]


def _svd(b: Tensor, a: Tensor, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the SVD of ``b @ a``: left (count, out, k), values (count, all) in float64, right (count, k, in)."""
    (out, inner), width = b.shape[1:], a.shape[2]
    if _goes_dense(out, inner, width, rank):
        u, values, vt = torch.linalg.svd(b @ a, full_matrices=False)
        return u[..., :rank], values.double(), vt[..., :rank, :]
    left, right = _Triangle.of(b), _Triangle.of(a.mT)
    u, values, vt = torch.linalg.svd(left.r.double() @ right.r.double().mT, full_matrices=False)
    return left.times(u[..., :rank]), values, right.times(vt[..., :rank, :].mT).mT


@dataclass(frozen=True, slots=True)
class _Triangle:
    """A QR decomposition whose Q stays a product of reflections: applying it costs less than writing it down."""

    r: Tensor
    reflections: Tensor
    taus: Tensor

    @classmethod
    def of(cls, matrices: Tensor) -> "_Triangle":
        reflections, taus = torch.geqrf(matrices)
        count = taus.shape[-1]
        return cls(reflections[..., :count, :].triu(), reflections[..., :count], taus)

    def times(self, small: Tensor) -> Tensor:
        """Return ``Q @ small``."""
        tall = self.reflections.new_zeros(*small.shape[:-2], self.reflections.shape[-2], small.shape[-1])
        tall[..., : small.shape[-2], :] = small.to(tall.dtype)
        return torch.ormqr(self.reflections, self.taus, tall)


def _goes_dense(out: int, inner: int, width: int, rank: int | None) -> bool:
    """Return whether the matrix itself is the cheaper way; only where the factors have its full rank."""
    cheaper = _dense_cost(out, inner, width) < _factored_cost(out, inner, width, rank)
    return inner >= min(out, width) and cheaper


def _cost(out: int, inner: int, width: int, rank: int | None) -> float:
    dense = _goes_dense(out, inner, width, rank)
    return _dense_cost(out, inner, width) if dense else _factored_cost(out, inner, width, rank)


def _dense_cost(out: int, inner: int, width: int) -> float:
    return 2.0 * out * inner * width + _svd_cost(out, width)


def _factored_cost(out: int, inner: int, width: int, rank: int | None) -> float:
    """Return the floating point operations of two QRs, the core's SVD (twice: float64) and both ways back."""
    left, right = min(out, inner), min(width, inner)
    wanted = min(left, right) if rank is None else min(left, right, rank)
    triangles = 2.0 * inner * (out * left + width * right) + 4.0 * wanted * (out * left + width * right)
    return triangles + 2.0 * (2.0 * left * inner * right + _svd_cost(left, right))


def _svd_cost(rows: int, columns: int) -> float:
    """Return about how many floating point operations an SVD with both sets of vectors takes."""
    small, large = min(rows, columns), max(rows, columns)
    return 6.0 * large * small**2 + 20.0 * small**3


def _with_signs(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with the signs that make the largest entry of every left vector positive."""
    if left.shape[-1] == 0:
        return left, right
    largest = left.abs().argmax(dim=-2, keepdim=True)
    signs = torch.where(left.gather(-2, largest) < 0, -1.0, 1.0).to(left.dtype)
    return left * signs, right * signs.mT


def _cut(spectrum: Spectrum, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    left, right = spectrum.left[:, :rank], spectrum.right[:rank]
    return left, spectrum.values[: left.shape[1]], right


def _widened(b: Tensor, rank: int) -> Tensor:
    return torch.nn.functional.pad(b, (0, rank - b.shape[1]))


def _completed(a: Tensor, rank: int) -> Tensor:
    """Return ``a`` with seeded random rows of norm 1 below it, orthogonal to all others where there is room."""
    (have, width), missing = a.shape, rank - len(a)
    if missing <= 0:
        return a
    generator = torch.Generator().manual_seed(seeds.derive(0, "rows", have, rank, width))
    rows = torch.randn(missing, width, generator=generator, dtype=torch.float64)
    if rank <= width:
        basis = torch.linalg.qr(torch.cat([a.double(), rows]).mT).Q
        rows = basis[:, have:].mT
    rows = rows / rows.norm(dim=1, keepdim=True)
    return torch.cat([a, rows.to(a.dtype)])
