"""The pace of a federation: whom a round asks, whose update it waits for, and what that takes."""

STRAGGLERS: dict[str, str] = {
    "wait_all": "fedit.pace.stragglers:WaitAll",
    "deadline": "fedit.pace.stragglers:Deadline",
    "over_select": "fedit.pace.stragglers:OverSelect",
    "partial_work": "fedit.pace.stragglers:PartialWork",
}
