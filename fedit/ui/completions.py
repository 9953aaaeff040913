"""Answers in the format of OpenAI's chat completions, which many clients read."""

import secrets
import time
from collections.abc import Mapping

from fedit.ui.speaker import Spoken

Json = dict[str, object]

_REASONS = {"length": "length"}
"""How an answer ended -> OpenAI's name of it; "stop" for all others."""


class Reply:
    """One answer being sent: what all of its parts have in common.

    model: the name under which the arm was asked for.
    """

    def __init__(self, model: str) -> None:
        self._common: Json = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def start(self) -> Json:
        """Return the first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> Json:
        """Return the chunk that holds ``text``."""
        return self._chunk({"content": text})

    def end(self, spoken: Spoken) -> Json:
        """Return the chunk that says how the answer ended."""
        return self._chunk({}, _reason(spoken)) | {"timings": timings(spoken)}

    def usage(self, spoken: Spoken) -> Json:
        """Return the chunk that counts tokens."""
        head = self._common | {"object": "chat.completion.chunk"}
        return head | {"choices": [], "usage": _usage(spoken)}

    def whole(self, spoken: Spoken) -> Json:
        """Return the answer in one piece."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": spoken.text},
            "finish_reason": _reason(spoken),
        }
        head = self._common | {"object": "chat.completion"}
        return head | {"choices": [choice], "usage": _usage(spoken), "timings": timings(spoken)}

    def _chunk(self, delta: Mapping[str, object], reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": dict(delta), "finish_reason": reason}
        return self._common | {"object": "chat.completion.chunk", "choices": [choice]}


def model_list(names: list[str], created: int) -> Json:
    """Return the arms as a list of models."""
    models = [{"id": name, "object": "model", "created": created, "owned_by": "fedit"} for name in names]
    return {"object": "list", "data": models}


def error_body(message: str, kind: str) -> Json:
    """Return an error; ``kind`` is a short name of its sort."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _reason(spoken: Spoken) -> str:
    return _REASONS.get(spoken.reason, "stop")


def timings(spoken: Spoken) -> Json:
    """Return how long an answer took and how much it is."""
    return {
        "seconds": round(spoken.seconds, 3),
        "tokens": spoken.tokens,
        "tokens_per_second": round(spoken.tokens_per_second, 2),
    }


def _usage(spoken: Spoken) -> Json:
    return {
        "prompt_tokens": spoken.prompt_tokens,
        "completion_tokens": spoken.tokens,
        "total_tokens": spoken.prompt_tokens + spoken.tokens,
    }
