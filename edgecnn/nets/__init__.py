"""The compact CNN families, and what makes any of them deployable; torch lives here and in `training`."""

from edgecnn.nets.build import build_net
from edgecnn.nets.cost import Cost, measure_cost
from edgecnn.nets.deployed import Deployed

__all__ = ["Cost", "Deployed", "build_net", "measure_cost"]
