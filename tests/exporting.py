"""What tests of exports share: tiny models whose vocabulary llama.cpp reads, and llama.cpp itself."""

import json
import math
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tiny import CHATML, SPECIAL, save_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fedit.export.ggufvocabulary import _LLAMA3, _QWEN2

VOCABULARY = 320

TEXT = [
    "Below is an instruction that describes a task, paired with an input. Write a response.",
    "The cat's 12345 toys weren't there;  it's 7 o'clock\n\n  and they're GONE!! USER: Why? ASSISTANT: café naïve",
    "Name three uses of a brick. copy: red blue 3 upper: green 14 count: one two three",
]

SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    **{
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        for name, pattern in (("llama-bpe", _LLAMA3), ("qwen2", _QWEN2))
    },
}
"""llama.cpp's name -> the same way to split text."""


def bpe_tokenizer(split: str = "smollm") -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with some merges: llama.cpp reads none without."""
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer, rules.decoder = SPLITS[split], decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rules.train_from_iterator(
        TEXT * 3,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(SPECIAL), initial_alphabet=alphabet, show_progress=False, min_frequency=1
        ),
    )
    rules.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, eos_token="<|im_end|>", pad_token="<|pad|>", model_max_length=512
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def save_bpe_model(kind: str, folder: Path, split: str = "smollm", **changes: object) -> Path:
    """Write a tiny random model with such a tokenizer and return its folder."""
    save_model(kind, folder, vocab_size=VOCABULARY, **changes)
    bpe_tokenizer(split).save_pretrained(folder)
    return folder


class Llama:
    """llama.cpp with a model in memory."""

    def __init__(self, server: object) -> None:
        self.server = server

    def log_probabilities(self, ids: Sequence[int], size: int) -> np.ndarray:
        """Return those of the token after ``ids``, (size,)."""
        (plain,) = self.post("/tokenize", {"content": "a"})["tokens"]
        # Nothing is told of the end of an answer or of half a character, so another token is drawn.
        drawn = {"n_predict": 1, "n_probs": size, "temperature": 0, "logit_bias": [[plain, 1e4]]}
        asked = {"prompt": list(ids), "cache_prompt": False, **drawn}
        (place,) = self.post("/completion", asked)["completion_probabilities"]
        found = np.full(size, -math.inf)
        for token in place["top_logprobs"]:
            found[token["id"]] = token["logprob"]
        return found

    def answer(self, messages: Sequence[dict[str, str]], **options: object) -> dict:
        """Return its completion of a chat."""
        return self.server.handle_chat_completions({"messages": list(messages), "temperature": 0, **options})

    def post(self, path: str, body: object) -> dict:
        """Return what its HTTP server answers."""
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())


@contextmanager
def llama(model: Path, adapter: Path | None = None) -> Iterator[Llama]:
    """Load a GGUF file into llama.cpp, in this process, with keys and values in float32."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.port, params.verbosity = 512, 1, 0, 0
    params.n_gpu_layers, params.warmup, params.fit_params, params.use_jinja = 0, False, False, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    loaded = Llama(xllamacpp.Server(params))
    try:
        yield loaded
    finally:
        loaded.server = None  # its threads end with it
