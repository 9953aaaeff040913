"""Answers judged by a language model, as in the FedIT paper: verdicts, what they add up to, how sure that is.

`judge` does all of it; `Endpoint` and `LocalModel` are the judges.
"""

import importlib
from typing import TYPE_CHECKING

from fedit.evaluation.answerfiles import Answered
from fedit.judging.answers import read_arms
from fedit.judging.base import Judge, NoReply, Reply, Request
from fedit.judging.endpoint import Endpoint
from fedit.judging.judgement import Judgement
from fedit.judging.run import judge
from fedit.judging.spending import Limits

if TYPE_CHECKING:
    from fedit.judging.local import LocalModel

__all__ = [
    "Answered",
    "Endpoint",
    "Judge",
    "Judgement",
    "Limits",
    "LocalModel",
    "NoReply",
    "Reply",
    "Request",
    "judge",
    "read_arms",
]


def __getattr__(name: str) -> object:
    # The local model alone needs PyTorch.
    if name == "LocalModel":
        return importlib.import_module("fedit.judging.local").LocalModel
    raise AttributeError(f"module 'fedit.judging' has no attribute '{name}'")
