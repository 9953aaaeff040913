"""Train and measure every arm of a study, a seed after the other; what is done already is only read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedit import arms
from fedit.comparison import train_arms
from fedit.compute import ArmWork, Compute
from fedit.config import RunConfig, StudyConfig
from fedit.data.examples import Example
from fedit.errors import ConfigError, RunFolderError
from fedit.evaluation.answerfiles import Answered, read_answers, write_answers
from fedit.evaluation.measures import evaluate_answers
from fedit.evaluation.questions import Question, load_questions, questions_sha256
from fedit.events import EventLog, Listener
from fedit.federation import read_trained, totals
from fedit.files import read_json, write_json, write_text
from fedit.job import Job
from fedit.launch import compute_of, pool_of
from fedit.model.export import is_exported
from fedit.model.fast.decode import Prompt
from fedit.prepare import prepare
from fedit.report.write import write_report
from fedit.runfolder import check_writable, environment, identity_of, only_worker, settings_hash, to_yaml
from fedit.settings import Settings
from fedit.strategies import build_variant
from fedit.study.expected import evaluation_work, expected_answers, expected_tokens, seconds_of_answers
from fedit.study.items import Items
from fedit.study.personal import measure_personal
from fedit.study.plan import (
    BASE,
    Training,
    file_name,
    first_arms,
    later_arms,
    roles,
)
from fedit.study.rates import best_of, chosen_rates, rate_for, validation_loss
from fedit.study.report import study_report
from fedit.study.summary import in_order, read_seeds, summarise
from fedit.study.traffic import costs, equal_bytes, read_courses
from fedit.tracking.listening import tracked
from fedit.tracking.trackers import check_trackers
from fedit.transforms import build_transforms, chain
from fedit.types import Tensors

SCHEMA = 1
"""Version of ``summary.json``."""

OF_THE_SUMMARY = ("resamples", "byte_budget_megabytes")
"""Settings of a study that change how it is summed up, not what is trained."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A study as it runs: the job, what is compared, the question sets, and where everything goes.

    logs: label of a training -> the folder that holds its log.
    """

    config: RunConfig
    study: StudyConfig
    questions: Mapping[str, Sequence[Question]]
    folder: Path
    listener: Listener | None
    logs: dict[str, Path] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """The seeds in their order; rates are chosen at the first."""
        return self.study.seeds_from(self.config.seed)

    @property
    def rates(self) -> list[float]:
        """The learning rates that arms choose from."""
        return self.study.learning_rates or [self.config.learning_rate]

    def tell(self, event: str, **fields: object) -> None:
        """Tell the listener something of the moment."""
        if self.listener is not None:
            self.listener({"event": event, "round": 0, **fields})


def run_study(
    settings: Settings, out: str | Path, *, listener: Listener | None = None, pdf: bool = True
) -> dict[str, object]:
    """Run a study into a folder, or go on with the one that is there; return the content of ``summary.json``.

    pdf: whether figures are written as PDF too, which takes a second each.

    Raises:
        RunFolderError: the folder holds another study or something else, or cannot be written.
        UserError: settings, data or model cannot work.
    """
    folder = Path(out)
    config, study = settings.config, settings.study
    check_study(config, study)
    plan = Plan(config, study, {name: load_questions(name) for name in study.questions}, folder, listener)
    check_writable(folder)
    with only_worker(folder):
        _same_study(plan)
        with tracked(config, folder, plan.logs.__getitem__, listener) as heard:
            plan = replace(plan, listener=heard)
            for seed in plan.seeds:
                if not _is_done(plan, seed):
                    _one_seed(plan, seed)
        plan.tell("reporting")
        return _finish(plan, pdf)


def _finish(plan: Plan, pdf: bool) -> dict[str, object]:
    """Write the summary and the report of a study whose seeds are all done."""
    seeds = read_seeds(plan.folder, plan.seeds)
    resamples, strategies = plan.study.resamples, plan.study.strategies
    found = summarise(seeds, resamples=resamples, strategies=strategies)
    courses = read_courses(seeds, in_order(found, strategies))
    for role, own in courses.items():
        found[role] |= costs(own)
    summary: dict[str, object] = {
        "schema": SCHEMA,
        "model": plan.config.model,
        "dataset": plan.config.dataset,
        "strategies": strategies or [plan.config.strategy],
        "seeds": plan.seeds,
        "held_out_rows": [len(next(iter(seed.items.values())).rows) for seed in seeds],
        "learning_rates": plan.rates,
        "resamples": resamples,
        "questions": {name: questions_sha256(own) for name, own in plan.questions.items()},
        "question_sets": {name: _question_measures(plan, name) for name in plan.questions},
        "arms": found,
        "equal_bytes": equal_bytes(seeds, courses, plan.study.byte_budget_megabytes, resamples=resamples),
    }
    write_json(plan.folder / "summary.json", summary)
    write_report(study_report(plan.folder), plan.folder, pdf=pdf)
    return summary


def check_study(config: RunConfig, study: StudyConfig) -> None:
    """Refuse settings that a study cannot compare fairly.

    Raises:
        ConfigError: so it is.
    """
    check_trackers(config.report_to)
    if len(study.learning_rates) > 1 and not config.validation:
        raise ConfigError(
            "study.learning_rates: rates are chosen by the loss on validation rows, and there are none; set "
            "validation, for instance to 10 rows a category."
        )
    if config.early_stopping:
        raise ConfigError("early_stopping: a study compares arms at equal budgets; leave early_stopping at 0.")
    if config.compare:
        raise ConfigError("compare is for fedit run; what a study compares is named by study.arms.")
    fed = sorted({"local_total", "centralised"} & set(study.arms))
    if config.privacy == "example" and fed:
        raise ConfigError(
            f"study.arms: {' and '.join(fed)} take the federation's tokens, which privacy=example does not tell; "
            "leave them out."
        )
    if config.exact_match and not study.generate:
        raise ConfigError("exact_match needs generated answers; leave study.generate on.")
    for name in study.strategies:
        chain.check(build_transforms(config.transforms), build_variant(name))


def _same_study(plan: Plan) -> None:
    """Write what makes the study this one, or make sure that the folder holds this very study."""
    identity = {
        "version": 1,
        "settings": settings_hash(plan.config),
        "study": plan.study.model_dump(mode="json", exclude=set(OF_THE_SUMMARY)),
        "questions": {name: questions_sha256(own) for name, own in plan.questions.items()},
    }
    path = plan.folder / "study.json"
    if not path.is_file():
        if (plan.folder / "run.json").exists():
            raise RunFolderError(f"{plan.folder} holds a run; choose another --out for the study.")
        write_text(plan.folder / "resolved.yaml", to_yaml(plan.config))
        write_json(plan.folder / "environment.json", environment())
        write_json(path, identity)
        return
    before = read_json(path)
    if changed := [name for name, value in identity.items() if before.get(name) != value]:
        raise RunFolderError(
            f"{plan.folder} holds another study: {', '.join(changed)} changed since it began; "
            "choose another --out."
        )


def _is_done(plan: Plan, seed: int) -> bool:
    return (plan.folder / f"seed-{seed}" / "seed.json").is_file()


def _one_seed(plan: Plan, seed: int) -> None:
    """Deal the rows with one seed, train all arms and measure the chosen ones."""
    folder = plan.folder / f"seed-{seed}"
    with _prepared(plan.config.model_copy(update={"seed": seed}), folder, plan.listener) as (job, compute):
        for strategy in plan.study.strategies:
            arms.federated(job, strategy)  # one that cannot work is refused before any other has trained for hours
        first, later = first_arms(job, plan.study), later_arms(job, plan.study)
        rates = plan.rates if seed == plan.seeds[0] else None
        _tell_estimate(plan, job, compute, [*first, *later])
        tuned = _train(plan, job, compute, seed, first, rates, {})
        _measure_clients(plan, job, compute, tuned)
        chosen = {arm: best_of(plan.folder, own) for arm, own in tuned.items()}
        tuned |= _train(plan, job, compute, seed, later, rates, _federations_tokens(plan, chosen))
        chosen = {arm: best_of(plan.folder, own) for arm, own in tuned.items()}
        _measure(plan, job, compute, seed, chosen)
        write_json(folder / "held_out.json", [_shown(example) for example in job.held_out])
        write_json(folder / "clients.json", job.category_counts)
        write_json(folder / "identity.json", identity_of(job))
        job.partition.save(folder / "partition.json")
        totals = {arm: _totals(plan, training) for arm, training in chosen.items()}
        rates_of = {arm: training.learning_rate for arm, training in chosen.items()}
        tried = {
            arm: [[t.learning_rate, validation_loss(plan.folder, t)] for t in own] for arm, own in tuned.items()
        }
        write_json(
            folder / "seed.json",
            {
                "learning_rates": rates_of,
                "roles": roles(list(chosen), plan.study),
                "totals": totals,
                "validation_losses": tried,
                "partition": job.statistics,
                "sizes": {client: len(rows) for client, rows in job.clients.items()},
            },
        )


@contextmanager
def _prepared(config: RunConfig, folder: Path, listener: Listener | None) -> Iterator[tuple[Job, Compute]]:
    def say(text: str) -> None:
        if listener is not None:
            listener({"event": "preparing", "round": 0, "text": text})

    folder.mkdir(parents=True, exist_ok=True)
    with pool_of(config, folder, config.num_threads) as pool:
        job = prepare(config, say)
        with closing(job):
            yield job, compute_of(job, pool, folder)


def _train(
    plan: Plan,
    job: Job,
    compute: Compute,
    seed: int,
    names: Sequence[str],
    rates: Sequence[float] | None,
    tokens: Mapping[int, int],
) -> dict[str, list[Training]]:
    """Train arms, at every rate or, where None is given, at what they chose before; return what was trained."""
    before = None if rates else chosen_rates(plan.folder, plan.seeds[0])
    trainings = [
        Training(seed, name, rate) for name in names for rate in (rates or [rate_for(before or {}, name)])
    ]
    work = [
        ArmWork(own.arm, own.folder(plan.folder), tokens, own.learning_rate, own.label, graded=False)
        for own in trainings
        if not is_exported(own.folder(plan.folder) / "adapter")
    ]
    plan.logs.update({own.label: own.folder(plan.folder) for own in trainings})
    train_arms(job, compute, work, plan.listener)
    return {name: [training for training in trainings if training.arm == name] for name in names}


def _measure_clients(plan: Plan, job: Job, compute: Compute, tuned: Mapping[str, Sequence[Training]]) -> None:
    """Measure what the clients of federations run for themselves, where that is not the server's model."""
    for name, trainings in tuned.items():
        if name.startswith(arms.FEDERATED):
            plan.tell("evaluating")
            for training in trainings:
                measure_personal(job, compute, arms.named(job, name, {}), training.folder(plan.folder))


def _federations_tokens(plan: Plan, chosen: Mapping[str, Training]) -> dict[int, int]:
    """Return the tokens that the first federation took in every round."""
    federated = [training for arm, training in chosen.items() if arm.startswith(arms.FEDERATED)]
    if not federated:
        return {}
    return arms.tokens_by_round(EventLog(federated[0].folder(plan.folder)).history())


def _shown(example: Example) -> dict[str, object]:
    """Return what a report shows of a held-out row."""
    return {
        "instruction": example.messages[-2].content,
        "context": example.context,
        "expected": example.answer,
        "category": example.category,
        "checked": example.check is not None,
    }


def _totals(plan: Plan, training: Training) -> dict[str, float]:
    return totals(EventLog(training.folder(plan.folder)).history())


def _measure(plan: Plan, job: Job, compute: Compute, seed: int, chosen: Mapping[str, Training]) -> None:
    """Measure the chosen arms, and the base, on the held-out rows; at the first seed let them answer questions."""
    adapters = _adapters(plan, job, compute, chosen)
    plan.tell("evaluating")
    names = list(adapters)
    losses = compute.losses(list(adapters.values()), "held_out")
    texts: dict[str, list[str] | None] = dict.fromkeys(names)
    if plan.study.generate:
        texts |= _answers(plan, compute, adapters, job.prompts(job.held_out), "held-out instructions")
    folder = plan.folder / f"seed-{seed}" / "items"
    for name, own in zip(names, losses, strict=True):
        Items.of(job.held_out, own, texts[name]).write(folder / f"{file_name(name)}.json")
    if seed == plan.seeds[0]:
        named = {BASE: BASE, **roles(list(chosen), plan.study)}
        by_role = {named[name]: adapter for name, adapter in adapters.items()}
        for title, questions in plan.questions.items():
            _ask(plan, job, compute, by_role, title, questions)


def _adapters(plan: Plan, job: Job, compute: Compute, chosen: Mapping[str, Training]) -> dict[str, Tensors]:
    adapters: dict[str, Tensors] = {}
    if BASE in plan.study.arms:
        adapters[BASE] = compute.initial()
    for name, training in chosen.items():
        folder = training.folder(plan.folder)
        adapters[name] = read_trained(job, arms.named(job, name, {}), folder, EventLog(folder)).adapter
    return adapters


def _answers(
    plan: Plan, compute: Compute, adapters: Mapping[str, Tensors], prompts: Sequence[Sequence[int]], what: str
) -> dict[str, list[str] | None]:
    """Return every arm's answers to ``prompts``; those of all arms are generated together."""
    asked = [Prompt(ids, index) for index in range(len(adapters)) for ids in prompts]

    def tell(done: int) -> None:
        plan.tell("answering", subject=what, done=done, total=len(asked))

    tell(0)
    found = compute.answers(list(adapters.values()), asked, tell)
    each = len(prompts)
    return {name: found[index * each : (index + 1) * each] for index, name in enumerate(adapters)}


def _ask(
    plan: Plan,
    job: Job,
    compute: Compute,
    adapters: Mapping[str, Tensors],
    title: str,
    questions: Sequence[Question],
) -> None:
    """Let all arms answer a question set, turn after turn, and write their answers."""
    given: dict[str, list[list[str]]] = {name: [[] for _ in questions] for name in adapters}
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [index for index, question in enumerate(questions) if len(question.turns) > turn]
        prompts: list[Prompt] = []
        for place, name in enumerate(adapters):
            for index in asked:
                ids = job.conversation(questions[index].turns[: turn + 1], given[name][index])
                prompts.append(Prompt(ids, place))

        def tell(done: int, total: int = len(prompts)) -> None:
            plan.tell("answering", subject=title, done=done, total=total)

        found = iter(compute.answers(list(adapters.values()), prompts, tell, plan.study.question_tokens))
        for name in adapters:
            for index in asked:
                given[name][index].append(next(found))
    folder = _answers_folder(plan, title)
    for name, answers in given.items():
        answered = [
            Answered(q.question_id, q.category, q.turns, tuple(own), q.reference)
            for q, own in zip(questions, answers, strict=True)
        ]
        write_answers(folder / f"{file_name(name)}.jsonl", name, answered)


def _answers_folder(plan: Plan, title: str) -> Path:
    folder = plan.folder / "answers"
    return folder if len(plan.questions) == 1 else folder / Path(title).stem


def _question_measures(plan: Plan, title: str) -> dict[str, object]:
    """Return arm -> what can be said of its answers to a question set without a judge."""
    found = dict(read_answers(path) for path in _answers_folder(plan, title).glob("*.jsonl"))
    measured = {arm: evaluate_answers(plan.questions[title], answered) for arm, answered in found.items()}
    return {arm: {"overall": own["overall"], "per_category": own["per_category"]} for arm, own in measured.items()}


def _tell_estimate(plan: Plan, job: Job, compute: Compute, names: Sequence[str]) -> None:
    """Say about how long the study takes from here on, as if nothing of it were done."""
    left = [seed for seed in plan.seeds if not _is_done(plan, seed)]
    times = len(left) + (len(plan.rates) - 1) * (plan.seeds[0] in left)
    tokens = expected_tokens(job, names) * times
    work = tokens + evaluation_work(job) * len(names) * times
    rate = compute.workers / compute.seconds_per_token()
    first = plan.seeds[0] in left
    answers = expected_answers(job, plan.study, plan.questions, seeds=len(left), first=first)
    answering = len(names) + (BASE in plan.study.arms)
    plan.tell(
        "study_estimate",
        trainings=len(names) * times,
        seeds=len(left),
        tokens=round(tokens),
        tokens_per_second=rate,
        answers=answering * sum(count for count, _ in answers),
        seconds=work / rate + answering * seconds_of_answers(job, compute, answers),
    )
