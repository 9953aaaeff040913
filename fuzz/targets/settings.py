"""What says what to run: job files, arguments, settings kept in a run folder."""

import json

import yaml

from fedit import settings
from fedit.config import RunConfig
from fedit.errors import ConfigError, RunFolderError
from fedit.report.record import read_settings
from fedit.runfolder import read_config
from fedit.variants import Variant
from fuzz.target import Target, table_of
from fuzz.targets import scratch

_YAML_WORDS = (
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!int ",
    b"!!timestamp ",
    b"!!python/object ",
    b"? ",
    b"- ",
    b"|\n",
    b"---\n",
    b"[",
    b"{",
    b": ",
    b"2001-02-31",
    b"study:\n",
    b"model:\n",
    b"strategy_options: ",
    b"1:30",
    b"\t",
)
_TOML_WORDS = (
    b"[[a]]",
    b"[a.b]",
    b"'''",
    b'"""',
    b"= ",
    b"1979-05-27T07:32:61",
    b"inf",
    b"0x",
    b"\\u0000",
    b"{",
    b"[",
)
_NAMES = tuple(name.encode() + b": " for name in list(RunConfig.model_fields)[:60])


def _own() -> list[bytes]:
    return sorted((path.read_bytes() for path in settings.recipes().values()), key=len)[:12]


def _recipes() -> list[bytes]:
    return [*_own(), b"&a [*a]", b"a: &x [1]\nnum_rounds: *x", b"study: {seeds: [1, 2]}"]


def _as_json() -> list[bytes]:
    """Job files as JSON, which is YAML: their values can be changed as values."""
    return [json.dumps(yaml.safe_load(text)).encode() for text in _own()]


def _job(suffix: str) -> object:
    return lambda data: settings.load(scratch.file(f"job{suffix}", data))


def _arguments(data: bytes) -> None:
    settings.load(None, data.decode("utf-8", "replace").split("\n")[:20])


def _resolved(data: bytes) -> None:
    path = scratch.file("resolved/resolved.yaml", data)
    read_settings(path)
    read_config(path.parent)


def _options(data: bytes) -> None:
    """Options of an algorithm, which a job names by text."""
    from fedit.strategies import build_strategy
    from fedit.transforms import build_transforms

    config = settings.from_values(table_of(data), "fuzz")
    build_strategy(config.strategy, config.strategy_options)
    build_transforms(config.transforms)


def _variant(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    Variant.parse(str(Variant.parse(text)))


TARGETS = (
    Target(
        "job_yaml",
        ("fedit.settings", "fedit.reading"),
        _job(".yaml"),
        _recipes,
        (ConfigError,),
        "text",
        (*_YAML_WORDS, *_NAMES),
    ),
    Target(
        "job_values", ("fedit.settings", "fedit.reading"), _job(".yaml"), _as_json, (ConfigError,), "json", _NAMES
    ),
    Target(
        "job_toml",
        ("fedit.settings", "fedit.reading"),
        _job(".toml"),
        lambda: [
            b'[model]\nmodel = "demo"\n\n[federation]\nnum_rounds = 3\nlearning_rate = 1e-3\n',
            b"num_clients = 4\nclient_ranks = {a = 1}\ncompare = ['local']\n",
        ],
        (ConfigError,),
        "text",
        _TOML_WORDS,
    ),
    Target(
        "job_arguments",
        ("fedit.settings",),
        _arguments,
        lambda: [
            b"num_rounds=3\nlearning_rate=1e-3",
            b"strategy=fedopt\nstrategy_options.tau=0.1",
            b"columns.instruction=q\ncompare=local,centralised",
            b"study.seeds=[1,2]",
        ],
        (ConfigError,),
        "text",
        (*_YAML_WORDS, *(name.replace(b": ", b"=") for name in _NAMES)),
    ),
    Target(
        "resolved_settings",
        ("fedit.runfolder", "fedit.report.record"),
        _resolved,
        _as_json,
        (ConfigError, RunFolderError),
        "json",
    ),
    Target(
        "algorithm_options",
        ("fedit.registry",),
        _options,
        lambda: [
            json.dumps(own).encode()
            for own in (
                {"strategy": "fedadam", "strategy_options": {"tau": 0.01}},
                {"strategy": "krum", "strategy_options": {"max_attackers": 1}},
                {"transforms": [{"top_k": {"fraction": 0.1}}, {"zstd": {"level": 3}}, "cast"]},
            )
        ],
        (ConfigError,),
        "json",
    ),
    Target(
        "variant",
        ("fedit.variants",),
        _variant,
        lambda: [b"fed_sb(bases=first_update)", b'fedadam(tau=0.01 name="a b")', b"fedit"],
        (ConfigError,),
        "text",
        (b"(", b"=", b'"', b"\\"),
    ),
)
