from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from app.dataset import Chat, Example, Pair, Preference, Text
from app.encoding import Encoded, Encoder, EncodingError, Turn
from app.tiny import model as tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.ensure(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder)


def with_template(encoder: Encoder, template: str) -> Encoder:
    words = {"bos_token": None, "eos_token": "<|endoftext|>"}
    return Encoder(encoder.tokenizer, encoder.end, frozenset({encoder.end}), template, words)


def one(encoder: Encoder, example: Example, train_on_inputs: bool = False) -> Encoded:
    return encoder.encode([example], train_on_inputs)[0]


def said(encoder: Encoder, ids: list[int]) -> str:
    return str(encoder.tokenizer.decode(ids, skip_special_tokens=False))


def learned(encoder: Encoder, encoded: Encoded) -> list[str]:
    return [said(encoder, encoded.ids[start:stop]) for start, stop in encoded.trained]


def test_a_text_is_learned_whole_and_its_end_with_it(encoder: Encoder) -> None:
    encoded = one(encoder, Text(1, "Hello there"))
    assert said(encoder, encoded.ids) == "Hello there<|endoftext|>"
    assert "".join(learned(encoder, encoded)) == "Hello there<|endoftext|>"


def test_an_end_that_is_already_there_is_not_doubled(encoder: Encoder) -> None:
    assert one(encoder, Text(1, "Hello<|endoftext|>")).ids.count(encoder.end) == 1


def test_only_the_last_piece_of_a_text_gets_an_end(encoder: Encoder) -> None:
    pieces = [Text(1, "Hello\n", last=False), Text(2, "there", first=False)]
    first, last = encoder.encode(pieces)
    assert first.ids + last.ids == one(encoder, Text(1, "Hello\nthere")).ids


@pytest.mark.parametrize("text", ["", "  \n"])
def test_of_a_blank_text_nothing_is_learned(encoder: Encoder, text: str) -> None:
    assert one(encoder, Text(1, text)).trained == []
    assert one(encoder, Pair(1, "a", text)).trained == []


def test_of_a_pair_only_the_completion_is_learned(encoder: Encoder) -> None:
    encoded = one(encoder, Pair(1, "Q: why?\nA:", " because"))
    assert said(encoder, encoded.ids) == "Q: why?\nA: because<|endoftext|>"
    assert "".join(learned(encoder, encoded)) == " because<|endoftext|>"


def test_a_prompt_is_encoded_as_generation_will_see_it(encoder: Encoder) -> None:
    encoded = one(encoder, Pair(1, "Serv", "es 2."))
    assert encoded.ids[: encoded.trained[0][0]] == encoder.prompt("Serv")


def test_a_prompt_is_learned_too_where_that_is_asked_for(encoder: Encoder) -> None:
    encoded = one(encoder, Pair(1, "Why?", " Because"), train_on_inputs=True)
    assert "".join(learned(encoder, encoded)) == "Why? Because<|endoftext|>"


CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": [{"type": "text", "text": "Who"}, {"type": "text", "text": "?"}]},
    {"role": "assistant", "content": "Me"},
]


def test_without_a_template_the_documented_one_is_used(encoder: Encoder) -> None:
    encoded = one(encoder, Chat(1, CONVERSATION))
    assert said(encoder, encoded.ids) == (
        "Be brief.\n\nUser: Hi\n\nAssistant: Hello<|endoftext|>\n\nUser: Who?\n\nAssistant: Me<|endoftext|>"
    )
    assert learned(encoder, encoded) == [" Hello<|endoftext|>", " Me<|endoftext|>"]


def test_an_answer_of_weight_0_is_read_but_not_learned(encoder: Encoder) -> None:
    messages = [{**m, "weight": 0} if m["content"] == "Hello" else m for m in CONVERSATION]
    encoded = one(encoder, Chat(1, messages))
    assert learned(encoder, encoded) == [" Me<|endoftext|>"]
    assert "Hello" in said(encoder, encoded.ids)


def test_train_on_inputs_learns_the_whole_conversation(encoder: Encoder) -> None:
    encoded = one(encoder, Chat(1, CONVERSATION), train_on_inputs=True)
    assert "".join(learned(encoder, encoded)) == said(encoder, encoded.ids)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_models_own_template_decides_what_an_answer_is(encoder: Encoder) -> None:
    encoded = one(with_template(encoder, CHATML), Chat(1, CONVERSATION[1:3]))
    assert learned(encoder, encoded) == ["Hello<|im_end|>\n", "<|endoftext|>"]


@pytest.mark.parametrize("template", [None, CHATML], ids=["the default template", "one of its own"])
@pytest.mark.parametrize("answered", [2, 4])
def test_a_conversation_is_read_as_training_read_what_stood_before_the_answer(
    encoder: Encoder, template: str | None, answered: int
) -> None:
    chosen = encoder if template is None else with_template(encoder, template)
    trained = one(chosen, Chat(1, CONVERSATION[: answered + 1]))
    begins = trained.trained[-1][0] if template is None else trained.trained[-2][0]
    assert chosen.conversation(CONVERSATION[:answered]) == trained.ids[:begins]


def test_a_conversation_may_go_on_after_an_answer(encoder: Encoder) -> None:
    twice = [*CONVERSATION[:3], {"role": "assistant", "content": "again"}]
    trained = one(encoder, Chat(1, twice))
    assert said(encoder, encoder.conversation(twice[:3])).endswith("Hello<|endoftext|>\n\nAssistant:")
    assert encoder.conversation(twice[:3]) == trained.ids[: trained.trained[-1][0]]


def test_a_developer_is_the_system(encoder: Encoder) -> None:
    developer = [{**CONVERSATION[0], "role": "developer"}, *CONVERSATION[1:]]
    strict = "{{ raise_exception('who?') if messages[0].role != 'system' }}" + CHATML
    chosen = with_template(encoder, strict)
    assert one(chosen, Chat(1, developer)) == one(chosen, Chat(1, CONVERSATION))


def test_a_conversation_the_template_would_rewrite_is_read_all_the_same(encoder: Encoder) -> None:
    last = "{{ messages | length }}: {{ messages[-1].content }}{% if add_generation_prompt %} ->{% endif %}"
    assert said(encoder, with_template(encoder, last).conversation(CONVERSATION[:4])) == "4: Who? ->"


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        (None, Turn(("\n\nUser:", "\nUser:"), lead=" ")),
        (CHATML, Turn(("<|im_end|>",))),
        ("{% for m in messages %}{{ '### ' + m.role + ': ' }}{{ m.content }}\n{% endfor %}"
         "{% if add_generation_prompt %}### assistant:{% endif %}", Turn(("\n### user:",), lead=" ")),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", Turn()),
        ("{{ raise_exception('never') }}", Turn()),
    ],
)  # fmt: skip
def test_the_end_of_a_turn_is_read_off_the_template(
    encoder: Encoder, template: str | None, turn: Turn
) -> None:
    assert (encoder if template is None else with_template(encoder, template)).turn == turn


def test_a_token_that_ends_turns_is_an_end(encoder: Encoder) -> None:
    tokenizer = Tokenizer.from_str(encoder.tokenizer.to_str())
    tokenizer.add_special_tokens(["<|im_end|>"])
    chosen = with_template(Encoder(tokenizer, encoder.end, frozenset(), None, {}), CHATML)
    end = tokenizer.token_to_id("<|im_end|>")
    assert end is not None
    assert chosen.turn == Turn(ends=frozenset({end}))


def test_a_template_that_drops_its_prompt_later_still_works(encoder: Encoder) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    encoded = one(with_template(encoder, template), Chat(1, CONVERSATION[1:3]))
    assert learned(encoder, encoded)[0] == "[assistant]Hello"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
        ("{{ messages | length }}", "rewrites earlier turns"),
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_told_with_the_line(
    encoder: Encoder, template: str, reason: str
) -> None:
    with pytest.raises(EncodingError, match=reason) as caught:
        one(with_template(encoder, template), Chat(7, CONVERSATION))
    assert caught.value.line == 7


PAIR = Preference(
    3,
    messages=CONVERSATION[:4],
    preferred=[{"role": "assistant", "content": "Me", "weight": 0}],
    rejected=[{"role": "assistant", "content": "Who knows"}],
)


@pytest.mark.parametrize("template", [None, CHATML])
def test_both_answers_of_a_pair_follow_the_same_prompt_and_are_learned_alone(
    encoder: Encoder, template: str | None
) -> None:
    used = with_template(encoder, template) if template else encoder
    preferred, rejected = used.encode_answers([PAIR])[0]
    assert preferred.prompt() == rejected.prompt()
    asked = one(used, Chat(3, CONVERSATION))  # the same conversation, supervised: its last answer is PAIR's
    assert said(used, preferred.ids) == said(used, asked.ids)
    end = "<|im_end|>\n" if template else ""
    answers = ["Me", "Who knows"] if template else [" Me", " Who knows"]
    assert ["".join(learned(used, half)) for half in (preferred, rejected)] == [
        f"{answer}{end}<|endoftext|>" for answer in answers
    ]


def test_an_answer_may_call_a_tool_whose_result_is_not_learned(encoder: Encoder) -> None:
    turns = [
        {"role": "assistant", "content": "Look"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "It is 42"},
    ]
    pair = Preference(1, CONVERSATION[:2], turns, [{"role": "assistant", "content": "No"}])
    preferred, rejected = encoder.encode_answers([pair])[0]
    assert learned(encoder, preferred) == [" Look<|endoftext|>", " It is 42<|endoftext|>"]
    assert preferred.prompt() == rejected.prompt()


def test_a_prompt_that_earlier_answers_are_rewritten_in_is_no_hindrance_to_a_pair(encoder: Encoder) -> None:
    """As templates do that drop the thoughts of all answers but the last."""
    template = (
        "{% for m in messages %}[{{ m.role }}]"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    used = with_template(encoder, template)
    preferred, _ = used.encode_answers([PAIR])[0]
    assert said(used, preferred.prompt()).endswith("[assistant]Hello[user]Who?[assistant]")
    with pytest.raises(EncodingError, match="rewrites earlier turns"):
        one(used, Chat(3, CONVERSATION))


def test_a_prompt_worded_by_its_answer_is_refused_with_the_line(encoder: Encoder) -> None:
    template = "{{ messages[-1].content if messages[-1].role == 'assistant' }}{{ messages | length }}"
    with pytest.raises(EncodingError) as caught:
        with_template(encoder, template).encode_answers([PAIR])
    assert caught.value.line == 3
    with pytest.raises(EncodingError, match="line 3: a preference pair"):
        encoder.encode([PAIR])


def test_a_template_that_is_no_template_is_refused_at_once(encoder: Encoder) -> None:
    with pytest.raises(EncodingError, match="cannot be read"):
        with_template(encoder, "{% for %}")


def test_a_batch_gives_what_one_by_one_gives(encoder: Encoder) -> None:
    examples: list[Example] = [Text(1, "Hello"), Pair(2, "a", "b"), Chat(3, CONVERSATION), Text(4, "")]
    assert encoder.encode(examples) == [one(encoder, example) for example in examples]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=r"no tokenizer\.json"):
        Encoder.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EncodingError, match="cannot be read"):
        Encoder.load(tmp_path)
