"""Find the first fused block of a model whose output differs from a reference, with every fusion left on."""

from edgecnn.parity.localize.result import BlockDifference, Figures, Localization
from edgecnn.parity.localize.run import localize
from edgecnn.parity.localize.sides import OnnxSide, Side

__all__ = ["BlockDifference", "Figures", "Localization", "OnnxSide", "Side", "localize"]
