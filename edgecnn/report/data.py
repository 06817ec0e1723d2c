"""What `data check` found, as text."""

from __future__ import annotations

from edgecnn.data.quality import Case, DataReport, Finding, Shown
from edgecnn.report.text import table, thousands

_CASES, _IMAGES, _CLASSES = 10, 6, 60  # written out at most; `--json` has all


def data_text(report: DataReport) -> str:
    """Write what there is, class by class, and then what is wrong with it; broken files are all listed."""
    lines = [table([[name, value] for name, value in summary(report)]), "", _classes(report)]
    for finding in report.findings:
        lines += ["", f"{'!! ' if finding.weighty else ''}{finding.title}"]
        shown = finding.cases if finding.kind == "broken" else finding.cases[:_CASES]
        lines += [f"  {case_text(case)}" for case in shown]
        if len(finding.cases) > len(shown):
            lines.append(f"  ... and {thousands(len(finding.cases) - len(shown))} more: see --json")
    return "\n".join([*lines, "", verdict(report)])


def summary(report: DataReport) -> list[tuple[str, str]]:
    """List what a person asks first, as names and values."""
    height, width, channels = report.shape
    saved = report.as_saved
    rows = [
        ("data", report.source),
        ("images", f"{thousands(report.images)} readable of {thousands(report.listed)}"),
        ("classes", f"{thousands(len(report.classes))}{_ratio(report)}"),
        ("split", report.split or "impossible"),
        (
            "read as",
            f"{width}x{height}, {'grey' if channels == 1 else 'colour'}{', streamed' if report.streamed else ''}",
        ),
    ]
    if saved.sizes:
        size = saved.sizes
        low, middle, high = (f"{across}x{down}" for across, down in (size.min, size.median, size.max))
        common = ", ".join(f"{name} ({thousands(count)})" for name, count in size.commonest.items())
        rows.append(("width x height", low if size.kinds == 1 else f"at least {low}, median {middle}, at most {high}"))
        if size.kinds > 1:
            rows.append(("commonest sizes", f"{common}; {thousands(size.kinds)} in all"))
    for name, counts in (("colours", saved.modes), ("formats", saved.formats)):
        rows.append((name, ", ".join(f"{value} {thousands(count)}" for value, count in counts.items()) or "none"))
    return rows


def verdict(report: DataReport) -> str:
    """Say in one line what is to be made of it."""
    if not report.findings:
        return "nothing found"
    weighty = report.weighty()
    if not weighty:
        return "findings, none of them grave"
    return f"findings of weight: {'; '.join(finding.title for finding in weighty)}"


def remedy(finding: Finding) -> str:
    """Say what can be done about a finding."""
    return _REMEDIES[finding.kind]


def case_text(case: Case) -> str:
    """Write one case on a line."""
    images = ", ".join(shown_text(image) for image in case.images[:_IMAGES])
    more = f", and {len(case.images) - _IMAGES} more" if len(case.images) > _IMAGES else ""
    return (
        f"{images}{more}{' ' if images and case.note else ''}{f'({case.note})' if images and case.note else case.note}"
    )


def shown_text(image: Shown) -> str:
    """Name one image, its label and its split."""
    return f"{image.name} [{image.label}{f', {image.split}' if image.split else ''}]"


def class_rows(report: DataReport) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of classes."""
    if report.split is None:
        return ["class", "images"], [[one.label, thousands(one.images)] for one in report.classes]
    rows = [
        [one.label, *(thousands(count or 0) for count in (one.images, one.train, one.val, one.test))]
        for one in report.classes
    ]
    return ["class", "images", "train", "val", "test"], rows


def _classes(report: DataReport) -> str:
    header, rows = class_rows(report)
    more = f"\n... and {thousands(len(rows) - _CLASSES)} more classes" if len(rows) > _CLASSES else ""
    return table(rows[:_CLASSES], header) + more


def _ratio(report: DataReport) -> str:
    return f", the largest {report.imbalance:.1f} times the smallest" if report.imbalance is not None else ""


_REMEDIES = {
    "unusable": "Add images, or change the shares with --val and --test.",
    "broken": "Training skips them. Mend or remove them, or stop at them with --strict.",
    "conflict": "One of the labels is wrong, or the classes overlap. Keep one of each set.",
    "leak": "What is trained on is tested on, so the accuracy is flattered. Keep one of each set, or split by group.",
    "near leak": "Probably one photograph saved twice, or frames of one recording. Keep one of each, or split by group.",
    "duplicate": "They count twice in training. Keep one of each set.",
    "near duplicate": "Look whether they are one photograph saved twice, and keep one.",
    "one colour": "Look whether a camera or a conversion failed.",
    "imbalance": "Judge by the accuracy of each class, not of the whole; gather more of the smallest.",
    "small class": "Gather more: so few images are learned by heart.",
    "group": "Gather more groups of these classes, or mend the source's splits.",
}
