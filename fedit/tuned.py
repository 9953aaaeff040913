"""What a run folder or an adapter says about the model that was tuned: its factors and all they need."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedit import checkpoint, lora
from fedit.errors import ModelError
from fedit.model.export import CONFIG, WEIGHTS, rank_and_alpha, read_adapter, read_adapter_config
from fedit.model.sources import DEFAULT_MODEL
from fedit.runfolder import read_config
from fedit.scaling import lora_scale
from fedit.strategies import build_strategy
from fedit.types import Tensors

_DEFAULT_AS_PUBLISHED = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SETTING_IN_CARD = re.compile(r"^prompt_template: (\S.*)$", re.MULTILINE)

_NOT_PLAIN = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
)
"""Fields of adapter_config.json that, when set, mean more than two factors a layer at one scale."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """An adapter and everything that decides what it answers.

    note: what the user should know about how it was found; "" for nothing.
    """

    adapter: Tensors
    model: str
    template: str
    rank: int
    alpha: float
    rslora: bool = False
    dtype: str = "auto"
    bits: int = 16
    note: str = ""

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return lora_scale(self.alpha, self.rank, rslora=self.rslora)

    def base(self) -> "Tuned":
        """Return the same without the adapter: the base model under the same template."""
        return replace(self, adapter={}, note="")


def find_tuned(folder: Path, *, model: str | None = None, template: str | None = None) -> Tuned:
    """Return the adapter in ``folder``: a run, an arm of one, or any PEFT folder of a LoRA adapter.

    A run's settings decide model, template and scale; those of an adapter alone are in its own
    config and card. ``model`` and ``template`` win over both.

    Raises:
        ModelError: there is no adapter, or one that is not plain LoRA.
        RunFolderError: a run's settings cannot be read.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}; name a run folder or the folder of a LoRA adapter.")
    run = run_of(folder.resolve())
    home = next((place for place in (folder, folder / "adapter") if (place / CONFIG).is_file()), None)
    if run is not None:
        return _from_run(folder, run, home, model, template)
    if home is None:
        raise ModelError(_nothing_found(folder))
    return _from_adapter(home, model, template)


def run_of(folder: Path) -> Path | None:
    """Return the run that ``folder`` is, or is the adapter or an arm of; None if it belongs to none."""
    own = folder.parent if folder.name == "adapter" else folder
    run = own.parent.parent if own.parent.name == "arms" else own
    return run if (run / "resolved.yaml").is_file() else None


def _from_run(folder: Path, run: Path, home: Path | None, model: str | None, template: str | None) -> Tuned:
    config = read_config(run)
    if config.tuning != "lora":
        how = "a model's folder: name it as model" if config.tuning == "full" else "for PEFT to load"
        raise ModelError(
            f"{folder} was trained with tuning={config.tuning}; what reads adapters reads LoRA alone. "
            f"{run / 'adapter'} is {how}."
        )
    note = ""
    rank, alpha = config.rank, config.lora_alpha
    if home is not None:
        adapter = read_adapter(home)
        rank, alpha = rank_and_alpha(read_adapter_config(home), home)
    else:
        server = folder / "server"
        done = sorted(int(p.parent.name.removeprefix("round-")) for p in server.glob("round-*/state.json"))
        if not done:
            raise ModelError(_nothing_found(folder))
        strategy = build_strategy(config.strategy, config.strategy_options)
        adapter = lora.joined(strategy.model(checkpoint.load(server, done[-1])), config.scale)
        rank = lora.rank_of(adapter)
        alpha = config.scale / lora_scale(1.0, rank, rslora=config.use_rslora)
        note = f"{folder} is not finished: this is its adapter after round {done[-1]} of {config.num_rounds}"
    return Tuned(
        adapter,
        model or config.model,
        template or config.prompt_template,
        rank,
        alpha,
        config.use_rslora,
        config.dtype,
        config.bits,
        note,
    )


def _from_adapter(home: Path, model: str | None, template: str | None) -> Tuned:
    config = read_adapter_config(home)
    _check_plain(config, home)
    rank, alpha = rank_and_alpha(config, home)
    base = model or config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{home / CONFIG} does not name a base model; name it with --model.")
    note = "" if model else f"base model {base}, as {CONFIG} says; --model names another"
    if not model and base.lower() == _DEFAULT_AS_PUBLISHED.lower():
        note = f"base model {DEFAULT_MODEL}, the 4-bit build of {base}; --model names another"
        base = DEFAULT_MODEL
    return Tuned(
        read_adapter(home),
        base,
        template or _template_in_card(home) or "auto",
        rank,
        alpha,
        bool(config.get("use_rslora")),
        note=note,
    )


def _check_plain(config: Mapping[str, object], home: Path) -> None:
    extras = [name for name in _NOT_PLAIN if config.get(name)]
    if config.get("bias") not in (None, "none"):
        extras.append("bias")
    if extras:
        raise ModelError(f"{home} is no plain LoRA adapter: {CONFIG} sets {', '.join(extras)}; load it with PEFT.")


def _template_in_card(home: Path) -> str | None:
    """Return the prompt template that the adapter's card tells of, if it has one."""
    card = home / "README.md"
    found = _SETTING_IN_CARD.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    return found[1].strip().strip("'\"") if found else None


def _nothing_found(folder: Path) -> str:
    if (folder / "export.json").is_file():
        return f"{folder} is an export for other programs; name the run that it was made from."
    return (
        f"{folder} holds nothing to chat with: looked for {CONFIG} and {WEIGHTS} in it and in its folder "
        "'adapter', and for a run's resolved.yaml with the states of its rounds in 'server'. Name a run folder "
        "(fedit run JOB --out DIR makes one) or the folder of a LoRA adapter."
    )
