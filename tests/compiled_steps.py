"""Compares fused steps, compiled, with themselves as written; a script: compiling imports what others warn of.

Its argument is the device, the CPU where there is none.
"""

import sys

import torch

from fedit.model.fast import fused
from fedit.model.fast.layer import ACTIVATIONS


def steps():
    """Return name -> (function, arguments made anew)."""
    torch.manual_seed(0)
    x, dy, weight = torch.randn(6, 32), torch.randn(6, 32).bfloat16(), torch.rand(32) + 0.5
    rate = torch.rand(6, 1)
    heads, angles, all_angles = torch.randn(6, 4, 16), torch.rand(6, 6), torch.rand(6, 8)
    logits, targets = torch.randn(6, 50).bfloat16(), torch.randint(50, (6,))
    gate = ACTIVATIONS["silu"]
    return {
        "norm": (fused.norm, (x, weight, 1e-5, torch.bfloat16)),
        "norm_again": (fused.norm_again, (x, rate, weight, torch.bfloat16)),
        "norm_backward": (fused.norm_backward, (dy, x, rate, weight)),
        "add_norm_backward": (fused.add_norm_backward, (x.clone(), dy, x, rate, weight)),
        "add": (fused.add, (x, dy)),
        "turn": (fused.turn, (heads, all_angles.cos(), signed(all_angles))),
        "turn_some": (fused.turn, (heads, angles.cos(), signed(angles))),
        "target_scores": (fused.target_scores, (logits.clone(), targets, None, True)),
        "capped": (fused.target_scores, (logits.clone(), targets, 5.0, True)),
        "likeliest": (fused.target_scores, (logits.clone(), targets, None, False)),
        "gated": (gate.gated, (dy,)),
        "gate_backward": (gate.backward, (dy[:, :16].clone(), dy, None)),
    }


def signed(angles):
    return torch.stack([-angles.sin(), angles.sin()], 1)


def compare(name, device):
    """Fail where a result on the device, or an argument that is written into, differs."""
    (function, arguments), (_, again) = steps()[name], steps()[name]
    again = tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in again)
    found, expected = _tuple(function.compiled(*again)), _tuple(function(*arguments))
    for one, other in zip(found + again, expected + arguments, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(
                one.cpu(), other, rtol=2e-2 if one.dtype == torch.bfloat16 else 1e-5, atol=1e-3
            )


def other_lengths():
    """Fail where other numbers of tokens are compiled anew."""
    gate = ACTIVATIONS["silu"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (7, 11, 20):
            fused.norm.compiled(torch.randn(tokens, 32), torch.rand(32), 1e-5, torch.bfloat16)
            gate.backward.compiled(torch.randn(tokens, 16).bfloat16(), torch.randn(tokens, 32).bfloat16(), None)
            angles = torch.rand(tokens, 8)
            fused.turn.compiled(torch.randn(tokens, 4, 16), angles.cos(), signed(angles))


def _tuple(found):
    return found if isinstance(found, tuple) else (found,)


if __name__ == "__main__":
    for name in steps():
        compare(name, *(sys.argv[1:] or ["cpu"]))
        print(name, flush=True)  # noqa: T201
    other_lengths()
