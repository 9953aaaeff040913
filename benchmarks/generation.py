"""``python -m benchmarks.generation``: answers of several adapters in one batch, and one by one, on one thread.

Progress goes to standard error; the last line of standard output is one JSON object.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig

from benchmarks import rows
from fedit.model.adapted import AdaptedModel
from fedit.model.fast.decode import Prompt
from fedit.model.loading import load_base
from fedit.model.sources import resolve_model

MODEL = "smollm2-135m-instruct"
ADAPTERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=64, help="in all, dealt to four adapters in turn (64)")
    parser.add_argument("--tokens", type=int, default=64, help="of every answer (64)")
    parser.add_argument("--dtype", default="auto", help="of the base (auto)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = resolve_model(MODEL)
    model = AdaptedModel(load_base(source, device="cpu", dtype=arguments.dtype), rank=16, alpha=32)
    adapters = [_adapter(model, seed) for seed in range(ADAPTERS)]
    prompts = [Prompt(ids, i % ADAPTERS) for i, ids in enumerate(_prompts(source.path, arguments.prompts))]
    longest = arguments.tokens

    def batched() -> None:
        model.decode(prompts, adapters, stops=(), max_new_tokens=longest)

    def per_adapter() -> None:
        for own in range(ADAPTERS):
            mine = [p for p in prompts if p.adapter == own]
            model.decode(mine, adapters, stops=(), max_new_tokens=longest)

    def one_by_one() -> None:
        for prompt in prompts[:ADAPTERS]:
            model.decode([prompt], adapters, stops=(), max_new_tokens=longest)

    def transformers_batched() -> None:
        for own, adapter in enumerate(adapters):
            model.load(adapter)
            _transformers(model, [p for p in prompts if p.adapter == own], longest)

    def transformers_one_by_one() -> None:
        for prompt in prompts[:ADAPTERS]:
            model.load(adapters[prompt.adapter])
            _transformers(model, [prompt], longest)

    few = ADAPTERS * longest
    speeds = {
        "all adapters in one batch": _speed(batched, len(prompts) * longest),
        "a batch an adapter": _speed(per_adapter, len(prompts) * longest),
        "one by one": _speed(one_by_one, few),
        "transformers and PEFT, a batch an adapter": _speed(transformers_batched, len(prompts) * longest),
        "transformers and PEFT, one by one": _speed(transformers_one_by_one, few),
    }
    fastest = speeds["all adapters in one batch"]
    print(
        f"{MODEL}, {model.base.model.dtype}, {len(prompts)} prompts of {ADAPTERS} adapters, {longest} tokens each"
    )
    for name, speed in speeds.items():
        print(f"  {name:45s} {speed:7.1f} new tokens/CPU-s   1 / {fastest / speed:.2f}")
    print(
        json.dumps({"tokens_per_cpu_second": speeds, "speed_up_over_one_by_one": fastest / speeds["one by one"]})
    )


def _prompts(model: Path, count: int) -> list[list[int]]:
    """Return the prompts of rows at even quantiles of the lengths."""
    pool, _ = rows.pool(model)
    chosen = sorted(pool, key=lambda row: len(row["ids"]))[:: max(len(pool) // count, 1)][:count]
    return [row["ids"][: max(row["supervised"].index(True), 1)] for row in chosen]


def _adapter(model: AdaptedModel, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fresh = model.initial(seed)
    return {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in fresh.items()}


def _transformers(model: AdaptedModel, prompts: list[Prompt], longest: int) -> None:
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for line, prompt in enumerate(prompts):
        ids[line, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[line, width - len(prompt.ids) :] = 1
    config = GenerationConfig(max_new_tokens=longest, min_new_tokens=longest, do_sample=False, pad_token_id=0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.generate(ids, mask, config)


def _speed(run: Callable[[], None], tokens: int) -> float:
    """Return new tokens per CPU second, the better of two runs."""
    seconds = []
    for _ in range(2):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    print(f"  {run.__name__}: {tokens / min(seconds):.1f} tokens/CPU-s", file=sys.stderr)
    return tokens / min(seconds)


if __name__ == "__main__":
    main()
