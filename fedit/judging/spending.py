"""Limits: tokens and money that may be spent, requests a minute."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fedit.judging.base import Reply

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call of the judge may spend; None: as much as it takes.

    max_tokens:          tokens in and out together.
    max_cost:            in the currency of the prices; needs both prices.
    price_in, price_out: of a million tokens.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """Return what so many tokens cost; None without both prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / _MILLION


class BudgetSpent(Exception):
    """No further request fits; the message says which limit and how much is spent."""


@dataclass
class Spending:
    """Adds up what is spent, and admits requests while it is within the limits.

    Requests in flight are reckoned with at the mean of those that are done, and until one is done only one is let
    out, so that many at a time overshoot a limit no further than one at a time would.
    """

    limits: Limits
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: int = 0
    _in_flight: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def cost(self) -> float | None:
        """What was spent, in the currency of the prices; None without prices."""
        return self.limits.cost(self.tokens_in, self.tokens_out)

    def admit(self) -> None:
        """Make room for one request, waiting for the first one's size.

        Raises:
            BudgetSpent: there is none.
        """
        limits = self.limits
        with self._changed:
            if limits.max_tokens is not None or limits.max_cost is not None:
                self._changed.wait_for(lambda: self.requests or not self._in_flight)
                share = 1 + self._in_flight / max(self.requests, 1)
                tokens, cost = self.tokens_in + self.tokens_out, self.cost or 0.0
                if limits.max_tokens is not None and share * tokens >= limits.max_tokens:
                    raise BudgetSpent(
                        f"the budget of {limits.max_tokens:,} tokens is spent ({tokens:,} in this call)"
                    )
                if limits.max_cost is not None and share * cost >= limits.max_cost:
                    raise BudgetSpent(f"the budget of {limits.max_cost:g} is spent ({cost:.4g} in this call)")
            self._in_flight += 1

    def settle(self, reply: Reply | None) -> None:
        """Count an admitted request; None: it got no reply."""
        with self._changed:
            self._in_flight -= 1
            if reply is not None:
                self.requests += 1
                self.tokens_in += reply.tokens_in
                self.tokens_out += reply.tokens_out
                self.estimated += reply.estimated
            self._changed.notify_all()


@dataclass
class Pace:
    """Spaces the starts of requests evenly.

    per_minute: None: no spacing.
    """

    per_minute: float | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _next: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """Return when the next request may start."""
        if self.per_minute is None:
            return
        with self._lock:
            now = self.clock()
            start = max(now, self._next)
            self._next = start + 60 / self.per_minute
        if start > now:
            self.sleep(start - now)
