"""Prompt sets: every format, every named mistake, and what must not overlap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from aird.prompts.building import NearDuplicates, build_prompt_set, build_set
from aird.prompts.sets import select
from aird.settings.base import PromptSelection
from aird.settings.prompt_files import read_instructions
from aird.settings.prompts import PromptSet
from aird.support.files import write_json_lines

WORDS = "apple bread cheese dates eggs figs grapes honey ice jam kale lemon mint nuts olives plums".split()


def settings(**values: Any) -> PromptSet:
    return PromptSet.model_validate({"source": {"path": "file"}, **values})


def rows(count: int, *, prefix: str = "") -> list[dict[str, Any]]:
    """Return records whose instructions share no word."""
    return [
        {"instruction": f"{prefix}{index}a {prefix}{index}b {prefix}{index}c", "origin": "here", "split": None}
        for index in range(count)
    ]


def texts(*instructions: str) -> list[dict[str, Any]]:
    return [{"instruction": text, "origin": "here", "split": None} for text in instructions]


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


EXPECTED = [("Boil an egg.", "train"), ('Say "hé", twice', "test")]
RECORDS = [{"goal": text, "part": split, "other": 1} for text, split in EXPECTED]


def test_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(RECORDS))
    assert read_instructions(path, settings(format="json", field="goal", split_field="part")) == EXPECTED
    nested = write(tmp_path / "b.json", json.dumps({"rows": RECORDS}))
    assert read_instructions(nested, settings(format="json", field="goal", records="rows")) == [
        (text, None) for text, _ in EXPECTED
    ]


def test_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "\n\n".join(json.dumps(record) for record in RECORDS) + "\n")
    assert read_instructions(path, settings(format="jsonl", field="goal", split_field="part")) == EXPECTED


def test_yaml(tmp_path: Path) -> None:
    content = "seeds:\n- {goal: Boil an egg., part: train}\n- goal: 'Say \"hé\", twice'\n  part: test\n"
    path = write(tmp_path / "a.prompt", content)
    instructions = read_instructions(path, settings(format="yaml", field="goal", records="seeds", split_field="part"))
    assert instructions == EXPECTED


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'part,goal\ntrain,Boil an egg.\ntest,"Say ""hé"", twice"\n')
    assert read_instructions(path, settings(format="csv", field="goal", split_field="part")) == EXPECTED


def test_parquet(tmp_path: Path) -> None:
    pandas.DataFrame(RECORDS).to_parquet(tmp_path / "a.parquet")
    instructions = read_instructions(
        tmp_path / "a.parquet", settings(format="parquet", field="goal", split_field="part")
    )
    assert instructions == EXPECTED


def test_lines_are_stripped_and_empty_ones_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "Boil an egg.\n\n  Fry an egg. \n   \n")
    assert read_instructions(path, settings(format="lines")) == [("Boil an egg.", None), ("Fry an egg.", None)]


def test_an_instruction_ends_at_a_newline_alone(tmp_path: Path) -> None:
    """Unicode has more ends of lines, and some text holds them: the file of JSON lines is as this project writes it."""
    held = ["Boil\fan\u2028egg.", "Fry\u0085one."]
    path = write(tmp_path / "a.txt", "\n".join(held))
    assert read_instructions(path, settings(format="lines")) == [(text, None) for text in held]
    write_json_lines(tmp_path / "a.jsonl", ({"goal": text} for text in held))
    read = read_instructions(tmp_path / "a.jsonl", settings(format="jsonl", field="goal"))
    assert read == [(text, None) for text in held]


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("lines", "Boil an egg.\r\n"),
        ("csv", "goal\r\nBoil an egg.\r\n"),
        ("jsonl", '{"goal": "Boil an egg."}\r\n'),
        ("json", '[{"goal": "Boil an egg."}]'),
        ("yaml", "- goal: Boil an egg.\n"),
    ],
)
def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path, form: str, content: str) -> None:
    (tmp_path / "a").write_text(content, encoding="utf-8-sig", newline="")
    wanted = settings(format=form, **({} if form == "lines" else GOAL))
    assert read_instructions(tmp_path / "a", wanted) == [("Boil an egg.", None)]


def test_splits_of_parquet_are_text_or_nothing(tmp_path: Path) -> None:
    path, wanted = tmp_path / "a.parquet", settings(format="parquet", field="goal", split_field="part")
    pandas.DataFrame({"goal": ["Boil.", "Fry."], "part": ["train", None]}).to_parquet(path)
    assert read_instructions(path, wanted) == [("Boil.", "train"), ("Fry.", None)]
    pandas.DataFrame({"goal": ["Boil.", "Fry."], "part": [0, 1]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"record 1 of a\.parquet: the split is int, not text"):
        read_instructions(path, wanted)
    pandas.DataFrame({"goal": ["Boil.", None]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"record 2 of a\.parquet: goal is NoneType"):
        read_instructions(path, settings(format="parquet", field="goal"))


GOAL = {"field": "goal"}
NESTED = {"field": "goal", "records": "rows"}


@pytest.mark.parametrize(
    ("form", "content", "more", "message"),
    [
        ("json", "[{]", GOAL, r"file\.json cannot be read as json"),
        ("jsonl", '{"goal": "x"}\n{', GOAL, r"file\.jsonl cannot be read as jsonl"),
        ("yaml", "a: [b\nc: }", GOAL, r"file\.yaml cannot be read as yaml"),
        ("parquet", "not parquet", GOAL, r"file\.parquet cannot be read as parquet"),
        ("json", '{"rows": []}', GOAL, "holds no list at its top level"),
        ("json", '{"rows": 3}', NESTED, "holds no list at rows"),
        ("json", "[]", NESTED, "holds no list at rows"),
        ("yaml", "", NESTED, "holds no list at rows"),
        ("json", '[{"goal": "x"}, {"a": "y"}]', GOAL, r"record 2 of file\.json lacks goal \(it has \['a'\]\)"),
        ("json", '[{"goal": "x"}]', {**GOAL, "split_field": "part"}, r"record 1 of file\.json lacks goal or part"),
        ("json", '["x"]', GOAL, r"record 1 of file\.json lacks goal"),
        ("json", '[{"goal": "x"}, {"goal": 3}]', GOAL, r"record 2 of file\.json: goal is int"),
        ("csv", "part,goal\ntrain\n", GOAL, r"record 1 of file\.csv: goal is NoneType"),
        ("csv", "part,goal\ntrain,a, b\n", GOAL, r"record 1 of file\.csv has more cells than the header; put text"),
        (
            "csv",
            "part,goal\ntrain,a, b\n",
            {"field": "x"},
            r"record 1 of file\.csv lacks x \(it has \['None', 'goal', 'pa",
        ),
        ("csv", f"goal\n{'a' * 140_000}\n", GOAL, r"file\.csv cannot be read as csv: field larger"),
        ("jsonl", '{"goal": "x", "part": 1}', {**GOAL, "split_field": "part"}, "the split is int, not text"),
        ("lines", "\n  \n", {}, r"file\.lines holds no text"),
        ("json", "[]", GOAL, r"file\.json holds no text"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, form: str, content: str, more: dict[str, Any], message: str) -> None:
    path = write(tmp_path / f"file.{form}", content)
    with pytest.raises(ValueError, match=message):
        read_instructions(path, settings(format=form, **more))


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.txt cannot be read as lines"):
        read_instructions(tmp_path / "a.txt", settings(format="lines"))


def holds(remembered: str, text: str) -> bool:
    index = NearDuplicates()
    index.add("zebra yak xenon")
    index.add(remembered)
    return index.holds(text)


def test_near_duplicates_by_hand() -> None:
    ten = " ".join(WORDS[:10])
    assert holds(ten, ten.upper().replace(" ", ", ") + "!")
    assert holds(ten, " ".join(reversed(WORDS[:10])))
    assert holds(ten, " ".join(WORDS[:7]))  # 7 shared of 10 distinct: the limit
    assert not holds(ten, " ".join(WORDS[:6]))
    assert holds(ten, " ".join([*WORDS[:9], "x"]))  # 9 of 11
    assert holds(ten, " ".join([*WORDS[:9], "x", "y"]))  # 9 of 12, 0.75
    assert not holds(ten, " ".join([*WORDS[:8], "x", "y"]))  # 8 of 12, 0.67
    assert holds(ten, f"{ten} {ten}")  # distinct words count


def test_signs_are_compared_as_a_whole() -> None:
    assert holds("?!", "?!")
    assert not holds("?!", "!?")
    assert not holds("?!", "apple")


def test_repeated_instructions_are_dropped_and_the_rest_is_numbered() -> None:
    source = texts("Boil an egg.", "Boil an egg.", "Fry a fish.", "boil an EGG", "Peel a pear.", "Fry a fish.")
    kept, dropped = build_set("cooking", settings(format="lines"), source, [], 0)
    # A set without drawn splits is a benchmark: what is nearly a duplicate stays.
    assert [(record["id"], record["instruction"]) for record in kept] == [
        ("cooking-0001", "Boil an egg."),
        ("cooking-0002", "Fry a fish."),
        ("cooking-0003", "boil an EGG"),
        ("cooking-0004", "Peel a pear."),
    ]
    assert dropped == {"duplicates": 2, "overlapping": 0}
    assert all(record["origin"] == "here" and record["split"] is None for record in kept)


def test_near_duplicates_are_dropped_where_splits_are_drawn() -> None:
    source = texts("Boil an egg.", "boil an EGG", "Fry a fish.", "Boil an egg", "Peel a pear.")
    wanted = settings(format="lines", splits={"train": 1, "test": 1})
    kept, dropped = build_set("cooking", wanted, source, [], 0)
    assert [record["instruction"] for record in kept] == ["Boil an egg.", "Fry a fish.", "Peel a pear."]
    assert dropped == {"duplicates": 2, "overlapping": 0}
    assert sorted(str(record["split"]) for record in kept) == ["None", "test", "train"]


def test_build_set_is_disjoint_from_others() -> None:
    ten = " ".join(WORDS[:10])
    source = texts("Boil an egg.", ten, "Fry a fish.")
    foreign = texts("An egg: boil!", " ".join(WORDS[:9]), "Something else entirely.")
    kept, dropped = build_set("cooking", settings(format="lines"), source, foreign, 0)
    assert [record["instruction"] for record in kept] == ["Fry a fish."]
    assert dropped == {"duplicates": 0, "overlapping": 2}


def test_a_set_is_read_from_its_source_or_joined_from_others(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(WORDS[:3]) + "\n", encoding="utf-8")
    read, _ = build_prompt_set("a", settings(source={"path": str(path)}, format="lines"), [], [], 0)
    assert [(record["id"], record["instruction"], record["origin"]) for record in read] == [
        ("a-0001", "apple", "a"),
        ("a-0002", "bread", "a"),
        ("a-0003", "cheese", "a"),
    ]
    joined = PromptSet(combine=["a", "b"], splits={"train": 1})
    records, dropped = build_prompt_set("c", joined, [*read, {**read[0], "split": "test"}], read[1:2], 0)
    # The origin stays, and a split of before where none is drawn.
    kept, _ = build_prompt_set("c", PromptSet(combine=["a"]), [{**read[0], "split": "test"}, read[1]], [], 0)
    assert [(record["id"], record["split"]) for record in kept] == [("c-0001", "test"), ("c-0002", None)]
    assert [(record["instruction"], record["origin"]) for record in records] == [("apple", "a"), ("cheese", "a")]
    assert sorted(str(record["split"]) for record in records) == ["None", "train"]
    assert dropped == {"duplicates": 1, "overlapping": 1}


def test_nothing_left_is_an_error() -> None:
    source = texts("Boil an egg.")
    with pytest.raises(ValueError, match=r"prompt set cooking: no instruction is left.*'overlapping': 1"):
        build_set("cooking", settings(format="lines"), source, source, 0)


def test_splits_are_disjoint_reproducible_and_drawn_by_the_seed() -> None:
    wanted = settings(format="lines", splits={"train": 20, "validation": 8, "test": 4})

    def split(seed: int) -> dict[Any, set[str]]:
        kept, _ = build_set("a", wanted, rows(40), [], seed)
        assert len(kept) == 40
        by_split: dict[Any, set[str]] = {}
        for record in kept:
            by_split.setdefault(record["split"], set()).add(record["id"])
        return by_split

    one = split(42)
    assert {name: len(ids) for name, ids in one.items()} == {"train": 20, "validation": 8, "test": 4, None: 8}
    assert len(set().union(*one.values())) == 40
    assert split(42) == one
    assert split(43) != one
    # The draw is no prefix of the file.
    assert one["train"] != {f"a-{index + 1:04d}" for index in range(20)}


def test_splits_are_the_same_in_whatever_order_they_are_written() -> None:
    sizes = {"train": 20, "validation": 8, "test": 4}
    one, other = (
        build_set("a", settings(format="lines", splits=splits), rows(40), [], 42)[0]
        for splits in (sizes, dict(sorted(sizes.items())))
    )
    assert one == other


def test_splits_of_the_file_are_kept() -> None:
    source = [{**record, "split": "test" if index == 2 else "train"} for index, record in enumerate(rows(3))]
    kept, _ = build_set("a", settings(format="csv", field="goal", split_field="part"), source, [], 0)
    assert [record["split"] for record in kept] == ["train", "train", "test"]


def test_splits_that_ask_for_too_much() -> None:
    with pytest.raises(ValueError, match="prompt set a: its splits ask for 4 instructions, but it has 3"):
        build_set("a", settings(format="lines", splits={"train": 3, "test": 1}), rows(3), [], 0)


@pytest.fixture
def records() -> list[dict[str, Any]]:
    return build_set("a", settings(format="lines", splits={"train": 12, "test": 5}), rows(20), [], 1)[0]


def selected(records: list[dict[str, Any]], seed: int = 0, **values: Any) -> list[str]:
    return [record["id"] for record in select(records, PromptSelection(set="a", **values), seed)]


def test_select(records: list[dict[str, Any]]) -> None:
    everything = [record["id"] for record in records]
    train = [record["id"] for record in records if record["split"] == "train"]
    assert selected(records) == everything
    assert selected(records, split="train") == train
    some = selected(records, split="train", count=6)
    assert len(set(some)) == 6
    assert [name for name in train if name in some] == some  # the set's order
    assert selected(records, split="train", count=6) == some
    assert selected(records, 1, split="train", count=6) != some
    assert selected(records, split="train", count=12) == train


def test_select_names_what_is_missing(records: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"prompt set a, split validation: no record \(splits: test, train\)"):
        selected(records, split="validation")
    with pytest.raises(ValueError, match="prompt set a, split test: 6 records asked for, but it has 5"):
        selected(records, split="test", count=6)
