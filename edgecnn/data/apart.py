"""`--test-from`: test images that are kept apart from the others, as a source of their own."""

from __future__ import annotations

import dataclasses
import re

from edgecnn.data.dataset import DataOptions, Item, Listing
from edgecnn.errors import DataError


def with_test(source: str, listing: Listing, other: str, test: Listing, options: DataOptions) -> Listing:
    """Add the test images of another source: those that it calls so, or all that it has.

    Its classes are matched by name, and some may be absent. Where the images of `source` have groups, so do these: as
    their own source says, or by `group_from` where it matches their name, else each by itself.

    Raises:
        DataError: `source` has test images already, or the other one has classes that it has not.
    """
    where = f"{source}: --test-from {other}"
    if any(item.split == "test" for item in listing.items):
        raise DataError(f"{where}: it has test images of its own; leave --test-from away, or take them out")
    unknown = [label for label in test.labels if label not in listing.labels]
    if unknown:
        known = ", ".join(listing.labels[:5])
        raise DataError(f"{where}: has classes that are not among those to be trained ({unknown[0]} is not one of {known}, ...)")  # fmt: skip
    chosen = [item for item in test.items if item.split == "test"] or test.items
    number = [listing.labels.index(label) for label in test.labels]
    grouped = any(item.group is not None for item in listing.items)
    expression = re.compile(options.group_from or "(?!)")  # which matches nothing

    def taken(item: Item) -> Item:
        match = expression.search(item.name)
        found = match.group(min(expression.groups, 1)) if match else None
        group = (item.group or found or f"{other}: {item.name}") if grouped else None
        return dataclasses.replace(
            item, name=f"{other}: {item.name}", label=number[item.label], split="test", group=group, line=None
        )

    return dataclasses.replace(listing, items=[*listing.items, *map(taken, chosen)])
