"""OpenFedLLM (github.com/rui-ye/OpenFedLLM): arguments of main_sft.py and main_dpo.py, and adapters."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedit.errors import ConfigError, DataError
from fedit.migration.adapters import newest_round, take_adapter, weights_in
from fedit.migration.arguments import Arguments, Command, complete, read_command
from fedit.migration.base import Draft, Taken, read_content, template_file
from fedit.tracking.trackers import TRACKERS

NAME = "OpenFedLLM"
SFT, DPO = "main_sft.py", "main_dpo.py"
DEFAULTS: dict[str, object] = {
    "fed_alg": "fedavg",
    "num_rounds": 500,
    "num_clients": 2,
    "sample_clients": 2,
    "split_strategy": "iid",
    "prox_mu": 0.01,
    "fedopt_tau": 1e-3,
    "fedopt_eta": 1e-3,
    "fedopt_beta1": 0.9,
    "fedopt_beta2": 0.99,
    "save_model_freq": 50,
    "model_name_or_path": "meta-llama/Llama-2-7b-hf",
    "dataset_name": "lucasmccabe-lmi/CodeAlpaca-20k",
    "log_with": "none",
    "learning_rate": 2e-5,
    "batch_size": 16,
    "seq_length": 512,
    "gradient_accumulation_steps": 1,
    "load_in_8bit": False,
    "load_in_4bit": False,
    "use_peft": False,
    "trust_remote_code": False,
    "output_dir": "output",
    "peft_lora_r": 8,
    "peft_lora_alpha": 16,
    "logging_steps": 100,
    "use_auth_token": False,
    "num_train_epochs": 3,
    "max_steps": 10,
    "save_steps": 1000,
    "save_total_limit": 10,
    "push_to_hub": False,
    "hub_model_id": None,
    "gradient_checkpointing": True,
    "template": "alpaca",
    "seed": 2023,
    "dpo_beta": 0.1,
    "dataset_sample": 20000,
    "local_data_dir": None,
}
"""Arguments as of 2024, its last version."""
TEMPLATE = "template.json"
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{asked} \n\n### Response: "
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: {asked} ASSISTANT: "
)
TEMPLATES = {"alpaca": _ALPACA, "vicuna": _VICUNA}
"""What its prompts look like; {asked} is the instruction, and the input after a space."""
_COLUMNS: Mapping[str, dict[str, str]] = {
    "lighteval/MATH": {"instruction": "problem", "response": "solution"},
    "medalpaca/medical_meadow_medical_flashcards": {"instruction": "input", "response": "output"},
}
"""Data sets whose columns it renames."""
_SPLITS = {"HuggingFaceH4/ultrafeedback_binarized": "train_sft"}


def read(paths: Sequence[Path], draft: Draft) -> None:
    """Fill ``draft`` from a shell script, the args.json of an output folder, a folder with an adapter, or several.

    Raises:
        UserError: a path is none of these, or what it holds is broken.
    """
    arguments: Arguments | None = None
    adapter: dict[str, object] | None = None
    for path in paths:
        folder = path if path.is_dir() else None
        place = folder and (folder if weights_in(folder) else newest_round(folder, "checkpoint-"))
        if path.suffix == ".sh":
            arguments = complete(read_command(path, (SFT, DPO)), DEFAULTS)
        elif path.suffix == ".json" or (folder and (folder / "args.json").is_file()):
            arguments = _saved(path if folder is None else path / "args.json")
        elif not place:
            raise DataError(
                f"{path} is nothing of OpenFedLLM's; expected a shell script (.sh) that calls {SFT} or {DPO}, the "
                "args.json of an output folder, or a folder with an adapter."
            )
        if place:
            adapter = take_adapter(draft, place)
    if arguments is None:
        arguments = Arguments(SFT, DEFAULTS)
        draft.open.append("no arguments were given: the job has OpenFedLLM's defaults")
    _data(draft, arguments)
    if arguments.values["split_strategy"] != "iid":
        draft.missing["split_strategy"] = (
            "OpenFedLLM splits iid alone; see fedit list partitions for what there is"
        )
    draft.take("split_strategy", arguments.text("split_strategy"), "partitioner", "iid")
    draft.take("num_clients", arguments.whole("num_clients"), "num_clients")
    _template(draft, arguments)
    translate(draft, arguments, arguments.whole("num_clients"))
    if adapter is not None:
        targets = adapter["target_modules"]
        draft.take("adapter_config: target_modules", targets, "lora_target_modules")


def translate(draft: Draft, arguments: Arguments, clients: int) -> None:
    """Take over all arguments but those of data and templates.

    clients: that there are.
    """
    draft.take("model_name_or_path", arguments.text("model_name_or_path"), "model")
    _federation(draft, arguments, clients)
    _steps(draft, arguments)
    _rates(draft, arguments, floor=1e-5 if arguments.script == DPO else 1e-6)
    draft.take("seq_length", arguments.whole("seq_length"), "max_length")
    draft.take("peft_lora_r", arguments.whole("peft_lora_r"), "lora_r")
    draft.take("peft_lora_alpha", arguments.whole("peft_lora_alpha"), "lora_alpha")
    draft.fix("lora_dropout", 0.05)
    draft.fix("lora_target_modules", ["q_proj", "v_proj"])
    draft.open.append(
        "lora_target_modules are PEFT's choice for Llama-like models; other architectures have others"
    )
    for name in ("load_in_8bit", "load_in_4bit", "gradient_checkpointing"):
        draft.take(name, arguments.on(name), name)
    draft.take("seed", arguments.whole("seed"), "seed")
    if arguments.script == DPO:
        draft.take(DPO, "", "objective", "dpo")
        draft.take("dpo_beta", arguments.number("dpo_beta"), "dpo_beta")
    if not arguments.on("use_peft"):
        draft.differs.append("use_peft is off, at which OpenFedLLM fails; the job trains LoRA")
    tracker = arguments.text("log_with")
    if tracker in TRACKERS:
        draft.take("log_with", tracker, "report_to", [tracker])
    elif tracker not in ("", "none"):
        draft.missing["log_with"] = (
            f"events.jsonl and TensorBoard's files are always written; {tracker} is not asked"
        )
    _notes(draft, arguments)


def _saved(path: Path) -> Arguments:
    """Return the arguments that OpenFedLLM wrote into its output folder; which script it was is not told there."""
    content = read_content(path)
    match content:
        case {"script_args": dict(script), "fed_args": dict(federated)}:
            pass
        case _:
            raise DataError(f"{path} is no args.json of OpenFedLLM: it lacks script_args or fed_args.")
    flags = {str(name): _as_flag(value) for name, value in {**script, **federated}.items() if value is not None}
    dataset = str(script.get("dataset_name"))
    dpo = dataset in ("Anthropic/hh-rlhf", *_SPLITS)
    return complete(Command(DPO if dpo else SFT, flags, str(path)), DEFAULTS)


def _as_flag(value: object) -> str | bool:
    return value if isinstance(value, bool) else str(value)


def _data(draft: Draft, arguments: Arguments) -> None:
    name, folder = arguments.text("dataset_name"), arguments.text("local_data_dir")
    draft.take("local_data_dir, dataset_name" if folder else "dataset_name", folder + name, "dataset")
    if name in _SPLITS:
        draft.fix("dataset_split", _SPLITS[name])
    if name in _COLUMNS:
        draft.fix("columns", dict(_COLUMNS[name]))
    if name == "gsm8k":
        draft.fix("data_format", "gsm8k")
        draft.open.append(
            "dataset gsm8k has several configurations on the hub: download its train split, name the file"
        )
    if arguments.values["dataset_sample"]:
        draft.take("dataset_sample", arguments.whole("dataset_sample"), "max_examples")


def _template(draft: Draft, arguments: Arguments) -> None:
    name = arguments.text("template")
    if arguments.script == DPO and name.startswith("vicuna"):
        draft.take("template", name, "prompt_template", "vicuna")
        return
    draft.files[TEMPLATE] = template(name)
    draft.take("template", name, "prompt_template", draft.place(TEMPLATE))


def template(name: str) -> bytes:
    """Return one of its templates as a file that fedit reads.

    Raises:
        ConfigError: it is not known here.
    """
    if name not in TEMPLATES:
        raise ConfigError(
            f"the template '{name}' is not known here; known are {', '.join(TEMPLATES)}. Import with one of them "
            "and set prompt_template to your own file afterwards."
        )
    text = TEMPLATES[name]
    return template_file(
        text.replace("{asked}", "{instruction} {input}"), text.replace("{asked}", "{instruction}")
    )


def _federation(draft: Draft, arguments: Arguments, clients: int) -> None:
    draft.take("num_rounds", arguments.whole("num_rounds"), "num_rounds")
    cohort = min(arguments.whole("sample_clients"), clients)
    draft.take("sample_clients", arguments.whole("sample_clients"), "clients_per_round", cohort)
    name = arguments.text("fed_alg")
    if name.startswith("local"):
        draft.take("fed_alg", name, "strategy", "fedavg")
        draft.open.append(
            f"fed_alg {name} trains one client alone: fedit study JOB study.arms=federated,local compares clients "
            "alone with the federation"
        )
        return
    if name not in _ALGORITHMS:
        raise ConfigError(
            f"fed_alg '{name}' is no algorithm of OpenFedLLM; known: {', '.join(_ALGORITHMS)}, local0 …."
        )
    options, why = _ALGORITHMS[name]
    draft.take("fed_alg", name, "strategy")
    own: dict[str, float] = {}
    for ours, theirs in options.items():
        given = arguments.number(theirs.removeprefix("1-"))
        own[ours] = 1 - given if theirs.startswith("1-") else given
        draft.taken.append(Taken(theirs, given, f"strategy_options.{ours}", own[ours]))
    if own:
        draft.job["strategy_options"] = own
    if name in ("fedadagrad", "fedyogi", "fedadam"):
        draft.fix("weighting", "uniform")
    if name == "scaffold":
        draft.fix("optimizer", "sgd")
    if why:
        draft.differs.append(why)


_ADAPTIVE = {"server_lr": "fedopt_eta", "tau": "fedopt_tau"}
_MOMENTS = (
    "the second moment is of the mean update's squares, as in the paper; OpenFedLLM squares its first moment"
)
_ALGORITHMS: Mapping[str, tuple[dict[str, str], str]] = {
    "fedavg": ({}, ""),
    "fedprox": ({"mu": "prox_mu"}, ""),
    "scaffold": (
        {},
        "scaffold needs plain SGD on clients, for which it is proven: optimizer is sgd and the learning rate has "
        "to be chosen anew; OpenFedLLM adds its correction beside AdamW",
    ),
    "fedavgm": (
        {"beta": "fedopt_beta1", "server_lr": "1-fedopt_beta1"},
        "fedavgm is the published server momentum; with server_lr = 1 - beta it is OpenFedLLM's moving average, "
        "which takes the first update whole where this one takes 1 - beta of it",
    ),
    "fedadagrad": (_ADAPTIVE, "OpenFedLLM cannot run fedadagrad (its trainer knows the name fedadgrad alone)"),
    "fedyogi": ({**_ADAPTIVE, "beta1": "fedopt_beta1", "beta2": "fedopt_beta2"}, _MOMENTS),
    "fedadam": ({**_ADAPTIVE, "beta1": "fedopt_beta1", "beta2": "fedopt_beta2"}, _MOMENTS),
}
"""Algorithm -> our option: their argument, and what differs."""


def _steps(draft: Draft, arguments: Arguments) -> None:
    size, times = arguments.whole("batch_size"), arguments.whole("gradient_accumulation_steps")
    draft.take("batch_size, gradient_accumulation_steps", f"{size} x {times}", "batch_size", size * times)
    draft.take("batch_size", size, "micro_batch_size")
    if arguments.whole("max_steps") > 0:
        draft.take("max_steps", arguments.whole("max_steps"), "local_steps")
        draft.missing["num_train_epochs"] = "max_steps decides"
    else:
        draft.take("num_train_epochs", arguments.whole("num_train_epochs"), "local_epochs")


def _rates(draft: Draft, arguments: Arguments, floor: float) -> None:
    rate = arguments.number("learning_rate")
    draft.take("learning_rate", rate, "learning_rate")
    draft.fix("lr_schedule", "cosine")
    draft.fix("min_lr_ratio", min(floor / rate, 1.0) if rate > 0 else 0.0)
    draft.differs.append("the learning rate falls along the same cosine, but at every step and not once a round")


def _notes(draft: Draft, arguments: Arguments) -> None:
    draft.differs += [
        "answers are found by their place in the text; OpenFedLLM searches marker tokens, as Llama 2's "
        "tokenizer makes them",
        "a client goes on in its rows where it stopped; OpenFedLLM draws rows anew in every round",
        "held-out rows are kept and their loss is measured every round",
        "4-bit bases are NF4; OpenFedLLM takes bitsandbytes' default, FP4",
        "code of model repositories is never run (trust_remote_code)",
    ]
    draft.missing |= {
        "output_dir": "--out of fedit run",
        "logging_steps": "every round is logged",
        "save_steps, save_total_limit, save_model_freq": "every round is kept; keep_rounds keeps the newest alone",
        "push_to_hub, hub_model_id, use_auth_token": "a finished run's adapter/ is a PEFT folder to be uploaded",
    }
    if arguments.on("trust_remote_code"):
        draft.open.append("trust_remote_code was on: the model has to be one that transformers knows by itself")
    draft.missing |= {name: "OpenFedLLM has no such argument" for name in arguments.unknown}
