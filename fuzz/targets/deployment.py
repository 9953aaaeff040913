"""What operators write and move between machines: policies, a site's and a deployment's settings, jobs, keys."""

import json

from fedit.errors import ConfigError, RunFolderError
from fedit.flower.certificates import make_node_key, read_public_key
from fedit.flower.jobs import Jobs, check_name
from fedit.flower.layout import Deployment, Site, check_host, split_address
from fedit.flower.policy import DEFAULT_POLICY, Policy
from fuzz.target import Target, promise, table_of
from fuzz.targets import scratch

_TOML_WORDS = (
    b"[[a]]",
    b"[a.b]",
    b"'''",
    b'"""',
    b"1979-05-27T07:32:61",
    b"inf",
    b"nan",
    b"0x",
    b"\\u0000",
    b"{",
    b"[",
    b"max_rank = ",
    b"models = ",
    b"strategies = ['x.py:Y']",
    b"9" * 5000,
)
_SITE = b'name = "hospital-a"\nserver = "127.0.0.1:8000"\ninsecure = true\n'
_DEPLOYMENT = b'name = "d"\nhost = "127.0.0.1"\nport = 8000\nsites = ["a", "b"]\ninsecure = true\n'
_JOB = {
    "name": "first",
    "job": {"num_rounds": 3},
    "held_out": "/data/h.jsonl",
    "deadline": 0.0,
    "sites": 2,
    "run_id": 7,
    "starts": 1,
    "in_vain": 0,
    "round": 0,
    "state": "active",
    "reason": "",
}


def _policy(data: bytes) -> None:
    policy = Policy.load(scratch.file("policy.toml", data))
    policy.oversized(10)


def _policy_values(data: bytes) -> None:
    Policy.of(table_of(data))


def _site(data: bytes) -> None:
    site = Site.load(scratch.file("site/site.toml", data).parent)
    promise(site.state.parent == site.folder, "a site's state lies outside of its folder")
    split_address(site.server)


def _deployment(data: bytes) -> None:
    deployment = Deployment.load(scratch.file("deployment/deployment.toml", data).parent)
    for site in deployment.sites:
        for path, home in (
            (deployment.bundle(site), deployment.bundles),
            (deployment.archive(site), deployment.bundles),
            (deployment.public_key(site), deployment.keys),
        ):
            promise(path.parent == home, f"{path} lies outside of its folder")


def _job(data: bytes) -> None:
    folder = scratch.emptied("jobs")
    (folder / "first.json").write_bytes(data)
    for job in Jobs(folder).all():
        promise(isinstance(job.name, str) and isinstance(job.run_id, int), "a job of another type")
        check_name(job.name)


def _name(data: bytes) -> None:
    name = data.decode("utf-8", "replace")
    check_name(name)
    home = scratch.folder() / "runs"
    promise((home / name).parent == home, "a run's name leaves the folder of runs")


def _host(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    check_host(text)
    split_address(text)


def _key(data: bytes) -> None:
    read_public_key(scratch.file("site.pub", data))


TARGETS = (
    Target(
        "policy",
        ("fedit.flower.policy",),
        _policy,
        lambda: [DEFAULT_POLICY.encode(), b'models = ["demo"]\n'],
        (ConfigError,),
        "text",
        _TOML_WORDS,
    ),
    Target(
        "policy_values",
        ("fedit.flower.policy",),
        _policy_values,
        lambda: [json.dumps(Policy().model_dump()).encode()],
        (ConfigError,),
        "json",
    ),
    Target("site_toml", ("fedit.flower.layout",), _site, lambda: [_SITE], (ConfigError,), "text", _TOML_WORDS),
    Target(
        "deployment_toml",
        ("fedit.flower.layout",),
        _deployment,
        lambda: [_DEPLOYMENT],
        (ConfigError,),
        "text",
        _TOML_WORDS,
    ),
    Target(
        "submitted_job",
        ("fedit.flower.jobs",),
        _job,
        lambda: [json.dumps(_JOB).encode()],
        (RunFolderError, ConfigError),
        "json",
    ),
    Target(
        "run_name",
        ("fedit.flower.jobs",),
        _name,
        lambda: [b"first", b"a.b-c_1"],
        (ConfigError,),
        "text",
        (b"..", b"/", b"\\", b"\0"),
    ),
    Target(
        "host",
        ("fedit.flower.layout",),
        _host,
        lambda: [b"fl.example.org:8000", b"[::1]:80", b"10.0.0.1:1"],
        (ConfigError,),
        "text",
        (b"[", b"]", b":", b"::", b"%eth0", b"0.0.0.0"),
    ),
    Target(
        "public_key",
        ("fedit.flower.certificates",),
        _key,
        lambda: [make_node_key("a")[1]],
        (ConfigError,),
        "text",
        (b"ssh-rsa ", b"ecdsa-sha2-nistp384 ", b"-cert-v01@openssh.com ", b"AAAA"),
    ),
)
