"""Stop strings, characters and transcripts: whatever the tokens are, the text is that of the definition."""

import asyncio
import codecs
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from app.generator import Generation
from tests.generation.tinymodel import make_tokenizer
from worker.generation.answer import Answer
from worker.generation.logprobs import in_lists
from worker.generation.model import Model
from worker.generation.request import Ended, Scored, Ticket, Written
from worker.generation.stop import StopMatcher
from worker.generation.transcript import Bounds, Transcript
from worker.generation.vocabulary import Utf8, Vocabulary

TOKENIZER: Any = make_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
LETTERS = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: read letter by letter; the first stop to be complete ends the text where it began."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(LETTERS, STOPS, st.data())
def test_a_stop_is_found_wherever_the_pieces_are_cut_and_never_shown(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    matcher, shown, rest = StopMatcher(stops), "", text
    expected, hit = cut(text, stops)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown += matcher.feed(rest[:size])
        assert expected.startswith(shown), "a part of a stop string leaked"
        rest = rest[size:]
    shown += matcher.flush()
    assert (shown, matcher.hit) == (expected, hit)


@given(st.text(min_size=1, max_size=12), st.integers(0, 3))
def test_text_that_can_be_no_stop_is_shown_at_once(text: str, held: int) -> None:
    stop = "\x00\x01\x02\x03"
    assert StopMatcher([stop]).feed(text.replace("\x00", "x") + stop[:held]) == text.replace("\x00", "x")


@given(st.binary(max_size=40))
def test_bytes_become_the_characters_of_the_whole(text: bytes) -> None:
    utf8 = Utf8()
    pieces = [utf8.feed(bytes([byte])) for byte in text]
    assert "".join(pieces) + utf8.end() == text.decode(errors="replace")


@given(st.text(max_size=30))
def test_encoding_and_spelling_are_those_of_the_tokenizer(text: str) -> None:
    ids = VOCABULARY.encode(text)
    assert ids == TOKENIZER(text)["input_ids"]
    assert b"".join(map(VOCABULARY.piece, ids)).decode() == text


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30))
def test_any_tokens_read_as_the_tokenizer_reads_them(tokens: list[int]) -> None:
    expected = TOKENIZER.decode(tokens, skip_special_tokens=True)
    transcript = Transcript(VOCABULARY, Bounds())
    shown = ""
    for token in tokens:
        transcript.write(Scored(token))
        piece = transcript.take()[0]
        assert expected.startswith(shown + piece), "half a character was shown"
        shown += piece
    transcript.finish("length")
    assert shown + transcript.take()[0] == expected


# Tokens that stop strings are made of, and halves of characters between them.
STOPPABLE = [token for token in range(1, len(TOKENIZER)) if set(VOCABULARY.piece(token)) <= set(b"abc")]
HALVES = VOCABULARY.encode("\N{SMILING FACE WITH SUNGLASSES}")


@given(st.lists(st.sampled_from(STOPPABLE * 3 + HALVES), max_size=30), STOPS, st.booleans())
def test_tokens_are_shown_with_their_text_and_end_with_it(
    tokens: list[int], stops: list[str], streamed: bool
) -> None:
    transcript, text = Transcript(VOCABULARY, Bounds(stops)), ""
    names: list[str] = []
    offsets: list[int] = []
    for token in [*tokens, None]:
        if token is None:
            transcript.finish("length")
        elif transcript.write(Scored(token, -1.0)):
            token = None
        if streamed or token is None:
            more, taken = transcript.take()
            logprobs = in_lists(taken, VOCABULARY)
            text += more
            names += logprobs["tokens"]
            offsets += logprobs["text_offset"]
            assert len({len(values) for values in logprobs.values()}) == 1  # type: ignore[arg-type]
        if token is None:
            break
    whole = TOKENIZER.decode(tokens)
    assert (text, transcript.reason == "stop") == cut(whole, stops)
    assert names == [VOCABULARY.label(token) for token in tokens[: len(names)]]
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    starts, length = [], 0
    for token in tokens:
        starts.append(length)
        length += len(utf8.decode(VOCABULARY.piece(token)))
    expected = [start for start in starts if start < len(text)] if transcript.reason == "stop" else starts
    assert offsets == expected


@given(st.text(min_size=1, max_size=20))
def test_echo_begins_with_the_prompt_itself(prompt: str) -> None:
    ids = VOCABULARY.encode(prompt)
    for transcript in (Transcript(VOCABULARY, Bounds()), Transcript(VOCABULARY, Bounds())):
        transcript.echo_text(prompt, [Scored(token) for token in ids])
        transcript.finish("length")
        text, taken = transcript.take()
        assert text == prompt
        assert len(taken) == len(ids)
    by_tokens = Transcript(VOCABULARY, Bounds())
    by_tokens.echo_tokens(ids, ())
    by_tokens.finish("length")
    assert by_tokens.take()[0] == prompt


def test_a_stop_in_the_prompt_ends_nothing() -> None:
    transcript = Transcript(VOCABULARY, Bounds(["bread"]))
    transcript.echo_text("the bread", ())
    for token in VOCABULARY.encode(" and"):
        assert not transcript.write(Scored(token))
    transcript.finish("length")
    assert transcript.take()[0] == "the bread and"


def test_half_a_character_is_named_by_its_bytes() -> None:
    first, *_ = VOCABULARY.encode("\N{SMILING FACE WITH SUNGLASSES}")
    assert VOCABULARY.label(first).startswith("bytes:\\xf0")


def test_a_sentencepiece_vocabulary_keeps_its_spaces(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "▁a"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    make: Any = PreTrainedTokenizerFast  # without types
    make(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    made = Vocabulary(AutoTokenizer.from_pretrained(tmp_path, local_files_only=True, trust_remote_code=False))
    ids = made.encode("a aé")
    assert ids[0] == 0
    assert b"".join(map(made.shown, ids)).decode() == " a aé"
    transcript = Transcript(made, Bounds())
    transcript.echo_text("a aé", [Scored(token) for token in ids])
    transcript.finish("length")
    assert transcript.take()[0] == "a aé"


async def test_a_long_text_is_encoded_without_keeping_others_waiting() -> None:
    began = last = time.perf_counter()
    encoding = asyncio.create_task(asyncio.to_thread(VOCABULARY.encode, "rice and bread " * 100_000))
    longest = 0.0
    while not encoding.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert longest < 0.5 * (last - began), "the loop stood still for all the time"


@given(st.text(max_size=200))
def test_no_text_has_fewer_tokens_than_its_length_and_the_longest_token_allow(text: str) -> None:
    assert len(text) <= len(VOCABULARY.encode(text)) * VOCABULARY.longest


def test_a_token_id_without_a_token_is_nothing() -> None:
    assert VOCABULARY.piece(len(TOKENIZER) + 5) == b""


@pytest.mark.parametrize("text", ["a\u2028b", "plain"])
def test_no_event_holds_what_some_readers_take_for_a_line_end(text: str) -> None:
    from app.completion import data_event

    assert data_event({"text": text}).splitlines() == [data_event({"text": text})[:-2], ""]


def test_a_candidate_that_ends_at_once_is_not_the_likeliest_for_that(model: Model) -> None:
    asked = Generation(source="x", name="x", prompts=["rice"], best_of=2, max_tokens=4)
    answer = Answer(asked, model)
    ticket = Ticket(answer.asks[0], lambda _: None)
    written = Written(1, Scored(5, logprob=-2.0))
    assert not list(answer.hear(0, [Ended(0, "stop"), written, Ended(1, "stop")], ticket))
    (best,) = answer.results()
    assert best["text"] == model.vocabulary.piece(5).decode()
