"""What is asked of a deployment's SuperLink: register sites, start, list and stop runs."""

import itertools
import json
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedit.config import RunConfig
from fedit.errors import ConfigError
from fedit.flower import printed
from fedit.flower.connection import LinkError, address, bundle, connected, link_error
from fedit.flower.jobs import Jobs, Submitted, check_name
from fedit.flower.layout import Deployment
from fedit.flower.progress import Progress, read_progress

UNKNOWN_RUN, ALREADY_FINISHED, ALREADY_REGISTERED = 16, 18, 23
"""Flower's numbers of what it refuses."""
NEVER_SEEN = "never seen"
_MOST_RUNS = 1000


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """One site's node. state: "online", "offline" or "never seen"; since: seconds since 1970, None: unknown."""

    name: str
    state: str
    since: float | None = None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run of a deployment.

    state:  pending, starting, running; waiting: it ended early and is started again; finished, stopped, failed.
    starts: how often it was started.
    """

    name: str
    run_id: int
    state: str
    reason: str = ""
    starts: int = 1
    progress: Progress = field(default_factory=Progress)

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON values; Flower's id as text, which JSON's numbers cannot hold everywhere."""
        own = asdict(self)
        return {**own, "run_id": str(self.run_id)}


def submit(
    deployment: Deployment,
    name: str,
    job: RunConfig,
    held_out: Path | None,
    *,
    deadline: float = 0.0,
    sites: int | None = None,
) -> int:
    """Start a run and return Flower's id of it.

    held_out: file of the rows that the server measures on; None: it measures nothing.
    deadline: seconds of a round; 0: from the durations of earlier ones.
    sites:    how many must be there before the first round; None: all of the deployment.

    Raises:
        ConfigError: the name is taken or no name.
        LinkError: the SuperLink does not answer.
    """
    check_name(name)
    jobs = jobs_of(deployment)
    with jobs.locked():
        if jobs.get(name) is not None or (deployment.runs / name).exists():
            raise ConfigError(f"{deployment.runs / name} exists already; choose another --name.")
        wanted = Submitted(
            name=name,
            job=job.model_dump(mode="json"),
            held_out="" if held_out is None else str(held_out.absolute()),
            deadline=deadline,
            sites=sites or max(len(deployment.sites), 1),
            run_id=0,
        )
        run_id = _start(deployment, wanted)
        jobs.save(replace(wanted, run_id=run_id))
    return run_id


def submit_again(deployment: Deployment, job: Submitted, *, in_vain: int, round: int) -> int | None:
    """Start a run that ended early once more, from its newest whole round; None: it was stopped meanwhile.

    Raises:
        LinkError: the SuperLink does not answer.
    """
    jobs = jobs_of(deployment)
    with jobs.locked():
        now = jobs.get(job.name)
        if now is None or now.state != "active" or now.run_id != job.run_id:
            return None
        run_id = _start(deployment, now)
        jobs.save(replace(now, run_id=run_id, starts=now.starts + 1, in_vain=in_vain, round=round))
    return run_id


def register(deployment: Deployment) -> list[str]:
    """Tell the SuperLink the keys of all sites, which it forgets when it ends; return those it did not know.

    Raises:
        ConfigError: a key is none.
        LinkError: the SuperLink does not answer.
    """
    from flwr.proto.control_pb2 import RegisterNodeRequest

    from fedit.flower.certificates import read_public_key

    new = []
    with connected(deployment) as client:
        for site in deployment.sites:
            key = read_public_key(deployment.public_key(site))
            try:
                client.RegisterNode(RegisterNodeRequest(public_key=key, name=site))
                new.append(site)
            except Exception as error:
                refusal = link_error(deployment, error)
                if refusal.code != ALREADY_REGISTERED:
                    raise refusal from error
    return new


def nodes(deployment: Deployment) -> list[SiteStatus]:
    """Return the nodes of all sites, those of a deployment without keys under Flower's ids.

    Raises:
        LinkError: the SuperLink does not answer.
    """
    from flwr.proto.control_pb2 import ListNodesRequest

    with connected(deployment) as client:
        found = client.ListNodes(ListNodesRequest()).nodes_info
    statuses: dict[str, SiteStatus] = {}
    for node in found:
        if node.status == "unregistered":
            continue
        name = node.name or f"node {node.node_id}"
        if node.status == "online":
            statuses[name] = SiteStatus(name, "online", _seconds(node.last_activated_at))
        elif node.status == "offline":
            left = _seconds(node.last_deactivated_at)
            statuses[name] = SiteStatus(
                name, "offline", max(filter(None, [left, node.online_until]), default=None)
            )
    known = () if deployment.insecure else deployment.sites
    missing = [SiteStatus(site, NEVER_SEEN) for site in known if site not in statuses]
    return sorted([*statuses.values(), *missing], key=lambda site: site.name)


def runs(deployment: Deployment) -> list[RunStatus]:
    """Return all runs of a deployment, in the order of their names.

    Raises:
        LinkError: the SuperLink does not answer.
    """
    return _statuses(deployment, flower_states(deployment))


def runs_on_disk(deployment: Deployment) -> list[RunStatus]:
    """Return all runs as far as their folders tell, while no SuperLink answers."""
    return _statuses(deployment, {})


def flower_states(deployment: Deployment) -> dict[int, tuple[str, str]]:
    """Return run id -> (state, reason) of what the SuperLink knows; a run that ended well is "finished".

    Raises:
        LinkError: the SuperLink does not answer.
    """
    from flwr.proto.control_pb2 import ListRunsRequest

    with connected(deployment) as client:
        found = client.ListRuns(ListRunsRequest(limit=_MOST_RUNS)).run_dict
    states = {}
    for run_id, run in found.items():
        status = run.status
        ended = {"completed": "finished"}.get(status.sub_status, status.sub_status)
        states[run_id] = (ended if status.status == "finished" else status.status, status.details)
    return states


def stop(deployment: Deployment, run_id: int) -> None:
    """Stop a run for good; one that has ended stays as it is.

    Raises:
        LinkError: the SuperLink does not answer.
    """
    from flwr.proto.control_pb2 import StopRunRequest

    jobs = jobs_of(deployment)
    own = [job for job in jobs.all() if job.run_id == run_id and job.state == "active"]
    for job in own:
        jobs.change(job.name, state="stopped", reason="")  # first, or the supervisor starts it again
    with connected(deployment) as client:
        try:
            client.StopRun(StopRunRequest(run_id=run_id))
        except Exception as error:
            refusal = link_error(deployment, error)
            if refusal.code not in (UNKNOWN_RUN, ALREADY_FINISHED):
                raise refusal from error
    for job in own:
        printed.keep(deployment, job)


def find(deployment: Deployment, name: str) -> Submitted:
    """Return the job of a name or of Flower's id.

    Raises:
        ConfigError: there is none.
    """
    jobs = jobs_of(deployment).all()
    for job in jobs:
        if name in (job.name, str(job.run_id)):
            return job
    known = ", ".join(job.name for job in jobs) or "none"
    raise ConfigError(f"there is no run '{name}' in {deployment.folder}. Runs: {known}.")


def free_name(deployment: Deployment, wanted: str) -> str:
    """Return a name that no run has, ``wanted`` if it can be."""
    jobs = jobs_of(deployment)
    names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
    return next(name for name in names if jobs.get(name) is None and not (deployment.runs / name).exists())


def jobs_of(deployment: Deployment) -> Jobs:
    """Return the jobs that were submitted to a deployment."""
    return Jobs(deployment.state / printed.JOBS)


def _start(deployment: Deployment, job: Submitted) -> int:
    """Start a job and return Flower's id of its run."""
    import hashlib

    from flwr.common.serde import user_config_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import Fab

    app = bundle()
    values: dict[str, Any] = {
        "job": json.dumps(job.job),
        "name": job.name,
        "folder": str((deployment.runs / job.name).absolute()),
        "held_out": job.held_out,
        "deadline": float(job.deadline),
        "sites": job.sites,
    }
    request = StartRunRequest(
        fab=Fab(hash_str=hashlib.sha256(app).hexdigest(), content=app),
        override_config=user_config_to_proto(values),
    )
    with connected(deployment) as client:
        run_id = int(client.StartRun(request).run_id)
    if run_id == 0:
        raise LinkError(f"the SuperLink at {address(deployment)} did not start the run; see its log")
    return run_id


def _statuses(deployment: Deployment, states: dict[int, tuple[str, str]]) -> list[RunStatus]:
    found = []
    for job in jobs_of(deployment).all():
        state, reason = states.get(job.run_id, ("waiting", ""))
        if job.state != "active":
            state, reason = job.state, job.reason
        elif state in ("failed", "stopped"):
            state = "waiting"
        progress = read_progress(deployment.runs / job.name)
        if not progress.rounds and isinstance(rounds := job.job.get("num_rounds"), int):
            progress = replace(progress, rounds=rounds)
        found.append(RunStatus(job.name, job.run_id, state, reason, job.starts, progress))
    return found


def _seconds(moment: str) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None
