"""Settings of a job: one typed model behind job files, flags, help, docs and checks."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from fedit.scaling import lora_scale
from fedit.variants import Option, Variant

SECTIONS = ("model", "data", "federation", "training", "privacy", "evaluation", "run")
"""Sections group help and docs; in a job file a setting may stand in its section or at the top."""


def _in(section: str) -> JsonDict:
    return {"section": section}


class Columns(BaseModel):
    """Names of the columns that hold each part of a row, where they differ from the schema's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    instruction: str | None = None
    """Column of the instruction."""
    context: str | None = None
    """Column of the context or input."""
    response: str | None = None
    """Column of the answer; of a preference, the chosen one."""
    rejected: str | None = None
    """Column of the answer that was not preferred."""
    category: str | None = None
    """Column of the category."""
    check: str | None = None
    """Column of the check that grades answers."""

    def given(self) -> dict[str, str]:
        """Return the overrides that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


AttackName = Literal[
    "sign_flip",
    "boost",
    "gaussian",
    "alie",
    "ipm",
    "replacement",
    "nan",
    "wrong_rank",
    "free_rider",
    "copycat",
    "lying_counts",
    "trigger",
    "forget_policy",
    "swap",
]
"""Attacks on updates (`fedit.attacks`) and on rows (`fedit.data.poison`)."""

POISONS = ("trigger", "forget_policy", "swap")
"""Those on rows."""


class RunConfig(BaseModel):
    """All settings of a job, flat, with the names that people who fine-tune and federate already use."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, strict=False
    )

    # --- model ---
    model: str = Field("smollm2-135m-instruct", json_schema_extra=_in("model"))
    """Base model: a hub id, a folder, a .gguf file, or the embedded smollm2-135m-instruct."""
    device: str = Field("auto", json_schema_extra=_in("model"))
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["auto", "bf16", "fp32", "fp64"] = Field("auto", json_schema_extra=_in("model"))
    """Precision of the frozen base; auto takes bf16 where the hardware multiplies in it. Adapters stay fp32."""
    load_in_8bit: bool = Field(False, json_schema_extra=_in("model"))
    """Quantise the base to 8 bits (bitsandbytes)."""
    load_in_4bit: bool = Field(False, json_schema_extra=_in("model"))
    """Quantise the base to 4 bits, NF4 (bitsandbytes)."""
    tuning: Literal["lora", "dora", "ia3", "vera", "prefix", "full"] = Field(
        "lora", json_schema_extra=_in("model")
    )
    """What is trained: LoRA factors, another kind of adapter, or full, the base's own weights."""
    virtual_tokens: PositiveInt = Field(20, json_schema_extra=_in("model"))
    """Tokens of the learnt prefix, for tuning=prefix."""
    lora_r: PositiveInt | Literal["auto"] = Field(16, json_schema_extra=_in("model"))
    """LoRA rank, also that of dora and vera; auto: the largest within upload_megabytes and adapter_megabytes."""
    upload_megabytes: Annotated[float, Field(gt=0)] | None = Field(None, json_schema_extra=_in("model"))
    """What a client may send in a round, in millions of bytes, for lora_r=auto."""
    adapter_megabytes: Annotated[float, Field(gt=0)] | None = Field(None, json_schema_extra=_in("model"))
    """What a client's adapter may take in memory while it trains (values, gradients and the optimizer's moments,
    not the base nor activations), in millions of bytes, for lora_r=auto."""
    lora_alpha: Annotated[float, Field(gt=0)] = Field(32, json_schema_extra=_in("model"))
    """LoRA scale: updates are multiplied by alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, json_schema_extra=_in("model"))
    """Dropout before the LoRA factors; the base's own dropout is off."""
    lora_target_modules: str | list[str] = Field("auto", json_schema_extra=_in("model"))
    """Layers that carry the adapter: auto, attention, all-linear, or layer names."""
    use_rslora: bool = Field(False, json_schema_extra=_in("model"))
    """Scale by alpha / sqrt(r) instead (rsLoRA, arXiv:2312.03732)."""
    gradient_checkpointing: bool = Field(False, json_schema_extra=_in("model"))
    """Recompute activations in the backward pass: less memory, more time."""

    fast_path: bool = Field(True, json_schema_extra=_in("model"))
    """Train Llama-like models through fedit's own passes; off: through transformers and PEFT, as all others."""

    # --- data ---
    dataset: str = Field("skills", json_schema_extra=_in("data"))
    """A JSON, JSONL, CSV or Parquet file, a Shepherd folder, a hub data set, or the embedded skills or
    preferences."""
    dataset_split: str = Field("train", json_schema_extra=_in("data"))
    """Split of a hub data set."""
    data_format: str = Field("auto", json_schema_extra=_in("data"))
    """Schema of the rows: auto, preference, alpaca, dolly, messages, sharegpt, prompt_completion, gsm8k."""
    columns: Columns = Field(Columns(), json_schema_extra=_in("data"))
    """Column names that differ from the schema's: columns.instruction, .context, .response, .rejected,
    .category, .check."""
    prompt_template: str = Field("auto", json_schema_extra=_in("data"))
    """auto (the model's chat template if it has one), chat, alpaca, alpaca_short, vicuna, or a file."""
    max_length: Annotated[int, Field(ge=8)] = Field(512, json_schema_extra=_in("data"))
    """Longest row in tokens; the prompt is cut before the answer is."""
    train_on_inputs: bool = Field(False, json_schema_extra=_in("data"))
    """Learn the prompts too, not only the answers."""
    max_examples: PositiveInt | None = Field(None, json_schema_extra=_in("data"))
    """Use a seeded sample of this many rows; per category for skills."""
    held_out: int | float | None = Field(None, json_schema_extra=_in("data"))
    """Rows kept for testing: a whole number per category, or a fraction. Default: 10 per category; without
    categories a tenth, at most 200; for partitioner natural a tenth of each client's."""
    validation: int | float = Field(0, json_schema_extra=_in("data"))
    """Rows kept for early stopping, counted like held_out."""

    # --- federation ---
    num_clients: PositiveInt | None = Field(None, json_schema_extra=_in("federation"))
    """Clients in all. Default: 10; for natural and manifest as many as the data names."""
    clients_per_round: int | float = Field(1.0, json_schema_extra=_in("federation"))
    """Cohort of a round: a whole number of clients, or a fraction of them (1.0 is all, 1 is one)."""
    num_rounds: PositiveInt = Field(10, json_schema_extra=_in("federation"))
    """Rounds of broadcast, local training and aggregation."""
    partitioner: str = Field("iid", json_schema_extra=_in("federation"))
    """Who holds which row; see fedit list partitions."""
    partition_by: str | None = Field(None, json_schema_extra=_in("federation"))
    """Field whose value is the client, for partitioner natural."""
    partition_file: str | None = Field(None, json_schema_extra=_in("federation"))
    """Manifest to reproduce, for partitioner manifest."""
    alpha: Annotated[float, Field(gt=0)] | None = Field(None, json_schema_extra=_in("federation"))
    """Dirichlet concentration for dirichlet, shepherd_dirichlet, quantity, cluster; smaller means more skew."""
    labels_per_client: PositiveInt | None = Field(None, json_schema_extra=_in("federation"))
    """Categories of a client, for label_count."""
    shards_per_client: PositiveInt | None = Field(None, json_schema_extra=_in("federation"))
    """Shards of a client, for shepherd_shards."""
    min_examples: PositiveInt | None = Field(None, json_schema_extra=_in("federation"))
    """Fewest rows of a client, for the schemes that draw sizes."""
    num_clusters: PositiveInt | None = Field(None, json_schema_extra=_in("federation"))
    """Clusters of the base model's mean hidden states, for partitioner cluster."""
    strategy: str = Field("fedit", json_schema_extra=_in("federation"))
    """Algorithm; see fedit list strategies, or "file.py:Class"."""
    strategy_options: dict[str, int | float | str | bool] = Field({}, json_schema_extra=_in("federation"))
    """Hyper-parameters of the strategy, by name."""
    client_ranks: list[PositiveInt] | dict[str, PositiveInt] = Field([], json_schema_extra=_in("federation"))
    """Ranks of clients that differ from lora_r, the server's: a list, dealt in turn, or client: rank. Needs a
    strategy for mixed ranks."""
    transforms: list[dict[str, dict[str, int | float | str | bool]]] = Field(
        [], json_schema_extra=_in("federation")
    )
    """What happens to updates and broadcasts on their way, in order, such as compression: names, or with options
    "[top_k: {fraction: 0.1}, zstd]"; see fedit list transforms, or "file.py:Class"."""
    weighting: Literal["examples", "tokens", "uniform"] = Field("examples", json_schema_extra=_in("federation"))
    """What a client's update weighs: its examples (the paper), its supervised tokens, or 1."""
    unseen_clients: Annotated[int, Field(ge=0)] = Field(0, json_schema_extra=_in("federation"))
    """Clients, drawn by the seed, that no cohort has; personal_evaluation shows what they get in the end."""
    min_clients: PositiveInt = Field(1, json_schema_extra=_in("federation"))
    """Fewest updates that a round needs; with fewer the adapter stays as it is."""
    selection: str = Field("uniform", json_schema_extra=_in("federation"))
    """Who takes part in a round: uniform, poisson, weighted, round_robin, power_of_choice, oort."""
    selection_options: dict[str, int | float | str | bool] = Field({}, json_schema_extra=_in("federation"))
    """Options of the selection, by name."""
    devices: str = Field("none", json_schema_extra=_in("federation"))
    """Simulated speeds and bandwidths of clients: equal, lognormal, file; none: no virtual clock."""
    devices_options: dict[str, int | float | str | bool] = Field({}, json_schema_extra=_in("federation"))
    """Options of the devices, by name."""
    stragglers: str = Field("wait_all", json_schema_extra=_in("federation"))
    """What a round does with slow clients: wait_all, deadline, over_select, partial_work."""
    stragglers_options: dict[str, int | float | str | bool] = Field({}, json_schema_extra=_in("federation"))
    """Options of the policy for slow clients, by name."""
    availability: str = Field("always", json_schema_extra=_in("federation"))
    """When clients can be asked: always, diurnal, trace."""
    availability_options: dict[str, int | float | str | bool] = Field({}, json_schema_extra=_in("federation"))
    """Options of the availability, by name."""

    attack: list[AttackName] = Field([], json_schema_extra=_in("federation"))
    """What hostile clients of a simulation do: one of sign_flip, boost, gaussian, alie, ipm, replacement, nan,
    wrong_rank, free_rider, copycat, lying_counts to updates; one of trigger, forget_policy, swap to rows."""
    attackers: int | float = Field(0.2, json_schema_extra=_in("federation"))
    """Clients that are hostile where attack is set: a whole number, or a fraction of all."""
    max_update_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        100.0, json_schema_extra=_in("federation")
    )
    """Leave out updates whose norm is more than this many times the median of the round's, and exact copies of
    another client's; 0 lets all in. Robust strategies compare more closely by themselves."""
    attack_strength: float | None = Field(None, json_schema_extra=_in("federation"))
    """How strongly updates are changed; its meaning and default are the attack's own."""
    poison_share: Annotated[float, Field(gt=0, le=1)] = Field(0.5, json_schema_extra=_in("federation"))
    """Poisoned share of a hostile client's rows; for forget_policy rows of the policy, relative to a client's."""
    defence_steps: Annotated[int, Field(ge=0)] = Field(0, json_schema_extra=_in("federation"))
    """Steps that the server tunes the final adapter for, on validation rows and those of an attacked policy."""

    # --- training ---
    objective: Literal["sft", "dpo"] = Field("sft", json_schema_extra=_in("training"))
    """What clients minimise: sft, the loss of the answers; dpo, direct preference optimisation of pairs."""
    dpo_beta: Annotated[float, Field(gt=0)] = Field(0.1, json_schema_extra=_in("training"))
    """How strongly DPO holds to the reference, the model that the run starts from."""
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(0.0, json_schema_extra=_in("training"))
    """Share of the preferences that DPO takes to be the wrong way round."""
    local_epochs: PositiveInt | None = Field(None, json_schema_extra=_in("training"))
    """Passes over the client's rows a round. Default 1 if neither steps nor tokens are set."""
    local_steps: PositiveInt | None = Field(None, json_schema_extra=_in("training"))
    """Optimizer steps a round; a client goes on in its data where it stopped."""
    local_tokens: PositiveInt | None = Field(None, json_schema_extra=_in("training"))
    """Tokens a round, prompts counted."""
    batch_size: PositiveInt = Field(16, json_schema_extra=_in("training"))
    """Examples of an optimizer step."""
    micro_batch_size: PositiveInt | None = Field(None, json_schema_extra=_in("training"))
    """Examples of a forward pass. Default: what fits a token budget, halved when memory runs out."""
    optimizer: Literal["adamw", "sgd"] = Field("adamw", json_schema_extra=_in("training"))
    """Client optimizer."""
    learning_rate: Annotated[float, Field(gt=0)] = Field(3e-4, json_schema_extra=_in("training"))
    """Client learning rate."""
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", json_schema_extra=_in("training"))
    """How the learning rate falls, over the whole run and not anew in each round."""
    warmup_ratio: Share = Field(0.0, json_schema_extra=_in("training"))
    """Share of the run over which the learning rate rises."""
    min_lr_ratio: Share = Field(0.0, json_schema_extra=_in("training"))
    """Where a falling schedule ends, as a share of learning_rate."""
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, json_schema_extra=_in("training"))
    """Weight decay of the adapter (decoupled in AdamW)."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, json_schema_extra=_in("training"))
    """AdamW's first-moment decay."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, json_schema_extra=_in("training"))
    """AdamW's second-moment decay; 0.95 suits rounds of few steps."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, json_schema_extra=_in("training"))
    """Momentum of SGD."""
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(1.0, json_schema_extra=_in("training"))
    """Global norm that gradients are clipped to; 0 does not clip."""
    client_optimizer: Literal["reset", "keep"] = Field("reset", json_schema_extra=_in("training"))
    """Whether a client's optimizer state is kept from one of its rounds to the next."""

    # --- privacy ---
    privacy: Literal["none", "client", "example"] = Field("none", json_schema_extra=_in("privacy"))
    """Whose part in the model cannot be told (differential privacy): a client's as a whole (the server clips and
    adds noise), one example's (clients do, inside their training), or none."""
    privacy_options: dict[str, int | float | str | bool] = Field({}, json_schema_extra=_in("privacy"))
    """Options of the privacy, by name; noise_multiplier or epsilon must be given."""
    secure_aggregation: bool = Field(False, json_schema_extra=_in("privacy"))
    """Mask updates so that the server learns nothing but a cohort's sum."""
    secure_aggregation_options: dict[str, int | float | str | bool] = Field({}, json_schema_extra=_in("privacy"))
    """Options of the secure aggregation, by name."""
    canaries: Annotated[int, Field(ge=0)] = Field(0, json_schema_extra=_in("privacy"))
    """Made-up secrets planted among rows of a simulation, by which fedit privacy audit measures what is learnt by
    heart; 0: none."""
    canaries_options: dict[str, int | list[int] | list[str]] = Field({}, json_schema_extra=_in("privacy"))
    """Options of the canaries, by name: repetitions (1, 4 and 16 times), clients (how many hold some, or their
    ids)."""
    keep_uploads: Annotated[int, Field(ge=0)] | list[str] = Field(0, json_schema_extra=_in("privacy"))
    """Clients of a simulation whose single uploads are kept for fedit privacy audit: how many, drawn by the seed,
    or their ids."""

    # --- evaluation ---
    eval_every: PositiveInt = Field(1, json_schema_extra=_in("evaluation"))
    """Rounds between held-out evaluations; the last round is always evaluated."""
    eval_max_examples: PositiveInt = Field(256, json_schema_extra=_in("evaluation"))
    """Most held-out rows that losses are measured on: one seeded sample for the whole run."""
    exact_match: bool = Field(False, json_schema_extra=_in("evaluation"))
    """Also generate answers to the held-out rows at the start and the end and grade them."""
    max_new_tokens: PositiveInt = Field(64, json_schema_extra=_in("evaluation"))
    """Longest generated answer."""
    early_stopping: Annotated[int, Field(ge=0)] = Field(0, json_schema_extra=_in("evaluation"))
    """Stop after this many evaluations without a better validation loss and keep the best; 0: never."""
    compare: list[Literal["local", "centralised"]] = Field([], json_schema_extra=_in("evaluation"))
    """Baselines to train beside the federation on the same rows: local, centralised."""
    compare_clients: PositiveInt = Field(3, json_schema_extra=_in("evaluation"))
    """How many clients are trained alone for compare=local."""
    personal_evaluation: bool = Field(False, json_schema_extra=_in("evaluation"))
    """At the end measure what every client runs for itself, beside the global adapter, in all categories."""
    personal_steps: Annotated[int, Field(ge=0)] = Field(0, json_schema_extra=_in("evaluation"))
    """Optimizer steps by which every client then fine-tunes what it runs, to measure that too; 0: none."""

    # --- run ---
    seed: Annotated[int, Field(ge=0)] = Field(0, json_schema_extra=_in("run"))
    """Root of every random draw."""
    keep_rounds: Annotated[int, Field(ge=0)] = Field(0, json_schema_extra=_in("run"))
    """Server states to keep, newest first, and the best; 0 keeps all."""
    num_threads: PositiveInt | None = Field(None, json_schema_extra=_in("run"))
    """CPU threads of a process. Default: 1 on the CPU. The same number gives the same results, bit for bit."""
    num_workers: PositiveInt | None = Field(None, json_schema_extra=_in("run"))
    """Processes that train and evaluate. Default: one a core or GPU; 1: all in this one. Results do not change."""

    report_to: list[Literal["trackio", "wandb", "mlflow"]] = Field([], json_schema_extra=_in("run"))
    """Trackers that hear of a run, beside events.jsonl and TensorBoard's files, which are always written."""
    devices_per_client: PositiveInt = Field(1, json_schema_extra=_in("run"))
    """GPUs (on a CPU: processes) that compute each client's gradient together, each with the whole base."""
    stack_clients: PositiveInt | None = Field(None, json_schema_extra=_in("run"))
    """Clients that train in one pass over the base. Default: several where their steps are small; 1: never."""

    @field_validator("transforms", mode="before")
    @classmethod
    def _named_transforms(cls, value: object) -> object:
        """Read a name alone as a name without options, and a mapping as a list of its items."""
        items = [{name: options} for name, options in value.items()] if isinstance(value, dict) else value
        if not isinstance(items, list):
            return value
        plain = [{item: {}} if isinstance(item, str) else item for item in items]
        return [{n: o or {} for n, o in item.items()} if isinstance(item, dict) else item for item in plain]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [message for bad, message in self._problems() if bad]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[tuple[bool, str]]:
        budgets = [n for n in ("local_epochs", "local_steps", "local_tokens") if getattr(self, n) is not None]
        per_round = self.clients_per_round
        return [
            (len(budgets) > 1, f"set only one of {', '.join(budgets)}"),
            (self.load_in_8bit and self.load_in_4bit, "set only one of load_in_8bit and load_in_4bit"),
            (
                per_round <= 0 or (isinstance(per_round, float) and per_round > 1),
                f"clients_per_round is {per_round}; expected a whole number from 1 or a fraction up to 1.0",
            ),
            (
                self.early_stopping > 0 and self.validation == 0,
                "early_stopping needs validation rows: set validation, for instance to 4",
            ),
            (
                (self.lora_r == "auto")
                != (not (self.upload_megabytes is None and self.adapter_megabytes is None)),
                "lora_r=auto and a budget (upload_megabytes, adapter_megabytes or both) go together",
            ),
            (
                self.lora_r != "auto" and max(self.own_ranks(), default=0) > self.lora_r,
                f"client_ranks go up to {max(self.own_ranks(), default=0)}, but lora_r, the server's, "
                f"is {self.lora_r}",
            ),
            (
                self.partitioner == "manifest" and self.partition_file is None,
                "partitioner manifest needs partition_file",
            ),
            (
                self.partition_by is not None and self.partitioner != "natural",
                f"partition_by is read by partitioner=natural only, and partitioner is {self.partitioner}",
            ),
            (
                self.devices_per_client > 1 and (self.stack_clients or 1) > 1,
                "set only one of devices_per_client and stack_clients above 1",
            ),
            (
                self.attackers < 0 or (isinstance(self.attackers, float) and self.attackers > 1),
                f"attackers is {self.attackers}; expected a whole number of clients or a fraction up to 1.0",
            ),
            *(
                (len(named) > 1, f"attack names {' and '.join(named)}; expected one on updates and one on rows")
                for named in self._attacks()
            ),
            (
                self.attack_strength is not None and self.update_attack is None,
                "attack_strength is read by attacks on updates only; name one in attack",
            ),
            (
                self.defence_steps > 0 and self.validation == 0 and self.poison != "forget_policy",
                "defence_steps needs rows that the server holds: set validation, for instance to 4",
            ),
            (
                any(len(item) != 1 for item in self.transforms),
                "an item of transforms holds one name and its options; begin every transform with a dash",
            ),
            (
                self.personal_steps > 0 and not self.personal_evaluation,
                "personal_steps are for personal_evaluation only: set that to true",
            ),
            (
                self.objective == "dpo" and self.train_on_inputs,
                "train_on_inputs has no meaning for objective=dpo, which compares answers; leave it off",
            ),
            (
                self.objective == "dpo" and self.poison == "forget_policy",
                "attack=forget_policy adds rows without rejected answers, which objective=dpo cannot compare; "
                "take trigger or leave objective at sft",
            ),
            (
                self.objective == "dpo" and self.devices_per_client > 1,
                "objective=dpo trains a client on one device; set devices_per_client to 1",
            ),
            (
                self.tuning != "lora" and (self.lora_r == "auto" or bool(self.client_ranks)),
                "lora_r=auto and client_ranks are for tuning=lora",
            ),
            (
                self.tuning == "full" and self.bits < 16,
                "tuning=full trains the base's own weights, which cannot be quantised; leave load_in_4bit and "
                "load_in_8bit off",
            ),
            (
                self.tuning == "full" and self.dtype == "bf16",
                "tuning=full needs weights in which small steps are not lost; set dtype to auto or fp32",
            ),
            (
                self.tuning == "prefix" and self.gradient_checkpointing,
                "tuning=prefix keeps keys and values, which gradient_checkpointing computes anew; leave that off",
            ),
            (
                self.tuning != "lora" and self.devices_per_client > 1,
                "devices_per_client above 1 serves tuning=lora; set it to 1",
            ),
            (
                self.privacy == "none" and bool(self.privacy_options),
                "privacy_options are given, but privacy is none; set it to client or example",
            ),
            (
                self.privacy == "client" and self.weighting != "uniform",
                "privacy=client counts every client alike; set weighting to uniform",
            ),
            (
                bool(self.secure_aggregation_options) and not self.secure_aggregation,
                "secure_aggregation_options are given, but secure_aggregation is off; set it to true",
            ),
            (
                bool(self.keep_uploads) and self.secure_aggregation,
                "keep_uploads keeps what secure_aggregation hides, single uploads; leave it at 0",
            ),
            (
                bool(self.canaries_options) and self.canaries == 0,
                "canaries_options are given, but canaries is 0; set it to how many there are to be",
            ),
            (
                self.objective == "dpo" and self.canaries > 0,
                "canaries have no rejected answers, which objective=dpo compares; set canaries to 0",
            ),
            *(self._bad_amount(name) for name in ("held_out", "validation")),
        ]

    def _bad_amount(self, name: str) -> tuple[bool, str]:
        value = getattr(self, name)
        bad = value is not None and (value < 0 or (isinstance(value, float) and value >= 1))
        return bad, f"{name} is {value}; expected a whole number of rows or a fraction below 1"

    def _attacks(self) -> tuple[list[str], list[str]]:
        return [a for a in self.attack if a not in POISONS], [a for a in self.attack if a in POISONS]

    @property
    def update_attack(self) -> str | None:
        """The attack on updates, if there is one."""
        return next(iter(self._attacks()[0]), None)

    @property
    def poison(self) -> str | None:
        """The attack on rows, if there is one."""
        return next(iter(self._attacks()[1]), None)

    @property
    def bits(self) -> int:
        """Bits of a base weight: 4, 8, or 16 for not quantised."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else 16

    def own_ranks(self) -> list[int]:
        """Return the ranks that ``client_ranks`` gives."""
        return list(self.client_ranks.values() if isinstance(self.client_ranks, dict) else self.client_ranks)

    @property
    def rank(self) -> int:
        """LoRA rank of the server, once it is known.

        Raises:
            ValueError: it is still to be found (``lora_r=auto``); `fedit.prepare.prepare` finds it.
        """
        if self.lora_r == "auto":
            raise ValueError("lora_r is auto and was not found yet")
        return self.lora_r

    @property
    def scale(self) -> float:
        """What B A is multiplied by at the server's rank."""
        return self.scale_at(self.rank)

    def scale_at(self, rank: int) -> float:
        """Return what B A is multiplied by at a rank."""
        return lora_scale(self.lora_alpha, rank, rslora=self.use_rslora)

    @property
    def epochs(self) -> int | None:
        """Local epochs, with the default applied."""
        return (
            1
            if self.local_steps is None and self.local_tokens is None and self.local_epochs is None
            else self.local_epochs
        )

    def partition_options(self) -> dict[str, int | float | str]:
        """Return the settings that were given for a partition scheme, by the names schemes use."""
        names: Mapping[str, str] = {
            "alpha": "alpha",
            "labels_per_client": "labels_per_client",
            "shards_per_client": "shards_per_client",
            "min_examples": "min_examples",
            "num_clusters": "num_clusters",
            "partition_file": "path",
        }
        return {theirs: getattr(self, ours) for ours, theirs in names.items() if getattr(self, ours) is not None}


ArmKind = Literal["base", "local", "local_total", "centralised", "federated"]
"""What a study compares: the untouched base, clients alone at two budgets, all rows in one place, federations."""


class StudyConfig(BaseModel):
    """What ``fedit study`` adds to a job: its section ``study``."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, strict=False
    )

    arms: list[ArmKind] = Field(default=["base", "local", "local_total", "centralised", "federated"])
    """What is compared: base, local (a client's own steps), local_total (the federation's tokens), centralised,
    federated."""
    strategies: list[str] = Field(default=[])
    """Strategies to federate with, each an arm: names, or with options "[fedit, {fed_sb: {bases: first_update}}]".
    Default: the job's own."""
    seeds: PositiveInt | list[int] = Field(default=1)
    """How many seeds, counted from the job's, or which: each deals, draws and trains anew."""
    learning_rates: list[float] = Field(default=[])
    """Rates that every arm chooses from by its validation loss at the first seed. Default: the job's alone."""
    local_clients: PositiveInt | Literal["kinds"] | list[str] = Field(default="kinds")
    """Clients that train alone: kinds (the paper's three: two of one category, one of two; else those with the
    fewest), the first so many, or ids."""
    questions: list[str] = Field(default=[])
    """Question sets that every arm answers at the first seed: names or JSONL files."""
    question_tokens: PositiveInt = Field(default=256)
    """Longest answer to a question of these sets."""
    byte_budget_megabytes: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(default="auto")
    """Millions of bytes, up and down of all clients together, at which federations are compared; auto: what the
    thriftiest of them took in all."""
    generate: bool = Field(default=True)
    """Answer the held-out instructions too: exact match and ROUGE-L; off: losses alone."""
    resamples: PositiveInt = Field(default=2000)
    """Bootstrap resamples behind every interval."""

    @field_validator("strategies", mode="before")
    @classmethod
    def _named_strategies(cls, value: object) -> object:
        """Read a strategy with options, a mapping of one name, as the name that its arm has."""
        items = [{name: options} for name, options in value.items()] if isinstance(value, dict) else value
        return [_variant(item) for item in items] if isinstance(items, list) else items

    @property
    def num_seeds(self) -> int:
        """How many seeds there are."""
        return self.seeds if isinstance(self.seeds, int) else len(self.seeds)

    def seeds_from(self, first: int) -> list[int]:
        """Return the seeds; counted from ``first`` where only their number is given."""
        return list(range(first, first + self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.arms:
            raise ValueError("arms is empty; name at least one")
        needy = sorted({"local_total", "centralised"} & set(self.arms))
        if needy and "federated" not in self.arms:
            raise ValueError(f"{' and '.join(needy)} take the federation's tokens; add federated to arms")
        for name in ("arms", "strategies", "seeds", "learning_rates", "local_clients", "questions"):
            values = getattr(self, name)
            if isinstance(values, list) and len(set(values)) < len(values):
                raise ValueError(f"{name} names something twice")
        if isinstance(self.seeds, list) and (not self.seeds or min(self.seeds) < 0):
            raise ValueError("seeds must be whole numbers from 0")
        if any(rate <= 0 for rate in self.learning_rates):
            raise ValueError("learning_rates must be above 0")
        return self


def _variant(item: object) -> object:
    """Return the one name of a strategy and its options, always written in the same way."""
    if isinstance(item, str):
        return str(Variant.parse(item))  # options always written in the same way
    if not (isinstance(item, dict) and len(item) == 1):
        raise ValueError(f"{item!r} is no strategy; expected a name, or one name with options {{option: value}}")
    ((name, options),) = item.items()
    options = {} if options is None else options
    if not (isinstance(options, dict) and all(isinstance(value, Option) for value in options.values())):
        raise ValueError(f"the options of '{name}' are {options!r}; expected names and values, {{option: value}}")
    return str(Variant(str(name), {str(option): value for option, value in options.items()}))
