"""Shepherd (github.com/JayZhang42/FederatedGPT-Shepherd): data folders, templates, adapters, arguments."""

from collections.abc import Sequence
from pathlib import Path

from fedit.data.rounds import ROUND_TEMPLATES, from_json
from fedit.data.sources import load_rows
from fedit.errors import ConfigError, DataError
from fedit.migration.adapters import newest_round, take_adapter, weights_in
from fedit.migration.arguments import Arguments, complete, read_command
from fedit.migration.base import Draft
from fedit.model.export import CONFIG

NAME = "Shepherd"
SCRIPTS = ("main.py",)
DEFAULTS: dict[str, object] = {
    "global_model": "",
    "data_path": "./data",
    "output_dir": "./lora-shepherd/",
    "client_selection_strategy": "random",
    "client_selection_frac": 0.1,
    "num_communication_rounds": 50,
    "num_clients": 10,
    "local_batch_size": 64,
    "local_micro_batch_size": 8,
    "local_num_epochs": 10,
    "local_learning_rate": 3e-4,
    "local_val_set_size": 0,
    "local_save_steps": 3,
    "cutoff_len": 512,
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_modules": ["q_proj"],
    "train_on_inputs": True,
    "group_by_length": False,
    "resume_from_checkpoint": None,
    "prompt_template_name": "alpaca",
}
"""Arguments of main.py as of May 2023, its last version."""
TEMPLATE = "template.json"


def read(paths: Sequence[Path], draft: Draft) -> None:
    """Fill ``draft`` from a data folder, a template, an output folder, a shell script, or several of them.

    Raises:
        UserError: a path is none of these, or what it holds is broken.
    """
    arguments = Arguments(SCRIPTS[0], DEFAULTS)
    data: Path | None = None
    template: Path | None = None
    for path in paths:
        if path.suffix == ".sh":
            arguments = complete(read_command(path, SCRIPTS), DEFAULTS)
        elif path.suffix == ".json" and path.is_file():
            template = path
        elif path.is_dir() and _holds_adapter(path):
            config = take_adapter(draft, _adapter_folder(path))
            arguments = _of_adapter(arguments, config)
        elif path.is_dir():
            data = path
        else:
            raise DataError(
                f"{path} is nothing of Shepherd's; expected a folder of local_training_<n>.json, a template "
                "(.json), an output folder with adapter_config.json, or a shell script (.sh) that calls main.py."
            )
    _data(draft, arguments, data)
    _template(draft, arguments, template)
    _training(draft, arguments)
    _notes(draft, arguments)


def _holds_adapter(folder: Path) -> bool:
    return weights_in(folder) is not None or (folder / CONFIG).is_file()


def _adapter_folder(folder: Path) -> Path:
    """Return where the weights lie: in the folder, or in the sub-folder of its last round."""
    return folder if weights_in(folder) else newest_round(folder) or folder


def _of_adapter(arguments: Arguments, config: dict[str, object]) -> Arguments:
    """Return the arguments with what an adapter says where the command says nothing."""
    told = {
        "lora_r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config.get("lora_dropout", 0.0),
        "lora_target_modules": _names(config["target_modules"]),
        "global_model": config.get("base_model_name_or_path") or "",
    }
    missing = {name: value for name, value in told.items() if name not in arguments.given}
    return Arguments(arguments.script, {**arguments.values, **missing}, arguments.given, arguments.unknown)


def _names(targets: object) -> list[str]:
    return [str(name) for name in targets] if isinstance(targets, list) else [str(targets)]


def _data(draft: Draft, arguments: Arguments, folder: Path | None) -> None:
    clients = arguments.whole("num_clients")
    told = f"{arguments.text('data_path').rstrip('/')}/{clients}"
    path = folder or Path(told)
    if path.is_dir():
        corpus = load_rows(str(path), columns={})
        clients = len({example.owner for example in corpus.examples})
        if not corpus.held_out:
            draft.differs.append("there is no global_test.json: fedit holds out a tenth of every client's rows")
    else:
        draft.open.append(f"there is no folder {path} here: set dataset to where local_training_<n>.json lie")
    draft.take("data_path, num_clients", told if folder is None else str(folder), "dataset", path.as_posix())
    draft.fix("partitioner", "natural")
    chosen = max(int(arguments.number("client_selection_frac") * clients), 1)
    draft.take("client_selection_frac", arguments.number("client_selection_frac"), "clients_per_round", chosen)
    if arguments.values["client_selection_strategy"] != "random":
        draft.missing["client_selection_strategy"] = "main.py knows random alone and fails at others"


def _template(draft: Draft, arguments: Arguments, path: Path | None) -> None:
    name = arguments.text("prompt_template_name") or "alpaca"
    if path is not None:
        text = path.read_text(encoding="utf-8-sig")
        from_json(text, "", path.name, str(path))  # a broken one is refused here and not at the first row
        draft.files[TEMPLATE] = text.encode()
        draft.take("prompt_template_name", path.stem, "prompt_template", draft.place(TEMPLATE))
    elif name in ROUND_TEMPLATES and name != "vicuna":
        draft.take("prompt_template_name", name, "prompt_template")
    else:
        raise ConfigError(
            f"the template '{name}' is a file of Shepherd's: name it too, for instance templates/{name}.json."
        )


def _training(draft: Draft, arguments: Arguments) -> None:
    model = arguments.text("global_model")
    if model:
        draft.take("global_model", model, "model")
    else:
        draft.open.append("no base model is named (--global_model): set model, or fedit's default is taken")
    draft.fix("load_in_8bit", True)
    draft.take("num_communication_rounds", arguments.whole("num_communication_rounds"), "num_rounds")
    draft.fix("strategy", "fedit")
    draft.take("local_num_epochs", arguments.whole("local_num_epochs"), "local_epochs")
    micro = arguments.whole("local_micro_batch_size")
    size = max(arguments.whole("local_batch_size") // max(micro, 1), 1) * micro
    draft.take("local_batch_size", arguments.whole("local_batch_size"), "batch_size", size)
    draft.take("local_micro_batch_size", micro, "micro_batch_size")
    draft.take("local_learning_rate", arguments.number("local_learning_rate"), "learning_rate")
    draft.fix("lr_schedule", "linear")
    draft.take("cutoff_len", arguments.whole("cutoff_len"), "max_length")
    draft.take("lora_r", arguments.whole("lora_r"), "lora_r")
    draft.take("lora_alpha", arguments.values["lora_alpha"], "lora_alpha")
    draft.take("lora_dropout", arguments.number("lora_dropout"), "lora_dropout")
    draft.take("lora_target_modules", arguments.values["lora_target_modules"], "lora_target_modules")
    draft.take("train_on_inputs", arguments.on("train_on_inputs"), "train_on_inputs")


def _notes(draft: Draft, arguments: Arguments) -> None:
    draft.differs += [
        "the learning rate falls once over the whole run; main.py lets it fall to 0 anew in every round",
        "rows longer than cutoff_len lose the beginning of the prompt; main.py cuts the end of the answer, and "
        "with it the end of sequence",
        "a step is a mean over all its supervised tokens; main.py takes the mean of its micro-batches' means",
        "the end of sequence is always learnt, prompts as main.py says (train_on_inputs, on by default there)",
        "cohorts, initial factors and orders follow one seed; main.py draws the same cohorts in every run and "
        "nothing else by a seed",
        "held-out loss is measured every round (main.py prints a placeholder)",
        "repeated rows count once, and rows whose prompt is held out are not trained on",
        "main.py always loads the base in 8 bits; leave load_in_8bit out where it fits as it is",
    ]
    draft.missing |= {
        "group_by_length": "rows are sorted and packed by themselves, to the same results",
        "output_dir": "--out of fedit run",
        "local_save_steps": "main.py ignores it; fedit saves after every round",
        "resume_from_checkpoint": "main.py ignores it; fedit resume RUN goes on with an interrupted run",
    }
    if arguments.values["local_val_set_size"]:
        draft.missing["local_val_set_size"] = (
            "main.py picks every client's best local checkpoint on it; here validation rows choose the best round "
            "(validation, early_stopping)"
        )
    draft.missing |= {name: "main.py has no such argument" for name in arguments.unknown}
