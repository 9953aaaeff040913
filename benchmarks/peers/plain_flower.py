"""The plain Flower example of a deployment: flwr's own FedAvg, and FlowerTune's client as it is usually written.

Every round starts a process at each site, which loads the base model with transformers, puts the adapter in with
PEFT, trains with the Trainer, and sends the whole adapter back. Both components are in this one file, which
``benchmarks.deployment`` packs as a Flower app; it is run in fedit's own environment.
"""

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


def load_model(model: str, rank: int):
    """Return the base in float32 with a LoRA adapter, and the tokenizer."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    base.config.use_cache = False
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.075,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(base, config), transformers.AutoTokenizer.from_pretrained(model)


class Timed(FedAvg):
    """flwr's own strategy; notes when each round begins and ends."""

    def __init__(self, times: Path, **options: object) -> None:
        super().__init__(**options)
        self._times = times

    def configure_train(self, server_round, arrays, config, grid):
        self._note(server_round, "begins")
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        found = super().aggregate_train(server_round, replies)
        self._note(server_round, "ends")
        return found

    def _note(self, number: int, what: str) -> None:
        with open(self._times, "a", encoding="utf-8") as file:
            file.write(json.dumps({"round": number, "what": what, "time": time.time()}) + "\n")


@server.main()
def serve(grid: Grid, context: Context) -> None:
    import peft

    given = context.run_config
    model, _ = load_model(str(given["model"]), int(given["rank"]))
    arrays = ArrayRecord(peft.get_peft_model_state_dict(model))
    sites = int(given["sites"])
    strategy = Timed(
        Path(str(given["times"])),
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=sites,
        min_available_nodes=sites,
    )
    told = ConfigRecord({"model": str(given["model"]), "rank": int(given["rank"])})
    strategy.start(grid=grid, initial_arrays=arrays, train_config=told, num_rounds=int(given["rounds"]))


@client.train()
def train(message: Message, context: Context) -> Message:
    import peft
    import torch
    import transformers

    torch.set_num_threads(1)
    told = message.content["config"]
    model, tokenizer = load_model(str(told["model"]), int(told["rank"]))
    peft.set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    rows = read_rows(Path(str(context.node_config["data"])), tokenizer)
    state = Path(str(context.node_config["state"]))
    settings = transformers.TrainingArguments(
        output_dir=str(state),
        per_device_train_batch_size=1,
        max_steps=1,
        learning_rate=5e-5,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=rows, data_collator=collator)
    began = time.perf_counter()
    trainer.train()
    metrics = MetricRecord({"num-examples": len(rows), "seconds": time.perf_counter() - began})
    adapter = ArrayRecord(peft.get_peft_model_state_dict(model))
    return Message(content=RecordDict({"arrays": adapter, "metrics": metrics}), reply_to=message)


def read_rows(path: Path, tokenizer) -> list[dict]:
    """Return a site's rows as token ids."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.append({"input_ids": tokenizer(f"{row['instruction']}\n{row['response']}")["input_ids"][:64]})
    return found
