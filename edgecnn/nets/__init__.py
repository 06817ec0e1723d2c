"""The compact CNN families, and what makes any of them deployable; torch lives here and in `training`."""

from edgecnn.nets.build import build_net
from edgecnn.nets.choose import FAMILIES, NetChoice, choose_net
from edgecnn.nets.cost import Cost, measure_cost
from edgecnn.nets.deployed import Deployed

__all__ = ["FAMILIES", "Cost", "Deployed", "NetChoice", "build_net", "choose_net", "measure_cost"]
