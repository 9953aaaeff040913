"""OpenFedLLM's recipe: TRL's SFTTrainer for every client over one PEFT model.

Its published settings: batches of 16 without accumulation, sequences up to 512, gradient checkpointing, constant
learning rate, LoRA dropout 0.05; adapters stay in memory and are averaged there. Its TrainingArguments leave bf16
off. Rows come tokenised with their loss masks.
"""

import copy
import tempfile

from common import (
    counted,
    dataset,
    load_model,
    mean_of,
    print_result,
    read_request,
    read_rows,
    timed_train,
    versions,
    warm_up_rows,
)
from shepherd import rounds

DEFAULTS = {
    "dtype": "fp32",
    "micro_batch": 16,
    "dropout": 0.05,
    "group_by_length": False,
    "checkpointing": True,
    "packing": False,
}
LEARNING_RATE = 5e-5


def build_trainer(model, tokenizer, rows, options, folder, *, steps=-1, learning_rate=LEARNING_RATE):
    import trl

    packing = options["packing"]
    return trl.SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=dataset(rows),
        args=trl.SFTConfig(
            output_dir=folder,
            # A packed sequence is a batch of its own, as long as ``packing`` says.
            per_device_train_batch_size=1 if packing else options["micro_batch"],
            gradient_accumulation_steps=1,
            max_length=packing or 512,
            packing=bool(packing),
            num_train_epochs=1,
            max_steps=steps,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            logging_steps=100,
            save_strategy="no",
            train_sampling_strategy="group_by_length" if options["group_by_length"] else "random",
            gradient_checkpointing=options["checkpointing"],
            bf16=options["dtype"] == "bf16",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
    )


def throughput(request, options, folder):
    rows = read_rows(request)
    model, tokenizer = load_model(request, dropout=options["dropout"])
    build_trainer(model, tokenizer, warm_up_rows(rows), options, folder, steps=1).train()
    clock = timed_train(build_trainer(model, tokenizer, rows, options, folder))
    return {**counted(rows), "cpu_s": clock.cpu_s, "wall_s": clock.wall_s}


def one_round(model, tokenizer, rows, clients, options, folder, steps):
    """Train ``clients`` clients one after the other and average their adapters in memory."""
    import peft

    received = copy.deepcopy(peft.get_peft_model_state_dict(model))
    adapters = []
    for _ in range(clients):
        peft.set_peft_model_state_dict(model, received)
        build_trainer(model, tokenizer, rows, options, folder, steps=steps).train()
        adapters.append(copy.deepcopy(peft.get_peft_model_state_dict(model)))
    peft.set_peft_model_state_dict(model, mean_of(adapters, [len(rows)] * clients))


def main() -> None:
    request = read_request()
    options = {**DEFAULTS, **request["options"]}
    with tempfile.TemporaryDirectory() as folder:
        if request["task"] == "rounds":
            result = rounds(request, options, folder, one_round)
        else:
            result = throughput(request, options, folder)
        print_result({**result, "versions": versions("trl")})


if __name__ == "__main__":
    main()
