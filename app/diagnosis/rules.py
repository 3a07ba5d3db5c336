"""The troubles of fine-tuning, recognised from a job's curves. Few rules, and silent when nothing is wrong.

Each rule looks at smoothed curves and at thresholds that noise does not reach; the recorded curves of
`tests/app/curves/` show each trouble and the health that must not be mistaken for one.
"""

import statistics
from collections.abc import Callable
from typing import Any

from app.diagnosis.course import Course, Point, smooth
from app.diagnosis.finding import Evidence, Finding, Remedy
from app.recipe import Recipe
from app.resolution import TOKENS_PER_MICRO_STEP, usual_rate

NEEDED = (
    "learning_rate", "num_epochs", "max_length", "train_batch_size", "gradient_accumulation_steps",
    "total_train_batch_size",
)  # fmt: skip
RISEN = 1.15  # a training loss that stands so far above its lowest has left it for good
WORSE = 1.03  # a validation loss that stands so far above its best is no noise
FELL_LITTLE = (
    0.1  # of the loss over the whole run, at a learning rate far below the usual: little was learned
)
FAR_BELOW = 10  # times
STILL_FALLING = 0.04  # in the loss, over the last fifth of the run: 4 % of perplexity, and more would come
FEW_STEPS = 20
SLOWED = 0.6  # the last quarter's speed as a share of the first's
SMALL_MICRO_STEP = 8  # times smaller than the device likes


def diagnose(course: Course) -> list[Finding]:
    """What is wrong, the gravest first; nothing where nothing is, and before the recipe is resolved."""
    if any(course.recipe.get(name) in (None, "auto") for name in NEEDED):
        return []
    rules: list[Callable[[Course], Finding | None]] = [warmup_longer_than_run, diverging, overfitting]
    found = [finding for rule in rules if (finding := rule(course))]
    if not found:  # a loss that rises, or a rate that never rose, is not cured by more of the same
        found = [finding for rule in (too_few_steps, underfitting) if (finding := rule(course))][:1]
    return found + [finding for rule in (never_stops, slow_training) if (finding := rule(course))]


def warmup_longer_than_run(course: Course) -> Finding | None:
    warmup = course.recipe.get("lr_scheduler_warmup_steps") or 0
    if not course.total_steps or warmup < 0.5 * course.total_steps:
        return None
    reached = min(1.0, course.total_steps / warmup)
    return Finding(
        "warmup_longer_than_run",
        f"Warm-up takes {warmup:,} of {course.total_steps:,} steps: the learning rate "
        + (
            f"gets only to {reached:.0%} of its peak." if reached < 1 else "is at its peak for a moment only."
        ),
        Evidence("learning_rate", [Point(min(warmup, course.total_steps), course.recipe["learning_rate"])]),
        [Remedy("Warm up over 5 % of the steps.", {"lr_scheduler_warmup_steps": "auto"})],
    )


def diverging(course: Course) -> Finding | None:
    rate, curve = course.recipe["learning_rate"], course.after_warmup()
    lowest = min(curve, key=lambda point: point.value, default=None)
    broke = course.error_code == "non_finite"
    rose = lowest is not None and len(curve) >= 4 and curve[-1].value > RISEN * lowest.value
    if not (broke or rose):
        return None
    marks = [lowest, curve[-1]] if lowest else []
    told = "The loss stopped being a number" if broke else "The training loss rose for good"
    risen = (
        f", from {lowest.value:.3f} at step {lowest.step:,} to {curve[-1].value:.3f}"
        if rose and lowest
        else ""
    )
    remedies = [Remedy("A third of the learning rate.", {"learning_rate": _round(rate / 3)})]
    if not course.recipe.get("max_grad_norm"):
        remedies.append(Remedy("Scale large gradients down.", {"max_grad_norm": 1.0}))
    if not course.recipe.get("lr_scheduler_warmup_steps"):
        slowly = {"lr_scheduler_warmup_steps": "auto"}
        if course.recipe.get("lr_scheduler_type") == "constant":  # which has no warm-up
            slowly["lr_scheduler_type"] = "constant_with_warmup"
        remedies.append(Remedy("Begin slowly.", slowly))
    return Finding("diverging", f"{told}{risen}: the steps are too large.", Evidence("loss", marks), remedies)


def overfitting(course: Course) -> Finding | None:
    curve = course.valid_loss
    if len(curve) < 3:
        return None
    best = min(curve, key=lambda point: point.value)
    last = curve[-1]
    trained = [point.value for point in smooth(course.loss) if point.step >= best.step]
    if last.value <= WORSE * best.value or len(trained) < 2 or trained[-1] >= trained[0]:
        return None
    recipe = course.recipe
    shorter = _length(course, max(best.step, 1) / max(1, course.total_steps))
    decay, dropout = recipe.get("weight_decay") or 0.0, recipe.get("dropout")
    return Finding(
        "overfitting",
        f"The model learns the texts by heart: since step {best.step:,} the validation loss rose from "
        f"{best.value:.3f} to {last.value:.3f} while the training loss went on falling.",
        Evidence("valid_loss", [best, last]),
        [
            Remedy("Fewer epochs: end where it was best.", shorter),
            Remedy(
                "Stop by itself and publish the best.",
                {"early_stopping_patience": 2, "load_best_model_at_end": True},
            ),
            Remedy("Weight decay.", {"weight_decay": min(1.0, max(0.1, 2 * decay))}),
            Remedy(
                "More dropout.", {"dropout": 0.2 if dropout in (None, "auto") else min(0.5, dropout + 0.1)}
            ),
        ],
    )


def too_few_steps(course: Course) -> Finding | None:
    if not 0 < course.total_steps < FEW_STEPS:
        return None
    batch = course.recipe["total_train_batch_size"]
    remedies = [Remedy("More passes over the data.", _length(course, 3))]
    if batch > 8:
        smaller = {
            "total_train_batch_size": max(8, batch // 4), "train_batch_size": "auto",
            "gradient_accumulation_steps": "auto",
        }  # fmt: skip
        remedies.append(Remedy("Smaller steps, and more of them.", smaller))
    says = f"{course.total_steps} steps of {batch} examples are too few to learn from."
    return Finding("too_few_steps", says, Evidence("loss", course.loss[-1:]), remedies)


def underfitting(course: Course) -> Finding | None:
    """Judged once the run is over, by the validation loss where there are enough points of it."""
    by_validation = len(course.valid_loss) >= 5
    curve = list(course.valid_loss) if by_validation else course.after_warmup()
    if not course.finished or len(curve) < 5:
        return None
    first, before, last = curve[0], curve[-1 - max(1, len(curve) // 5)], curve[-1]
    rate, usual = course.recipe["learning_rate"], _usual_rate(course)
    fell = max(0.0, 1 - last.value / first.value)
    if before.value - last.value >= STILL_FALLING:
        told = (
            f"The loss still fell in the last fifth of the run, from {before.value:.3f} to {last.value:.3f}"
        )
    elif usual and rate * FAR_BELOW < usual and fell < FELL_LITTLE:
        told = (
            f"The learning rate of {rate:g} is far below the {usual:.2g} usual for a model of this size, and"
            f" the loss fell by no more than {fell:.0%}"
        )
    else:
        return None
    higher = usual if usual and rate * FAR_BELOW < usual else 3 * rate
    return Finding(
        "underfitting",
        f"{told}: the model could learn more.",
        Evidence("valid_loss" if by_validation else "loss", [before, last]),
        [
            Remedy("A higher learning rate.", {"learning_rate": _round(min(10.0, higher))}),
            Remedy("Twice as long.", _length(course, 2)),
        ],
    )


def never_stops(course: Course) -> Finding | None:
    """Only where the training texts are short enough for a sample to end."""
    shares, facts = course.ended_shares, course.prepared
    mean = facts.get("total_tokens", 0) / max(1, facts.get("examples", 0))
    longest = course.recipe.get("sample_max_tokens") or 0
    if len(shares) < 2 or any(point.value for point in shares) or not 0 < 2 * mean <= longest:
        return None
    return Finding(
        "never_stops",
        f"No sample ended by itself within {longest} tokens, though the texts have {mean:.0f} on average.",
        Evidence("ended_share", shares[-2:]),
        [
            Remedy("Train longer: ends are learned late.", _length(course, 2)),
            Remedy("Look at the file's preview: does each row end where an answer should?", {}),
        ],
    )


def slow_training(course: Course) -> Finding | None:
    recipe, facts = course.recipe, course.prepared
    curve = smooth(course.speed)
    device = "cpu" if str(facts.get("device", "")).startswith("cpu") else "cuda"
    mean = facts.get("total_tokens", 0) / max(1, facts.get("examples", 0))
    micro = recipe["train_batch_size"] * mean
    liked = TOKENS_PER_MICRO_STEP[device]
    remedies, why = [], ""
    if 0 < micro * SMALL_MICRO_STEP < liked and recipe["gradient_accumulation_steps"] > 1:
        why = f"a micro-step has {micro:.0f} tokens, where the device likes {liked:,}"
        more = {"train_batch_size": "auto", "gradient_accumulation_steps": "auto"}
        same = {"total_train_batch_size": recipe["total_train_batch_size"]}
        remedies.append(Remedy("Larger micro-steps; the step stays as it is.", more | same))
    if not recipe["packing"] and mean * 2 < recipe["max_length"]:
        why = why or f"rows of {mean:.0f} tokens on average are filled up instead of packed"
        remedies.append(Remedy("Pack short texts together; the numbers stay the same.", {"packing": True}))
    if device == "cuda" and facts.get("precision") == "fp32":
        why = why or "the GPU computes in fp32"
        remedies.append(Remedy("Mixed precision.", {"mixed_precision_training": "auto"}))
    if not remedies and len(curve) >= 8:
        quarter = len(curve) // 4
        began, ends = (
            statistics.median(p.value for p in part) for part in (curve[:quarter], curve[-quarter:])
        )
        if ends < SLOWED * began:
            why = f"speed fell from {began:,.0f} to {ends:,.0f} tokens/s: something else uses the machine"
            remedies.append(Remedy("Give the job a machine of its own.", {}))
    if not remedies:
        return None
    return Finding("slow_training", f"Training is slower than it need be: {why}.", _speed(curve), remedies)


def _usual_rate(course: Course) -> float | None:
    parameters = course.prepared.get("parameters")
    return usual_rate(Recipe.model_construct(**course.recipe), parameters) if parameters else None


def _speed(curve: list[Point]) -> Evidence:
    return Evidence("tokens_per_second", curve[-1:])


def _length(course: Course, factor: float) -> dict[str, Any]:
    """A run so many times as long, said the way this one's length was said."""
    steps = course.recipe.get("max_steps")
    if steps:
        return {"max_steps": max(1, round(factor * steps))}
    return {"num_epochs": _round(factor * course.recipe["num_epochs"])}


def _round(value: Any) -> float:
    """Two digits: nobody means 0.00016666."""
    return float(f"{value:.2g}")
