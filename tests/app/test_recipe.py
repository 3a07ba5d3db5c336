import pytest

from app.recipe import Batch, Method, Recipe, RecipeError

CARD = {
    "learning_rate": 0.0005,
    "train_batch_size": 64,
    "eval_batch_size": 64,
    "seed": 42,
    "gradient_accumulation_steps": 8,
    "total_train_batch_size": 512,
    "optimizer": "Adam with betas=(0.9,0.98) and epsilon=1e-07",
    "lr_scheduler_type": "cosine",
    "lr_scheduler_warmup_steps": 1000,
    "num_epochs": 20,
    "mixed_precision_training": "Native AMP",
}


def refusal(hyperparameters: dict[str, object]) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_request(hyperparameters)
    return caught.value


def test_a_pasted_model_card_is_a_recipe() -> None:
    recipe = Recipe.from_request(CARD)
    assert (recipe.learning_rate, recipe.num_epochs, recipe.lr_scheduler_warmup_steps) == (0.0005, 20, 1000)
    assert recipe.optimizer == "adamw"
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.adam_epsilon) == (0.9, 0.98, 1e-7)
    assert recipe.batch(10**6, 50, 4096) == Batch(64, 8, 512)


def test_the_newer_cards_optimizer_line_is_read_too() -> None:
    line = "Use adamw_torch_fused with betas=(0.8,0.95) and epsilon=1e-06 and optimizer_args=No additional"
    recipe = Recipe.from_request({"optimizer": line})
    assert (recipe.optimizer, recipe.adam_beta1, recipe.adam_epsilon) == ("adamw", 0.8, 1e-6)


def test_openai_names_map_onto_card_names() -> None:
    recipe = Recipe.from_request({"n_epochs": 4, "batch_size": 16, "learning_rate_multiplier": 2})
    assert (recipe.num_epochs, recipe.total_train_batch_size, recipe.learning_rate_multiplier) == (4, 16, 2)
    assert Recipe.from_request({"n_epochs": "auto", "batch_size": "auto"}) == Recipe()


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("n_epochs", 51, "num_epochs"),
        ("batch_size", 257, "total_train_batch_size"),
        ("n_epochs", True, "num_epochs"),
    ],
)
def test_openai_names_keep_openai_ranges_and_tell_the_way_out(name: str, value: object, other: str) -> None:
    error = refusal({name: value})
    assert (error.field, error.code) == (name, "invalid_value")
    assert other in error.message


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learnin_rate", "learning_rate"),
        ("epochs", "num_epochs"),
        ("warmup_steps", "lr_scheduler_warmup_steps"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_name(wrong: str, right: str) -> None:
    error = refusal({wrong: 1})
    assert (error.field, error.code) == (wrong, "unknown_parameter")
    assert f"'{right}'" in error.message


@pytest.mark.parametrize(
    ("hyperparameters", "field"),
    [
        ({**CARD, "total_train_batch_size": 500}, "total_train_batch_size"),
        ({"train_batch_size": 4, "batch_size": 10}, "batch_size"),
        ({"n_epochs": 3, "num_epochs": 4}, "num_epochs"),
        ({"learning_rate": 1e-4, "learning_rate_multiplier": 2}, "learning_rate_multiplier"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_warmup_steps": 10}, "lr_scheduler_type"),
        ({"lr_scheduler_warmup_ratio": 0.1, "lr_scheduler_warmup_steps": 10}, "lr_scheduler_warmup_ratio"),
        ({"lora_alpha": 16}, "lora_rank"),
    ],
)
def test_a_contradiction_is_refused_under_the_name_that_was_written(
    hyperparameters: dict[str, object], field: str
) -> None:
    error = refusal(hyperparameters)
    assert (error.field, error.code) == (field, "contradictory_value")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", "fast"),
        ("learning_rate", float("nan")),
        ("seed", -1),
        ("seed", 1.5),
        ("num_epochs", True),
        ("optimizer", "lion"),
        ("mixed_precision_training", "fp8"),
        ("sample_prompts", [""]),
        ("lora_rank", 0),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(name: str, value: object) -> None:
    error = refusal({name: value})
    assert (error.field, error.code) == (name, "invalid_value")
    assert name in error.message


def test_beta_makes_a_recipe_one_for_preference_pairs() -> None:
    recipe = Recipe.from_request({"beta": 0.5, "n_epochs": 2}, "dpo")
    assert (recipe.method, recipe.beta, recipe.num_epochs) == ("dpo", 0.5, 2)
    assert (recipe.excess_length, recipe.dropout) == ("truncate", 0.0)
    assert Recipe.from_request({}, "dpo").beta == Recipe.from_request({"beta": None}, "dpo").beta == "auto"
    assert Recipe.from_request({"dropout": 0.1, "excess_length": "drop"}, "dpo").dropout == 0.1
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert (Recipe().method, Recipe().beta, Recipe().excess_length) == ("supervised", None, "split")


@pytest.mark.parametrize(
    ("method", "hyperparameters", "field", "code"),
    [
        ("supervised", {"beta": 0.1}, "beta", "contradictory_value"),
        ("dpo", {"beta": 0}, "beta", "invalid_value"),
        ("dpo", {"beta": 2.1}, "beta", "invalid_value"),
        ("dpo", {"beta": "high"}, "beta", "invalid_value"),
        ("dpo", {"excess_length": "split"}, "excess_length", "contradictory_value"),
        ("dpo", {"train_on_inputs": True}, "train_on_inputs", "contradictory_value"),
        ("dpo", {"method": "supervised"}, "method", "unknown_parameter"),
    ],
)
def test_what_makes_no_sense_for_pairs_is_refused(
    method: Method, hyperparameters: dict[str, object], field: str, code: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_request(hyperparameters, method)
    assert (caught.value.field, caught.value.code) == (field, code)


def test_a_recipe_survives_json() -> None:
    recipe = Recipe.from_request(
        {**CARD, "sample_prompts": ["a", "b"], "lora_rank": 4, "lora_targets": ["c_attn"]}
    )
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_every_field_says_what_it_means() -> None:
    assert [name for name, field in Recipe.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("recipe", "examples", "batch"),
    [
        (Recipe(), 100, Batch(8, 1, 8)),
        (Recipe(), 14_600, Batch(32, 1, 32)),
        (Recipe(), 10**6, Batch(64, 1, 64)),
        (Recipe(total_train_batch_size=512), 10**6, Batch(64, 8, 512)),
        (Recipe(total_train_batch_size=512, num_devices=2), 10**6, Batch(64, 4, 512)),
        (Recipe(train_batch_size=4, gradient_accumulation_steps=3), 10**6, Batch(4, 3, 12)),
        (Recipe(gradient_accumulation_steps=3), 10**6, Batch(22, 3, 66)),
        (Recipe(total_train_batch_size=10, num_devices=4), 10**6, Batch(3, 1, 10)),
    ],
)
def test_batch_sizes_left_open_are_resolved_to_fit(recipe: Recipe, examples: int, batch: Batch) -> None:
    assert recipe.batch(examples, tokens_per_example=45, tokens_per_micro_step=4096) == batch
