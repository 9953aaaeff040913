"""The arithmetic that frozen-base LoRA training needs, from the model's shapes and the rows' real lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FORMULA = """FLOPs needed per real token (nothing padded, nothing recomputed, no gradient of a frozen weight):
  body       4 N                   forward and backward through the activations of N linear weights
  LoRA       6 r (in + out)        a target: forward, backward to activations, gradient of both factors
  head       4 V h s               forward and backward, on the share s of tokens that are supervised
  attention  6 d (L + 1) a layer   causal scores and values, forward and backward, in a row of L tokens"""


@dataclass(frozen=True)
class Shapes:
    """A Llama-like model: linear layers of one block as name -> (in, out), and what surrounds them."""

    linears: Mapping[str, tuple[int, int]]
    layers: int
    hidden: int
    attention_width: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, int]) -> "Shapes":
        """Read the shapes from the model's config.json."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head = config.get("head_dim") or hidden // heads
        keys = config.get("num_key_value_heads", heads) * head
        wide = config["intermediate_size"]
        linears = {
            "q_proj": (hidden, heads * head),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (heads * head, hidden),
            "gate_proj": (hidden, wide),
            "up_proj": (hidden, wide),
            "down_proj": (wide, hidden),
        }
        return cls(linears, config["num_hidden_layers"], hidden, heads * head, config["vocab_size"])


def flops_needed(
    shapes: Shapes, lengths: Sequence[int], supervised: int, *, rank: int, targets: Sequence[str]
) -> dict[str, float]:
    """Return the FLOPs per real token of rows of these lengths, part by part and in total."""
    tokens = sum(lengths)
    body = 4.0 * shapes.layers * sum(a * b for a, b in shapes.linears.values())
    lora = 6.0 * rank * shapes.layers * sum(sum(shapes.linears[name]) for name in targets)
    head = 4.0 * shapes.vocabulary * shapes.hidden * supervised / tokens
    pairs = sum(length * (length + 1) for length in lengths)
    attention = 6.0 * shapes.layers * shapes.attention_width * pairs / tokens
    parts = {"body": body, "LoRA": lora, "head": head, "attention": attention}
    return {**parts, "total": sum(parts.values())}
