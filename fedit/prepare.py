"""From settings to everything a run needs in memory: rows, who holds them, tokens, the adapted model."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from fedit import seeds, stacked
from fedit.attacks import hostile_clients
from fedit.cohort import cohort_size, draw_unseen
from fedit.config import RunConfig
from fedit.crew import Crew, follower_environments
from fedit.data.check import refuse_if_nothing_learnt, refuse_without_rejected
from fedit.data.examples import Corpus, Example, Message, row_id
from fedit.data.manifest import Partition, build
from fedit.data.pairs import PairRow, tokenize_pairs
from fedit.data.partition import find_scheme
from fedit.data.poison import poisoned, policy_rows
from fedit.data.skills import load_skills
from fedit.data.skills.preferences import with_rejected
from fedit.data.sources import load_rows
from fedit.data.statistics import category_counts, measure
from fedit.data.templates import Template, get_template
from fedit.data.tokens import TokenRow, TokenTable, encode_prompt, stop_ids, tokenize
from fedit.errors import ConfigError, DataError
from fedit.evaluation.grading import refuse_bad_checks
from fedit.files import cache_dir
from fedit.model.adapted import AdaptedModel
from fedit.model.batch import collate
from fedit.model.hardware import choose_device, places
from fedit.model.loading import context_length, load_base, load_tokenizer
from fedit.model.sources import ModelSource, resolve_model
from fedit.objectives import Learnt, rows_of
from fedit.pacing import pace_of
from fedit.ranks import check_ranks, ranks_of_clients, with_rank
from fedit.strategies import build_strategy
from fedit.strategies.base import Strategy, refuse_factors_only
from fedit.transforms import build_transforms, chain
from fedit.transforms.base import Transform
from fedit.types import ClientInfo, LocalTraining

MOST_UNLABELLED_HELD_OUT = 200
LONGEST_PLAIN_ATTENTION = 512
POLICY_ROWS = 64
"""Rows of the policy that the server defends it with, and most that measure it."""


@dataclass
class Job:
    """All that a run needs. The model is loaded when it is first asked for, after all cheap checks.

    hostile:  ids of the clients that attack.
    poisoned: what every client trains on where rows are poisoned; empty: the partition's rows.
    policy:   rows of the agreed policy that the server defends with, where it has any.
    table:    tokens of every row of the corpus, with the chosen answers where rows are preferences to learn from.
    rejected: the same with the rejected answers; None: no preferences are learnt.
    reference_gaps: of evaluated pairs by part, as `PairRow.reference`, once they were asked for.
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

    @cached_property
    def model(self) -> AdaptedModel:
        """The resident base with its adapter."""
        return _adapt(self.config, self.source, self.tokenizer)

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
        """Training rows of every client, by id, ids sorted."""
        found = dict(self.poisoned) or self.partition.client_examples(self.corpus)
        return {client: found[client] for client in sorted(found)}

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
            client: [len(row.ids) for row in rows_of(self.learnt(rows))] for client, rows in self.clients.items()
        }
        sizes = {client: len(rows) for client, rows in self.clients.items()}
        return measure(sizes, self.category_counts, lengths).as_dict()

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
        return _unseen(self.config, self.partition.clients, self.strategy)

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
        rows = _all_rows(self.corpus, self.poisoned, self.policy)
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
            **changes,
        }
        return LocalTraining(**fields)  # type: ignore[arg-type]  # the fields' own types


def prepare(
    config: RunConfig, say: Callable[[str], None] = lambda text: None, num_threads: int | None = None
) -> Job:
    """Load, clean, split, deal and tokenise the data; find the model; check what can be checked before training.

    say:         hears what takes long, such as fetching a model.
    num_threads: those of an earlier part of the same run, which must be the same again.

    Raises:
        UserError: settings, data or model cannot work together; the message says what to do.
    """
    num_threads = num_threads or default_threads(config)
    torch.set_num_threads(num_threads)
    strategy = build_strategy(config.strategy, config.strategy_options)
    transforms = build_transforms(config.transforms)
    corpus, empty = _without_empty_answers(load_corpus(config))
    corpus, same = _for_objective(corpus, config.objective)
    source = resolve_model(config.model, progress=say)
    config = with_rank(config, strategy, source)
    tokenizer = load_tokenizer(source)
    template = get_template(config.prompt_template, tokenizer)
    clusters = _clusters(config, source, tokenizer, template, corpus)
    partition, corpus = build(
        corpus,
        config.partitioner,
        num_clients=_num_clients(config),
        seed=config.seed,
        options=_scheme_options(config),
        held_out=held_out_amount(config, corpus),
        validation=config.validation,
        clusters=clusters,
    )
    partition = replace(partition, removed={**partition.removed, "empty_answer": empty, "same_answers": same})
    hostile = tuple(_hostile(config, partition.clients, strategy))
    poisoned = _poisoned(config, partition.client_examples(corpus), hostile)
    policy = _policy(config)
    table, rejected = tokens_of(config, _all_rows(corpus, poisoned, policy), tokenizer, template)
    job = Job(
        config,
        source,
        tokenizer,
        template,
        strategy,
        transforms,
        corpus,
        partition,
        table,
        num_threads,
        hostile,
        poisoned,
        policy,
        rejected,
    )
    check_strategy(job, strategy)
    pace_of(config, strategy, list(job.seen), lambda client: 0)  # refuses what cannot work
    if not job.held_out:
        raise DataError(
            f"nothing of '{corpus.name}' is held out, so nothing could be measured; set held_out to some rows."
        )
    if config.exact_match or config.compare:
        refuse_bad_checks(job.held_out)
    refuse_if_nothing_learnt(table, corpus.all(), partition.clients)
    _check_context(config, source)
    return job


def check_strategy(job: Job, strategy: Strategy) -> None:
    """Refuse an algorithm, the job's own or another one, that cannot work with the job's settings and clients.

    Raises:
        ConfigError: so it is.
    """
    strategy.check(job.training())
    chain.check(job.transforms, strategy)
    refuse_factors_only(strategy, job.config.tuning)
    check_ranks(job.config, strategy, job.clients)
    strategy.check_cohort(strategy.buffer or job.asked, job.seen)


def tokens_of(
    config: RunConfig, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, template: Template
) -> tuple[TokenTable, TokenTable | None]:
    """Return the tokens that the job's objective learns, and those of rejected answers where it compares."""
    cache = cache_dir() / "tokens"
    if config.objective == "dpo":
        return tokenize_pairs(examples, tokenizer, template, max_length=config.max_length, cache_dir=cache)
    table = tokenize(
        examples,
        tokenizer,
        template,
        max_length=config.max_length,
        train_on_inputs=config.train_on_inputs,
        cache_dir=cache,
    )
    return table, None


def load_model(config: RunConfig) -> AdaptedModel:
    """Return the adapted model of a job, without its data."""
    source = resolve_model(config.model)
    return _adapt(config, source, load_tokenizer(source))


def default_threads(config: RunConfig) -> int:
    """Return the CPU threads of a process: the setting; one on the CPU, whose cores have a process each."""
    if config.num_threads is not None:
        return config.num_threads
    return 1 if choose_device(config.device).type == "cpu" else torch.get_num_threads()


def load_corpus(config: RunConfig) -> Corpus:
    """Return the rows that ``dataset`` names, before cleaning and splitting.

    Raises:
        DataError: they cannot be had.
    """
    if config.dataset in ("skills", "preferences"):
        amounts: dict[str, int] = {}
        for name, value in (
            ("per_category", config.max_examples),
            ("held_out_per_category", config.held_out),
            ("validation_per_category", config.validation),
        ):
            if isinstance(value, float):
                setting = name.removesuffix("_per_category")
                raise ConfigError(
                    f"{setting} is {value}; the {config.dataset} data takes a whole number of rows a category."
                )
            if value is not None:
                amounts[name] = value
        skills = load_skills(seed=config.seed, **amounts)
        return with_rejected(skills, config.seed) if config.dataset == "preferences" else skills
    return load_rows(
        config.dataset,
        columns=config.columns.given(),
        data_format=config.data_format,
        split=config.dataset_split,
        partition_by=config.partition_by,
        max_examples=config.max_examples,
        seed=config.seed,
    )


def _without_empty_answers(corpus: Corpus) -> tuple[Corpus, int]:
    """Return the rows that have an answer to learn, and how many training rows had none.

    Raises:
        DataError: none has one.
    """
    kept = tuple(example for example in corpus.examples if example.answer.strip())
    if not kept:
        raise DataError(
            f"data set '{corpus.name}' has nothing to learn: all {len(corpus.examples)} training rows "
            "have an empty answer. Name the column that holds the answers with columns.response=NAME."
        )
    return replace(corpus, examples=kept), len(corpus.examples) - len(kept)


def _for_objective(corpus: Corpus, objective: str) -> tuple[Corpus, int]:
    """Return the rows as the objective reads them, and how many training rows teach it nothing.

    Without preferences to learn, rejected answers are no part of a row; with them, two equal answers prefer none.

    Raises:
        DataError: a row is no pair, or all pairs have two equal answers.
    """
    if objective == "dpo":
        refuse_without_rejected(corpus.all())

    def read(examples: Sequence[Example]) -> tuple[Example, ...]:
        if objective == "dpo":
            return tuple(e for e in examples if e.rejected != e.answer)
        return tuple(e if e.rejected is None else replace(e, rejected=None) for e in examples)

    kept = replace(
        corpus,
        examples=read(corpus.examples),
        validation=read(corpus.validation),
        held_out=read(corpus.held_out),
    )
    if not kept.examples:
        raise DataError(f"data set '{corpus.name}' has nothing to learn: all pairs have two equal answers.")
    return kept, len(corpus.examples) - len(kept.examples)


def held_out_amount(config: RunConfig, corpus: Corpus) -> int | float:
    """Return the held-out setting with its default applied to this data."""
    if config.held_out is not None:
        return config.held_out
    if find_scheme(config.partitioner).needs == "owner":
        return 0.1
    if corpus.examples and all(example.category is not None for example in corpus.examples):
        return 10
    return min(0.1, MOST_UNLABELLED_HELD_OUT / max(len(corpus.examples), 1))


def _unseen(config: RunConfig, clients: Collection[str], strategy: Strategy) -> frozenset[str]:
    """Return who takes no part in the federation; clients that take part in every round do."""
    return draw_unseen(sorted(set(clients) - strategy.always()), config.unseen_clients, config.seed)


def _hostile(config: RunConfig, clients: Collection[str], strategy: Strategy) -> list[str]:
    """Return who is hostile; clients that a strategy has to trust, or that take no part, never are."""
    if not config.attack:
        return []
    trusted = strategy.always() | _unseen(config, clients, strategy)
    most = len(set(clients) - trusted)
    if isinstance(config.attackers, int) and config.attackers > most:
        raise ConfigError(f"attackers is {config.attackers}, but only {most} clients may be hostile; lower it.")
    return hostile_clients(clients, config.attackers, seed=config.seed, spared=trusted)


def _poisoned(
    config: RunConfig, clients: Mapping[str, tuple[Example, ...]], hostile: Sequence[str]
) -> dict[str, tuple[Example, ...]]:
    if config.poison is None:
        return {}
    return poisoned(clients, config.poison, hostile, share=config.poison_share, seed=config.seed)


def _policy(config: RunConfig) -> tuple[Example, ...]:
    if config.poison != "forget_policy" or config.defence_steps == 0:
        return ()
    return tuple(policy_rows(POLICY_ROWS, split="defence", seed=config.seed))


def _all_rows(
    corpus: Corpus, poisoned: Mapping[str, tuple[Example, ...]], policy: tuple[Example, ...]
) -> tuple[Example, ...]:
    """Return every row that is tokenised: the corpus first, then what only an attack or a defence has."""
    return (*corpus.all(), *(row for rows in poisoned.values() for row in rows), *policy)


def _num_clients(config: RunConfig) -> int | None:
    named_by_data = find_scheme(config.partitioner).needs in ("owner", "manifest")
    return config.num_clients if config.num_clients is not None or named_by_data else 10


def _scheme_options(config: RunConfig) -> dict[str, int | float | str]:
    """Return the partition's options; the number of clusters is read here, by what makes the labels."""
    options = config.partition_options()
    if find_scheme(config.partitioner).needs == "clusters":
        options.pop("num_clusters", None)
    return options


def _clusters(
    config: RunConfig, source: ModelSource, tokenizer: PreTrainedTokenizerBase, template: Template, corpus: Corpus
) -> np.ndarray | None:
    """Return a cluster label a row, from the base model's mean hidden states, where the scheme wants them."""
    if find_scheme(config.partitioner).needs != "clusters":
        return None
    from fedit.data.cluster import kmeans

    table = tokenize(
        corpus.examples,
        tokenizer,
        template,
        max_length=config.max_length,
        train_on_inputs=True,
        cache_dir=cache_dir() / "tokens",
    )
    model = _adapt(config, source, tokenizer)
    vectors = np.zeros((len(table), model.base.model.config.get_text_config().hidden_size), dtype=np.float32)
    order = sorted(range(len(table)), key=lambda i: len(table.row(i).ids))
    for start in range(0, len(order), 16):
        members = order[start : start + 16]
        batch = collate([table.row(i) for i in members], packed=False).to(model.device)
        vectors[members] = model.mean_hidden(batch).cpu().numpy()
    return kmeans(vectors, config.num_clusters or 8, seeds.derive(config.seed, "clusters"))


def _adapt(config: RunConfig, source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> AdaptedModel:
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


def _check_context(config: RunConfig, source: ModelSource) -> None:
    limit = context_length(source)
    if limit is None:
        return
    if config.max_length > limit:
        raise ConfigError(
            f"max_length is {config.max_length}, but model '{config.model}' reads at most {limit} tokens; "
            f"set max_length to {limit} or less."
        )
    if (config.exact_match or config.compare) and config.max_length + config.max_new_tokens > limit:
        raise ConfigError(
            f"max_length {config.max_length} and max_new_tokens {config.max_new_tokens} are more than the {limit} "
            f"tokens that model '{config.model}' reads; lower one of them."
        )


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
