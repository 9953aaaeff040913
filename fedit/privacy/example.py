"""Example-level differential privacy: no example of a client can be told from what the client sends, by anybody.

Clients take the steps of DP-SGD (`fedit.privacy.steps`), so the server need not be trusted. Units are a client's
own examples, preferences count as pairs, and how many a client has is public. Everything that follows a step, the
optimizer, what a strategy corrects and what the server makes of the updates, is post-processing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fedit.errors import ConfigError
from fedit.privacy.base import Level

if TYPE_CHECKING:
    from fedit.config import RunConfig

_LOSSES = ("oort", "power_of_choice")
"""Selections that read what clients lose."""


@dataclass(frozen=True, kw_only=True)
class ExampleLevel(Level):
    """Every client clips its examples' gradients and adds noise to each step (DP-SGD, arXiv:1607.00133).

    clip_norm:   norm of an example's gradient over all trained factors together.
    most_rounds: that a client takes part in; asked more often it refuses. The noise for an epsilon is found for
                 so many; None: all rounds of the job.
    """

    clip_norm: float = 1.0
    most_rounds: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most_rounds is not None and self.most_rounds < 1:
            raise self._bad("most_rounds", self.most_rounds, "a whole number from 1")


def refuse(config: "RunConfig") -> None:
    """Refuse settings under which something of an example would leave a client beside private steps.

    Raises:
        ConfigError: all that is wrong, or the accountant is not installed.
    """
    if config.privacy != "example":
        return
    if problems := list(_problems(config)):
        raise ConfigError("; ".join(f"privacy=example {problem}" for problem in problems) + ".")
    if find_spec("dp_accounting") is None:
        raise ConfigError(
            "privacy=example needs dp-accounting, which says what was spent; install it with: "
            "pip install 'fedit[privacy]'"
        )


def _problems(config: "RunConfig") -> Iterator[str]:
    if config.tuning != "lora":
        yield f"knows the gradients of LoRA factors, and tuning is {config.tuning}; set tuning to lora"
    if config.local_tokens is not None:
        yield "needs a number of steps that does not depend on the rows; set local_steps in place of local_tokens"
    if config.weighting == "tokens":
        yield "does not tell how many tokens a client has; set weighting to examples or uniform"
    if config.selection in _LOSSES:
        yield f"does not tell what clients lose, which selection={config.selection} reads; take uniform"
    if config.devices_per_client > 1:
        yield "clips gradients on one device; set devices_per_client to 1"
    if config.compare:
        yield (
            "does not tell the tokens of a round, which are the baselines' budgets; leave compare empty, and "
            "compare with a run of privacy=none"
        )
    if config.personal_evaluation:
        yield "would be undone by numbers about what clients run for themselves; leave personal_evaluation off"
