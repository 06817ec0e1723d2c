"""One page that shows what a network makes of one image: filters, feature maps layer by layer, and where it looked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgecnn.images import Pixels
from edgecnn.report import html
from edgecnn.report.html import Html

if TYPE_CHECKING:
    from edgecnn.nets.features import Features

Values = npt.NDArray[np.floating[Any]]

MOST_MAPS = 32
_COLUMNS = 8
_KERNEL, _KERNELS, _TILE, _PICTURE = 72, 104, 96, 288  # pixels a side, at most
_LEVELS = 63  # an odd number, so that zero has a colour of its own
_GAP = (136, 136, 136)
# Blue, white, red for values of either sign; black to pale yellow for those that are never negative.
_SIGNED = ((12, 44, 132), (65, 132, 196), (255, 255, 255), (226, 106, 76), (140, 10, 28))
_GLOW = ((120, 0, 60), (220, 30, 30), (255, 140, 0), (255, 245, 120))
_HEAT = ((0, 0, 0), (66, 16, 104), (168, 44, 96), (232, 98, 42), (250, 178, 48), (255, 255, 196))


def features_page(features: Features, image: Pixels, labels: Sequence[str], net: str, name: str) -> str:
    """Write the page about one uint8 image (height, width, channels); `net` and `name` are what it and the file are called."""
    order = np.argsort(-features.logits, kind="stable")
    shown = _strongest(features.layers[0].maps)
    return html.page(
        f"What {net} sees in {name}",
        _answer(features, image, labels, net, name, order),
        _filters(features, shown),
        html.section(
            "2. Feature maps: from edges to parts",
            html.paragraph(
                "What each layer makes of the image, in order. A bright place in a map is where its filter found what it "
                "looks for; black is nothing. Each map is drawn with its own contrast, from its own 0 to its own "
                f"largest value, so compare shapes between maps, not brightness. At most {MOST_MAPS} maps a layer are "
                f"shown, those with the largest mean{_some_layers(features)}."
            ),
            _key(draw_key("heat"), "nothing found", "the map's largest value"),
            *(_layer(features, index, image.shape) for index in range(len(features.layers))),
        ),
        _looked(features, image, labels),
    )


def draw_image(image: Pixels) -> bytes:
    """Draw a uint8 image (height, width, 1 or 3) as a PNG, enlarged by whole pixels or reduced to fit."""
    return _png(Image.fromarray(_enlarge(image, _PICTURE)))


def draw_kernels(kernels: Values) -> tuple[bytes, float]:
    """Draw kernels (out, in, height, width) as a grid and give the value of the strongest colour.

    Signed, on one scale for all; a kernel's first three inputs stand side by side.
    """
    planes = kernels[:, :3]
    largest = float(np.abs(planes).max()) or 1.0
    apart = np.pad(planes, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=np.nan)  # a line between the inputs
    tiles = np.concatenate([apart[:, index] for index in range(planes.shape[1])], axis=2)[:, :, :-1]
    return _grid((tiles / largest + 1) / 2, _SIGNED, _KERNEL if planes.shape[1] == 1 else _KERNELS, gap=12), largest


def draw_maps(maps: Values) -> bytes:
    """Draw maps (C, height, width) as a grid, each with its own contrast: from 0, or signed if any is negative."""
    maps = np.stack([_reduce(plane, _TILE) for plane in maps])
    peaks = np.abs(maps).max(axis=(1, 2), keepdims=True)
    scaled = maps / np.where(peaks > 0, peaks, 1)
    signed = maps.min() < 0
    return _grid((scaled + 1) / 2 if signed else scaled, _SIGNED if signed else _HEAT, _TILE, gap=6)


def draw_saliency(image: Pixels, saliency: Values) -> bytes:
    """Draw a saliency map (height, width; 0 to 1) over its uint8 image: the stronger, the more colour."""
    picture = _enlarge(image, _PICTURE)
    grey = picture if picture.ndim == 2 else picture @ np.array([0.299, 0.587, 0.114])
    strength = _enlarge(np.rint(saliency * 255).clip(0, 255).astype(np.uint8)[..., None], _PICTURE) / 255
    return _png(Image.fromarray(_lay_over(grey, strength)))


def draw_key(kind: Literal["signed", "heat", "saliency"]) -> bytes:
    """Draw a picture's colours in their order, from the least to the largest."""
    steps = np.linspace(0, 1, 180)
    if kind == "saliency":
        colours = _lay_over(np.full_like(steps, 128), steps)
    else:
        colours = _palette(_SIGNED if kind == "signed" else _HEAT, len(steps))
    return _png(Image.fromarray(np.repeat(colours[None], 14, axis=0)))


def _lay_over(grey: npt.NDArray[Any], strength: Values) -> Pixels:
    """Lay colour over grey, each from 0 to 255 and from 0 to 1; the result has a last axis of red, green and blue."""
    colours = _palette(_GLOW, 256)[np.rint(strength * 255).astype(np.uint8)]
    alpha = (strength**0.7 * 0.8)[..., None]
    mixed: Pixels = np.rint((40 + grey[..., None] * 0.7) * (1 - alpha) + colours * alpha).astype(np.uint8)
    return mixed


def _answer(
    features: Features, image: Pixels, labels: Sequence[str], net: str, name: str, order: npt.NDArray[np.intp]
) -> Html:
    rows = [[labels[index], f"{features.probabilities[index]:.2%}"] for index in order[:5]]
    height, width, channels = image.shape
    colour = "grey" if channels == 1 else "colour"
    many = ", ".join(labels[:12]) + (f" and {len(labels) - 12} more" if len(labels) > 12 else "")
    return html.section(
        "The image and the answer",
        _beside(
            html.picture(
                draw_image(image), f"the image {name}", f"As the net sees it: {width}x{height} pixels, {colour}."
            ),
            html.table(rows, ["answer", "probability"]),
        ),
        html.paragraph(f"The net {net} tells {len(labels)} labels apart: {many}."),
    )


def _filters(features: Features, shown: npt.NDArray[np.intp]) -> Html:
    first = features.layers[0]
    follow = first.first and len(first.maps) == len(features.kernels)
    kernels = features.kernels[shown] if follow else features.kernels[:MOST_MAPS]
    picture, largest = draw_kernels(kernels)
    out, inputs, height, width = features.kernels.shape
    planes = " In each, its weights for red, green and blue stand side by side." if inputs == 3 else ""
    place = " Kernel and map have the same place in their two pictures." if follow else ""
    some = f"{len(kernels)} of its {out}" if len(kernels) < out else f"its {out}"
    return html.section(
        "1. The first filters: strokes and edges",
        html.paragraph(
            f"The first convolution slides {out} small kernels of {width}x{height} weights over the image. Where the pixels "
            "are bright under red and dark under blue, the kernel answers strongly. Red on one side and blue on the "
            "other is an edge, and the border between them its direction; a red line between blue ones is a stroke; one "
            "colour all over only measures brightness."
        ),
        html.picture(picture, "the kernels of the first convolution", f"Here are {some}.{planes}{place}"),
        _key(draw_key("signed"), f"{-largest:.2f}", f"+{largest:.2f}, one scale for all; white is 0"),
    )


def _layer(features: Features, index: int, image: tuple[int, ...]) -> Html:
    layer = features.layers[index]
    count, height, width = layer.maps.shape
    shown = _strongest(layer.maps)
    dark = int((np.abs(layer.maps).max(axis=(1, 2)) == 0).sum())
    some = f"The {len(shown)} of {count} maps with the largest mean, in the net's order." if len(shown) < count else ""
    nothing = f"{dark} of {count} found nothing in this image." if dark else ""
    sign = "Here values have a sign: blue is negative, white 0, red positive." if layer.maps.min() < 0 else ""
    return Html(
        f"<h3>Layer {layer.number} of {features.layer_count}: {count} maps of {width}x{height}</h3>\n"
        + html.paragraph(
            f"{', '.join(layer.steps)} ({layer.name}). {_cell(image, height, width)} {_meaning(features, index)}"
        )
        + html.picture(
            draw_maps(layer.maps[shown]), f"feature maps of {layer.name}", " ".join(filter(None, (some, nothing, sign)))
        )
    )


def _some_layers(features: Features) -> str:
    shown = len(features.layers)
    return f", and {shown} of the {features.layer_count} layers" if shown < features.layer_count else ""


def _cell(image: tuple[int, ...], height: int, width: int) -> str:
    down, across = image[0] / height, image[1] / width
    if (down, across) == (1, 1):
        return "One value for each pixel."
    return f"One value for about {across:.2g}x{down:.2g} pixels of the image."


def _meaning(features: Features, index: int) -> str:
    if index == 0:
        return (
            "In most maps the image can still be made out, but each keeps something else of it: an edge in one direction, "
            "a stroke, a bright area, the background."
        )
    if index == len(features.layers) - 1:
        return (
            "The last layer that knows where something is. A bright value says that a part is there, seen in a large piece "
            "of the image; from these maps the label is decided."
        )
    if index > 1:
        return ""
    return (
        "From here on each map is made of maps of the layer before: edges become corners, ends, curves and textures. "
        "The image gets harder to recognise, and that is as it should be."
    )


def _looked(features: Features, image: Pixels, labels: Sequence[str]) -> Html:
    figures = []
    for rank, saliency in enumerate(features.saliency):
        who = "the answer" if rank == 0 else "the runner-up"
        label = labels[saliency.index]
        chance = f"{features.probabilities[saliency.index]:.2%}"
        none = "" if saliency.map.max() > 0 else " No place in the image speaks for it."
        figures.append(
            html.picture(
                draw_saliency(image, saliency.map), f"where the net sees {label}", f"{label}, {who}: {chance}.{none}"
            )
        )
    height, width = features.saliency[0].cells.shape
    return html.section(
        "3. Where it looked",
        html.paragraph(
            "The brighter the colour, the more that place speaks for the label; places without colour speak for nothing or "
            "against it. Does it look at the object, or at the background? The second is how a net is right for the wrong "
            "reason. Between two labels, see which parts of the image each of them relies on."
        ),
        _beside(html.picture(draw_image(image), "the image", "The image, to compare with."), *figures),
        _key(draw_key("saliency"), "speaks little for it", "speaks most for it; each label on its own scale"),
        html.paragraph(
            f"This is Grad-CAM (Selvaraju et al. 2017) at {features.layers[-1].name}: each map of the last layer, weighted "
            f"by how much the label's score grows with it. That layer has {width}x{height} places, so nothing finer can be "
            "told apart. Each label is scaled to its own strongest place, so what is bright for an unlikely label may "
            "still be weak. It shows what the score depends on, not whether that is a good reason."
        ),
    )


def _strongest(maps: Values) -> npt.NDArray[np.intp]:
    """Choose the maps with the largest mean; they keep their order, so that filters and maps can be matched."""
    means = maps.mean(axis=(1, 2))
    return np.sort(np.argsort(-means, kind="stable")[:MOST_MAPS])


def _grid(tiles: Values, colours: Sequence[tuple[int, int, int]], side: int, gap: int) -> bytes:
    """Draw values from 0 to 1 (N, height, width) as a grid of tiles of about `side`; a NaN has the colour of the gaps."""
    levels = np.where(np.isnan(tiles), _LEVELS, np.rint(np.nan_to_num(tiles) * (_LEVELS - 1))).astype(np.uint8)
    scale = max(1, side // max(levels.shape[1:]))
    levels = levels.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = levels.shape
    columns = min(_COLUMNS, count)
    canvas = np.full((-(-count // columns) * (height + gap) + gap, columns * (width + gap) + gap), _LEVELS, np.uint8)
    for index, tile in enumerate(levels):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    picture = Image.fromarray(canvas)
    picture.putpalette([*_palette(colours, _LEVELS).ravel().tolist(), *_GAP])
    return _png(picture)


def _palette(anchors: Sequence[tuple[int, int, int]], count: int) -> Pixels:
    """Spread colours evenly between the anchors: uint8 (count, 3)."""
    at, where = np.linspace(0, len(anchors) - 1, count), np.arange(len(anchors))
    channels = [np.interp(at, where, np.array(anchors)[:, channel]) for channel in range(3)]
    palette: Pixels = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return palette


def _enlarge(image: Pixels, side: int) -> Pixels:
    """Repeat pixels until the longer side is about `side`, or reduce to it; grey loses its last axis."""
    image = np.array(image[..., 0] if image.shape[2] == 1 else image, dtype=np.uint8)
    scale = side // max(image.shape[:2])
    if scale:
        larger: Pixels = image.repeat(scale, axis=0).repeat(scale, axis=1)
        return larger
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return np.array(picture, dtype=np.uint8)


def _reduce(plane: Values, side: int) -> Values:
    """Average a map (height, width) down until it fits."""
    if max(plane.shape) <= side:
        return plane
    share = side / max(plane.shape)
    size = max(1, round(plane.shape[1] * share)), max(1, round(plane.shape[0] * share))
    reduced: Values = np.array(Image.fromarray(plane).resize(size, Image.Resampling.BOX))
    return reduced


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _key(bar: bytes, low: str, high: str) -> Html:
    picture = f'<img src="{html.data_uri(bar)}" alt="colours from low to high" style="vertical-align:middle">'
    return Html(f"<p>{html.text(low)} {picture} {html.text(high)}</p>")


def _beside(*parts: Html) -> Html:
    return Html('<div style="display:flex;flex-wrap:wrap;gap:0 2rem;align-items:center">' + "\n".join(parts) + "</div>")
