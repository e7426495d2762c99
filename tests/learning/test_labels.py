"""Files of labels: what is read, and that every bad line is named."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fastroute.learning import Label, LabelError, LabelSet, read_labels

GOOD = {"prompt": "Who?", "scores": {"small": 0.5, "large": 1}}


def written(path: Path, *lines: Any, encoding: str = "utf-8") -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lines(tmp_path: Path, encoding: str) -> None:
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "Où?"}]
    path = written(
        tmp_path / "labels.jsonl",
        GOOD,
        "",
        {"messages": messages, "scores": {"small": 0}, "tokens": {"small": [3, 4]}, "id": "c-1", "more": 1},
        {"prompt": "no scores"},
        encoding=encoding,
    )
    found = list(read_labels(path))
    assert found == [
        Label([{"role": "user", "content": "Who?"}], {"small": 0.5, "large": 1}),
        Label(messages, {"small": 0}, {"small": [3, 4]}, "c-1"),
        Label([{"role": "user", "content": "no scores"}]),
    ]
    assert "Who" not in repr(found[0])


BAD = {
    "not JSON": ("{", "is not JSON"),
    "a list": ("[1]", "is not an object"),
    "no prompt": ({"scores": {}}, "neither messages nor prompt"),
    "no messages": ({"messages": "x", "scores": {}}, "messages: must be a list of objects"),
    "message": ({"messages": ["x"], "scores": {}}, "messages: must be a list of objects"),
    "NaN": ('{"prompt": "x", "scores": {"small": NaN}}', "is not JSON"),
    "above 1": ({"prompt": "x", "scores": {"small": 5}}, "scores.small: must be a number of 0..1, not 5"),
    "below 0": ({"prompt": "x", "scores": {"small": -1}}, "scores.small: must be a number of 0..1, not -1"),
    "text": ({"prompt": "x", "scores": {"small": "good"}}, "scores.small: must be a number of 0..1"),
    "truth": ({"prompt": "x", "scores": {"small": True}}, "scores.small: must be a number of 0..1"),
    "scores": ({"prompt": "x", "scores": [1]}, "scores: must be an object"),
    "tokens": ({"prompt": "x", "tokens": {"small": [1]}}, "tokens.small: must be two integers"),
    "token list": ({"prompt": "x", "tokens": [1]}, "tokens: must be an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(tmp_path: Path, name: str) -> None:
    line, message = BAD[name]
    path = written(tmp_path / "labels.jsonl", GOOD, line, GOOD)
    with pytest.raises(LabelError) as caught:
        LabelSet(read_labels(path))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}, line 2: ")
    assert message in problem


def test_every_bad_line_is_counted_and_twenty_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.jsonl", *["{"] * 50, GOOD)
    with pytest.raises(LabelError, match="and 30 more lines") as caught:
        LabelSet(read_labels(path))
    assert len(caught.value.problems) == 20


def test_a_line_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xfcber", "scores": {}}\n')
    with pytest.raises(LabelError, match=r"line 2: is not UTF-8; save the file as UTF-8"):
        list(read_labels(path))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="cannot be read"):
        list(read_labels(tmp_path / "none.jsonl"))


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text('id,prompt,small,large\n1,"two\nlines, and more",0.5,1\n2,other,,0\n')
    assert list(read_labels(path)) == [
        Label([{"role": "user", "content": "two\nlines, and more"}], {"small": 0.5, "large": 1.0}, id="1"),
        Label([{"role": "user", "content": "other"}], {"large": 0.0}, id="2"),
    ]
    other = path.rename(tmp_path / "labels.txt")
    columns = {"prompt": "prompt", "tiny": "small"}
    assert [label.scores for label in read_labels(other, columns=columns)] == [{"tiny": 0.5}, {}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,small\nx,1\n", "has no column prompt; the columns are question, small: name them"),
        ("", "has no column"),
        ("prompt,small\nx,good\n", "line 2: scores.small: must be a number"),
        ("prompt,small\nx,nan\n", "line 2: scores.small: must be a number of 0..1, not nan"),
        ('prompt,small\n"a\nb",1\nx\n', "line 4: has 1 columns; must have 2"),
        ("prompt,small\n" + "x" * 200_000 + ",1\n", "line 2: is not CSV"),
    ],
)
def test_bad_csv_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(LabelError) as caught:
        list(read_labels(path))
    assert message in str(caught.value)


def test_outcomes_of_equal_prompts_are_averaged() -> None:
    def label(small: float, tokens: list[int]) -> Label:
        return Label([{"role": "user", "content": "x"}], {"small": small}, {"small": tokens})

    found = LabelSet([label(0, [10, 20]), label(1, [10, 30]), label(1, [10, 40])])
    (prompt,) = found.prompts
    assert prompt.score("small") == pytest.approx(2 / 3)
    assert prompt.tokens("small") == (10, 30)
    assert prompt.tokens("large") is None
    assert (prompt.times, found.read, found.models) == (3, 3, {"small": 1})


def test_prompts_without_text_are_left_out() -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
    found = LabelSet([Label([image]), Label([{"role": "system", "content": "x"}]), Label([])])
    assert (len(found), found.without_text, found.read) == (0, 3, 3)


def test_of_very_many_prompts_the_same_sample_is_kept_in_any_order() -> None:
    names = [str(number) for number in range(3000)] * 2
    sets = []
    for seed in range(2):
        random.Random(seed).shuffle(names)
        labels = [Label([{"role": "user", "content": name}], {"small": 1.0}) for name in names]
        sets.append(LabelSet(iter(labels), most=100))
    texts = [[prompt.text for prompt in found.prompts] for found in sets]
    assert texts[0] == texts[1]
    assert [len(found) for found in sets] == [100, 100]
    assert all(found.sampled for found in sets)
    assert {prompt.times for found in sets for prompt in found.prompts} == {2}
