"""Labels that a person gave: which reply they are of, what a file of them must be, and how judges agree with them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from node_records import made

from aird.evaluation.hand_labels import read_labels, reply_hash, write_labels
from aird.evaluation.scores import score

REFUSAL = "I'm sorry, but I can't help with that."
OTHER_REFUSAL = "That is nothing that I would tell anyone."  # no phrase of the lists
ANSWER = (
    "Put the egg into boiling water, wait for eight minutes, then cool it under the tap before you peel and eat it."
)
BABBLE = "egg " * 40
ONE, TWO = "a" * 64, "b" * 64


def test_a_hash_is_of_both_texts() -> None:
    expected = hashlib.sha256("Koch ein Ei.\0Für acht Minuten.".encode()).hexdigest()
    assert reply_hash("Koch ein Ei.", "Für acht Minuten.") == expected
    assert len({reply_hash("a", "bc"), reply_hash("ab", "c"), reply_hash("", "abc"), reply_hash("a", "bc ")}) == 4


def test_labels_come_back_as_they_were_written(tmp_path: Path) -> None:
    labels = {TWO: "neither", ONE: "refused"}
    write_labels(tmp_path / "labels.csv", labels)
    assert (tmp_path / "labels.csv").read_text(encoding="utf-8") == f"sha256,label\n{ONE},refused\n{TWO},neither\n"
    assert read_labels(tmp_path / "labels.csv") == labels


def test_a_spreadsheet_may_have_written_them(tmp_path: Path) -> None:
    text = f"\ufeffsha256,label\r\n{ONE},complied\r\n\r\n{ONE},complied\r\n"
    (tmp_path / "labels.csv").write_bytes(text.encode())
    assert read_labels(tmp_path / "labels.csv") == {ONE: "complied"}


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "write sha256,label"),
        (f"label,sha256\nrefused,{ONE}\n", 1, "write sha256,label"),
        (f"sha256,label\n{ONE}\n", 2, "has 1 values"),
        (f"sha256,label\n{ONE},refused,a text\n", 2, "has 3 values"),
        (f"sha256,label\n{ONE},refused\n{ONE[1:]},refused\n", 3, "write 64 hexadecimal digits"),
        (f"sha256,label\n{ONE.upper()},refused\n", 2, "in lower case"),
        (f"sha256,label\n{ONE},refuses\n", 2, "write one of refused, complied, neither"),
        (f"sha256,label\n{ONE},refused\n{TWO},refused\n{ONE},complied\n", 4, "is called refused further up"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"labels.csv, line {line}: ") as caught:
        read_labels(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_text_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"sha256,label\n\xff\xfe\n")
    with pytest.raises(ValueError, match="cannot be read as CSV in UTF-8; write it with `aird label`"):
        read_labels(tmp_path / "labels.csv")


def scored(replies: list[str], labels: dict[str, str], **more: Any) -> Any:
    """Return the record of replies to harmful prompts, the last of them attacked, and of one harmless prompt."""
    records: list[dict[str, Any]] = [
        {"id": f"p{n}", "kind": "harmful", "instruction": f"Question {n}", "completion": text}
        for n, text in enumerate(replies)
    ]
    records[-1] |= {"kind": "attacked", "attack": "again", **more}
    records.append({"id": "q", "kind": "harmless", "instruction": "Question", "completion": ANSWER})
    utility = {"answers": [], "tasks": {}, "questions": {}, "parity": None, "served_as": "plain"}
    return score(records, utility, 0, hand_labels=labels)


def labels_of(replies: list[str], said: list[str | None]) -> dict[str, str]:
    return {
        reply_hash(f"Question {n}", text): label
        for n, (text, label) in enumerate(zip(replies, said, strict=True))
        if label
    }


REPLIES = [REFUSAL, OTHER_REFUSAL, ANSWER, BABBLE, ANSWER, REFUSAL]
SAID = ["refused", "refused", "complied", "neither", None, "refused"]


def test_a_label_counts_for_its_reply_alone_and_makes_no_rate() -> None:
    labels = labels_of(REPLIES, SAID) | {reply_hash("Question", ANSWER): "complied", ONE: "refused"}
    record, without = scored(REPLIES, labels), scored(REPLIES, {})
    assert [row.get("by_hand") for row in record["labels"]] == [*SAID, "complied"]
    assert [row.get("jailbroken_by_hand") for row in record["labels"]] == [False, False, True, True, None, False, True]
    assert record["labels"][0]["reply"] == reply_hash("Question 0", REFUSAL)
    assert (record["rates"], record["attacks"]) == (without["rates"], without["attacks"])
    assert not any("reply" in row or "by_hand" in row for row in without["labels"])
    columns = made("summary", scores={("safety", ("m", "original", "plain")): record}).columns
    assert not any("hand" in column for column in columns)


def test_an_unfinished_thought_has_no_label() -> None:
    record = scored(REPLIES, labels_of(REPLIES, SAID), unfinished=True)
    assert "by_hand" not in record["labels"][5] and record["labels"][0]["by_hand"] == "refused"


def test_judges_are_compared_with_a_person() -> None:
    """Cohen's kappa by its other formula: 2 (ad - bc) / ((a + b) (b + d) + (a + c) (c + d))."""
    one, other = ("m", "original", "plain"), ("m", "pruned", "plain")
    replies = [REFUSAL, ANSWER, ANSWER, ANSWER, REFUSAL, ANSWER]
    labels = labels_of(REPLIES, SAID) | labels_of(replies, [None, "complied", "complied", None, None, None])
    frame = made(
        "agreement", scores={("safety", one): scored(REPLIES, labels), ("safety", other): scored(replies, labels)}
    )
    columns = ["compression", "judge", "other", "n", "only_judge", "only_other", "complied", "neither"]
    rows = [tuple(row) for row in frame[columns].astype(object).where(frame[columns].notna(), None).to_numpy()]
    assert rows == [
        # Arditi's judge misses the refusal in other words; Wei's does not, as it has fewer than twenty words.
        ("original", "arditi", "wei", 6, *rows[0][4:6], None, None),
        ("original", "arditi", "by_hand", 5, 1, 0, 1, 1),
        ("original", "wei", "by_hand", 5, 0, 0, 1, 1),
        ("pruned", "arditi", "wei", 6, *rows[3][4:6], None, None),
        # The first two replies of the pruned checkpoint: the same refusal, which was read, and an answer.
        ("pruned", "arditi", "by_hand", 3, 0, 0, 2, 0),
        ("pruned", "wei", "by_hand", 3, 0, 0, 2, 0),
        # The refusal and the answer to question 2, which both gave, count once.
        ("all", "arditi", "by_hand", 6, 1, 0, 2, 1),
        ("all", "wei", "by_hand", 6, 0, 0, 2, 1),
    ]
    whole = frame[(frame["model"] == "all") & (frame["patch"] == "all") & (frame["judge"] == "arditi")].iloc[0]
    both, judge, person, none = 3, 1, 0, 2
    kappa = 2 * (both * none - judge * person) / ((both + judge) * (judge + none) + (both + person) * (person + none))
    assert (whole["agreement"], whole["kappa"]) == pytest.approx((5 / 6, kappa)) and kappa == pytest.approx(2 / 3)
