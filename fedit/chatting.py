"""A conversation with a tuned model, and with its base for comparison."""

from collections.abc import Callable

from fedit.data.examples import Message
from fedit.resident import Resident, Sampling
from fedit.tuned import Tuned, find_tuned

__all__ = ["Chat", "Sampling", "Tuned", "find_tuned"]

_TUNED, _BASE = "tuned", "base"


class Chat:
    """One conversation with a tuned model and its base.

    Attributes:
        base_answers: whether the base model answers instead of the tuned one.
        messages: the conversation so far, without the system turn.
    """

    def __init__(self, tuned: Tuned, *, system: str = "", say: Callable[[str], None] = lambda _: None) -> None:
        self._resident = Resident({_TUNED: tuned, _BASE: tuned.base()}, say=say)
        self.tokenizer = self._resident.tokenizer
        self.template = self._resident.template(_TUNED)
        self._system = [Message("system", system)] if system else []
        self.base_answers = False
        self.messages: list[Message] = []

    def use_base(self, on: bool) -> None:
        """Let the base model answer, or the tuned one again."""
        self.base_answers = on

    def take_back(self) -> str | None:
        """Remove the last question and its answer and return the question; None if there is none."""
        if not self.messages:
            return None
        question = self.messages[-2].content
        del self.messages[-2:]
        return question

    def answer(self, question: str, write: Callable[[str], None], sampling: Sampling) -> str:
        """Answer ``question`` in the conversation, handing text to ``write`` as it comes.

        An interrupted answer stays in the conversation as far as it got.

        Raises:
            ConfigError: the longest answer leaves no room for a prompt, or the template fails.
            DataError: the template refuses the conversation.
        """
        prompt = self._prompt(question, sampling.max_new_tokens)
        pieces: list[str] = []

        def keep(text: str) -> None:
            pieces.append(text)
            write(text)

        voice = _BASE if self.base_answers else _TUNED
        try:
            self._resident.answer(voice, prompt, keep, sampling, turn=len(self.messages))
        finally:
            self.messages += [Message("user", question), Message("assistant", "".join(pieces))]
        return "".join(pieces)

    def _prompt(self, question: str, max_new_tokens: int) -> list[int]:
        turns = [*self._system, *self.messages, Message("user", question)]
        return self._resident.prompt(_TUNED, turns, max_new_tokens)
