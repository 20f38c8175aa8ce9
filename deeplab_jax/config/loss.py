"""The part of the config that describes the loss."""

import dataclasses
from collections.abc import Callable

from deeplab_jax.config.fields import Check, are_one_or_more_numbers, are_strings, at_least, below_one, field, one_of


def _has_term(name: str) -> Callable[["LossConfig"], bool]:
    return lambda loss: name in loss.terms


@dataclasses.dataclass(slots=True)
class LossConfig:
    """The loss terms and their settings. A setting that no chosen term reads is an error."""

    terms: tuple[str, ...] = field(
        ("cross_entropy",),
        "Names of the losses to add up. `LOSSES` in deeplab_jax/losses lists all names.",
        Check(
            lambda names: are_strings(names) and len(names) > 0,
            "Give the names of one or more losses: --config.loss.terms=\"('cross_entropy','dice')\".",
        ),
    )
    weights: tuple[float, ...] = field(
        (1.0,),
        "Weight of each loss in `loss.terms`, in the same order.",
        Check(
            lambda weights: are_one_or_more_numbers(weights) and min(weights) >= 0 < max(weights),
            "Give non-negative numbers. At least one must be above 0.",
        ),
    )
    aux_weight: float = field(
        0.4,
        "Weight of the auxiliary head's loss. The main head's loss has weight 1.",
        at_least(0, "Use a number of at least 0."),
    )
    class_weights: tuple[float, ...] = field(
        (),
        "Weight of each class in the cross-entropy, in train id order. () gives all classes the same weight. "
        "`deeplab-jax data check` prints suggestions.",
        is_used=_has_term("cross_entropy"),
    )
    label_smoothing: float = field(
        0.0,
        "Label smoothing in the cross-entropy: the fraction of the target distribution spread evenly over all classes.",
        below_one(),
        is_used=_has_term("cross_entropy"),
    )
    relax_border: int = field(
        0,
        "Boundary relaxation in the cross-entropy: a pixel may have any class that is at most this many pixels away in each "
        "direction, and its loss is -log of the sum of their probabilities. NVIDIA uses 1. 0 turns it off.",
        Check(lambda border: 0 <= border <= 10, "Use a number of pixels from 0 to 10."),
        is_used=_has_term("cross_entropy"),
    )
    ohem_threshold: float = field(
        0.0,
        "Probability threshold for online hard example mining (OHEM) in the main head's cross-entropy. Only pixels whose "
        "predicted probability for the true class is below the threshold contribute to the loss. If fewer than "
        "`loss.ohem_min_kept` pixels per image qualify, the next hardest pixels are added. 0 uses all pixels.",
        Check(lambda threshold: 0 <= threshold <= 1, "Use a probability from 0 to 1. 0 uses all pixels."),
        is_used=_has_term("cross_entropy"),
    )
    ohem_min_kept: int = field(
        100_000,
        "Minimum number of pixels per image that online hard example mining keeps, on average over the batch. The hardest "
        "pixels in the batch are kept, so an individual image can contribute fewer.",
        at_least(0, "Use a number of at least 0."),
        is_used=_has_term("cross_entropy"),
    )
    focal_gamma: float = field(
        2.0,
        "Exponent of 1 - p in the focal loss, where p is the probability of a pixel's class. Larger values give less weight to "
        "pixels that are already right.",
        at_least(0, "Use a number of at least 0. The paper uses 2."),
        is_used=_has_term("focal"),
    )
    normalizer: str = field(
        "valid",
        "Divisor for the cross-entropy summed over pixels. `valid` divides by the number of pixels that count, or by "
        "the sum of their class weights if these are set. `all` divides by the total number of pixels in the batch, like "
        "mmsegmentation with avg_non_ignore=False.",
        one_of("valid", "all"),
        is_used=_has_term("cross_entropy"),
    )
