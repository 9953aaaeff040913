"""FlowerTune (Flower's flowertune-llm example, template and leaderboard entries): settings in pyproject.toml."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedit.errors import ConfigError, DataError
from fedit.files import reason
from fedit.migration.adapters import newest_round, take_adapter, weights_in
from fedit.migration.base import Draft, template_file
from fedit.reading import parse_toml, read_settings_text, shown

NAME = "FlowerTune"
FILE, TEMPLATE = "pyproject.toml", "template.json"
_HEAD = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ASKED = f"{_HEAD}\n### Instruction:\n{{instruction}}"
ANSWERED = "\n### Response: "
FEWEST = 2
"""Clients that flwr's FedAvg takes at least in a round, unless the app's code says otherwise."""

_ARGUMENTS = "train.training-arguments"
_IGNORED = {
    f"{_ARGUMENTS}.output-dir": "--out of fedit run",
    f"{_ARGUMENTS}.learning-rate": "a placeholder that the app fills; train.learning-rate-max is taken",
    f"{_ARGUMENTS}.logging-steps": "every round is logged",
    f"{_ARGUMENTS}.save-steps": "every round is kept; keep_rounds keeps the newest alone",
    f"{_ARGUMENTS}.save-total-limit": "every round is kept; keep_rounds keeps the newest alone",
    f"{_ARGUMENTS}.lr-scheduler-type": "the app sets the rate once a round; here it falls at every step",
    "train.save-every-round": "every round is kept; keep_rounds keeps the newest alone",
    "train.evaluate-split": "held-out rows are measured on the server (held_out)",
    "strategy.fraction-evaluate": "held-out rows are measured on the server (held_out, eval_every)",
}
_MISSING = object()


def read(paths: Sequence[Path], draft: Draft) -> None:
    """Fill ``draft`` from a pyproject.toml, a folder with one, a folder with an adapter (peft_<n>), or several.

    Raises:
        UserError: a path is none of these, or what it holds is broken.
    """
    project: Path | None = None
    for path in paths:
        folder = path if path.is_dir() else None
        place = folder and (folder if weights_in(folder) else newest_round(folder, "peft_"))
        if path.suffix == ".toml":
            project = path
        elif folder and (folder / FILE).is_file():
            project = folder / FILE
        elif not place:
            raise DataError(
                f"{path} is nothing of FlowerTune's; expected {FILE}, a folder with one, or one with an "
                "adapter (peft_<round>)."
            )
        if place:
            take_adapter(draft, place)
    if project is None:
        raise ConfigError(f"no {FILE} is named; expected the one of a FlowerTune app.")
    _job(draft, *read_project(project), project)


def read_project(path: Path) -> tuple[dict[str, object], int | None]:
    """Return the app's settings under dotted names, and how many SuperNodes its default federation simulates.

    Raises:
        DataError: the file cannot be read, or is of no Flower app.
    """
    try:
        content = parse_toml(read_settings_text(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    tool = _table(_table(content.get("tool")).get("flwr"))
    values = _flat(_table(_table(tool.get("app")).get("config")))
    if not values:
        raise DataError(f"{path} has no [tool.flwr.app.config]; expected the {FILE} of a FlowerTune app.")
    # Leaderboard apps keep what must not be changed apart.
    values = {name.removeprefix("static."): value for name, value in values.items()}
    federations = _table(tool.get("federations"))
    chosen = _table(federations.get(str(federations.get("default"))))
    nodes = _flat(chosen).get("options.num-supernodes")
    return values, nodes if isinstance(nodes, int) and not isinstance(nodes, bool) else None


def _table(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


class _Values:
    """Settings by their dotted names, each asked for once; what is left over is not known here."""

    def __init__(self, values: Mapping[str, object], path: Path) -> None:
        self.left = dict(values)
        self._path = path

    def pop(
        self, name: str, kind: type[int] | type[float] | type[str] | type[bool], default: object = _MISSING
    ) -> object:
        """Return a setting, or its default.

        Raises:
            ConfigError: it is missing without a default, or of another type.
        """
        value = self.left.pop(name, default)
        if value is _MISSING:
            raise ConfigError(f"{self._path}: {name} is missing in [tool.flwr.app.config].")
        accepted = (int, float) if kind is float else kind
        wrong = not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool)
        if value is not default and wrong:
            words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
            raise ConfigError(f"{self._path}: {name} is {shown(value)}; expected {words[kind]}.")
        return value


def _job(draft: Draft, values: dict[str, object], nodes: int | None, path: Path) -> None:
    own = _Values(values, path)
    _model(draft, own, path)
    draft.take("dataset.name", own.pop("dataset.name", str), "dataset")
    draft.files[TEMPLATE] = template_file(ASKED + "\n### Input:\n{input}" + ANSWERED, ASKED + ANSWERED)
    draft.take("(always)", "its Alpaca prompt", "prompt_template", draft.place(TEMPLATE))
    _federation(draft, own, nodes)
    _training(draft, own)
    draft.missing |= {name: why for name, why in _IGNORED.items() if own.left.pop(name, _MISSING) is not _MISSING}
    draft.missing |= {
        name: "not of the published example; see whether your app's code reads it" for name in own.left
    }
    draft.differs += [
        "rows that have an input are shown it; FlowerTune's formatter leaves it out",
        "the end of sequence is learnt; FlowerTune's prompts have none, so its models are not taught to stop",
        "a client goes on in its rows where it stopped; the example draws the same rows in every round",
        "4-bit bases are NF4; the example takes bitsandbytes' default, FP4",
        "the base is loaded once and stays",
        "over many machines the same job runs with fedit deploy; pyproject's federations are not read for it",
    ]


def _model(draft: Draft, own: _Values, path: Path) -> None:
    draft.take("model.name", own.pop("model.name", str), "model")
    bits = own.pop("model.quantization", int, 4)
    if bits not in (0, 4, 8, 16, 32):
        raise ConfigError(f"{path}: model.quantization is {shown(bits)}; expected 4 or 8.")
    if bits in (4, 8):
        draft.take("model.quantization", bits, f"load_in_{bits}bit", True)
    checkpointing = own.pop("model.gradient-checkpointing", bool, False)
    again = own.left.pop(f"{_ARGUMENTS}.gradient-checkpointing", checkpointing)
    draft.take("model.gradient-checkpointing", checkpointing or again is True, "gradient_checkpointing")
    draft.take("model.lora.peft-lora-r", own.pop("model.lora.peft-lora-r", int), "lora_r")
    draft.take("model.lora.peft-lora-alpha", own.pop("model.lora.peft-lora-alpha", int), "lora_alpha")
    draft.fix("lora_dropout", 0.075)
    draft.fix("lora_target_modules", ["q_proj", "v_proj"])
    draft.open.append(
        "lora_target_modules are PEFT's choice for Llama-like models; other architectures have others"
    )


def _federation(draft: Draft, own: _Values, nodes: int | None) -> None:
    draft.take("num-server-rounds", own.pop("num-server-rounds", int), "num_rounds")
    name = next((n for n in ("strategy.fraction-train", "strategy.fraction-fit") if n in own.left), None)
    share = own.pop(name, float) if name else 1.0
    assert isinstance(share, int | float)
    if nodes is None:
        draft.open.append("no federation says how many SuperNodes there are: set num_clients")
        draft.take(name or "strategy.fraction-fit", share, "clients_per_round", float(share))
    else:
        draft.take("options.num-supernodes", nodes, "num_clients")
        cohort = min(max(int(share * nodes), FEWEST), nodes)
        draft.take(name or "strategy.fraction-fit", share, "clients_per_round", cohort)
    draft.fix("partitioner", "iid")
    draft.fix("strategy", "fedavg")


def _training(draft: Draft, own: _Values) -> None:
    rate, floor = own.pop("train.learning-rate-max", float), own.pop("train.learning-rate-min", float, 0.0)
    assert isinstance(rate, int | float)
    assert isinstance(floor, int | float)
    draft.take("train.learning-rate-max", rate, "learning_rate", float(rate))
    draft.fix("lr_schedule", "cosine")
    draft.take("train.learning-rate-min", floor, "min_lr_ratio", min(floor / rate, 1.0) if rate > 0 else 0.0)
    draft.take("train.seq-length", own.pop("train.seq-length", int, 512), "max_length")
    size = own.pop(f"{_ARGUMENTS}.per-device-train-batch-size", int, 16)
    times = own.pop(f"{_ARGUMENTS}.gradient-accumulation-steps", int, 1)
    assert isinstance(size, int)
    assert isinstance(times, int)
    draft.take(
        "per-device-train-batch-size, gradient-accumulation-steps", f"{size} x {times}", "batch_size", size * times
    )
    draft.take("per-device-train-batch-size", size, "micro_batch_size")
    steps, epochs = own.pop(f"{_ARGUMENTS}.max-steps", int, -1), own.pop(f"{_ARGUMENTS}.num-train-epochs", int, 3)
    assert isinstance(steps, int)
    if steps > 0:
        draft.take("max-steps", steps, "local_steps")
        draft.missing["num-train-epochs"] = "max-steps decides"
    else:
        draft.take("num-train-epochs", epochs, "local_epochs")
