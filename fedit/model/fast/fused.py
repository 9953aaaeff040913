"""Elementwise steps of the fast path, each compiled into one kernel on a GPU, where passes over memory decide.

On a CPU, and for few tokens, they run as they are written: compiled ones were no faster on a CPU, and need a C++
compiler.
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

COMPILE = "FEDIT_COMPILE"
"""Environment variable that keeps `torch.compile` from being used where it says "0"."""

WORTH = 2**23
"""Entries of the first tensor from which a step is compiled: below, the call takes longer than the step itself."""

P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors: compiled where the first is large and on CUDA, as written elsewhere.

    ``compiled`` of the result is the compiled function, whatever the device.
    """

    @functools.cache
    def made() -> Callable[P, R]:
        return torch.compile(function)

    def compiled(*args: P.args, **kwargs: P.kwargs) -> R:
        # Tokens differ from call to call, widths do not: dividing indices by a constant is several times faster.
        tokens = args[0].shape[0]  # type: ignore[attr-defined]
        for argument in args:
            if isinstance(argument, Tensor) and argument.dim() and argument.shape[0] == tokens:
                torch._dynamo.maybe_mark_dynamic(argument, 0)
        return made()(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        run = compiled if isinstance(first, Tensor) and compiles(first) else function
        return run(*args, **kwargs)

    call.compiled = compiled  # type: ignore[attr-defined]
    return call


def compiles(x: Tensor) -> bool:
    """Whether a step whose first tensor is x is compiled."""
    return x.is_cuda and x.numel() >= WORTH and can_compile()


@functools.cache
def can_compile() -> bool:
    """Whether kernels for a GPU can be made here, and are wanted."""
    if os.environ.get(COMPILE) == "0":
        return False
    if importlib.util.find_spec("triton") is None:
        log.info("Triton is not installed: steps of the fast path are not fused")
        return False
    return True


@fused
def norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x (..., width) with a root mean square of 1 times ``weight``, as ``dtype``, and its factor (..., 1).

    Zhang and Sennrich, 2019, arXiv:1910.07467.
    """
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    rate = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * rate).mul_(weight).to(dtype), rate


@fused
def norm_again(x: Tensor, rate: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the first result of `norm` from its second."""
    return (x * rate).mul_(weight).to(dtype)


@fused
def norm_backward(dy: Tensor, x: Tensor, rate: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of `norm`'s x, of x's dtype, for that of its result."""
    return _norm_gradient(dy, x, rate, weight)


@fused
def add_norm_backward(dx: Tensor, dy: Tensor, x: Tensor, rate: Tensor, weight: Tensor) -> Tensor:
    """Add the result of `norm_backward` to ``dx``, in place, and return it."""
    return dx.add_(_norm_gradient(dy, x, rate, weight))


def _norm_gradient(dy: Tensor, x: Tensor, rate: Tensor, weight: Tensor) -> Tensor:
    dy = dy.to(x.dtype, copy=True).mul_(weight)
    mean = torch.linalg.vecdot(dy, x).unsqueeze_(-1).div_(x.shape[-1])
    return dy.mul_(rate).addcmul_(x, mean.mul_(rate.pow(3)), value=-1)


@fused
def add(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y in x's dtype."""
    return x + y


@fused
def turn(x: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
    """Return x (tokens, heads, dim), its first columns turned by angles as rotary positions are.

    cos: (tokens, pairs); signed: (tokens, 2, pairs), minus and plus the sines. The halves of the turned columns
    are pairs, as transformers has them. Su et al., 2021, arXiv:2104.09864.
    """
    half = cos.shape[-1]
    pairs = x[..., : 2 * half].unflatten(-1, (2, half))
    turned = (pairs * cos[:, None, None] + pairs.flip(-2) * signed.unsqueeze(1)).flatten(-2)
    return turned if 2 * half == x.shape[-1] else torch.cat([turned, x[..., 2 * half :]], dim=-1)


@fused
def target_scores(
    logits: Tensor, targets: Tensor, softcap: float | None, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return every target's log-probability (rows,) and whether it is the likeliest token, by logits (rows, V).

    softcap:  logits become softcap * tanh(logits / softcap), as Gemma 2 does; None: as they are.
    gradient: ``logits`` becomes the gradient of the log-probability with respect to itself, and the second result
              is None.
    """
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    slope = None
    if softcap is not None:
        values = values.div(softcap).tanh_()
        slope = 1 - values.square() if gradient else None
        values = values.mul_(softcap)
    own = values.gather(1, targets.unsqueeze(1))
    likeliest = None if gradient else values.argmax(-1) == targets
    highest = values.amax(-1, keepdim=True)
    weights = values.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True)
    scores = (own - highest - total.log()).squeeze(1)
    if gradient:
        # One-hot minus softmax, in full precision: of a target that is all but certain little remains.
        change = weights.mul_(total.reciprocal().neg_())
        change.scatter_add_(1, targets.unsqueeze(1), torch.ones_like(total))
        logits.copy_(change if slope is None else change.mul_(slope))
    return scores, likeliest
