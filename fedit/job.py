"""A job in memory: its rows, who holds them, tokens, the adapted model; and how its clients train."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase

from fedit import seeds, stacked
from fedit.cohort import cohort_size, draw_unseen
from fedit.config import RunConfig
from fedit.crew import Crew, follower_environments
from fedit.data.canaries import Canary
from fedit.data.examples import Corpus, Example, Message, row_id
from fedit.data.manifest import Partition
from fedit.data.pairs import PairRow
from fedit.data.statistics import category_counts, measure
from fedit.data.templates import Template
from fedit.data.tokens import TokenRow, TokenTable, encode_prompt, stop_ids
from fedit.model.adapted import AdaptedModel
from fedit.model.hardware import choose_device, places
from fedit.model.loading import load_base
from fedit.model.sources import ModelSource
from fedit.objectives import Learnt, rows_of
from fedit.privacy import build_privacy
from fedit.privacy.example import ExampleLevel
from fedit.privacy.secagg.sealing import Securely
from fedit.privacy.secagg.settings import build_secure_aggregation
from fedit.privacy.spending import noise_of
from fedit.ranks import ranks_of_clients
from fedit.strategies.base import Strategy
from fedit.transforms.base import Transform
from fedit.types import ClientInfo, LocalTraining

LONGEST_PLAIN_ATTENTION = 512


@dataclass
class Job:
    """All that a run needs. The model is loaded when it is first asked for, after all cheap checks.

    hostile:  ids of the clients that attack.
    poisoned: what every client trains on where rows are poisoned or canaries planted; empty: the partition's rows.
    policy:   rows of the agreed policy that the server defends with, where it has any.
    table:    tokens of every row of the corpus, with the chosen answers where rows are preferences to learn from.
    rejected: the same with the rejected answers; None: no preferences are learnt.
    reference_gaps: of evaluated pairs by part, as `PairRow.reference`, once they were asked for.
    canaries: secrets among the clients' rows by which leakage is measured.
    elsewhere: client -> rows, where clients keep theirs on machines of their own; empty: all rows are here.
    """

    config: RunConfig
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    template: Template
    strategy: Strategy
    transforms: tuple[Transform, ...]
    corpus: Corpus
    partition: Partition
    table: TokenTable
    num_threads: int
    hostile: tuple[str, ...] = ()
    poisoned: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    policy: tuple[Example, ...] = ()
    rejected: TokenTable | None = None
    reference_gaps: dict[str, torch.Tensor] = field(default_factory=dict)
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    canaries: tuple[Canary, ...] = ()

    @cached_property
    def model(self) -> AdaptedModel:
        """The resident base with its adapter."""
        return adapt(self.config, self.source, self.tokenizer)

    @cached_property
    def crew(self) -> Crew | None:
        """The processes that compute a client's gradient with this one; None where each client has one device."""
        size = self.config.devices_per_client
        if size == 1:
            return None
        environments = follower_environments(choose_device(self.config.device), size, self.num_threads)
        hello = {"config": self.config.model_dump(mode="json"), "num_threads": self.num_threads}
        return Crew(self.model, size, hello, environments)

    def close(self) -> None:
        """End the processes that the job has started."""
        if (crew := self.__dict__.pop("crew", None)) is not None:
            crew.close()

    @cached_property
    def clients(self) -> dict[str, tuple[Example, ...]]:
        """Training rows of every client that are here, by id, ids sorted."""
        if self.elsewhere:
            return {client: () for client in sorted(self.elsewhere)}
        found = dict(self.poisoned) or self.partition.client_examples(self.corpus)
        return {client: found[client] for client in sorted(found)}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Client -> training rows, ids sorted."""
        return {client: len(rows) or self.elsewhere.get(client, 0) for client, rows in self.clients.items()}

    def client_info(self, client: str, num_examples: int) -> ClientInfo:
        """Return what the server knows of a client: its rows, and its rank where it has one of its own."""
        rank = self._ranks.get(client)
        return ClientInfo(client, num_examples, rank, None if rank is None else self.config.scale_at(rank))

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return ranks_of_clients(self.config, list(self.clients))

    @cached_property
    def category_counts(self) -> dict[str, dict[str, int]]:
        """Client -> category -> rows."""
        return category_counts(self.clients)

    @cached_property
    def statistics(self) -> dict[str, int | float | None]:
        """What the partition looks like in numbers."""
        lengths = {
            client: [len(row.ids) for row in rows_of(self.learnt(rows))]
            for client, rows in self.clients.items()
            if rows
        }
        return measure(self.sizes, self.category_counts, lengths).as_dict()

    @cached_property
    def held_out(self) -> list[Example]:
        """The held-out rows that losses are measured on: all, or one seeded sample for the whole run."""
        return _sample(self.corpus.held_out, self.config.eval_max_examples, self.config.seed)

    @cached_property
    def validation(self) -> list[Example]:
        """The rows that early stopping looks at, sampled like the held-out ones."""
        return _sample(self.corpus.validation, self.config.eval_max_examples, self.config.seed)

    @cached_property
    def unseen(self) -> frozenset[str]:
        """The clients that take no part in the federation; never those that take part in every round."""
        return unseen_of(self.config, self.partition.clients, self.strategy)

    @cached_property
    def seen(self) -> list[str]:
        """The clients that the federation chooses from, sorted."""
        return [client for client in self.clients if client not in self.unseen]

    @cached_property
    def asked(self) -> int:
        """Clients that are asked in a round, or at work at once where rounds are of arrivals."""
        return cohort_size(self.config.clients_per_round, len(self.partition.clients) - len(self.unseen))

    @cached_property
    def cohort_size(self) -> int:
        """Clients of a round: as many as are asked, or arrive where rounds are of arrivals."""
        return self.strategy.buffer or self.asked

    @cached_property
    def secure(self) -> Securely | None:
        """How updates are added up so that nobody sees one; None: they are sent as they are."""
        if not self.config.secure_aggregation:
            return None
        options = build_secure_aggregation(self.config.secure_aggregation_options)
        return Securely(options, self.config.weighting)

    @cached_property
    def places(self) -> int:
        """Cores or GPUs of this machine that can each have a process."""
        return places(choose_device(self.config.device), self.num_threads)

    @cached_property
    def stack_width(self) -> int:
        """Clients that train in one pass over the base: the setting, or by the size of a client's step.

        A round's stacks are not fewer than the machine's cores or GPUs. It follows from settings, rows and
        machine, never from how many workers there are, and a resumed run keeps what it began with: products over
        other rows round differently.
        """
        if self.config.stack_clients is not None:
            return self.config.stack_clients
        if self.config.devices_per_client > 1:
            return 1
        device = choose_device(self.config.device)
        examples = [example for rows in self.clients.values() for example in self.learnt(rows)]
        lengths = [len(row.ids) for row in rows_of(examples)]
        tokens = self.config.batch_size * sum(lengths) / max(len(examples), 1)
        share = math.ceil(self.cohort_size / self.places)
        return min(stacked.width(tokens, device.type), share)

    @cached_property
    def _positions(self) -> dict[str, int]:
        rows = all_rows(self.corpus, self.poisoned, self.policy)
        return {row_id(example): index for index, example in enumerate(rows)}

    def tokens(self, examples: Sequence[Example]) -> list[TokenRow]:
        """Return the tokens of ``examples``, of preferences those with the chosen answers."""
        return [self.table.row(self._positions[row_id(example)]) for example in examples]

    def rejected_tokens(self, examples: Sequence[Example]) -> list[TokenRow]:
        """Return the tokens of preferences with the rejected answers."""
        if self.rejected is None:
            raise ValueError("this job learns from no preferences")
        return [self.rejected.row(self._positions[row_id(example)]) for example in examples]

    def learnt(self, examples: Sequence[Example]) -> list[Learnt]:
        """Return ``examples`` as clients train on them."""
        if self.rejected is None:
            return list(self.tokens(examples))
        pairs = zip(self.tokens(examples), self.rejected_tokens(examples), strict=True)
        return [PairRow(chosen, rejected) for chosen, rejected in pairs]

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Return the token ids of the prompts that ``examples`` answer."""
        room = self.config.max_length
        return [
            encode_prompt(e.messages[:-1], e.context, self.tokenizer, self.template, max_length=room)
            for e in examples
        ]

    def conversation(self, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        """Return the prompt of a conversation's next answer: one more turn than there are answers."""
        messages = [Message("user", turns[0])]
        for answer, turn in zip(answers, turns[1:], strict=True):
            messages += [Message("assistant", answer), Message("user", turn)]
        return encode_prompt(messages, "", self.tokenizer, self.template, max_length=self.config.max_length)

    def stops(self) -> set[int]:
        """Return the tokens at which an answer ends."""
        return stop_ids(self.tokenizer, self.template)

    @cached_property
    def example_level(self) -> ExampleLevel | None:
        """How every example of a client is protected; None where none is."""
        level = build_privacy(self.config.privacy, self.config.privacy_options)
        return level if isinstance(level, ExampleLevel) else None

    @cached_property
    def example_noise(self) -> float:
        """The noise multiplier of clients' steps: the one given, or what the given epsilon takes."""
        if self.example_level is None:
            return 0.0
        how = self.training(example_noise=0.0)
        return noise_of(self.example_level, self.strategy, how, self.sizes.values(), self.config.num_rounds)

    def training(self, **changes: object) -> LocalTraining:
        """Return how clients train, with ``changes``."""
        config = self.config
        fields: dict[str, object] = {
            "learning_rate": config.learning_rate,
            "num_rounds": config.num_rounds,
            "steps": config.local_steps,
            "epochs": config.epochs,
            "tokens": config.local_tokens,
            "batch_size": config.batch_size,
            "micro_batch_size": config.micro_batch_size,
            "optimizer": config.optimizer,
            "schedule": config.lr_schedule,
            "warmup_ratio": config.warmup_ratio,
            "min_lr_ratio": config.min_lr_ratio,
            "weight_decay": config.weight_decay,
            "adam_beta1": config.adam_beta1,
            "adam_beta2": config.adam_beta2,
            "momentum": config.momentum,
            "max_grad_norm": config.max_grad_norm,
            "keep_optimizer": config.client_optimizer == "keep",
            "objective": config.objective,
            "dpo_beta": config.dpo_beta,
            "dpo_label_smoothing": config.dpo_label_smoothing,
            "example_clip": self.example_level.clip_norm if self.example_level else None,
            **changes,
        }
        if self.example_level is not None and "example_noise" not in fields:
            fields["example_noise"] = self.example_noise
        return LocalTraining(**fields)  # type: ignore[arg-type]  # the fields' own types


def _sample(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    """Return at most ``most`` rows, drawn evenly over categories, in their order."""
    if len(examples) <= most:
        return list(examples)
    draws: dict[str | None, list[tuple[int, int]]] = {}
    for index, example in enumerate(examples):
        draw = seeds.derive(seed, "evaluate", row_id(example))
        draws.setdefault(example.category, []).append((draw, index))
    ranked = [(rank, draw, index) for rows in draws.values() for rank, (draw, index) in enumerate(sorted(rows))]
    return [examples[index] for index in sorted(index for _, _, index in sorted(ranked)[:most])]


def all_rows(
    corpus: Corpus, poisoned: Mapping[str, tuple[Example, ...]], policy: tuple[Example, ...]
) -> tuple[Example, ...]:
    """Return every row that is tokenised: the corpus first, then what an attack, a defence or an audit adds."""
    return (*corpus.all(), *(row for rows in poisoned.values() for row in rows), *policy)


def unseen_of(config: RunConfig, clients: Collection[str], strategy: Strategy) -> frozenset[str]:
    """Return who takes no part in the federation; clients that take part in every round do."""
    return draw_unseen(sorted(set(clients) - strategy.always()), config.unseen_clients, config.seed)


def adapt(config: RunConfig, source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> AdaptedModel:
    """Return the base of a job, loaded, with its adapter."""
    # Measured on a CPU: plain products train short rows a fifth faster than the fused kernel, whose backward is
    # slow; they keep all pairs of positions, so long rows would take too much memory.
    plain = choose_device(config.device).type == "cpu" and config.max_length <= LONGEST_PLAIN_ATTENTION
    base = load_base(
        source,
        device=config.device,
        # Steps of a small learning rate are lost in bfloat16 weights.
        dtype="fp32" if config.tuning == "full" and config.dtype == "auto" else config.dtype,
        bits=config.bits,
        attention="eager" if plain else None,
        tokenizer=tokenizer,
    )
    return AdaptedModel(
        base,
        rank=config.rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.lora_target_modules,
        rslora=config.use_rslora,
        gradient_checkpointing=config.gradient_checkpointing,
        fast_path=config.fast_path,
        tuning=config.tuning,
        virtual_tokens=config.virtual_tokens,
        seed=config.seed,
    )
