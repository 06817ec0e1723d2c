"""The page of a run and its lines for the terminal: what they say, what they escape, and that nothing is fetched."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
from test_evaluate import config_of, dataset

from edgecnn.metrics import (
    ClassScore,
    Mistake,
    ReliabilityBin,
    accuracy,
    balanced_accuracy,
    class_scores,
    confusion,
    macro_f1,
)
from edgecnn.report import html
from edgecnn.report.run import run_page, run_summary, run_text, worst_class
from edgecnn.runs import Metrics, RunConfig

PICTURES = {name: b"\x89PNG " + name.encode() for name in ("curves.png", "confusion.png", "reliability.png", "mistakes.png")}  # fmt: skip
LABELS = ("cat", "dog", "owl")


def metrics(answers: list[int], truth: list[int], labels: tuple[str, ...] = LABELS, **changes: object) -> Metrics:
    """Make metrics of these answers; every answer is 90 % sure."""
    predicted, true = np.array(answers), np.array(truth)
    table = confusion(predicted, true, len(labels))
    scores, found = class_scores(table, labels), accuracy(predicted, true)
    made = Metrics(
        test_accuracy=found,
        val_accuracy=found,
        best_epoch=2,
        parameters=1234,
        macs=56789,
        seconds=7.0,
        images={"train": 10, "val": 5, "test": len(truth)},
        confusion=tuple(tuple(row) for row in table.tolist()),
        history=({"number": 1}, {"number": 2}),
        per_class=scores,
        macro_f1=macro_f1(scores),
        balanced_accuracy=balanced_accuracy(scores),
        auc=0.9876,
        ece=abs(0.9 - found.value),
        ece_by_chance=0.02,
        nll=0.5,
        brier=0.25,
        reliability=(ReliabilityBin(low=0.5, high=1.0, count=len(truth), confidence=0.9, accuracy=found.value),),
        val_ece=0.01,
        val_nll=0.4,
        mistakes=tuple(
            Mistake(image=f"{index}.png", truth=labels[t], answer=labels[a], confidence=0.9)
            for index, (a, t) in enumerate(zip(answers, truth, strict=True)) if a != t
        ),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


# 100 images: 40 cats, 30 dogs of which 6 are called owl and 3 cat, 30 owls of which 1 is called dog.
TRUTH = [0] * 40 + [1] * 30 + [2] * 30
ANSWERS = [0] * 40 + [1] * 21 + [2] * 6 + [0] * 3 + [2] * 29 + [1]


def config(labels: tuple[str, ...] = LABELS, **changes: object) -> RunConfig:
    return msgspec.structs.replace(config_of(dataset(len(labels), labels)), **changes)


class Reader(HTMLParser):
    """Reads tags with their attributes, the text, and the cells of every row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        self.text += data


def test_the_page_is_one_file_that_fetches_and_runs_nothing() -> None:
    """The page is well nested, has no script, style sheet or link, and each picture is inside it, byte for byte."""
    page = Reader(run_page(config(), metrics(ANSWERS, TRUTH), PICTURES))
    assert not page.open
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "a", "object", "embed"})
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    kept = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources}
    assert kept == set(PICTURES.values())
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    others = {name for tag, attributes in page.tags for name in attributes if tag != "img"}
    assert others.isdisjoint({"src", "href", "onload", "onerror"})
    policy = [attributes["content"] or "" for tag, attributes in page.tags if "http-equiv" in attributes]
    assert "default-src 'none'" in policy[0]


def test_what_comes_from_outside_is_escaped() -> None:
    """Markup in labels, file names, the data's name, split, warnings and host arrives as text, wherever it is shown."""
    evil = """<script>alert("1")</script>&amp;'"""
    labels = (evil, "dog", "owl")
    found = metrics(ANSWERS, TRUTH, labels, warnings=(evil,))
    found = msgspec.structs.replace(
        found, mistakes=(Mistake(image=evil, truth=evil, answer=evil, confidence=0.5),)
    )  # fmt: skip
    made = config(labels, data=evil, split=evil, host={"cpu": evil}, device=evil, recipe={evil: evil})
    page = run_page(made, found, PICTURES)
    read = Reader(page)
    assert "script" not in {tag for tag, _ in read.tags}
    assert "<script" not in page
    assert read.text.count(evil) >= 12
    assert not re.search(r"&amp;'", page)  # what was an entity in the name is one no more


def test_the_page_says_what_was_trained_on_what() -> None:
    """Data, split, images, what could not be read, warnings, network and every setting are on the page."""
    found = metrics(ANSWERS, TRUTH, warnings=("7 images are twins",), skipped=3)
    made = config(recipe={"epochs": 12, "nested": {"lr": [0.5, None]}}, device="cuda:0")
    page = Reader(run_page(made, found, PICTURES))
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert rows["data"] == "rows"
    assert rows["split"] == "made up"
    assert rows["images"] == "10 train, 5 val, 100 test; 3 could not be read"
    assert "1,234 parameters, 56,789 MACs" in rows["network"]
    assert "epoch 2 of 2 kept" in rows["training"]
    assert (rows["recipe.epochs"], rows["recipe.nested.lr"], rows["device"]) == ("12", "0.5, None", "cuda:0")
    assert rows["preprocess.height"] == "1"
    assert "labels" not in rows
    assert ("p", {"class": "note"}) in page.tags
    assert "7 images are twins" in page.text


def test_every_class_has_its_row() -> None:
    """The table by class holds support, precision, recall with its interval and F1, and dashes for what is none."""
    found = metrics([*ANSWERS, 3], [*TRUTH, 0], (*LABELS, "yak"))
    page = Reader(run_page(config((*LABELS, "yak")), found, PICTURES))
    rows = {row[0]: row for row in page.rows if len(row) == 6}
    assert rows["dog"] == ["dog", "30", "95.45%", "70.00%", "52.1% to 83.3%", "80.77%"]
    assert rows["yak"] == ["yak", "0", "0.00%", "–", "–", "0.00%"]
    assert rows["mean of the classes"][3] == f"{found.balanced_accuracy:.2%}"
    assert rows["mean of the classes"][5] == f"{found.macro_f1:.2%}"


def test_many_classes_come_worst_first() -> None:
    """With few classes the table keeps their order; with more than twenty those of the lowest F1 come first."""
    labels = tuple(f"label-{index:02d}" for index in range(25))
    truth = [index for index in range(24) for _ in range(3)]
    answers = list(truth)
    answers[30] = answers[31] = 5  # label-10 is found once in three
    answers[60] = 7  # label-20 twice
    page = Reader(run_page(config(labels), metrics(answers, truth, labels), {}))
    order = [row[0] for row in page.rows if row[0].startswith("label-") and len(row) == 6]
    assert order[:2] == ["label-10", "label-05"]
    assert order[-1] == "label-24"
    assert "worst come first" in page.text
    few = Reader(run_page(config(), metrics(ANSWERS, TRUTH), {}))
    assert [row[0] for row in few.rows if row[0] in LABELS and len(row) == 6] == list(LABELS)
    assert "worst come first" not in few.text


def test_confusions_and_mistakes_are_listed() -> None:
    """The confusions come with their counts, the most frequent first, and every mistake with its file."""
    page = Reader(run_page(config(), metrics(ANSWERS, TRUTH), PICTURES))
    pairs = [row for row in page.rows if len(row) == 4 and row[3].endswith("%") and row[2].isdigit()]
    assert pairs == [["dog", "owl", "6", "20.0%"], ["dog", "cat", "3", "10.0%"], ["owl", "dog", "1", "3.3%"]]
    assert ["61.png", "dog", "owl", "90.0%"] in page.rows
    assert "All wrong answers" in page.text
    cut = metrics(ANSWERS, TRUTH)
    cut = msgspec.structs.replace(cut, mistakes=cut.mistakes[:4])
    assert "The 4 worst of 10 wrong answers" in Reader(run_page(config(), cut, PICTURES)).text


def test_a_temperature_is_shown_with_before_and_after() -> None:
    """With a temperature the validation's scores stand there twice, and that fitting flatters them is said."""
    found = metrics(ANSWERS, TRUTH, temperature=1.5, val_ece_before=0.2, val_nll_before=0.8)
    page = Reader(run_page(config(), found, PICTURES))
    assert ["validation", "1.00%", "0.4000", "–"] in page.rows
    assert ["validation, before the temperature of 1.500", "20.00%", "0.8000", "–"] in page.rows
    assert "flatter" in page.text
    assert "flatter" not in Reader(run_page(config(), metrics(ANSWERS, TRUTH), PICTURES)).text


def test_the_page_of_old_metrics_leaves_out_what_they_lack() -> None:
    """Metrics of the first version, without scores by class and confidence, make a page without those sections."""
    old = metrics(
        ANSWERS, TRUTH, per_class=(), macro_f1=None, auc=None, ece=None, ece_by_chance=None, nll=None, brier=None,
        reliability=(), mistakes=(), val_ece=None, val_nll=None,
    )  # fmt: skip
    page = Reader(run_page(config(), old, {}))
    for title in ("By class", "Confidence", "Worst mistakes"):
        assert title not in page.text
    assert "Confusions" in page.text
    assert [name for name, _ in run_text(old)] == ["test accuracy"]


def test_the_summary_counts_and_compares() -> None:
    """The summary has the share right, its interval, the odds, the answer to beat and the class found least."""
    said = " ".join(run_summary(metrics(ANSWERS, TRUTH)))
    assert "Of 100 test images" in said
    assert "named 90 rightly. That is 90.00%, with a 95 % interval from 82.56% to 94.48%" in said
    assert "About one in 10 gets a wrong name; by the interval it may be one in 6." in said
    assert "Always answering 'cat', the class with the most images, would be right for 40.00%" in said
    assert "'dog': 9 of its 30 images got another name" in said


def test_the_summary_of_a_perfect_test_claims_no_perfection() -> None:
    """Without a mistake the summary says what room so few images leave, and names no worst class."""
    said = " ".join(run_summary(metrics(TRUTH, TRUTH)))
    assert "None was wrong; but so few images leave room for one in 27 with a wrong name." in said
    assert "found least" not in said
    page = Reader(run_page(config(), metrics(TRUTH, TRUTH), {}))
    assert "No test image got a wrong name." in page.text
    assert "There are none." in page.text


def test_the_summary_names_classes_without_a_test_image() -> None:
    """A class that no test image has is named as unknown."""
    said = " ".join(run_summary(metrics(ANSWERS, TRUTH, (*LABELS, "yak"))))
    assert "There is no test image of yak: nothing is known about 1 of the classes." in said
    assert "no test image of" not in " ".join(run_summary(metrics(ANSWERS, TRUTH)))


@pytest.mark.parametrize(
    ("confidence", "ece", "temperature", "says"),
    [
        (0.90, 0.03, 1.0, "they show no fault in it"),
        (0.99, 0.09, 1.0, "surer of itself than it should be; `edgecnn train --calibrate` mends that"),
        (0.80, 0.10, 1.0, "less sure of itself than it could be"),
        (0.91, 0.10, 1.0, "too sure of some answers and not sure enough of others"),
        (0.99, 0.09, 2.0, "surer of itself than it should be."),
    ],
)
def test_the_summary_judges_confidence(confidence: float, ece: float, temperature: float, says: str) -> None:
    """Whether the network is too sure, not sure enough, or neither beyond chance is said as the numbers are."""
    one = ReliabilityBin(low=0.5, high=1.0, count=100, confidence=confidence, accuracy=0.9)
    found = metrics(ANSWERS, TRUTH, reliability=(one,), ece=ece, temperature=temperature)
    assert says in run_summary(found)[-1]


def test_the_terminal_gets_the_scores_in_lines() -> None:
    """Accuracy, macro F1, AUC, ECE and the worst class are listed, the AUC of many classes with what it is."""
    lines = dict(run_text(metrics(ANSWERS, TRUTH)))
    assert lines["test accuracy"].startswith("90.00%")
    assert lines["macro F1"] == f"{metrics(ANSWERS, TRUTH).macro_f1:.4f}"
    assert lines["AUC"] == "0.9876, mean of one class against the rest"
    assert lines["ECE"] == "0.00% (chance alone makes about 2.00%)"
    assert lines["worst class"] == "dog: 70.00% of its 30 images found"
    assert "temperature" not in lines
    two = dict(run_text(metrics([0, 1, 1], [0, 1, 0], ("no", "yes"), temperature=0.5)))
    assert two["AUC"] == "0.9876"
    assert two["temperature"].startswith("0.500")


def test_the_worst_class_has_images() -> None:
    """The worst class is the one least found, of equals the one with the most images, and never one without any."""

    def score(label: str, recall: float | None, support: int) -> ClassScore:
        return ClassScore(label=label, precision=None, recall=recall, f1=None, support=support)

    scores = [score("a", None, 0), score("b", 0.5, 2), score("c", 0.5, 8), score("d", 0.9, 100)]
    assert (worst_class(scores) or scores[0]).label == "c"
    assert worst_class(scores[:1]) is None
    assert worst_class([]) is None


def test_columns_of_numbers_are_set_right_and_names_left() -> None:
    """Numbers, shares and ranges are set right; the first column, words and what is markup are not."""
    table = html.table(
        [["1", "2.5 %", "1 to 2", "a", html.text("3")], ["2", "–", "", "4", html.text("4")]], ["a", "b", "c", "d", "e"]
    )
    page = Reader(table)
    right = [attributes.get("class") == "n" for tag, attributes in page.tags if tag in ("th", "td")]
    assert right == [False, True, True, False, False] * 3


def test_control_characters_and_broken_surrogates_can_be_written() -> None:
    """A title of bytes that are no text gives a page that can be encoded, with escapes in their place."""
    page = html.page("a\udcffb\x00c\u202ed", html.paragraph("x"))
    assert "a\\udcffb\\x00c\\u202ed" in page
    page.encode()
