"""Groups of images that must not be separated: recordings, patients, tracks, named by part of the images' names."""

from __future__ import annotations

import dataclasses
import re

from edgecnn.data.dataset import DataOptions, Listing
from edgecnn.errors import DataError


def with_groups(source: str, listing: Listing, options: DataOptions) -> Listing:
    """Give every item its group by the expression `group_from`, unless the source has given groups already.

    The expression is searched in each item's name; the group is its first capture group, else the whole match.

    Raises:
        DataError: it is not a regular expression, or does not match every name.
    """
    if options.group_from is None or (listing.items and all(item.group is not None for item in listing.items)):
        return listing
    shown = f"{source}: --group-from {options.group_from!r}"
    try:
        expression = re.compile(options.group_from)
    except re.error as error:
        raise DataError(f"{shown} is not a regular expression ({error})") from None
    which = min(expression.groups, 1)
    found = [expression.search(item.name) for item in listing.items]
    groups = [match.group(which) if match else None for match in found]
    unmatched = [item.name for item, group in zip(listing.items, groups, strict=True) if group is None]
    if unmatched:
        matched = len(groups) - len(unmatched)
        how_many = f"only {matched}" if matched else "none"
        raise DataError(f"{shown} matches {how_many} of {len(groups)} names; the first it does not is {unmatched[0]}")
    items = [dataclasses.replace(item, group=group) for item, group in zip(listing.items, groups, strict=True)]
    return dataclasses.replace(listing, items=items)
