"""What the page can ask for, apart from how it asks: arms, answers, comparisons, votes, questions."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fedit.data.examples import Message
from fedit.evaluation.votes import tally
from fedit.ui.bodies import MAX_NEW_TOKENS, Comparing, Completion, Voting, check_arm, read_body
from fedit.ui.comparing import FEWEST, LABELS, MOST, Ballot, Comparison
from fedit.ui.completions import Json, Reply, model_list, timings
from fedit.ui.questions import Question
from fedit.ui.speaker import Request, Speaker, Spoken

Events = Generator[Json | None, None, None]
"""What is sent piece by piece; None where there is nothing yet, so that a reader who left is noticed."""


@dataclass
class Service:
    """One page's models, questions and votes.

    questions: in the order in which they are offered.
    """

    speaker: Speaker
    ballot: Ballot
    questions: Sequence[Question] = ()
    _started: int = field(default_factory=lambda: int(time.time()), init=False)

    @property
    def arms(self) -> list[str]:
        """Names of what answers, in the order in which they are shown."""
        return list(self.speaker.resident.voices)

    def state(self) -> Json:
        """Return what the page needs to know once."""
        resident = self.speaker.resident
        return {
            "model": resident.source.name,
            "context": resident.context,
            "arms": [{"name": name, "template": resident.template(name).name} for name in self.arms],
            "labels": list(LABELS),
            "fewest": FEWEST,
            "most": MOST,
            "max_tokens": MAX_NEW_TOKENS,
            "questions": len(self.questions),
            "votes": str(self.ballot.path),
        }

    def models(self) -> Json:
        """Return the arms as OpenAI's clients list models."""
        return model_list(self.arms, self._started)

    def question(self, number: int) -> Json:
        """Return the question at a place; after the last comes the first."""
        place = number % len(self.questions)
        question = self.questions[place]
        return {"number": place, "id": question.id, "text": question.text, "category": question.category}

    def results(self) -> Json:
        """Return the votes so far, counted."""
        return tally(self.ballot.read()).as_dict()

    def complete(self, text: bytes) -> tuple[Events, bool]:
        """Return the answer to a request in OpenAI's format, and whether it asks for a stream or for one piece.

        Raises:
            UserError: the body cannot be answered. What only the tokenizer finds out is raised by the first event.
            Busy: too many requests wait.
        """
        body = read_body(Completion, text)
        voice = check_arm(body.model, self.arms)
        request = self.speaker.ask(voice, body.conversation(), body.sampling())
        reply = Reply(voice)
        if not body.stream:
            return _whole(request, reply), False
        return _chunks(
            request, reply, usage=body.stream_options is not None and body.stream_options.include_usage
        ), True

    def compare(self, text: bytes) -> Events:
        """Return one question's answers, one after the other: first who is shown where, then text by label.

        Raises:
            UserError: the body cannot be answered.
        """
        body = read_body(Comparing, text)
        arms = [check_arm(name, self.arms) for name in body.arms]
        question = self._asked(body)
        comparison = self.ballot.draw(
            question, arms, system=body.system, blind=body.blind, sampling=body.sampling()
        )
        return self._compared(comparison)

    def vote(self, text: bytes) -> Json:
        """Keep a vote; return whose answers they were, and the votes so far.

        Raises:
            UserError: it cannot be taken.
            RunFolderError: it cannot be written.
        """
        body = read_body(Voting, text)
        comparison = self.ballot.vote(body.comparison, body.choice)
        return {"names": comparison.names, "results": self.results()}

    def _asked(self, body: Comparing) -> Question:
        """Return the question of the set if it is asked as it stands there; other text is one of its own."""
        for question in self.questions:
            if question.id == body.question_id and question.text == body.question.strip():
                return question
        return Question("", body.question.strip())

    def _compared(self, comparison: Comparison) -> Events:
        system = [Message("system", comparison.system)] if comparison.system.strip() else []
        names = None if comparison.blind else comparison.names
        labels = list(comparison.names)
        head: Json | None = {"comparison": comparison.id, "labels": labels, "names": names}
        for label, arm in comparison.names.items():
            turns = [*system, Message("user", comparison.question.text)]
            request = self.speaker.ask(arm, turns, comparison.sampling)
            with _wanted(request):
                for piece in request.pieces():
                    if head is not None and piece:  # once it is known that there are answers
                        yield head
                        head = None
                    if isinstance(piece, Spoken):
                        if piece.reason == "cancelled":
                            return
                        comparison.answers.append(piece)
                        yield {"label": label, "done": timings(piece)}
                    else:
                        yield {"label": label, "text": piece} if piece else None
        yield {"complete": True}


def _chunks(request: Request, reply: Reply, *, usage: bool) -> Events:
    begun = False
    with _wanted(request):
        for piece in request.pieces():
            if piece and not begun:
                begun = True
                yield reply.start()
            if isinstance(piece, Spoken):
                yield reply.end(piece)
                if usage:
                    yield reply.usage(piece)
            else:
                yield reply.piece(piece) if piece else None


def _whole(request: Request, reply: Reply) -> Events:
    with _wanted(request):
        for piece in request.pieces():
            yield reply.whole(piece) if isinstance(piece, Spoken) else None


@contextmanager
def _wanted(request: Request) -> Iterator[None]:
    """Stop the answer when the block is left, in whatever way: whoever reads the events may be gone."""
    try:
        yield
    finally:
        request.cancel()
