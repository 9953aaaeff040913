"""A tokenizer as llama.cpp reads it: pieces, their kinds, merges, and how text is split before them."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gguf

from fedit.data.encoding import encoder_of
from fedit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS: Mapping[str, str] = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
"""Regular expression -> llama.cpp's name of the way to split text."""


def add_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: "PreTrainedTokenizerBase", size: int, stops: Sequence[int], source: str
) -> None:
    """Write the tokenizer with its chat template.

    size:  rows of the embeddings, of which the tokenizer may not use all.
    stops: ids that end an answer.

    Raises:
        ModelError: the tokenizer is of a kind whose tokens could not be compared with llama.cpp's.
    """
    encoder = encoder_of(tokenizer)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(rules, source))
    pieces, kinds = _pieces(rules, size)
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    merges = rules["model"].get("merges")
    if not merges:
        raise ModelError(f"the tokenizer of model '{source}' merges nothing; llama.cpp loads no such vocabulary.")
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(encoder.eos)
    if encoder.bos_token is not None:
        writer.add_bos_token_id(encoder.bos_token)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(int(tokenizer.pad_token_id))
    if others := [stop for stop in stops if stop != encoder.eos]:
        writer.add_eot_token_id(others[0])
    writer.add_add_bos_token(bool(encoder.bos))
    writer.add_chat_template(str(tokenizer.chat_template))


def _pieces(rules: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return the text and the kind of every id."""
    texts: dict[int, tuple[str, int]] = {
        id: (piece, gguf.TokenType.NORMAL) for piece, id in rules["model"]["vocab"].items()
    }
    for token in rules["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        texts[token["id"]] = (token["content"], kind)
    unused = gguf.TokenType.UNUSED
    found = [texts.get(id, (f"[PAD{id}]", unused)) for id in range(max(size, max(texts) + 1))]
    return [text for text, _ in found], [int(kind) for _, kind in found]


def _split(rules: Mapping[str, Any], source: str) -> str:
    """Return llama.cpp's name of how the tokenizer splits text.

    Raises:
        ModelError: it has none that is known here.
    """
    refusal = (
        f"the tokenizer of model '{source}' {{}}; GGUF vocabularies are written for byte-level BPE that splits "
        "like GPT-2, SmolLM, Llama 3 or Qwen 2. Export --to merged and use llama.cpp's own converter on that "
        "folder; --adapter-only writes the adapter, which needs no tokenizer."
    )
    steps = rules["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    if rules["model"]["type"] != "BPE" or not steps or steps[-1].get("type") != "ByteLevel":
        raise ModelError(refusal.format("is no byte-level BPE"))
    if steps[-1].get("add_prefix_space"):
        raise ModelError(refusal.format("puts a space before every text"))
    name = _split_name(steps)
    normalised = (rules["normalizer"] or {}).get("type")
    if name is None:
        raise ModelError(refusal.format("splits text by rules of its own"))
    if normalised not in (None, "NFC"):  # llama.cpp normalises nothing; NFC leaves nearly all text as it is
        raise ModelError(refusal.format(f"rewrites text first ({normalised})"))
    return name


def _split_name(steps: Sequence[Mapping[str, Any]]) -> str | None:
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = steps[0]["pattern"].get("Regex", "")
        return _SPLITS.get(pattern) if steps[0]["behavior"] == "Isolated" else None
    return None
