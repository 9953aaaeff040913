"""A judge behind an OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp, Ollama, LM Studio, transformers serve."""

import ipaddress
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from fedit.data.examples import Message
from fedit.errors import ConfigError
from fedit.judging.base import NoReply, Reply, Request

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

OPENAI = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
_NO_KEY = "none"  # the client insists on one; servers of one's own mostly ask for none
_CHARACTERS_A_TOKEN = 4
_SHORTEST_SECRET = 8
_LONGEST_SAID = 300
_HOPELESS = (301, 302, 303, 307, 308, 401, 403, 404)
"""HTTP answers that another request would get too: redirects, which are not followed, and refusals."""


class Endpoint:
    """A model of an endpoint, asked through the ``openai`` client.

    The client tries again what may succeed later (time-outs, lost connections, 408, 409, 429, 5xx), ``retries``
    times with growing pauses, and waits as long as a Retry-After asks, up to two minutes. The key is read from the
    environment variable ``key_variable``, is held by the client alone, and is removed from everything that the
    endpoint says. Redirects are not followed, and a server on this machine is not reached through a proxy: what is
    allowed to leave the machine is decided by the address given here alone.

    temperature: None leaves it to the endpoint, as some models demand.
    timeout: seconds that one try may take.
    """

    explains = True

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI,
        *,
        key_variable: str = KEY_VARIABLE,
        allow_remote: bool = False,
        temperature: float | None = 0.2,
        max_reply_tokens: int = 1024,
        concurrency: int = 4,
        retries: int = 4,
        timeout: float = 120.0,
    ) -> None:
        """Set the client up; nothing is sent yet.

        Raises:
            ConfigError: the address is no address, is not on this machine without ``allow_remote``, needs a key
                that is not there, or the client library is not installed.
        """
        local = _is_loopback(base_url)
        if not local and not allow_remote:
            raise ConfigError(
                f"{base_url} is not on this machine, and judging sends it every question, answer and reference. "
                "Answers of models that were tuned on clients' data can repeat that data. If all of it may leave "
                "this machine, add --allow-remote; otherwise serve a judge here (--base-url "
                "http://127.0.0.1:PORT/v1) or use a local model (--judge local:FOLDER)."
            )
        self._key = os.environ.get(key_variable) or None
        if self._key is None and (not local or key_variable != KEY_VARIABLE):
            raise ConfigError(
                f"the environment variable {key_variable} is not set; the key of {base_url} is read from there "
                "and from nowhere else. Set it, or name another variable with --api-key-env."
            )
        self.name = model
        self.concurrency = concurrency
        self.sampling: Mapping[str, object] = {"temperature": temperature, "max_tokens": max_reply_tokens}
        self._url = base_url
        self._limit_name = "max_tokens"
        self._client = _client(self._key or _NO_KEY, base_url, local, retries, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def describe(self) -> dict[str, object]:
        """Return what results say about it."""
        return {"kind": "endpoint", "model": self.name, "base_url": self._url, **self.sampling}

    def ask(self, request: Request) -> Reply:
        """Return the reply to one request.

        Raises:
            NoReply: it failed, also after trying again.
            ConfigError: the endpoint refuses the key, the model or the address.
        """
        import openai

        # "from None" below: what an endpoint said may hold the key, and tracebacks show causes.
        try:
            completion = self._complete(request)
        except openai.APITimeoutError:
            raise NoReply("no reply in time") from None
        except openai.APIConnectionError as error:
            raise NoReply(f"no connection: {self._said(str(error.__cause__ or error))}") from None
        except openai.APIStatusError as error:
            said = self._said(error.message.removeprefix(f"Error code: {error.status_code} - "))
            if error.status_code in _HOPELESS:
                raise ConfigError(
                    f"{self._url} refuses (HTTP {error.status_code}): {said} Check --base-url, --judge and the "
                    "key in the environment."
                ) from None
            raise NoReply(f"HTTP {error.status_code}: {said}{_hint(error.status_code, said)}") from None
        except (openai.OpenAIError, ValueError) as error:
            raise NoReply(f"not a chat completion: {self._said(str(error))}") from None
        return self._reply(request, completion)

    def _complete(self, request: Request) -> "ChatCompletion":
        import openai

        name = self._limit_name
        try:
            return self._create(request, name)
        except openai.BadRequestError as error:
            # Newer models of OpenAI take the limit under another name only.
            if name != "max_tokens" or "max_completion_tokens" not in error.message:
                raise
            self._limit_name = "max_completion_tokens"
            return self._create(request, self._limit_name)

    def _create(self, request: Request, limit_name: str) -> "ChatCompletion":
        options = {limit_name: self.sampling["max_tokens"], "temperature": self.sampling["temperature"]}
        return self._client.chat.completions.create(
            model=self.name,
            messages=[_message(message) for message in request.messages],
            extra_body={name: value for name, value in options.items() if value is not None},
        )

    def _reply(self, request: Request, completion: object) -> Reply:
        # The client does not check what it is sent.
        choices = getattr(completion, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if message is None:
            raise NoReply("not a chat completion: it has no message")
        content = getattr(message, "content", None)
        text = self._without_key(content) if isinstance(content, str) else ""
        usage = getattr(completion, "usage", None)
        tokens_in, tokens_out = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        if isinstance(tokens_in, int) and isinstance(tokens_out, int):
            return Reply(text, None, tokens_in, tokens_out)
        asked = sum(len(message.content) for message in request.messages)
        return Reply(text, None, _tokens_of(asked), _tokens_of(len(text)), estimated=True)

    def _said(self, text: str) -> str:
        """Return an endpoint's words as they may be shown: short, without the key or what steers a terminal."""
        return "".join(char if char.isprintable() else " " for char in self._without_key(text))[:_LONGEST_SAID]

    def _without_key(self, text: str) -> str:
        # Shorter ones are no secrets, but what people write where a server wants any key: EMPTY, none, x.
        if self._key is None or len(self._key) < _SHORTEST_SECRET:
            return text
        return text.replace(self._key, "[key removed]")


def _client(key: str, base_url: str, local: bool, retries: int, timeout: float) -> "openai.OpenAI":
    try:
        import openai
    except ImportError as error:
        raise ConfigError(
            "a judge behind an endpoint needs the openai client; install it with: pip install 'fedit[judge]'"
        ) from error
    return openai.OpenAI(
        api_key=key,
        base_url=base_url,
        max_retries=retries,
        timeout=timeout,
        http_client=openai.DefaultHttpxClient(follow_redirects=False, trust_env=not local),
    )


def _message(message: Message) -> "ChatCompletionMessageParam":
    match message.role:
        case "system":
            return {"role": "system", "content": message.content}
        case "assistant":
            return {"role": "assistant", "content": message.content}
        case _:
            return {"role": "user", "content": message.content}


def _tokens_of(characters: int) -> int:
    return max(1, characters // _CHARACTERS_A_TOKEN)


def _hint(status: int, said: str) -> str:
    if status in (400, 422) and "temperature" in said:
        return " Try --temperature none."
    return ""


def _is_loopback(base_url: str) -> bool:
    """Whether an address leads to this machine by its own words: no name is looked up.

    Raises:
        ConfigError: it is no plain http address.
    """
    parts = urlsplit(base_url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"--base-url is {base_url!r}; expected an address like http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "--base-url holds a user, a password or a query; a key comes from the environment alone."
        )
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
