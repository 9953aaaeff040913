"""FederatedGPT-Shepherd's recipe: a transformers.Trainer for every client over one PEFT model.

Its published settings: micro-batches of 8 accumulated to 64, rows padded on the left to a multiple of 8, AdamW,
LoRA dropout 0.05, a log entry every step; adapters are saved with torch.save and averaged from the files. Rows
come tokenised, which spares it its tokenisation in every client-round. Its 8-bit base and fp16 need a GPU: fp32
here.
"""

import copy
import tempfile
from pathlib import Path

from common import (
    WARM_UP_TOKENS,
    Clock,
    counted,
    dataset,
    load_model,
    mean_of,
    print_result,
    read_request,
    read_rows,
    short_row,
    timed_train,
    versions,
    warm_up_rows,
)

DEFAULTS = {
    "dtype": "fp32",
    "batch": 64,
    "micro_batch": 8,
    "dropout": 0.05,
    "group_by_length": False,
    "checkpointing": False,
}


def build_trainer(model, tokenizer, rows, options, folder, *, steps=-1):
    import transformers

    return transformers.Trainer(
        model=model,
        train_dataset=dataset(rows),
        args=transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=options["micro_batch"],
            gradient_accumulation_steps=max(1, options["batch"] // options["micro_batch"]) if steps < 0 else 1,
            num_train_epochs=1,
            max_steps=steps,
            warmup_steps=0,
            learning_rate=3e-4,
            optim="adamw_torch",
            logging_steps=1,
            save_strategy="no",
            train_sampling_strategy="group_by_length" if options["group_by_length"] else "random",
            gradient_checkpointing=options["checkpointing"],
            bf16=options["dtype"] == "bf16",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=transformers.DataCollatorForSeq2Seq(
            tokenizer, pad_to_multiple_of=8, return_tensors="pt", padding=True
        ),
    )


def throughput(request, options, folder):
    rows = read_rows(request)
    model, tokenizer = load_model(request, dropout=options["dropout"])
    tokenizer.padding_side = "left"
    build_trainer(model, tokenizer, warm_up_rows(rows), options, folder, steps=1).train()
    clock = timed_train(build_trainer(model, tokenizer, rows, options, folder))
    return {**counted(rows), "cpu_s": clock.cpu_s, "wall_s": clock.wall_s}


def one_round(model, tokenizer, rows, clients, options, folder, steps):
    """Train ``clients`` clients one after the other, write their adapters, average the files."""
    import peft
    import torch

    received = copy.deepcopy(peft.get_peft_model_state_dict(model))
    for client in range(clients):
        build_trainer(model, tokenizer, rows, options, folder, steps=steps).train()
        torch.save(peft.get_peft_model_state_dict(model), Path(folder) / f"client-{client}.bin")
        peft.set_peft_model_state_dict(model, received)
    adapters = [torch.load(Path(folder) / f"client-{client}.bin") for client in range(clients)]
    peft.set_peft_model_state_dict(model, mean_of(adapters, [len(rows)] * clients))


def rounds(request, options, folder, one_round=one_round):
    rows = read_rows(request)
    model, tokenizer = load_model(request, dropout=options["dropout"])
    tokenizer.padding_side = "left"
    one_round(model, tokenizer, [short_row(rows, WARM_UP_TOKENS)], 1, options, folder, 1)
    sizes = []
    for tokens, steps in request["sizes"]:
        clock = Clock()
        with clock.running():
            row = short_row(rows, tokens)
            one_round(model, tokenizer, [row], request["clients"], options, folder, steps)
        count = request["clients"]
        sizes.append(
            {"tokens": tokens, "steps": steps, "cpu_s": clock.cpu_s / count, "wall_s": clock.wall_s / count}
        )
    return {"sizes": sizes}


def main() -> None:
    request = read_request()
    options = {**DEFAULTS, **request["options"]}
    task = {"throughput": throughput, "rounds": rounds}[request["task"]]
    with tempfile.TemporaryDirectory() as folder:
        print_result({**task(request, options, folder), "versions": versions()})


if __name__ == "__main__":
    main()
