"""What a LoRA product is multiplied by."""

import math


def lora_scale(alpha: float, rank: int, *, rslora: bool = False) -> float:
    """Return alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732).

    >>> lora_scale(32, 16), lora_scale(32, 16, rslora=True)
    (2.0, 8.0)
    """
    return alpha / math.sqrt(rank) if rslora else alpha / rank
