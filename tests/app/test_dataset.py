import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import dataset
from app import lines as cut
from app import rows as reading
from app.dataset import (
    Chat,
    Checker,
    DatasetError,
    Format,
    Pair,
    Preference,
    Problem,
    Report,
    Text,
    format_of,
    read,
)

CHAT: list[dict[str, object]] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello", "weight": 1},
]


def check(content: bytes, form: Format = "jsonl", size: int = 7) -> Report:
    checker = Checker(form)
    for start in range(0, len(content), size):
        checker.feed(content[start : start + size])
    return checker.finish()


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def problem(line: str | bytes) -> str:
    with pytest.raises(DatasetError) as caught:
        reading.parse(3, line.encode() if isinstance(line, str) else line)
    assert caught.value.line == 3
    return caught.value.message


def test_the_format_follows_from_the_name() -> None:
    names = {"A.TXT": "text", "a.csv": "csv", "a.tsv": "csv", "a.parquet": "parquet"}
    assert {name: format_of(name) for name in names} == names
    assert {format_of(name) for name in ("a.jsonl", "upload", "", ".csv/x")} == {"jsonl"}


def test_the_three_shapes_are_read_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes(
        b"\xef\xbb\xbf"
        + lines({"text": "a", "id": 1})
        + b"\r\n"
        + lines({"prompt": "p", "completion": "c"}, {"messages": CHAT})
    )
    assert list(read(file, "jsonl")) == [Text(1, "a"), Pair(3, "p", "c"), Chat(4, CHAT)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', "not JSON"),
        ("[1]", "JSON object"),
        ('{"txt": "a"}', "none of them"),
        ('{"text": "a", "messages": []}', "text and messages"),
        ('{"text": 5}', '"text" must be a string'),
        ('{"prompt": "a"}', '"completion" must be a string'),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "nothing to learn"),
        ('{"messages": [{"role": ["user"], "content": "a"}]}', "needs a role"),
        ('{"messages": [{"role": "assistant", "content": 5}]}', '"content" must be'),
        ('{"messages": [{"role": "assistant", "content": "a", "weight": 2}]}', '"weight" is 0 or 1'),
        ('{"messages": [{"role": "assistant", "content": "a"}], "tools": "x"}', '"tools" must be'),
        (b'{"text": "\xff"}', "not UTF-8"),
        ('{"text": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "nested too deeply"),
        (b'{"text": "' + b"a" * cut.MAX_LINE_BYTES, "longer than 1,000,000 bytes"),
        ('{"text": ' + "1" * 5000 + "}", "too many digits"),
        ('{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}', "weight 0: there is nothing"),
        ('{"instruction": "a", "output": "b", "text": "c"}', "here: text and instruction and output"),
        ('{"instruction": "a", "output": "b", "history": [["a", "b"]]}', '"history" is not read'),
        ('{"conversations": []}', "at least one turn"),
        ('{"conversations": [{"from": "human", "value": "a"}]}', "nothing to learn"),
        ('{"preferred_output": []}', '"input" must be an object'),
    ],
)
def test_a_bad_row_is_told_with_its_line_and_reason(line: str | bytes, reason: str) -> None:
    assert reason in problem(line)


ASKED: list[dict[str, object]] = [{"role": "user", "content": "Hi"}]
BETTER: list[dict[str, object]] = [{"role": "assistant", "content": "Hello"}]
WORSE: list[dict[str, object]] = [{"role": "assistant", "content": "What?"}]


@pytest.mark.parametrize(
    ("row", "example"),
    [
        (
            {"input": {"messages": ASKED}, "preferred_output": BETTER, "non_preferred_output": WORSE},
            Preference(1, ASKED, BETTER, WORSE),
        ),
        (  # as an older specification called them
            {
                "input": {"messages": ASKED, "tools": [{"type": "function"}]},
                "preferred_completion": BETTER,
                "non_preferred_completion": WORSE,
            },
            Preference(1, ASKED, BETTER, WORSE, [{"type": "function"}]),
        ),
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            Chat(1, [{"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}]),
        ),
        (
            {"instruction": "Hi", "input": "", "output": "Hello", "system": "Be kind"},
            Chat(1, [{"role": "system", "content": "Be kind"}, *ASKED, *BETTER]),
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            Chat(1, [*ASKED, *BETTER]),
        ),
    ],
)
def test_what_people_bring_is_read(tmp_path: Path, row: object, example: dataset.Example) -> None:
    file = tmp_path / "rows"
    file.write_bytes(lines(row))
    assert list(read(file, "jsonl")) == [example]
    assert check(lines(row)).problems == []


def test_everything_wrong_with_a_row_is_told_at_once_and_by_key() -> None:
    row = {
        "input": {"messages": [{"role": "user"}, {"role": "robot", "content": "a"}]},
        "preferred_output": BETTER,
        "non_preferred_output": BETTER,
    }
    assert check(lines({**row, "input": {"messages": ASKED}}, row)).problems == [
        Problem(1, "both answers are the same: there is nothing to prefer", "non_preferred_output"),
        Problem(2, '"content" must be a string or a list of text parts', "input.messages[0].content"),
        Problem(
            2,
            "a message needs a role: one of assistant, developer, function, system, tool, user",
            "input.messages[1].role",
        ),
        Problem(2, "both answers are the same: there is nothing to prefer", "non_preferred_output"),
    ]


def test_a_checker_counts_rows_and_names_the_lines_of_problems() -> None:
    content = lines({"text": "a"}, {"text": 1}, {"prompt": "a", "completion": "b"}, {"text": "b"})
    report = check(content + b"{")
    assert (report.rows, report.bytes, report.problem_count) == (3, len(content) + 1, 3)
    assert [p.line for p in report.problems] == [2, 3, 5]
    assert report.shape == "text"
    assert report.problems[1] == Problem(
        3,
        "this row's shape is prompt_completion, that of line 1 is text; a file has rows of one shape",
        "prompt",
    )


def test_a_line_over_the_limit_costs_no_memory_and_the_next_one_is_read() -> None:
    report = check(b"a" * (cut.MAX_LINE_BYTES + 1) + b"\n" + lines({"text": "b"}), size=100_000)
    assert report.rows == 1
    assert [(p.line, p.message) for p in report.problems] == [(1, "longer than 1,000,000 bytes")]


def test_only_the_first_problems_are_kept_but_all_are_counted() -> None:
    report = check(b"x\n" * 1000)
    assert (len(report.problems), report.problem_count) == (dataset.MAX_PROBLEMS, 1000)


@pytest.mark.parametrize("form", ["jsonl", "text"])
def test_a_file_without_an_example_is_a_problem(form: Format) -> None:
    assert check(b"\n\n  \n", form).problem_count == 1


def test_a_text_file_must_be_utf8_and_the_line_is_told() -> None:
    assert check("Grüße\nan alle".encode(), "text", size=1) == Report(1, 15, shape="text")
    report = check(b"gut\ngut\n" + b"schl\xffecht\n", "text", size=3)
    assert [(p.line, p.message) for p in report.problems] == [
        (3, "not UTF-8 (byte 0xff); save the file as UTF-8")
    ]


@given(
    st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20), max_size=8),
    st.integers(1, 9),
)
def test_where_an_upload_is_cut_changes_nothing(texts: list[str], size: int) -> None:
    content = lines(*({"text": text} for text in texts))
    assert check(content, size=size) == check(content, size=10**6)


def test_a_text_file_is_one_document_unless_the_separator_occurs(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n")
    assert list(read(file, "text")) == [Text(1, "one\ntwo\n")]
    file.write_text("one\n<|endoftext|>two\n<|endoftext|>\n")
    assert list(read(file, "text")) == [Text(1, "one\n"), Text(2, "two\n")]


@pytest.mark.parametrize("gap", ["\n", " "])
def test_a_long_document_comes_in_pieces_that_join_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: str
) -> None:
    monkeypatch.setattr(cut, "PIECE_CHARACTERS", 100)
    text = gap.join(f"word{n}" for n in range(500))
    file = tmp_path / "a.txt"
    file.write_text(text + cut.SEPARATOR + "end")
    *pieces, last, end = [example for example in read(file, "text") if isinstance(example, Text)]
    assert len(pieces) > 10
    assert "".join(p.text for p in pieces) + last.text == text
    assert not any(p.last for p in pieces)
    assert [p.first for p in pieces] == [True] + [False] * (len(pieces) - 1)
    assert (last.first, last.last) == (False, True)
    assert (end.text, end.first, end.last) == ("end", True, True)
