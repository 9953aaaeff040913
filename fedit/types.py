"""The nouns of a federated run: what a client is, what it is sent, what it sends back, what the server keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

Tensors = dict[str, Tensor]
"""Canonical name -> CPU tensor. The LoRA factors of module m are "m.A" (rank, in) and "m.B" (out, rank)."""

LEDGER = "ledger/"
"""Prefix of the names of a ledger's factors where they travel in one set with an adapter."""


def with_ledger(adapter: Mapping[str, Tensor], ledger: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return one set that a model can run: the adapter, and the ledger's factors under "ledger/m.A"."""
    if not ledger:
        return adapter
    return {**adapter, **{f"{LEDGER}{name}": tensor for name, tensor in ledger.items()}}


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """How one client trains in one round; exactly one of steps, epochs and tokens is set.

    batch_size:       examples per optimizer step.
    micro_batch_size: examples per forward pass; None lets the trainer fill a token budget.
    tokens:           train until at least this many tokens have been processed.
    warmup_ratio:     share of the whole run (all rounds) over which the learning rate rises.
    min_lr_ratio:     where a decaying schedule ends, as a share of ``learning_rate``.
    max_grad_norm:    global norm that gradients are clipped to; 0 does not clip.
    keep_optimizer:   whether the client's optimizer state survives between its rounds.
    objective:        what is minimised, of `fedit.objectives.OBJECTIVES`; the dpo_ fields belong to "dpo".
    example_clip:     norm that each example's gradient is clipped to, in DP-SGD (`fedit.privacy.steps`); None:
                      training is not private.
    example_noise:    standard deviation of the noise on their sum, over that norm.
    """

    learning_rate: float
    num_rounds: int
    steps: int | None = None
    epochs: int | None = None
    tokens: int | None = None
    batch_size: int = 16
    micro_batch_size: int | None = None
    optimizer: str = "adamw"
    schedule: str = "constant"
    warmup_ratio: float = 0.0
    min_lr_ratio: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    momentum: float = 0.0
    max_grad_norm: float = 1.0
    keep_optimizer: bool = False
    objective: str = "sft"
    dpo_beta: float = 0.1
    dpo_label_smoothing: float = 0.0
    example_clip: float | None = None
    example_noise: float = 0.0


def _anything(name: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a client's round, in which it trains one adapter; an algorithm may have several a round.

    name:    seeds its random draws and names its loss; "" where it is the only one.
    own:     whether it trains an adapter of the client's own, which starts as the run does, is kept under
             "name/m.A" in the client's memory and never leaves it. Else it goes on with the adapter of the round.
    trains:  which tensors are optimised, of those that the strategy trains in this round.
    ledger:  in place of the broadcast's; None: that.
    scale:   that B A is multiplied by, in place of the broadcast's; None: that.
    share:   of the round's steps, epochs or tokens; at least one step is taken.
    correct: (parameters, gradients) -> None, changes gradients in place before a step; None: for the adapter of
             the round the strategy's `correct_gradients`, for an own one nothing.
    """

    name: str = ""
    own: bool = False
    trains: Callable[[str], bool] = _anything
    ledger: Tensors | None = None
    scale: float | None = None
    share: float = 1.0
    correct: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None] | None = None


def own_adapter(memory: Mapping[str, Tensor], phase: str) -> Tensors:
    """Return the adapter that a client keeps of its own under a phase's name; empty if there is none."""
    prefix = f"{phase}/"
    return {name.removeprefix(prefix): tensor for name, tensor in memory.items() if name.startswith(prefix)}


@dataclass(frozen=True, slots=True)
class Running:
    """What somebody runs: the weight of module m is W + scale B A + ledger B A.

    likened: where every question has a model of its own; the one here is then that of training.
    """

    adapter: Tensors
    ledger: Tensors
    scale: float
    likened: "Likened | None" = None


@dataclass(frozen=True, slots=True)
class Likened:
    """How a client's own adapter counts anew for every question, by how like that is to some of its rows.

    The model for a question is that of ``general`` with (1 - w) of its output, and w of the own adapter's at the
    same scale; w is ``most`` times the likeness (`fedit.evaluation.likeness`), 0 where that is negative.

    examples: rows of the client that every question is compared with.
    """

    general: Running
    most: float
    examples: int


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """What the server knows about a client before it trains.

    rank:  of its adapter; None: the server's.
    scale: that the client multiplies B A by, alpha / rank or as the job says; None: the server's.
    """

    client_id: str
    num_examples: int
    rank: int | None = None
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What the server sends to one client.

    adapter: tensors that are missing come from what the client kept, or from the run's initial adapter.
    ledger:  frozen correction of the base, "m.A" (rank, in) and "m.B" (out, rank), whose product is added to
             the weight as it is; any rank.
    extra:   belongs to the strategy.
    scale:   that the client multiplies the adapter's B A by; None: as its model does at that rank.
    """

    adapter: Tensors
    ledger: Tensors = field(default_factory=dict)
    extra: Tensors = field(default_factory=dict)
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class ClientTask:
    """One client's work for one round: everything a worker needs, and nothing else.

    stage:   of secure aggregation, whose update does not leave as it is; "": an ordinary round of training.
    message: what the server says in that stage, as JSON can say it.
    """

    round: int
    client_id: str
    broadcast: Broadcast
    training: LocalTraining
    seed: int
    stage: str = ""
    message: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What a client sends back.

    delta:  trained minus received, of the tensors that it trained and shares.
    weight: its share before normalising.
    scale:  that it multiplied B A by.
    staleness: server steps taken between the state that it started from and the one it is applied to.
    message: its answer to a stage of secure aggregation, where weight and examples say nothing.
    """

    client_id: str
    round: int
    num_examples: int
    weight: float
    delta: Tensors
    extra: Tensors = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0
    staleness: int = 0
    message: Mapping[str, object] = field(default_factory=dict)

    def map(self, change: Callable[[str, Tensor], Tensor]) -> "ClientUpdate":
        """Apply ``change`` to every tensor that leaves the client, ``delta`` and ``extra`` alike."""
        return replace(
            self,
            delta={name: change(name, tensor) for name, tensor in self.delta.items()},
            extra={name: change(name, tensor) for name, tensor in self.extra.items()},
        )


@dataclass(frozen=True, slots=True)
class ClientFailure:
    """A client that was asked and did not deliver a usable update."""

    client_id: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class ServerState:
    """All the server carries from round to round.

    ledger: correction of the base that no adapter can hold, see `Broadcast`.
    memory: belongs to the strategy.
    scale:  that the adapter's B A is multiplied by: the weight is W + scale B A + ledger B A.
    schedule: belongs to the pace of the rounds: the virtual time, what was heard of clients, who is under way.
    privacy:  belongs to the privacy: the clip norm, how many rounds were charged.
    """

    round: int
    adapter: Tensors
    ledger: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)
    scale: float = 1.0
    schedule: Tensors = field(default_factory=dict)
    privacy: Tensors = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientState:
    """What a client keeps between its rounds.

    batches_seen: position in its endless stream of shuffled batches, so that no round repeats rows.
    private:      adapter tensors that the strategy does not share.
    memory:       whatever the strategy remembers.
    optimizer:    moments, when the optimizer is kept.
    transforms:   what the transforms of its updates remember, such as what was not sent yet.
    reference:    "gaps", float64 (pairs,): `PairRow.reference` of the client's preferences, computed once.
    """

    batches_seen: int = 0
    private: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)
    optimizer: Tensors = field(default_factory=dict)
    transforms: Tensors = field(default_factory=dict)
    reference: Tensors = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What training hands to the client's half of a strategy before anything is sent.

    delta:          trained minus received, of every tensor of the adapter.
    learning_rates: of each step.
    """

    delta: Tensors
    steps: int
    metrics: Mapping[str, float]
    learning_rates: tuple[float, ...] = ()
