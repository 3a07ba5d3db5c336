"""Train the built-in model's tokenizer: a byte-level BPE of 2,048 tokens, as GPT-2's is of 50,257.

    python -m app.tiny.vocabulary

writes `tokenizer.json` beside itself; the same texts give the same file, so it is committed and nobody has to
run this. It learns from the demo's cards, whose words all become whole tokens, and from some English of our
own. Bytes are its alphabet, so every other text encodes too, only in more tokens.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

FOLDER = Path(__file__).parent
CARDS = FOLDER.parents[1] / "examples" / "dishes.jsonl"
END_OF_TEXT = "<|endoftext|>"
SIZE = 2048
# Every word of the cards stands in the first few dozen; all 1,500 would drown the English.
CARDS_READ = 300


def main() -> None:
    lines = CARDS.read_text(encoding="utf-8").splitlines()[:CARDS_READ]
    cards = [json.loads(line)["text"] for line in lines]
    english = (FOLDER / "english.txt").read_text(encoding="utf-8")
    train([*cards, english]).save(str(FOLDER / "tokenizer.json"))


def train(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


if __name__ == "__main__":
    main()
