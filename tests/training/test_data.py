from pathlib import Path
from typing import cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dataset import DatasetError, Format, Text
from app.encoding import Encoded, Encoder
from app.recipe import Recipe
from tests.training.conftest import sentences, write_rows
from worker.training import data
from worker.training.batches import Layout, lay, order
from worker.training.data import Encodings, encode, split
from worker.training.failure import Failure
from worker.training.windows import Windows


@pytest.fixture
def encoder(gpt2: Path) -> Encoder:
    return Encoder.load(gpt2)


def run(path: Path, encoder: Encoder, cache: Path, max_length: int = 64, **recipe: object) -> Encodings:
    form = data_format(path)
    return encode(path, form, encoder, Recipe.from_request(recipe), max_length, cache, lambda: None)


def data_format(path: Path) -> Format:
    return "text" if path.suffix == ".txt" else "jsonl"


def windows(lengths: list[int], max_length: int, excess: str) -> tuple[Windows, list[list[int]]]:
    """Rows of ascending ids, all to be learned; returns what they were cut into."""
    cutter, at = Windows(max_length, excess), 0
    for line, length in enumerate(lengths, 1):
        cutter.add(Text(line, "x"), Encoded(list(range(at, at + length)), [(0, length)]))
        at += length
    arrays = cutter.take()
    ends = arrays["starts"].tolist()
    tokens = arrays["tokens"].tolist()
    return cutter, [tokens[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.integers(2, 10))
def test_split_trains_every_token_once_but_the_first_of_a_row(lengths: list[int], max_length: int) -> None:
    cutter, found = windows(lengths, max_length, "split")
    assert max(len(window) for window in found) <= max_length
    targets = [token for window in found for token in window[1:]]
    firsts = set(np.cumsum([0, *lengths[:-1]]).tolist())
    assert targets == [token for token in range(sum(lengths)) if token not in firsts]
    assert cutter.counts["trained_tokens"] == len(targets)
    assert cutter.counts["split"] == sum(length > max_length for length in lengths)


def test_what_is_done_to_long_rows_is_counted() -> None:
    truncating, found = windows([5, 12], 6, "truncate")
    assert ([len(w) for w in found], truncating.counts["truncated"]) == ([5, 6], 1)
    dropping, found = windows([5, 12], 6, "drop")
    assert ([len(w) for w in found], dropping.counts["dropped"]) == ([5], 1)
    with pytest.raises(DatasetError, match="line 2: longer than max_length"):
        windows([5, 12], 6, "error")


def test_rows_and_tokens_come_back_as_they_were_encoded(encoder: Encoder, tmp_path: Path) -> None:
    texts = sentences(50)
    found = run(write_rows(tmp_path / "a.jsonl", [{"text": t} for t in texts]), encoder, tmp_path)
    assert [found.example(i)[0].tolist() for i in range(50)] == [
        [*encoder.prompt(text), encoder.end] for text in texts
    ]
    assert not any(found.example(i)[1][0] for i in range(50))
    assert all(found.example(i)[1][1:].all() for i in range(50))
    assert isinstance(found.tokens, np.memmap)


def test_a_table_is_trained_on_as_its_rows_are(encoder: Encoder, tmp_path: Path) -> None:
    texts = sentences(20)
    rows = run(write_rows(tmp_path / "a.jsonl", [{"text": t} for t in texts]), encoder, tmp_path / "c")
    recipe, columns = Recipe.from_request({}), {"text": "said"}
    table = tmp_path / "a.csv"
    table.write_text("said,by\n" + "".join(f'"{text}",me\n' for text in texts))
    whole = tmp_path / "a.parquet"
    pq.write_table(pa.table({"said": texts, "by": range(20)}), whole)
    for path, form in ((table, "csv"), (whole, "parquet")):
        given = path, cast(Format, form), encoder, recipe, 64, tmp_path / "c", lambda: None
        found = encode(*given, columns)
        assert found.tokens.tolist() == rows.tokens.tolist()
        with pytest.raises(DatasetError, match="line 1: no column"):
            encode(*given)


def test_empty_rows_are_counted_not_dropped_in_silence(encoder: Encoder, tmp_path: Path) -> None:
    rows = [{"text": "a b c d e f g h i j"}, {"text": ""}, {"text": " "}]
    found = run(write_rows(tmp_path / "a.jsonl", rows), encoder, tmp_path)
    assert (len(found), found.counts["rows"], found.counts["empty"]) == (1, 3, 2)


def test_a_file_with_nothing_to_learn_is_refused_with_its_counts(encoder: Encoder, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "a long prompt", "completion": ""}] * 9)
    with pytest.raises(Failure, match=r"rows 9.*empty 9") as caught:
        run(path, encoder, tmp_path)
    assert caught.value.code == "no_trainable_tokens"


def test_a_file_is_encoded_once_per_tokenizer_and_settings(encoder: Encoder, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": t} for t in sentences(20)])
    first, again = run(path, encoder, tmp_path / "c"), run(path, encoder, tmp_path / "c")
    assert again.key == first.key
    keys = {first.key, run(path, encoder, tmp_path / "c", max_length=32).key}
    keys.add(run(path, encoder, tmp_path / "c", excess_length="drop").key)
    path.write_text(path.read_text() + '{"text": "one more"}\n')
    keys.add(run(path, encoder, tmp_path / "c").key)
    assert len(keys) == 4
    assert len(list((tmp_path / "c").iterdir())) == 4


def test_encoding_that_was_cut_short_leaves_nothing_that_looks_done(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": t} for t in sentences(20)] + [{"oops": 1}])
    monkeypatch.setattr(data, "BATCH_ROWS", 5)
    with pytest.raises(DatasetError, match="line 21"):
        run(path, encoder, tmp_path / "c")
    write_rows(path, [{"text": t} for t in sentences(20)])
    assert len(run(path, encoder, tmp_path / "c")) == 20


def test_a_long_text_file_is_one_stream_of_windows(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n".join(sentences(300)))
    whole = run(path, encoder, tmp_path / "whole")
    monkeypatch.setattr("app.lines.PIECE_CHARACTERS", 1_000)
    pieces = run(path, encoder, tmp_path / "pieces")
    assert whole.counts["rows"] == pieces.counts["rows"] == 1
    assert pieces.tokens.tolist() == whole.tokens.tolist()
    assert pieces.trained.tolist() == whole.trained.tolist()
    assert whole.counts["split"] == 1


def test_a_validation_split_never_cuts_through_a_row(encoder: Encoder, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": t * 3} for t in sentences(40)])
    found = run(path, encoder, tmp_path, max_length=8)
    train, held = split(found, 0.25, seed=1)
    assert sorted([*train.indices, *held.indices]) == list(range(len(found)))
    rows = [set(found.rows[share.indices].tolist()) for share in (train, held)]
    assert not rows[0] & rows[1]
    assert len(rows[1]) == 10
    again = split(found, 0.25, seed=1)[1].indices
    assert held.indices.tolist() == again.tolist() != split(found, 0.25, seed=2)[1].indices.tolist()


def test_of_a_single_document_the_end_is_held_out(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n".join(sentences(100)))
    found = run(path, encoder, tmp_path)
    train, held = split(found, 0.2, seed=1)
    assert held.indices.tolist() == list(range(len(train), len(found)))


def test_totals_of_a_share_are_its_own(encoder: Encoder, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": t} for t in sentences(40)])
    found = run(path, encoder, tmp_path)
    train, held = split(found, 0.25, seed=1)
    totals = np.array(train.total()) + np.array(held.total())
    assert totals.tolist() == [found.counts["tokens"], found.counts["trained_tokens"]]
    assert totals.tolist() == list(split(found, 0, 1)[0].total())


def test_every_epoch_has_an_order_of_its_own_and_nothing_else_moves_it() -> None:
    first = order(50, 7, 0).tolist()
    np.random.default_rng().random(5)
    assert order(50, 7, 0).tolist() == first
    assert sorted(first) == list(range(50))
    assert len({tuple(order(50, seed, epoch)) for seed in (7, 8) for epoch in (0, 1)}) == 4


@given(st.lists(st.integers(2, 60), min_size=1, max_size=12), st.sampled_from(get_args(Layout)))
def test_a_batch_holds_every_example_once_and_points_at_its_targets(
    lengths: list[int], layout: Layout
) -> None:
    examples, at = [], 1
    for length in lengths:
        tokens = np.arange(at, at + length, dtype=np.uint32)
        examples.append((tokens, np.arange(length) % 2 == 1))
        at += length
    batch = lay(examples, layout, max_length=60, pad=0)
    flat = batch.ids.reshape(-1)
    assert sorted(flat[flat > 0].tolist()) == list(range(1, at))
    assert (flat[batch.sources + 1] == batch.targets).all()
    wanted = sorted(int(t) for tokens, mask in examples for t in tokens[mask])
    assert sorted(batch.targets.tolist()) == wanted
    assert batch.tokens == sum(lengths)
    if batch.positions is not None:
        starts = {int(tokens[0]) for tokens, _ in examples}
        at_start = (batch.positions == 0) & (batch.ids > 0)
        assert set(batch.ids[at_start].tolist()) == starts
    else:
        assert len(batch.ids) == len(lengths)


def test_packing_wastes_little() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 45, 64).clip(3, 256)
    examples = [(np.ones(n, np.uint32), np.arange(n) > 0) for n in lengths]
    batch = lay(examples, "rows", max_length=256, pad=0)
    assert batch.ids.numel() < 1.08 * lengths.sum()
    assert lay(examples, "line", max_length=256, pad=0).ids.numel() == lengths.sum()
    assert lay(examples, "apart", max_length=256, pad=0).ids.numel() > 3 * lengths.sum()


def test_the_settings_that_matter_are_in_the_key(encoder: Encoder, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "a b c", "completion": "d e f g"}] * 5)
    counts = [
        run(path, encoder, tmp_path, train_on_inputs=asked).counts["trained_tokens"]
        for asked in (False, True)
    ]
    assert counts[1] > counts[0]


@pytest.mark.parametrize("name", ["tokens", "trained", "starts", "rows", "counts"])
def test_a_damaged_cache_is_encoded_again(encoder: Encoder, tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": t} for t in sentences(20)])
    before = run(path, encoder, tmp_path / "c")
    wanted = [before.example(i)[0].tolist() for i in range(20)]
    (file,) = (tmp_path / "c").glob(f"*/{name}.*")
    file.write_bytes(file.read_bytes()[:-8])
    again = run(path, encoder, tmp_path / "c")
    assert [again.example(i)[0].tolist() for i in range(20)] == wanted
    assert data.is_whole(file.parent)
