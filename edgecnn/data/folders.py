"""A folder of class folders, with or without `train`, `val` and `test` above them."""

from __future__ import annotations

from pathlib import Path

from edgecnn.data.dataset import SPLIT_NAMES, Item, Listing, SplitName
from edgecnn.errors import DataError
from edgecnn.images import is_image_name


def list_folders(root: Path) -> Listing:
    """List every image below every class folder; a class is named by its folder.

    Raises:
        DataError: there are no class folders, or a class folder of the training set holds no image.
    """
    parts: dict[SplitName, Path] = {}
    for folder in _folders(root):
        name = SPLIT_NAMES.get(folder.name.lower())
        if name in parts:
            raise DataError(f"{root}: {parts[name].name} and {folder.name} are both the {name} split; keep one")
        if name is not None:
            parts[name] = folder
    if parts and "train" not in parts:
        raise DataError(f"{root}: has {', '.join(sorted(parts))} but no train folder")
    tops: list[tuple[SplitName | None, Path]] = list(parts.items()) if parts else [(None, root)]
    labels = sorted({folder.name for _, top in tops for folder in _folders(top)})
    if not labels:
        raise DataError(f"{root}: no class folders; put the images of each class into a folder of its name")
    index = {label: number for number, label in enumerate(labels)}
    items: list[Item] = []
    for split, top in tops:
        for folder in _folders(top):
            files = [
                file for file in sorted(folder.rglob("*")) if is_image_name(file.relative_to(folder)) and file.is_file()
            ]
            if not files and split in (None, "train"):
                raise DataError(f"{folder}: class {folder.name!r} has no image; add some or remove the folder")
            items += [Item(file.relative_to(root).as_posix(), index[folder.name], file, split) for file in files]
    return Listing(labels=tuple(labels), items=items)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
