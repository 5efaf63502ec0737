"""How much every group may keep: from a budget for the whole network to a number for each."""

from fxprune.allocation.budget import Allocation, Budget
from fxprune.allocation.latency import LatencyTable
from fxprune.allocation.sharing import check_budget, fewest

__all__ = ["Allocation", "Budget", "LatencyTable", "check_budget", "fewest"]
