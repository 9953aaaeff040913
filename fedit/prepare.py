"""From settings to everything a run needs in memory: rows, who holds them, tokens, the adapted model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from fedit import seeds
from fedit.config import RunConfig
from fedit.corpus import for_objective, held_out_amount, load_corpus, without_empty_answers
from fedit.data import DEPLOYMENT
from fedit.data.canaries import with_canaries
from fedit.data.check import refuse_if_nothing_learnt
from fedit.data.examples import Corpus, Example, fingerprint, row_id
from fedit.data.manifest import Partition, build
from fedit.data.pairs import tokenize_pairs
from fedit.data.partition import find_scheme
from fedit.data.templates import Template, get_template
from fedit.data.tokens import TokenTable, tokenize
from fedit.errors import ConfigError, DataError
from fedit.evaluation.grading import refuse_bad_checks
from fedit.files import cache_dir
from fedit.hostility import hostile_of, policy_of, rows_under_attack
from fedit.job import Job, adapt, all_rows, unseen_of
from fedit.model.adapted import AdaptedModel
from fedit.model.batch import collate
from fedit.model.hardware import choose_device
from fedit.model.loading import context_length, load_tokenizer
from fedit.model.sources import ModelSource, resolve_model
from fedit.pacing import pace_of
from fedit.planting import canaries_of, kept_of
from fedit.privacy import example
from fedit.privacy.secagg.suited import refuse_unsuited
from fedit.privacy.setup import refuse_unprotected, with_noise
from fedit.ranks import check_ranks, with_rank
from fedit.strategies import build_strategy
from fedit.strategies.base import Strategy, refuse_factors_only
from fedit.transforms import build_transforms, chain


def prepare(
    config: RunConfig, say: Callable[[str], None] = lambda text: None, num_threads: int | None = None
) -> Job:
    """Load, clean, split, deal and tokenise the data; find the model; check what can be checked before training.

    say:         hears what takes long, such as fetching a model.
    num_threads: those of an earlier part of the same run, which must be the same again.

    Raises:
        UserError: settings, data or model cannot work together; the message says what to do.
    """
    job = assemble(config, say, num_threads)
    check_strategy(job, job.strategy)
    pace_of(job.config, job.strategy, list(job.seen), lambda client: 0)  # refuses what cannot work
    kept_of(job.config, job.seen)
    if not job.held_out:
        raise DataError(
            f"nothing of '{job.corpus.name}' is held out, so nothing could be measured; set held_out to some rows."
        )
    if config.exact_match or config.compare:
        refuse_bad_checks(job.held_out)
    _check_context(config, job.source)
    return job


def assemble(
    config: RunConfig, say: Callable[[str], None] = lambda text: None, num_threads: int | None = None
) -> Job:
    """Return a job, see `prepare`, without checking whether its clients can be a federation."""
    example.refuse(config)
    num_threads = num_threads or default_threads(config)
    torch.set_num_threads(num_threads)
    strategy = build_strategy(config.strategy, config.strategy_options)
    transforms = build_transforms(config.transforms)
    corpus, empty = without_empty_answers(load_corpus(config))
    corpus, same = for_objective(corpus, config.objective)
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
    config = with_noise(
        config, strategy, len(partition.clients) - len(unseen_of(config, partition.clients, strategy))
    )
    hostile = tuple(hostile_of(config, partition.clients, strategy))
    poisoned = rows_under_attack(config, partition.client_examples(corpus), hostile)
    if canaries := canaries_of(config, partition.clients, strategy):
        poisoned = with_canaries(poisoned or partition.client_examples(corpus), canaries)
    policy = policy_of(config)
    table, rejected = tokens_of(config, all_rows(corpus, poisoned, policy), tokenizer, template)
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
        canaries=canaries,
    )
    refuse_if_nothing_learnt(table, corpus.all(), partition.clients)
    return job


def assemble_server(config: RunConfig, sizes: Mapping[str, int], held_out: Corpus) -> Job:
    """Return the server's half of a job whose clients keep their rows on machines of their own.

    sizes:    client -> rows.
    held_out: whose rows the server measures on; it may have none.

    Raises:
        UserError: settings, data or model cannot work together; the message says what to do.
    """
    example.refuse(config)
    num_threads = default_threads(config)
    torch.set_num_threads(num_threads)
    strategy = build_strategy(config.strategy, config.strategy_options)
    rows = for_objective(held_out, config.objective)[0] if held_out.examples else held_out
    corpus = Corpus(rows.name, (), held_out=rows.all())
    source = resolve_model(config.model)
    config = with_noise(with_rank(config, strategy, source), strategy, len(sizes))
    tokenizer = load_tokenizer(source)
    template = get_template(config.prompt_template, tokenizer)
    measured = [row_id(example) for example in corpus.held_out]
    partition = Partition(
        DEPLOYMENT, {}, config.seed, {c: [] for c in sorted(sizes)}, [], measured, {}, fingerprint(corpus.all())
    )
    table, rejected = tokens_of(config, corpus.all(), tokenizer, template)
    job = Job(
        config,
        source,
        tokenizer,
        template,
        strategy,
        build_transforms(config.transforms),
        corpus,
        partition,
        table,
        num_threads,
        rejected=rejected,
        elsewhere=sizes,
    )
    check_strategy(job, strategy)
    pace_of(config, strategy, list(job.seen), lambda client: 0)
    _check_context(config, source)
    return job


def check_strategy(job: Job, strategy: Strategy) -> None:
    """Refuse an algorithm, the job's own or another one, that cannot work with the job's settings and clients.

    Raises:
        ConfigError: so it is.
    """
    strategy.check(job.training(example_noise=0.0))  # what it takes to find it is not for every process
    chain.check(job.transforms, strategy)
    refuse_factors_only(strategy, job.config.tuning)
    check_ranks(job.config, strategy, job.clients)
    if strategy.tunes_after and not job.config.personal_steps:
        raise ConfigError(
            f"strategy '{type(strategy).__name__}' as it is set trains what is a client's own after the rounds; "
            "set personal_evaluation=true and personal_steps to how many steps that takes."
        )
    if job.secure is not None:
        refuse_unsuited(job.secure.options, job.config, strategy, job.transforms, job.asked, len(job.seen))
    strategy.check_cohort(strategy.buffer or job.asked, job.seen)
    refuse_unprotected(job.config, strategy, len(job.seen))


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
    return adapt(config, source, load_tokenizer(source))


def default_threads(config: RunConfig) -> int:
    """Return the CPU threads of a process: the setting; one on the CPU, whose cores have a process each."""
    if config.num_threads is not None:
        return config.num_threads
    return 1 if choose_device(config.device).type == "cpu" else torch.get_num_threads()


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
    model = adapt(config, source, tokenizer)
    vectors = np.zeros((len(table), model.base.model.config.get_text_config().hidden_size), dtype=np.float32)
    order = sorted(range(len(table)), key=lambda i: len(table.row(i).ids))
    for start in range(0, len(order), 16):
        members = order[start : start + 16]
        batch = collate([table.row(i) for i in members], packed=False).to(model.device)
        vectors[members] = model.mean_hidden(batch).cpu().numpy()
    return kmeans(vectors, config.num_clusters or 8, seeds.derive(config.seed, "clusters"))


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
