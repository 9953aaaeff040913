"""Whether an algorithm can be private: found by playing rounds of it whose cohorts are sealed, clipped, noised."""

from fedit.errors import ConfigError, FeditError, SealedUpdates
from fedit.privacy.base import Sampling
from fedit.privacy.client import ClientLevel, ClientPrivacy
from fedit.privacy.ledger import Ledger
from fedit.rehearsal import COHORT, rehearse
from fedit.strategies.base import Strategy

ROUNDS = 2


def rehearse_privately(strategy: Strategy) -> None:
    """Play rounds of ``strategy`` under client-level privacy, with small noise.

    Raises:
        SealedUpdates: it reads single updates.
        FeditError: it refuses for another reason.
    """
    everybody = Sampling("poisson", 1.0, float(COHORT), COHORT, 1, "", "")
    privacy = ClientPrivacy(ClientLevel(clip_norm=1.0, noise_multiplier=1e-3), everybody, Ledger())
    rehearse(strategy, rounds=ROUNDS, seal=privacy.seal)


def refuse_single_updates(strategy: Strategy, name: str) -> None:
    """Make sure that ``strategy`` needs nothing of a cohort but its noised sum.

    What fails for other reasons on the rehearsal's small model is left to the run, whose cohorts are sealed too.

    Raises:
        ConfigError: it reads single updates.
    """
    try:
        rehearse_privately(strategy)
    except SealedUpdates as error:
        raise ConfigError(
            f"strategy '{name}' reads single updates, and privacy=client shows only their noised sum. Take one "
            "that needs the mean alone (central DP in: fedit list strategies), such as fedit, ffa_lora or fedsvd."
        ) from error
    except FeditError:
        return
