"""What each family costs at two image sizes, as the README's table: `python -m edgecnn.nets.families`."""

from __future__ import annotations

from edgecnn.layers import trace
from edgecnn.nets.choose import FAMILIES, NetChoice, choose_net
from edgecnn.spec import Preprocess

IMAGES = (Preprocess(height=28, width=28, channels=1), Preprocess(height=96, width=96, channels=3))
CLASSES = 10


def choices() -> list[NetChoice]:
    """List every family, `edge` in its three sizes."""
    edges = [NetChoice(net="edge", size=size) for size in ("n", "s", "m")]
    return edges + [NetChoice(net=name) for name in FAMILIES if name != "edge"]


def families_table() -> str:
    """Write, in Markdown, the parameters and multiply-accumulates of each net for 10 classes."""
    sizes = [f"{one.width}x{one.height}x{one.channels}" for one in IMAGES]
    lines = ["| net | " + " | ".join(f"parameters, {size} | MACs, {size}" for size in sizes) + " |"]
    lines.append("|---" + "|---:" * 4 + "|")
    for choice in choices():
        cells = []
        for preprocess in IMAGES:
            config = choose_net(choice, preprocess, CLASSES)
            rows = trace(config.layers, (preprocess.channels, preprocess.height, preprocess.width), CLASSES)
            cells += [f"{sum(row.parameters for row in rows):,}", f"{sum(row.macs for row in rows) / 1e6:.2f} M"]
        lines.append(f"| `{config.net}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(families_table())  # that is what it is run for
