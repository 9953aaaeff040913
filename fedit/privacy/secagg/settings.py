"""Options of secure aggregation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from fedit import registry
from fedit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SecureAggregation:
    """How a cohort's sum is kept from being anything else.

    threshold:  more than this share of a client and its neighbours must stay until the end. Half: a server that
                lies about who dropped out learns nothing, as long as no client helps it; two thirds: nor as long
                as fewer than a third do.
    neighbours: how many others a client shares masks with; auto: all in small cohorts, in large ones as many as
                make it safe while a tenth of the clients collude with the server and a fifth drop out.
    largest:    largest change of one entry that can be sent; a client with a larger one drops out. Where clients
                are clipped it is the clip norm.
    noise:      who adds the noise of privacy=client: central, the server to the sum; distributed, every client a
                part of it, so that the server sees no sum without it.
    survivors:  share of the cohort that is sure to stay, for distributed noise: their parts alone are the whole
                noise, and with fewer there is no sum.
    """

    threshold: float = 0.5
    neighbours: int | Literal["auto"] = "auto"
    largest: float = 64.0
    noise: Literal["central", "distributed"] = "central"
    survivors: float = 0.7

    def __post_init__(self) -> None:
        if not 0.5 <= self.threshold < 1:
            raise _bad("threshold", self.threshold, "0.5 or more and less than 1")
        if self.neighbours != "auto" and (self.neighbours < 2 or self.neighbours % 2):
            raise _bad("neighbours", self.neighbours, "auto, or an even number from 2")
        if not 0 < self.largest <= 2.0**20:
            raise _bad("largest", self.largest, "more than 0 and at most 2^20")
        if not 0 < self.survivors <= 1:
            raise _bad("survivors", self.survivors, "more than 0 and at most 1")


def build_secure_aggregation(options: Mapping[str, object]) -> SecureAggregation:
    """Return the options of a job.

    Raises:
        ConfigError: no such option, or a value of the wrong type or size.
    """
    table = {"secagg": f"{__name__}:{SecureAggregation.__name__}"}
    return cast(
        SecureAggregation, registry.build("secure_aggregation", "secagg", options, table, SecureAggregation)
    )


def _bad(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"secure_aggregation option '{name}' is {value}; expected {expected}.")
