"""Federated instruction tuning: many clients, one LoRA adapter, no shared data.

>>> import fedit
>>> config = fedit.load_config("demo", num_rounds=2)
>>> config.num_rounds
2

``fedit.run(config, "runs/first")`` trains it and returns a `Result` with the folder and the summary.
Nothing heavy is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING

from fedit.process import set_environment

if TYPE_CHECKING:
    from fedit.config import RunConfig
    from fedit.data.examples import Corpus, Example, Message
    from fedit.errors import FeditError
    from fedit.launch import Result, resume, run
    from fedit.rounds import run_rounds
    from fedit.settings import load_config
    from fedit.strategies.base import Strategy
    from fedit.types import (
        Broadcast,
        ClientFailure,
        ClientInfo,
        ClientTask,
        ClientUpdate,
        LocalTraining,
        ServerState,
    )
    from fedit.updates import Updates

set_environment()

_HOMES = {
    "Broadcast": "fedit.types",
    "ClientFailure": "fedit.types",
    "ClientInfo": "fedit.types",
    "ClientTask": "fedit.types",
    "ClientUpdate": "fedit.types",
    "Corpus": "fedit.data.examples",
    "Example": "fedit.data.examples",
    "FeditError": "fedit.errors",
    "LocalTraining": "fedit.types",
    "Message": "fedit.data.examples",
    "Result": "fedit.launch",
    "RunConfig": "fedit.config",
    "ServerState": "fedit.types",
    "Strategy": "fedit.strategies.base",
    "Updates": "fedit.updates",
    "load_config": "fedit.settings",
    "resume": "fedit.launch",
    "run": "fedit.launch",
    "run_rounds": "fedit.rounds",
}

__all__ = [
    "Broadcast",
    "ClientFailure",
    "ClientInfo",
    "ClientTask",
    "ClientUpdate",
    "Corpus",
    "Example",
    "FeditError",
    "LocalTraining",
    "Message",
    "Result",
    "RunConfig",
    "ServerState",
    "Strategy",
    "Updates",
    "load_config",
    "resume",
    "run",
    "run_rounds",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedit' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
