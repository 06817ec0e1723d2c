"""What decodes images here and where a bundle was exported, and what it does to answers where they decode otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgecnn import images
from edgecnn.backends.base import open_session
from edgecnn.bundle import Bundle
from edgecnn.device.fit import Comparison, relate
from edgecnn.images import Pixels
from edgecnn.parity.judge import Decoding
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import BackendRef


def decoders() -> dict[str, str]:
    """Give the versions of what decodes images here: Pillow, and the libraries inside it."""
    from PIL import features

    versions = {
        "Pillow": features.version("pil"),
        "libjpeg-turbo": features.version("libjpeg_turbo") or features.version("jpg"),
        "libwebp": features.version("webp"),
        "libtiff": features.version("libtiff"),
    }
    return {name: str(version) for name, version in versions.items() if version}


def compare_decoders(there: Mapping[str, Any], here: Mapping[str, str]) -> tuple[Comparison, ...]:
    """Compare what decodes here with what the manifest states of the exporting machine (`packages` and `decoders`)."""
    packages, stated = (part if isinstance(part := there.get(key), dict) else {} for key in ("packages", "decoders"))
    known = {"Pillow": packages.get("pillow"), **stated}
    found = []
    for name, version in here.items():
        relation = relate(version, known.get(name))
        means = "" if relation == "same" else "images may be decoded or resized otherwise: the goldens show it"
        found.append(
            Comparison(what=name, here=version, there=str(known.get(name) or "unknown"), relation=relation, means=means)
        )
    return tuple(found)


def explain(bundle: Bundle, decoding: Decoding | None, compared: tuple[Comparison, ...], ref: BackendRef | None) -> str:
    """Say how images are decoded here, and where it is otherwise, by which versions, and what that does to answers.

    `ref` is what answers the goldens as they are decoded here; None where nothing is fit for that.
    """
    if decoding is None:
        return "the bundle has no golden images"
    if decoding.verdict is not Verdict.FAIL:
        return decoding.reason
    here = ", ".join(f"{one.what} {one.here}" for one in compared)
    there = ", ".join(f"{one.what} {one.there}" for one in compared if one.there != "unknown") or "unknown"
    effect = f"; {_effect(bundle, ref)}" if ref is not None else ""
    return f"{decoding.reason}; here {here}, there {there}{effect}"


def _effect(bundle: Bundle, ref: BackendRef) -> str:
    """Count the answers that change when the goldens are fed as they are decoded here."""
    goldens, preprocess, name = bundle.goldens(), bundle.manifest.preprocess, bundle.manifest.inputs[0].name
    pairs = zip(goldens.encoded, goldens.names, strict=True)
    decoded: Pixels = np.stack([images.decode(data, preprocess, file) for data, file in pairs])
    with open_session(ref, bundle.artifact(ref.artifact)) as session:
        recorded, ours = (session.run({name: one})["logits"].argmax(axis=1) for one in (goldens.pixels, decoded))
    return f"{int((recorded != ours).sum())} of {len(ours)} answers of {ref} change by it"
