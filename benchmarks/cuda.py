"""``python -m benchmarks.cuda``: fedit beside transformers' Trainer with PEFT on one GPU, 7B-shaped.

Everything runs in fedit's own environment, one measurement after the other in this process, over random weights.
Progress goes to standard error; the last line of standard output is one JSON object, which the run also appends to
benchmarks/history.jsonl.
"""

import argparse
import contextlib
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import peft
import torch
import transformers
from torch import nn

from benchmarks import rows as row_files
from benchmarks.history import append, machine
from benchmarks.ours import ALPHA, RANK, TARGETS, token_row, train
from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel
from fedit.model.fast import varlen
from fedit.model.fast.attention import Heads
from fedit.model.loading import Base
from fedit.model.sources import ModelSource
from fedit.process import set_environment, silence_libraries
from fedit.stacked import StackedTrainer
from fedit.training import LocalJob, Trainer
from fedit.types import LocalTraining

SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
ROWS = "rows"
"""Under this name transformers finds `attend_rows`."""
VOCABULARY = {"7b": 32_000, "1b": 128_256, "tiny": 512}
SMALL_TOKENS, SMALL_CLIENTS = 64, 16
Rows = list[TokenRow]


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Setting:
    """What is measured: a shape on a device, its rows, and how the base is held."""

    shape: str
    device: torch.device
    dtype: torch.dtype
    bits: int

    def base(self, attention: str = "sdpa") -> transformers.PreTrainedModel:
        """Return a frozen model of random weights on the device."""
        config = transformers.AutoConfig.for_model(
            "llama", vocab_size=VOCABULARY[self.shape], max_position_embeddings=4096, **SHAPES[self.shape]
        )
        torch.manual_seed(0)
        with self.device:
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=self.dtype, attn_implementation=attention
            )
        model.requires_grad_(False).eval()
        return quantise(model, self.dtype) if self.bits == 4 else model


def attention_of(*, packed: bool) -> str:
    """Return the fastest attention that transformers has here."""
    if transformers.utils.is_flash_attn_2_available():
        return "flash_attention_2"
    if packed and torch.cuda.is_available():
        transformers.AttentionInterface.register(ROWS, attend_rows)
        return ROWS
    return "sdpa"


def attend_rows(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend by PyTorch's FlashAttention over packed rows, so that the Trainer has what flash-attn would give it.

    query, key, value: (1, heads, tokens, dim), as transformers calls an implementation.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    heads = Heads(q.shape[1], k.shape[1], q.shape[2], scaling, None, None)
    return varlen.flash(q, k, v, varlen.Bounds(cu_seq_lens_q, max_length_q), heads)[None], None


def quantise(model: transformers.PreTrainedModel, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """Replace the layers' linear weights by 4-bit ones (NF4), as bitsandbytes does on loading."""
    import bitsandbytes

    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, module in list(parent.named_children()):
                if not isinstance(module, nn.Linear):
                    continue
                device = module.weight.device
                packed = bitsandbytes.nn.Linear4bit(
                    module.in_features, module.out_features, False, compute_dtype=dtype, quant_type="nf4"
                )
                packed.weight = bitsandbytes.nn.Params4bit(
                    module.weight.data, requires_grad=False, quant_type="nf4", module=packed
                )
                packed.support_avx512bf16_for_cpu = False  # see fedit/model/loading.py
                setattr(parent, name, packed.to(device))
    model.is_loaded_in_4bit = True
    return model


@contextlib.contextmanager
def clock(device: torch.device) -> Iterator[dict[str, float]]:
    """Fill in seconds of wall time and, on a GPU, the most bytes that were allocated."""
    result: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    yield result
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        result["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    result["seconds"] = time.perf_counter() - started


def adapted(setting: Setting) -> AdaptedModel:
    tokenizer = cast(transformers.PreTrainedTokenizerBase, None)  # rows are tokens already
    source = ModelSource(setting.shape, Path(), "folder", None, "")
    base = Base(source, setting.base(), tokenizer, setting.device, setting.dtype)
    return AdaptedModel(base, rank=RANK, alpha=ALPHA, targets=list(TARGETS))


def ours(setting: Setting, rows: Rows) -> dict[str, float]:
    """Train fedit's way over all rows, 64 a step, after a first pass over them that is not counted."""
    model = adapted(setting)
    model.load(model.initial(0))
    training = LocalTraining(1e-4, num_rounds=1, epochs=1, batch_size=64)
    train(model, rows, training)
    with clock(setting.device) as result:
        tokens = train(model, rows, training)
    path = "general" if model.fast is None else "fast, " + ("blocks" if model.fast.kernel is None else "varlen")
    say(f"fedit took the path: {path} {model.why_general or ''}")
    return {**result, "rate": tokens / result["seconds"]}


def stacked(setting: Setting) -> dict[str, float]:
    """Train small clients, one row of 64 tokens a step each: stacked, and one after the other."""
    model = adapted(setting)
    row = TokenRow(np.arange(SMALL_TOKENS, dtype=np.int32) + 7, np.arange(SMALL_TOKENS) >= SMALL_TOKENS // 3)
    training = LocalTraining(1e-4, num_rounds=1, steps=4, batch_size=1)
    jobs = [
        LocalJob([row], training, 1, 0, 0, 0, list(model.parameters), {}, lambda params, grads: None)
        for _ in range(SMALL_CLIENTS)
    ]
    adapters = [model.initial(seed) for seed in range(SMALL_CLIENTS)]
    total = SMALL_CLIENTS * SMALL_TOKENS * 4

    def together() -> None:
        StackedTrainer(model).train(jobs, adapters)

    def alone() -> None:
        for job, adapter in zip(jobs, adapters, strict=True):
            Trainer(model).train(job, adapter)

    rates = {}
    for name, call in (("stacked", together), ("alone", alone)):
        call()
        with clock(setting.device) as result:
            call()
        rates[name] = total / result["seconds"]
    return rates


def theirs(setting: Setting, rows: Rows, micro_batch: int, *, packed: bool) -> dict[str, float]:
    """Train transformers' and PEFT's way: a Trainer over padded micro-batches, or over rows packed into one."""
    model = peft.get_peft_model(
        setting.base(attention_of(packed=packed)),
        peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    data = [
        {"input_ids": row.ids.tolist(), "labels": np.where(row.supervised, row.ids, -100).tolist()} for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            train_dataset=cast(torch.utils.data.Dataset, data),
            data_collator=packing if packed else padding,
            args=transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=micro_batch,
                num_train_epochs=1,
                bf16=setting.dtype == torch.bfloat16,
                use_cpu=setting.device.type == "cpu",
                learning_rate=1e-4,
                save_strategy="no",
                logging_steps=1000,
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
        )
        trainer.remove_callback(transformers.PrinterCallback)  # standard output is for the result
        trainer.train()
        with clock(setting.device) as result:
            trainer.train()
    return {**result, "rate": sum(len(row.ids) for row in rows) / result["seconds"]}


def padding(batch: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for line, row in enumerate(batch):
        length = len(row["input_ids"])
        ids[line, :length], mask[line, :length] = torch.tensor(row["input_ids"]), 1
        labels[line, :length] = torch.tensor(row["labels"])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def packing(batch: list[dict]) -> dict[str, torch.Tensor | int]:
    """Rows in one line, and their bounds; positions begin anew, which is how transformers knows them apart."""
    ids = torch.tensor([i for row in batch for i in row["input_ids"]])
    labels = torch.tensor([i for row in batch for i in [-100, *row["labels"][1:]]])
    positions = torch.cat([torch.arange(len(row["input_ids"])) for row in batch])
    packed = {"input_ids": ids[None], "labels": labels[None], "position_ids": positions[None]}
    lengths = [len(row["input_ids"]) for row in batch]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    kernel = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": max(lengths)}
    return {**packed, **kernel, "max_length_k": max(lengths)}


def product_peak(setting: Setting, rows: int) -> float:
    """Return the fastest rate, in FLOP/s, of a product at the model's shapes."""
    shape = SHAPES[setting.shape]
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    fastest = 0.0
    for inner, outer in ((hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * wide), (wide, hidden)):
        x = torch.randn(rows, inner, device=setting.device).to(setting.dtype)
        weight = torch.randn(outer, inner, device=setting.device).to(setting.dtype)
        for repeats in (3, 20):
            with clock(setting.device) as result:
                for _ in range(repeats):
                    x @ weight.T
        fastest = max(fastest, 20 * 2.0 * rows * inner * outer / result["seconds"])
    return fastest


def attempt(label: str, call: Callable[[], dict[str, float]]) -> dict[str, float] | None:
    """Return a measurement, or None where it fails (memory, a missing kernel), which is said."""
    try:
        result = call()
    except (RuntimeError, ValueError, ImportError) as error:
        say(f"{label} failed: {str(error).splitlines()[0]}")
        traceback.print_exc(limit=-2, file=sys.stderr)
        result = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if result is not None:
        say(f"{label}: " + ", ".join(f"{name} {value:,.1f}" for name, value in result.items()))
    return result


def run(shape: str, device: torch.device, dtype: torch.dtype, tokens: int, all_bits: list[int]) -> dict:
    """Return all measurements and their ratios."""
    pool = row_files.synthetic_rows(row_files.POOL, VOCABULARY[shape])
    rows = [token_row(**row) for row in row_files.representative(pool, tokens)]
    found: dict[str, dict[str, float] | None] = {}
    peak = product_peak(Setting(shape, device, dtype, 16), 8192 if device.type == "cuda" else 256)
    for bits in all_bits:
        setting = Setting(shape, device, dtype, bits)
        name = f"{bits} bits"
        found[f"{name}: fedit"] = attempt(f"{name}: fedit", lambda setting=setting: ours(setting, rows))
        for size in (4, 16):
            label = f"{name}: Trainer, padded, micro-batch {size}"
            found[label] = attempt(
                label, lambda setting=setting, size=size: theirs(setting, rows, size, packed=False)
            )
        label = f"{name}: Trainer, packed, 16 rows"
        found[label] = attempt(label, lambda setting=setting: theirs(setting, rows, 16, packed=True))
        label = f"{name}: small clients"
        found[label] = attempt(label, lambda setting=setting: stacked(setting))
    return {"product_tflops": peak / 1e12, "found": found, **ratios(found, peak, shape, all_bits)}


def ratios(found: dict[str, dict[str, float] | None], peak: float, shape: str, all_bits: list[int]) -> dict:
    """Return fedit's rate over the best padded and packed Trainer's and the peak's, and what stacking gains."""
    sizes = SHAPES[shape]
    layer = 4 * sizes["hidden_size"] ** 2 + 3 * sizes["hidden_size"] * sizes["intermediate_size"]
    weights = sizes["num_hidden_layers"] * layer + sizes["hidden_size"] * VOCABULARY[shape]
    result: dict[str, dict[str, float]] = {}
    for bits in all_bits:
        own = found[f"{bits} bits: fedit"]
        if own is None:
            continue
        ratio = {"product_fraction": own["rate"] * 4 * weights / peak}
        for kind in ("padded", "packed"):
            rates = [
                f["rate"] for label, f in found.items() if f and label.startswith(f"{bits} bits: Trainer, {kind}")
            ]
            if rates:
                ratio[f"vs_{kind}"] = own["rate"] / max(rates)
        if small := found[f"{bits} bits: small clients"]:
            ratio["stacked_gain"] = small["stacked"] / small["alone"]
        result[f"{bits}_bits"] = {name: round(value, 3) for name, value in ratio.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=60_000, help="about so many tokens of Dolly-like rows")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 4], choices=[16, 4])
    parser.add_argument("--no-history", action="store_true", help="do not append to benchmarks/history.jsonl")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "there is no CUDA device here; try: python -m benchmarks.cuda --shape tiny --device cpu --tokens 2000"
        )
    set_environment()
    silence_libraries()
    transformers.utils.logging.set_verbosity_error()
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    result = run(arguments.shape, device, dtype, arguments.tokens, arguments.bits)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    result |= {
        "kind": "cuda",
        "shape": arguments.shape,
        "gpu": gpu,
        "attention_of_trainer": attention_of(packed=True),
    }
    result["versions"] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    print(f"{arguments.shape} on {gpu}: products {result['product_tflops']:.1f} TFLOP/s")
    for label, values in result["found"].items():
        print(
            f"  {label:45} " + ("failed" if not values else ", ".join(f"{k} {v:,.1f}" for k, v in values.items()))
        )
    if not arguments.no_history:
        append({**result, "machine": machine()})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
