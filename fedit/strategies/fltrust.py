"""FLTrust: clients are trusted as far as they agree with the server's own clean rows (Cao et al., 2020).

FLTrust: Byzantine-robust federated learning via trust bootstrapping, arXiv:2012.13995.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedit.errors import ConfigError, NoUpdates, did_you_mean
from fedit.screening import admit, combine
from fedit.strategies.base import Strategy
from fedit.types import ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class FLTrust(Strategy):
    """Weigh every client by how well its change of the weights points where the root client's does.

    The root client stands for the server: its rows are the clean root set, it takes part in every round, and it
    has to be trusted entirely. Whoever holds its rows or its place decides what is learnt. Its own update only
    judges the others' and is not averaged. Clients are weighed by the cosine, shortened or stretched to
    the root's length, and their factors averaged as FedIT does.

    root_client: id of the client that holds the root set.
    """

    root_client: str = "root"

    def always(self) -> frozenset[str]:
        return frozenset({self.root_client})

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        # No screen by norm or copies: lengths are made equal, and the root itself must never be screened out.
        members = admit(updates)
        ids = [update.client_id for update in members.updates]
        if self.root_client not in ids:
            raise NoUpdates(
                f"the root client '{self.root_client}' delivered no usable update to compare others with"
            )
        root = ids.index(self.root_client)
        if len(members) == 1:
            raise NoUpdates(f"nobody but the root client '{self.root_client}' delivered a usable update")
        lengths = members.norms.clamp(min=torch.finfo(torch.float64).tiny)
        trust = (members.inner[root] / lengths / lengths[root]).clamp(min=0.0)
        trust[root] = 0.0
        # Deviation: the paper gives every update the root's length as a vector. Here that is the length of the
        # change of the weights, and no client's factors move further than the root's do.
        moved = members.moved.clamp(min=torch.finfo(torch.float64).tiny)
        equal = torch.minimum(members.norms[root] / lengths, members.moved[root] / moved)
        # A client that did not move has no direction: its trust is 0 and its stretch infinite.
        weights = torch.where(trust > 0, trust * equal, 0.0)
        length = float(weights.sum() / trust.sum()) if float(trust.sum()) > 0 else 0.0
        return replace(server, adapter=combine(server.adapter, members, weights, updates, length=length))

    def check_cohort(self, size: int, clients: Sequence[str]) -> None:
        if self.root_client not in clients:
            known = ", ".join(sorted(clients)[:5])
            raise ConfigError(
                f"option 'root_client' of strategy 'fltrust' is '{self.root_client}', which is no client"
                f"{did_you_mean(self.root_client, clients)} Name the client that holds the clean root set "
                f"(clients: {known}{', …' if len(clients) > 5 else ''})."
            )
        if size < 2 and len(clients) < 2:
            raise ConfigError("strategy 'fltrust' needs a client beside the root client; there is none.")
