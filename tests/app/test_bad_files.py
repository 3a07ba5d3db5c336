"""A zoo of files that cannot be trained on: each is told in full, and none crashes us or swells."""

import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import dataset, lines
from app.dataset import Chat, Checker, Format, Pair, Problem, Report, Text, check, read
from tests.app.conftest import Api

TEXT = b'{"text": "a"}\n'
KNOWN = (
    '"text"; "prompt" and "completion"; "messages"; "input", "preferred_output" and "non_preferred_output";'
    ' "instruction", "input" and "output"; or "conversations"'
)
UNPAIRED = "a quotation mark inside a field is doubled, and the field quoted"
ROLE = "a message needs a role: one of assistant, developer, function, system, tool, user"
# What was uploaded, as which format, and everything that is told: line, key, message.
ZOO: dict[str, tuple[Format, bytes, list[tuple[int, str | None, str]]]] = {
    "nothing": ("jsonl", b"", [(1, None, "the file holds no example")]),
    "blank lines": ("jsonl", b"\n \n\r\n", [(1, None, "the file holds no example")]),
    "UTF-16": ("jsonl", TEXT.decode().encode("utf-16"), [(1, None, "UTF-16; save the file as UTF-8")]),
    "UTF-16 unmarked": (
        "jsonl",
        TEXT.decode().encode("utf-16-le"),
        [(1, None, "UTF-16, or binary; save the file as UTF-8")],
    ),
    "UTF-32": ("text", "abc".encode("utf-32"), [(1, None, "UTF-32; save the file as UTF-8")]),
    "Latin-1": (
        "jsonl",
        TEXT + '{"text": "é"}'.encode("latin-1"),
        [(2, None, "not UTF-8 (byte 0xe9); save the file as UTF-8")],
    ),
    "gzip": ("jsonl", b"\x1f\x8b\x08\0", [(1, None, "compressed with gzip; upload it unpacked")]),
    "a sheet": (
        "csv",
        b"PK\x03\x04\x14\0",
        [(1, None, "a zip archive or an Excel sheet; upload the file in it, or save the sheet as CSV")],
    ),
    "named Parquet": (
        "parquet",
        TEXT,
        [(1, None, "not Parquet: the file does not begin with its mark, PAR1")],
    ),
    "array": (
        "jsonl",
        b'\xef\xbb\xbf[\n{"text": "a"},\n{"text": "b"}\n]\n',
        [(1, None, "a JSON array; write one object a line (JSON Lines)")],
    ),
    "cut off": (
        "jsonl",
        TEXT + b'{"text": "b',
        [(2, None, "not JSON: Unterminated string starting at at character 10")],
    ),
    "two values": ("jsonl", b'{"text": "a"} {}', [(1, None, "not JSON: Extra data at character 15")]),
    "NaN": ("jsonl", b'{"text": "a", "score": NaN}', [(1, None, "not JSON: NaN is no number")]),
    "infinite": (
        "jsonl",
        b'{"text": "a", "score": -Infinity}',
        [(1, None, "not JSON: -Infinity is no number")],
    ),
    "digits": ("jsonl", b'{"n": ' + b"1" * 5000 + b"}", [(1, None, "a number of too many digits")]),
    "twice": (
        "jsonl",
        b'{"text": "a", "text": "b"}',
        [(1, "text", "the key 'text' stands twice in one object")],
    ),
    "twice within": (
        "jsonl",
        b'{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}',
        [(1, "role", "the key 'role' stands twice in one object")],
    ),
    "deep": ("jsonl", b"[" * 100_000, [(1, None, "a JSON array; write one object a line (JSON Lines)")]),
    "deep within": ("jsonl", b'{"text": ' + b"[" * 400_000, [(1, None, "nested too deeply")]),
    "deeper than a template likes": (
        "jsonl",
        b'{"text": "a", "x": ' + b"[" * 90 + b"]" * 90 + b"}",
        [(1, "x" + "[0]" * 33, "nested too deeply")],
    ),
    "long line": (
        "jsonl",
        b'{"text": "' + b"a" * lines.MAX_LINE_BYTES + b'"}\n{"text": 5}',
        [(1, None, "longer than 1,000,000 bytes"), (2, "text", '"text" must be a string')],
    ),
    "half a character": (
        "jsonl",
        b'{"messages": [{"role": "assistant", "content": "\\ud83d"}]}',
        [(1, "messages[0].content", "half of a surrogate pair, which is no character")],
    ),
    "NUL": (
        "jsonl",
        b'{"prompt": "a", "completion": "b\\u0000c"}',
        [(1, "completion", "a NUL character (\\u0000), which is no text")],
    ),
    "raw NUL": (
        "jsonl",
        b'{"text": "a\0b"}',
        [(1, None, "not JSON: Invalid control character at at character 12")],
    ),
    "NUL in a text": (
        "text",
        b"one\ntwo\nth\0ree",
        [(3, None, "a NUL byte, which is no text; is the file UTF-16 or binary?")],
    ),
    "a list": ("jsonl", TEXT + b"[1]", [(2, None, "a row must be a JSON object")]),
    "null": ("jsonl", TEXT + b"null", [(2, None, "a row must be a JSON object")]),
    "misnamed": ("jsonl", b'{"txt": "a"}', [(1, None, f"a row has {KNOWN}; here: none of them")]),
    "ambiguous": (
        "jsonl",
        b'{"text": "a", "messages": []}',
        [(1, "messages", f"a row has {KNOWN}; here: text and messages")],
    ),
    "half a pair": (
        "jsonl",
        b'{"prompt": "a"}\n{"completion": null}',
        [
            (1, "completion", '"completion" must be a string; it is missing'),
            (2, "prompt", '"prompt" must be a string; it is missing'),
            (2, "completion", '"completion" must be a string'),
        ],
    ),
    "mixed": (
        "jsonl",
        TEXT + b'{"prompt": "a", "completion": "b"}\n' + TEXT,
        [
            (
                2,
                "prompt",
                "this row's shape is prompt_completion, that of line 1 is text; a file has rows of one shape",
            )
        ],
    ),
    "messages": (
        "jsonl",
        b'{"messages": [{"role": "robot"}, {"role": "user", "content": 5}, "x"], "tools": {}}',
        [
            (1, "messages[0].role", ROLE),
            (1, "messages[1].content", '"content" must be a string or a list of text parts'),
            (1, "messages[2].role", ROLE),
            (1, "tools", '"tools" must be a list of objects'),
        ],
    ),
    "turns": (
        "jsonl",
        b'{"conversations": [{"from": "bot", "value": "a"}, {"from": "gpt"}]}',
        [
            (
                1,
                "conversations[0].from",
                'a turn needs "from": one of assistant, chatgpt, gpt, human, observation, system, tool, user',
            ),
            (1, "conversations[1].value", '"value" must be a string'),
        ],
    ),
    "preference": (
        "jsonl",
        b'{"preferred_output": [{"role": "user", "content": "a"}], "non_preferred_output": []}',
        [
            (1, "input", '"input" must be an object that holds "messages"'),
            (1, "preferred_output", '"preferred_output" holds messages of the assistant'),
            (1, "non_preferred_output", '"non_preferred_output" must be a list with at least one message'),
        ],
    ),
    "unknown columns": (
        "csv",
        b"question,answer\na,b\n",
        [
            (
                1,
                None,
                f"no column has a name that is known ({KNOWN}); rename one or give `columns`;"
                ' here: "question", "answer"',
            )
        ],
    ),
    "column twice": ("csv", b"text,text\na,b\n", [(1, "text", 'two columns are named "text"')]),
    "cells": (
        "csv",
        b'prompt,completion\na,b\n"x\ny",z,w\nc\n',
        [(3, None, "3 cells under a header of 2"), (5, None, "1 cells under a header of 2")],
    ),
    "stray quote": (
        "csv",
        b'text\n"a"b\n',
        [(2, None, f"not CSV: ',' expected after '\"'; {UNPAIRED}")],
    ),
    "open quote": ("csv", b'text\na\n"b\n', [(3, None, f"not CSV: unexpected end of data; {UNPAIRED}")]),
    "no JSON in a cell": (
        "csv",
        b"messages\nhello\n",
        [(2, "messages", '"messages" must hold JSON; not JSON: Expecting value at character 1')],
    ),
    "NUL in a cell": (
        "csv",
        b"text\na\0b\n",
        [(2, None, "a NUL byte, which is no text; is the file UTF-16 or binary?")],
    ),
}  # fmt: skip


def uploaded(content: bytes, form: Format, size: int = 7) -> Report:
    checker = Checker(form)
    for start in range(0, len(content), size):
        checker.feed(content[start : start + size])
    return checker.finish()


@pytest.mark.parametrize("name", ZOO)
def test_each_is_told_in_full(name: str, tmp_path: Path) -> None:
    form, content, told = ZOO[name]
    report = uploaded(content, form, size=7 if len(content) < 10_000 else 99_991)
    assert [(problem.line, problem.key, problem.message) for problem in report.problems] == told
    (tmp_path / "file").write_bytes(content)
    assert check(tmp_path / "file", form) == report  # what is read is what was checked


def test_a_table_is_read_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'\xef\xbb\xbfid,prompt,completion\r\n1," a ""b"",\nc",d\r\n\r\n2,e,f')
    assert list(read(file, "csv")) == [Pair(2, ' a "b",\nc', "d"), Pair(5, "e", "f")]
    file.write_bytes(b"text\tn\na, b\t\n")
    assert list(read(file, "csv")) == [Text(2, "a, b")]
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    cell = json.dumps(messages).replace('"', '""')
    file.write_text(f'messages;tools\n"{cell}";\n')
    assert list(read(file, "csv")) == [Chat(2, messages)]


def test_columns_say_what_is_what(tmp_path: Path) -> None:
    file = tmp_path / "a"
    columns = {"prompt": "question", "completion": "text"}
    file.write_text("question,text,id\na,b,1\n")
    assert list(read(file, "csv", columns)) == [Pair(2, "a", "b")]
    file.write_text('{"question": "a", "text": "b", "prompt": 5}\n{"text": "b"}\n')
    assert check(file, "jsonl", columns).problems == [
        Problem(2, 'the row has no "question", which `columns` names for "prompt"', "question")
    ]
    file.write_text("a,b\nc,d\n")
    assert check(file, "csv", columns).problems == [
        Problem(1, 'no column is named "question", which `columns` names for "prompt"', "question")
    ]


def test_parquet_is_read_by_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "upload"  # known by its mark, whatever it is called
    chat: list[dict[str, object]] = [
        {"role": "user", "content": "Hi", "weight": None},
        {"role": "assistant", "content": "Yo", "weight": 1},
    ]
    pq.write_table(pa.table({"messages": [chat, chat], "score": [1.5, None]}), file)
    said: list[dict[str, object]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo", "weight": 1},
    ]
    assert list(read(file, "jsonl")) == [Chat(1, said), Chat(2, said)]
    pq.write_table(pa.table({"text": ["a", None, "c"], "input": [1, 2, 3]}), file)
    assert check(file, "jsonl") == Report(
        2, file.stat().st_size, [Problem(2, '"text" must be a string', "text")], 1, "text"
    )


def parquet(**columns: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_parquet_that_is_damaged_is_one_problem(tmp_path: Path) -> None:
    whole = parquet(text=["a row of text"] * 500)
    chance = random.Random(1)
    for _ in range(100):
        damaged = bytearray(whole[: chance.randrange(4, len(whole) + 1)])
        for _ in range(chance.randrange(3)):
            damaged[chance.randrange(4, len(damaged)) if len(damaged) > 4 else 3] ^= chance.randrange(1, 256)
        (tmp_path / "a").write_bytes(damaged)
        report = check(tmp_path / "a", "parquet")
        assert report.problems or report.rows


PIECES = st.sampled_from(
    [
        b"\xef\xbb\xbf", b"\xff\xfe", b"PAR1", b"\0", b'"', b"\n", b"\r\n", b",", b" ", b"\xc3", b"[",
        b"text", b'{"text": "', b'{"\\u0000": 1, "\\u0000": 2', b'{"\\ud800": {"\\ud800": 1',
        b'"}', b"\\ud800", b"\\u0000", b"1e999", b"NaN", b"<|endoftext|>",
        b'{"messages":[{"role":"assistant","content":', b'{"conversations": [{}]}',
        b'{"input": {"messages": 1}, "preferred_output": [{"role": 1}]}',
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PIECES | st.binary(max_size=12), max_size=12).map(b"".join),
    st.sampled_from([form for form in dataset.FORMATS if form != "parquet"]),
    st.integers(1, 30),
)
def test_whatever_comes_is_read_or_told_with_a_line(content: bytes, form: Format, size: int) -> None:
    if content.startswith(b"PAR1"):
        return
    report = uploaded(content, form, size)
    assert report == uploaded(content, form, 10**6)  # wherever it was cut
    assert report.rows or report.problems
    last = content.count(b"\n") + 1
    assert all(1 <= problem.line <= last and problem.message for problem in report.problems)
    told = "".join(f"{problem.message}{problem.key}" for problem in report.problems)
    assert "\0" not in told.encode().decode()  # what the database keeps


@settings(max_examples=30, deadline=None)
@given(
    content=st.lists(PIECES | st.binary(max_size=12), min_size=1, max_size=12).map(b"".join),
    form=st.sampled_from([None, *dataset.FORMATS]),
    columns=st.dictionaries(
        st.sampled_from(["text", "prompt", "x", "\u0000"]), st.text(max_size=3), max_size=2
    ),
)
def test_whatever_is_sent_is_answered(
    api: Api, content: bytes, form: str | None, columns: dict[str, str]
) -> None:
    """Refused for what the form says, or kept and told with a line; a fault of ours would be 500."""
    fields = {"purpose": "fine-tune", **{f"columns[{ours}]": theirs for ours, theirs in columns.items()}}
    fields |= {} if form is None else {"format": form}
    with api.http() as http:
        answer = http.post("/v1/files", data=fields, files={"file": ("upload", content or b"x")})
    if answer.status_code == 200:
        made = answer.json()
        assert (made["status"], bool(made["problems"])) in (("processed", False), ("error", True))
        assert all(problem["line"] >= 1 and problem["message"] for problem in made["problems"])
    else:
        assert answer.status_code == 400
        assert answer.json()["error"]["param"]
