"""The recipe for whoever makes a form of it: every field, presets, and model cards read."""

from dataclasses import asdict

from fastapi import APIRouter
from pydantic import Field

from app import card
from app.access import needs
from app.audit import changes_nothing
from app.body import Body
from app.hyperparameters import OPENAI_NAMES
from app.presets import PARTS, PRESETS
from app.recipe import Recipe
from app.tables import JsonObject

router = APIRouter(prefix="/fine_tuning/recipe", tags=["fine-tuning"], dependencies=[needs("jobs")])


class CardRequest(Body):
    """A model card, or the lines of its hyperparameters alone."""

    card: str = Field(min_length=1, max_length=1_000_000, description="Markdown")


@router.get("")
async def describe_recipe() -> JsonObject:
    """Every hyperparameter a job may ask for: `schema` is a JSON schema with default, range and meaning of
    each, `parts` puts them in groups, `presets` are recipes to begin with, `aliases` the names under which
    OpenAI's API has some of them.
    """
    names = list(Recipe.model_fields)
    begins = [names.index(first) for _, first in PARTS] + [len(names)]
    return {
        "object": "fine_tuning.recipe",
        "schema": Recipe.model_json_schema(),
        "parts": [
            {"title": title, "fields": names[begins[place] : begins[place + 1]]}
            for place, (title, _) in enumerate(PARTS)
        ],
        "presets": [asdict(preset) for preset in PRESETS],
        "aliases": OPENAI_NAMES,
    }


@router.post("/card")
@changes_nothing
async def read_card(body: CardRequest) -> JsonObject:
    """What the block "Training hyperparameters" of a model card asks for, under the recipe's names.

    `{"card": "- learning_rate: 0.0005\\n- num_epochs: 20\\n- distributed_type: multi-GPU"}` is answered with
    `{"object": "fine_tuning.recipe.card", "hyperparameters": {"learning_rate": 0.0005, "num_epochs": 20},
    "ignored": ["distributed_type"], …}`. Whether the values can be meant, a job's `dry_run` says.

    `remarks` tells of each line that was not taken as it stands (`name`, `value`, `says`), and whether the
    result may be another one for it (`changes`); `base_model` is the one that the card's head names, or null.
    """
    found = card.read(body.card)
    return {
        "object": "fine_tuning.recipe.card",
        "hyperparameters": found.hyperparameters,
        "ignored": found.ignored,
        "remarks": [asdict(remark) for remark in found.remarks],
        "base_model": found.base_model,
    }
