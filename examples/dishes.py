"""Write the demo's training file: short cooking cards put together from parts written for this project.

    python examples/dishes.py

writes `dishes.jsonl` (to train on) and `dishes.valid.jsonl` (other cards, to judge by) beside itself. The
same code writes the same bytes, so both are committed. The cards are regular on purpose: a model of a million
parameters that starts from random weights has to write readable ones after a minute on two cores.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

FOLDER = Path(__file__).parent
SEED = 7
TRAINED = 1500
HELD_BACK = 120


@dataclass(frozen=True)
class Part:
    """One ingredient: what the list says, and what title and steps call it."""

    line: str
    name: str


@dataclass(frozen=True)
class Flavour:
    """What gives a dish its first word, and the ingredient that the word promises."""

    word: str
    line: str
    name: str


@dataclass(frozen=True)
class Kind:
    """A way of cooking. A step is a choice of phrasings; {main}, {side}, {flavour}, {time} are filled in."""

    name: str
    minutes: tuple[int, ...]
    mains: tuple[Part, ...]
    sides: tuple[Part, ...]
    always: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]
    ending: tuple[str, ...]


SMOKY = Flavour("Smoky", "1 teaspoon smoked paprika", "paprika")
GINGER = Flavour("Ginger", "1 tablespoon grated ginger", "ginger")
LEMON = Flavour("Lemon", "1 lemon", "lemon juice")
GARLIC = Flavour("Garlic", "3 cloves garlic", "garlic")
SPICY = Flavour("Spicy", "1 teaspoon chilli flakes", "chilli flakes")
HERB = Flavour("Herb", "1 handful parsley", "parsley")
CUMIN = Flavour("Cumin", "1 teaspoon ground cumin", "cumin")
MINT = Flavour("Mint", "1 handful mint leaves", "mint")
HONEY = Flavour("Honey", "2 tablespoons honey", "honey")
CINNAMON = Flavour("Cinnamon", "1 teaspoon cinnamon", "cinnamon")
VANILLA = Flavour("Vanilla", "1 teaspoon vanilla", "vanilla")
ORANGE = Flavour("Orange", "1 orange", "orange zest")

SAVOURY = (SMOKY, GINGER, LEMON, GARLIC, SPICY, HERB, CUMIN, MINT)
SWEET = (HONEY, CINNAMON, VANILLA, LEMON, ORANGE, GINGER)

PULSES = (
    Part("1 cup red lentils", "lentil"),
    Part("2 cups white beans", "bean"),
    Part("2 cups chickpeas", "chickpea"),
)
ROOTS = (
    Part("4 carrots, sliced", "carrot"),
    Part("3 potatoes, diced", "potato"),
    Part("1 small pumpkin, diced", "pumpkin"),
    Part("2 leeks, sliced", "leek"),
)
GREENS = (
    Part("2 handfuls spinach", "spinach"),
    Part("1 bunch kale, torn", "kale"),
    Part("2 cups green peas", "pea"),
    Part("1 head broccoli, cut small", "broccoli"),
)
SUMMER = (
    Part("3 ripe tomatoes, chopped", "tomato"),
    Part("2 zucchini, sliced", "zucchini"),
    Part("1 red pepper, sliced", "pepper"),
    Part("2 cups sweet corn", "corn"),
)
ONIONS = (
    Part("1 onion, chopped", "onion"),
    Part("2 spring onions, sliced", "spring onion"),
    Part("2 cups mushrooms, sliced", "mushroom"),
)
MEATS = (
    Part("500 g chicken, diced", "chicken"),
    Part("400 g beef, sliced", "beef"),
    Part("400 g firm tofu, diced", "tofu"),
    Part("300 g shrimp", "shrimp"),
)
CHEESES = (Part("100 g feta", "feta"), Part("1 cup grated cheese", "cheese"))
FRUITS = (
    Part("2 apples, sliced", "apple"),
    Part("2 pears, sliced", "pear"),
    Part("1 cup blueberries", "blueberry"),
    Part("2 ripe bananas", "banana"),
    Part("6 plums, halved", "plum"),
    Part("2 cups cherries", "cherry"),
)
NUTS = (
    Part("1 cup walnuts, chopped", "walnut"),
    Part("1 cup almonds, sliced", "almond"),
    Part("1 cup rolled oats", "oat"),
)

KINDS = (
    Kind(
        "Soup",
        (25, 30, 35, 40),
        PULSES + ROOTS,
        GREENS + ONIONS,
        ("4 cups stock", "1 tablespoon olive oil"),
        (
            ("Warm the oil in a deep pot.", "Heat the oil in a large pot."),
            ("Add the {main} and cook for 5 minutes.", "Cook the {main} in the oil for 5 minutes."),
            ("Pour in the stock and simmer for {time} minutes.",),
            ("Stir in the {side} and the {flavour}.",),
        ),
        ("Serve hot with bread.", "Serve in warm bowls."),
    ),
    Kind(
        "Stew",
        (45, 50, 60),
        MEATS[:3] + PULSES,
        ROOTS + SUMMER,
        ("2 cups stock", "2 tablespoons olive oil"),
        (
            ("Brown the {main} in the oil.", "Heat the oil and brown the {main}."),
            ("Add the {side} and the {flavour}.",),
            ("Pour in the stock and cover the pot.",),
            ("Cook on low heat for {time} minutes.", "Simmer gently for {time} minutes."),
        ),
        ("Serve hot with rice.", "Serve hot with bread."),
    ),
    Kind(
        "Curry",
        (30, 35, 40),
        MEATS + PULSES[2:],
        GREENS + ROOTS[:3],
        ("1 can coconut milk", "2 tablespoons curry paste"),
        (
            ("Fry the curry paste for 1 minute.", "Warm the curry paste in a wide pan."),
            ("Add the {main} and the {flavour} and stir well.",),
            ("Pour in the coconut milk and simmer for {time} minutes.",),
            ("Add the {side} for the last 5 minutes.",),
        ),
        ("Serve hot with rice.",),
    ),
    Kind(
        "Salad",
        (10, 15, 20),
        PULSES + SUMMER,
        GREENS[:2] + CHEESES,
        ("2 tablespoons olive oil", "1 tablespoon vinegar"),
        (
            ("Mix the oil, the vinegar and the {flavour} in a large bowl.",),
            ("Add the {main} and toss well.", "Toss the {main} in the dressing."),
            ("Let it rest for {time} minutes.",),
            ("Top with the {side}.",),
        ),
        ("Serve cold.", "Serve at once."),
    ),
    Kind(
        "Pasta",
        (20, 25, 30),
        SUMMER + GREENS + ONIONS[2:],
        CHEESES + MEATS[:1] + MEATS[3:],
        ("400 g pasta", "2 tablespoons olive oil"),
        (
            ("Boil the pasta in salted water.", "Cook the pasta until just tender."),
            ("Fry the {main} and the {flavour} in the oil for {time} minutes.",),
            ("Stir in the {side}.", "Add the {side} and stir."),
            ("Toss the sauce with the pasta.",),
        ),
        ("Serve at once.", "Serve in warm bowls."),
    ),
    Kind(
        "Stir-Fry",
        (15, 20),
        MEATS,
        GREENS + SUMMER + ONIONS,
        ("2 tablespoons soy sauce", "1 tablespoon oil"),
        (
            ("Heat the oil in a wok until very hot.",),
            ("Fry the {main} for {time} minutes.", "Add the {main} and fry for {time} minutes."),
            ("Add the {side} and the {flavour} and keep stirring.",),
            ("Pour over the soy sauce.", "Stir in the soy sauce."),
        ),
        ("Serve hot with rice.", "Serve hot with noodles."),
    ),
    Kind(
        "Omelette",
        (10, 15),
        GREENS + ONIONS + SUMMER,
        CHEESES,
        ("4 eggs", "1 tablespoon butter"),
        (
            ("Beat the eggs with the {flavour} and a pinch of salt.",),
            ("Melt the butter and cook the {main} for {time} minutes.",),
            ("Pour the eggs over the {main}.", "Pour in the eggs and cook gently."),
            ("Add the {side} and fold in half.",),
        ),
        ("Serve at once.", "Serve hot with bread."),
    ),
    Kind(
        "Bake",
        (45, 50, 60),
        ROOTS + SUMMER,
        CHEESES + ONIONS[:1],
        ("1 cup cream", "1 cup breadcrumbs"),
        (
            ("Heat the oven to 190 degrees.", "Heat the oven to 200 degrees."),
            ("Lay the {main} and the {side} in a baking dish.",),
            ("Mix the cream with the {flavour} and pour it over.",),
            ("Cover with breadcrumbs and bake for {time} minutes.",),
        ),
        ("Serve hot.", "Let it cool for 5 minutes before serving."),
    ),
    Kind(
        "Pancakes",
        (20, 25, 30),
        FRUITS,
        NUTS,
        ("1 cup flour", "1 cup milk", "2 eggs"),
        (
            ("Whisk the flour, the milk and the eggs.", "Beat the eggs with the milk and the flour."),
            ("Stir in the {flavour} and rest for {time} minutes.",),
            ("Fry small pancakes in a little butter.", "Cook the pancakes until golden."),
            ("Top with the {main} and the {side}.",),
        ),
        ("Serve warm.", "Serve warm with cream."),
    ),
    Kind(
        "Crumble",
        (40, 45, 50),
        FRUITS,
        NUTS,
        ("1 cup flour", "100 g butter", "1 cup sugar"),
        (
            ("Heat the oven to 180 degrees.", "Heat the oven to 190 degrees."),
            ("Put the {main} and the {flavour} in a baking dish.",),
            ("Rub the flour, the butter and the sugar into crumbs.",),
            ("Add the {side}, spread on top and bake for {time} minutes.",),
        ),
        ("Serve warm with cream.", "Serve warm with ice cream."),
    ),
    Kind(
        "Muffins",
        (30, 35, 40),
        FRUITS,
        NUTS,
        ("2 cups flour", "100 g butter", "2 eggs"),
        (
            ("Heat the oven to 180 degrees.", "Heat the oven to 190 degrees."),
            ("Beat the eggs with the butter and the {flavour}.",),
            ("Fold in the flour, the {main} and the {side}.",),
            ("Fill small cups and bake for {time} minutes.",),
        ),
        ("Serve warm.", "Serve warm with cream."),
    ),
)

# Steps name one of a thing as the title does; those counted in pieces need their plural there.
PLURALS = {
    "lentil": "lentils",
    "bean": "beans",
    "chickpea": "chickpeas",
    "carrot": "carrots",
    "potato": "potatoes",
    "leek": "leeks",
    "pea": "peas",
    "tomato": "tomatoes",
    "spring onion": "spring onions",
    "mushroom": "mushrooms",
    "apple": "apples",
    "pear": "pears",
    "blueberry": "blueberries",
    "banana": "bananas",
    "plum": "plums",
    "cherry": "cherries",
    "walnut": "walnuts",
    "almond": "almonds",
    "oat": "oats",
}


def main() -> None:
    texts = list(cards(TRAINED + HELD_BACK))
    write(FOLDER / "dishes.jsonl", texts[:TRAINED])
    write(FOLDER / "dishes.valid.jsonl", texts[TRAINED:])


def cards(count: int) -> Iterator[str]:
    """`count` cards, no two with the same title, in random order; the same ones every time."""
    draw = random.Random(SEED)  # noqa: S311 - recipes, not secrets
    dishes = [
        (kind, flavour, main, side)
        for kind in KINDS
        for flavour, main, side in product(
            SWEET if kind.mains is FRUITS else SAVOURY,
            kind.mains,
            kind.sides,
        )
    ]
    # As many cards of a kind with few combinations as of one with many.
    draw.shuffle(dishes)
    rank: dict[str, int] = {}
    ranked = []
    for dish in dishes:
        rank[dish[0].name] = rank.get(dish[0].name, 0) + 1
        ranked.append((rank[dish[0].name], draw.random(), dish))
    chosen = [dish for _, _, dish in sorted(ranked, key=lambda entry: entry[:2])[:count]]
    draw.shuffle(chosen)
    for dish in chosen:
        yield card(*dish, draw)


def card(kind: Kind, flavour: Flavour, main: Part, side: Part, draw: random.Random) -> str:
    minutes = draw.choice(kind.minutes)
    words = {
        "main": PLURALS.get(main.name, main.name),
        "side": PLURALS.get(side.name, side.name),
        "flavour": flavour.name,
        # What is left of the whole time once everything is cut and warmed.
        "time": str(minutes - 10 if minutes > 20 else 5),
    }
    lines = [main.line, side.line, flavour.line, *kind.always]
    steps = [draw.choice(phrasings).format(**words) for phrasings in (*kind.steps, kind.ending)]
    return "\n".join(
        [
            f"{flavour.word} {main.name.title()} and {side.name.title()} {kind.name}",
            f"Serves {draw.choice((2, 4, 6))}. Takes {minutes} minutes.",
            "",
            "Ingredients:",
            *(f"- {line}" for line in lines),
            "",
            "Steps:",
            *(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
        ]
    )


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    print(f"{path.name}: {len(texts)} cards")


if __name__ == "__main__":
    main()
