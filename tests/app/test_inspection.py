"""What training will make of a file, told beforehand by previews and reports, and as training does it."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from app.cutting import Cutter
from app.dataset import read
from app.errors import InvalidRequest
from app.inspection import lens, patterns, report
from app.inspection.inspector import ask_and_wait
from app.inspection.preview import SHOWN_TOKENS
from app.inspection.seen import LEAST, Hashes
from app.recipe import Recipe
from app.tiny import model as tiny
from tests.app.conftest import Api
from worker.training.data import encode

JsonObject = dict[str, Any]
ASK: JsonObject = {"role": "user", "content": "Name a colour of the rainbow, please."}
SAY: JsonObject = {"role": "assistant", "content": "Red is one, and there are six more of them."}


def jsonl(rows: list[JsonObject]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def upload(client: OpenAI, content: bytes, name: str = "upload", **more: Any) -> str:
    made = client.files.create(file=(name, content), purpose="fine-tune", extra_body=more)
    assert made.status == "processed", made.status_details
    return made.id


def preview(client: OpenAI, file: str, **asked: Any) -> JsonObject:
    found: JsonObject = client.post(
        f"/files/{file}/preview", body={"model": "tiny-gpt2", **asked}, cast_to=dict[str, Any]
    )
    return found


def reported(client: OpenAI, file: str, **asked: Any) -> JsonObject:
    found: JsonObject = client.get(
        f"/files/{file}/report", options={"params": {"wait": 60, **asked}}, cast_to=dict[str, Any]
    )
    assert found["status"] == "completed"
    return found


def counts(found: JsonObject) -> dict[str, tuple[int, list[int]]]:
    return {finding["code"]: (finding["count"], finding["lines"]) for finding in found["findings"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.ensure(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="module")
def shared(api: Api) -> Iterator[OpenAI]:
    with api.client() as client:
        yield client


def test_a_preview_shows_every_token_and_which_are_learned(shared: OpenAI) -> None:
    rows = [{"prompt": "Name a colour.", "completion": " Red"}, {"prompt": "a", "completion": ""}]
    file = upload(shared, jsonl(rows))
    found = preview(shared, file, limit=1)
    assert (found["rows"], found["has_more"], found["shape"]) == (2, True, "prompt_completion")
    [row] = found["data"]
    assert "".join(row["pieces"]) == "Name a colour. Red<|endoftext|>"
    assert "".join(p for p, learned in zip(row["pieces"], row["learned"], strict=True) if learned) == (
        " Red<|endoftext|>"
    )
    assert (row["line"], row["outcome"], row["cut"]) == (1, "whole", None)
    assert (len(row["ids"]), sum(row["learned"])) == (row["tokens"], row["trained_tokens"])
    [row] = preview(shared, file, offset=1)["data"]
    assert (row["row"], row["outcome"], row["windows"]) == (1, "untrained", [])


def test_a_row_too_long_to_be_shown_leaves_room_for_those_after_it(shared: OpenAI) -> None:
    file = upload(shared, jsonl([{"text": "word " * SHOWN_TOKENS}, {"text": "Red"}]))
    long, short = preview(shared, file)["data"]
    assert long["tokens"] > SHOWN_TOKENS
    assert "pieces" not in long
    assert "".join(short["pieces"]) == "Red<|endoftext|>"


def test_a_preview_shows_what_is_cut(shared: OpenAI) -> None:
    file = upload(shared, jsonl([{"messages": [ASK, SAY]}]))
    whole = preview(shared, file)["data"][0]
    short = {"max_length": whole["tokens"] - 4, "excess_length": "truncate"}
    [row] = preview(shared, file, hyperparameters=short)["data"]
    assert (row["outcome"], row["cut"]["tokens"]) == ("truncated", 4)
    assert whole["pieces"][-5] not in row["cut"]["text"]
    [row] = preview(shared, file, hyperparameters={**short, "excess_length": "drop"})["data"]
    assert (row["outcome"], row["windows"], row["trained_tokens"]) == ("dropped", [], 0)
    [row] = preview(shared, file, hyperparameters={**short, "excess_length": "error"})["data"]
    assert row["outcome"] == "refused"
    [row] = preview(shared, file, hyperparameters={**short, "excess_length": "split"})["data"]
    assert row["trained_tokens"] == whole["trained_tokens"]
    assert [w["stop"] - w["start"] for w in row["windows"]] == [whole["tokens"] - 4, 5]


def test_a_preference_is_previewed_with_both_answers(shared: OpenAI) -> None:
    worse = {**SAY, "content": "Wood."}
    row = {"input": {"messages": [ASK]}, "preferred_output": [SAY], "non_preferred_output": [worse]}
    file = upload(shared, jsonl([row]))
    [told] = preview(shared, file)["data"]
    for name, message in (("preferred", SAY), ("rejected", worse)):
        answer = told[name]
        learned = [p for p, mark in zip(answer["pieces"], answer["learned"], strict=True) if mark]
        assert "".join(learned).strip() == f"{message['content']}<|endoftext|>"
    body = {"model": "tiny-gpt2", "training_file": file}
    with pytest.raises(openai.BadRequestError) as refused:
        shared.post("/fine_tuning/jobs/preview", body=body, cast_to=object)
    assert refused.value.param == "training_file"
    assert reported(shared, file, model="tiny-gpt2")["tokens"]["encoded_rows"] == 2


def test_a_request_to_train_is_previewed_as_it_would_be_sent(shared: OpenAI) -> None:
    file = upload(shared, jsonl([{"text": "one and only"}]))
    body = {"model": "tiny-gpt2", "training_file": file, "hyperparameters": {"n_epochs": 1}, "limit": 1}
    found = shared.post("/fine_tuning/jobs/preview", body=body, cast_to=dict[str, Any])
    assert found["data"][0]["outcome"] == "whole"
    assert shared.fine_tuning.jobs.list().data == []
    with pytest.raises(openai.BadRequestError) as refused:
        shared.post("/fine_tuning/jobs/preview", body={**body, "training_file": "file-x"}, cast_to=object)
    assert refused.value.param == "training_file"


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"model": "gpt2"}, "model", "model_not_fetched"),
        ({"model": "nobody-knows"}, "model", "model_not_found"),
        ({"limit": 1000}, "limit", "invalid_value"),
        ({"hyperparameters": {"max_length": 10**6}}, "hyperparameters.max_length", "invalid_value"),
        ({"hyperparameters": {"max_lenght": 5}}, "hyperparameters.max_lenght", "unknown_parameter"),
    ],
)
def test_what_cannot_be_previewed_is_refused_by_field(
    shared: OpenAI, asked: JsonObject, param: str, code: str
) -> None:
    file = upload(shared, b'{"text": "a"}')
    with pytest.raises(openai.BadRequestError) as refused:
        preview(shared, file, **asked)
    assert (refused.value.param, refused.value.code) == (param, code)


def test_a_template_that_never_ends_is_ended(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (model / "chat_template.jinja").write_text(loops)
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(jsonl([{"messages": [ASK, SAY]}]))
    asked = {"path": str(rows), "format": "jsonl", "columns": None, "folder": str(model)}
    with pytest.raises(InvalidRequest) as refused:
        ask_and_wait("preview", 20, **asked, recipe=Recipe().model_dump(mode="json"), offset=0, limit=1)
    assert refused.value.code == "invalid_file"
    assert "template" in str(refused.value)


def test_a_stranger_looks_into_nothing(api: Api, shared: OpenAI) -> None:
    file = upload(shared, b'{"text": "a"}')
    with api.client(api.stranger_key) as stranger:
        for look in (preview, reported):
            with pytest.raises(openai.NotFoundError):
                look(stranger, file)
        mine = upload(stranger, b'{"text": "a"}')
        with pytest.raises(openai.NotFoundError) as refused:
            reported(stranger, mine, validation_file=file)
        assert refused.value.param == "validation_file"


ROWS: dict[str, list[JsonObject]] = {
    "text": [{"text": "word " * length} for length in (1, 5, 30, 0, 64, 65, 200)],
    "pair": [{"prompt": "one two " * n, "completion": " four" * m} for n in (0, 3, 40) for m in (0, 9, 90)],
    "chat": [{"messages": [ASK, SAY] * n} for n in (1, 2, 5)]
    + [{"messages": [ASK, {**SAY, "weight": 0}, ASK, SAY]}],
    "pairs": [
        {
            "input": {"messages": [{**ASK, "content": "why " * n}]},
            "preferred_output": [{**SAY, "content": "so " * m}],
            "non_preferred_output": [{**SAY, "content": "so " * 70 + "no"}],
        }
        for n in (1, 30, 90)
        for m in (2, 20, 80)
    ]
    + [
        {
            "input": {"messages": [ASK]},
            "preferred_output": [{**SAY, "content": "yes, it is, and how it is"}],
            "non_preferred_output": [{**SAY, "content": "no, not at all, never"}],
        }
    ],
}


CUTS = [(rows, excess) for rows in ROWS for excess in ("split", "truncate", "drop")]
CUTS.remove(("pairs", "split"))  # refused: half an answer cannot be preferred


@pytest.mark.parametrize(("rows", "excess"), CUTS)
def test_a_preview_is_what_is_trained(rows: str, excess: str, folder: Path, tmp_path: Path) -> None:
    """The windows that the trainer has on its disk are those that are told: ids, targets, order."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(ROWS[rows]))
    method: Literal["dpo", "supervised"] = "dpo" if rows == "pairs" else "supervised"
    recipe = Recipe.from_request({"max_length": 64, "excess_length": excess}, method)
    eye = lens.Lens(folder, recipe)
    encodings = encode(path, "jsonl", eye.encoder, recipe, 64, tmp_path, lambda: None)
    told = []
    for row in eye.look(read(path, "jsonl")):
        for window in row.windows:
            learned = {at for span in row.targets(window) for at in range(*span)}
            marks = [at in learned for at in range(*window)]
            told.append((row.ids[window.start : window.stop], marks))
    trained = [encodings.example(at) for at in range(len(encodings))]
    assert [(ids.tolist(), mask.tolist()) for ids, mask in trained] == told
    assert told


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6),
    st.integers(2, 12),
    st.sampled_from(["split", "truncate"]),
)
def test_pieces_are_cut_like_the_whole(pieces: list[int], length: int, excess: str) -> None:
    whole, parts = Cutter(length, excess), Cutter(length, excess)
    found = [window for at, count in enumerate(pieces) for window in parts.take(count, at == len(pieces) - 1)]
    assert found == whole.take(sum(pieces))
    assert found[0].start == 0
    assert found[-1].stop == (sum(pieces) if excess == "split" else min(sum(pieces), length))


KEY = "-----BEGIN OPENSSH " + "PRIVATE KEY-----"
TOKEN = "ghp_" + "a1B2" * 9
JUNK: list[tuple[str, str | None]] = [
    ("nothing to see, call 2024-01-02 or 127.0.0.1 about version 3.14.15", None),
    (f"{KEY} abc", "private_keys"),
    (f"token={TOKEN} and so on", "access_tokens"),
    ("card 4111 1111 1111 1111 please", "payment_cards"),
    ("no card 4111 1111 1111 1112 please", None),
    ("to DE89 3704 0044 0532 0130 00 today", "bank_accounts"),
    ("to DE88 3704 0044 0532 0130 00 today", None),
    ("write to jane.doe@mail.acme.io today", "email_addresses"),
    ("write to jane@example.com or a@b", None),
    ("ring +49 30 901820 now", "phone_numbers"),
    ("ring (212) 555-0199 now", "phone_numbers"),
    ("a\x1b[31mred", "control_characters"),
    ("caf\u00c3\u00a9 au lait", "broken_characters"),
    ("caf\ufffd", "broken_characters"),
    ("x" * 500, "blobs"),
]


@pytest.mark.parametrize(("text", "code"), JUNK)
def test_what_does_not_belong_is_seen(text: str, code: str | None) -> None:
    rows = patterns.Rows([])
    rows.add(3, "first")
    rows.add(7, f"second\n{text}")
    rows.add(9, "third")
    assert list(rows.take(within=True)) == ([] if code is None else [(code, 8)])


def test_a_report_finds_what_is_wrong_and_never_tells_it(shared: OpenAI) -> None:
    say = "There are seven of them, as everybody knows who looked."
    rows = [
        {"prompt": "How many?", "completion": say},
        {"prompt": "How many?", "completion": f"{say} "},
        {"prompt": "How many?", "completion": "Eight of them"},
        {"prompt": "Which?", "completion": " "},
        {"prompt": "Which letter?", "completion": "b"},
        {"prompt": "Whose key?", "completion": f"{KEY} of jane.doe@mail.acme.io"},
        {"prompt": "Where does it end?", "completion": "Here: <|endoftext|> and not there"},
        {"prompt": "Когда это было?", "completion": "Давно это было, очень давно."},
    ]
    held = [{"prompt": "new", "completion": "row"}, rows[0], {"prompt": "Which letter?", "completion": "c"}]
    file, validation = upload(shared, jsonl(rows)), upload(shared, jsonl(held))
    asked = {"model": "tiny-gpt2", "validation_file": validation, "max_length": 16}
    found = reported(shared, file, **asked)
    told = counts(found)
    long = told.pop("too_long_rows")
    assert told == {
        "private_keys": (1, [6]),
        "leaked_rows": (1, [2]),
        "few_rows": (1, [1]),
        "duplicate_rows": (1, [2]),
        "empty_answers": (1, [4]),
        "email_addresses": (1, [6]),
        "special_tokens": (1, [7]),
        "contradictory_answers": (1, [3]),
        "short_answers": (1, [5]),
    }
    assert long[0] > 2
    assert [f["level"] for f in found["findings"]] == sorted(
        (f["level"] for f in found["findings"]), key=["error", "warn", "info"].index
    )
    assert all(f["meaning"] and f["action"] for f in found["findings"])
    assert "jane" not in json.dumps(found)
    assert found["rows"] == 8 == sum(part["rows"] for part in found["lengths"]["histogram"])
    assert found["lengths"]["unit"] == "tokens"
    assert set(found["scripts"]) == {"Latin", "Cyrillic"}
    assert found["tokens"]["too_long_share"] == round(long[0] / 8, 4)
    assert reported(shared, file, **asked) == found


def test_a_job_refuses_what_it_was_told_to(shared: OpenAI) -> None:
    file = upload(shared, jsonl([{"text": "the very same words"}] * 12))

    def create(*codes: str) -> str:
        return shared.fine_tuning.jobs.create(
            model="tiny-gpt2", training_file=file, extra_body={"refuse_on": codes}
        ).id

    with pytest.raises(openai.BadRequestError) as refused:
        create("few_rows", "duplicate_rows")
    assert (refused.value.param, refused.value.code) == ("refuse_on", "refused_finding")
    assert "duplicate_rows (11 rows, the first in line 2)" in refused.value.message
    assert "few_rows" not in refused.value.message
    with pytest.raises(openai.BadRequestError, match="Did you mean 'leaked_rows'"):
        create("leaked_row")
    shared.fine_tuning.jobs.cancel(create("few_rows", "leaked_rows"))


def test_a_report_is_made_once_and_goes_with_its_file(api: Api, shared: OpenAI) -> None:
    file = upload(shared, b"One text.\n<|endoftext|>Another.\nmail: a.b@mail.acme.io\n", "a.txt")
    found = reported(shared, file)
    assert (found["rows"], found["lengths"]["unit"], found["tokens"]) == (2, "characters", None)
    assert counts(found) == {"email_addresses": (1, [3])}
    [kept] = (api.settings.storage_folder / "cache" / file).iterdir()
    kept.write_text(kept.read_text().replace('"rows": 2', '"rows": 3'))
    assert reported(shared, file)["rows"] == 3


def test_lengths_are_exact() -> None:
    chance = random.Random(5)
    numbers = sorted(chance.randrange(1, 300) for _ in range(501))
    found = report.lengths(Counter(numbers))
    assert (found["max"], found["median"], found["p95"]) == (numbers[-1], numbers[250], numbers[475])
    assert found["mean"] == round(sum(numbers) / 501, 2)
    assert found["histogram"][5] == {"up_to": 32, "rows": sum(16 < n <= 32 for n in numbers)}


def test_a_set_of_hashes_forgets_evenly_once_it_is_full() -> None:
    spread = [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(1, 5 * LEAST)]
    random.Random(3).shuffle(spread)
    roomy, small = Hashes(), Hashes(most=LEAST)
    assert not any(roomy.add(number) for number in spread)
    assert all(number in roomy for number in spread)
    assert spread[0] + 2 not in roomy
    assert not any(small.add(number) for number in spread)
    assert (roomy.every, small.every) == (1, 8)
    again = sum(small.add(number) for number in spread) * small.every
    assert abs(again - len(spread)) < len(spread) / 5
