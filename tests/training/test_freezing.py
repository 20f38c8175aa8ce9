import jax
import numpy as np
import pytest
from trainer import Trainer, distance, make_batch

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.parts import check_patterns, list_paths, merge, split
from deeplab_jax.training.state import from_trees, state_digest, to_trees

STATISTICS = ("backbone/.*/(mean|var)",)
BACKBONE = (("frozen", ("backbone",)), ("lr_factors", (("classifier", 0.5),)), ("clip_norm", 0.5))


def run(steps=2, **settings):
    """Return the state before and after a few steps, as {path: array}."""
    trainer = Trainer(**settings)
    states = [trainer.get()]
    for seed in range(steps):
        trainer.run(make_batch(seed, n=settings.get("n", 4)))
    states.append(trainer.get())
    return [
        {path: np.asarray(x) for tree in (s.params, s.batch_stats) for path, x in flatten(tree).items()} for s in states
    ], states


def flatten(tree):
    return dict(zip(list_paths(tree), jax.tree.leaves(tree), strict=True))


def test_a_frozen_backbone_stays_as_it_is():
    (before, after), (_, state) = run(optim=BACKBONE)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if not path.startswith("backbone")}
    leaves = jax.tree_util.tree_leaves_with_path((state.opt_state, state.ema_params))
    assert leaves
    assert not [path for path, _ in leaves if "backbone" in str(path)]  # neither momentum nor a moving average
    assert state_digest(from_trees(to_trees(state))) == state_digest(state)


@pytest.mark.slow
def test_frozen_statistics_are_used_in_training_and_do_not_change_what_the_heads_learn():
    """Whether the backbone learns has no effect on the heads' first update."""
    (before, all_but_statistics), _ = run(1, optim=(("frozen", STATISTICS),))
    (_, heads), _ = run(1, optim=(("frozen", ("backbone",)),))
    (_, everything), _ = run(1)
    for path in before:
        if "/mean" in path or "/var" in path:
            assert np.array_equal(all_but_statistics[path], before[path]) == path.startswith("backbone")
        elif path.startswith("backbone"):
            assert not np.array_equal(all_but_statistics[path], before[path])
        else:
            np.testing.assert_allclose(all_but_statistics[path], heads[path], atol=1e-6)  # float32 rounding
    # With batch statistics, the features have another scale.
    updates = (x["classifier/kernel"] - before["classifier/kernel"] for x in (everything, heads))
    assert distance(*updates) > 0.1


@pytest.mark.slow
def test_one_image_is_enough_for_frozen_statistics():
    trainer = Trainer(optim=(("frozen", (".*/(mean|var)",)),))
    row = trainer.run(make_batch(n=1))
    assert np.isfinite(row["loss"])
    assert not [x for x in jax.tree.leaves(trainer.get().params) if not np.isfinite(x).all()]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"data": 2, "spatial": 2}, {"micro_batches": 2}], ids=["devices", "micro-batches"])
def test_freezing_does_not_depend_on_devices_or_micro_batches(settings):
    """All statistics are frozen, because BatchNorm normalises each micro-batch separately."""
    optim = (("frozen", ("backbone/stage[12]", ".*/(mean|var)")), ("clip_norm", 0.5))
    (_, single), _ = run(optim=optim)
    (_, other), _ = run(optim=optim, **settings)
    assert distance(other, single) < 1e-4  # float32 sums are computed in a different order


VARIABLES = {
    "params": {"backbone": {"bn": {"scale": 0, "bias": 0}}, "classifier": {"kernel": 0}},
    "batch_stats": {"backbone": {"bn": {"mean": 0, "var": 0}}},
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"frozen": ("backbon/",)},
            r"`optim.frozen` \(=\('backbon/',\)\) contains 'backbon/', which matches none.*such as backbone/bn",
        ),
        ({"lr_factors": (("head", 2.0),)}, r"`optim.lr_factors`.*'head'.*start with backbone, classifier"),
        ({"no_decay": (".*/mean",)}, r"`optim.no_decay`"),
        ({"frozen": (".*",)}, "matches all parameters"),
        ({"frozen": ("backbone",), "lr_factors": (("backbone", 0.1),)}, "`optim.lr_factors`.*trained parameters"),
        ({"frozen": ("backbone",), "layer_decay": 0.9}, "`optim.layer_decay`.*whole backbone is frozen"),
        ({"frozen": (".*/mean",)}, r"matches backbone/bn/mean, but not backbone/bn/var\. Match both"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        check_patterns(OptimConfig(**fields), VARIABLES)


def test_split_and_merge_are_inverse():
    tree = VARIABLES["params"]
    rest, selected = split(tree, ("backbone/bn/scale",))
    assert selected == {"backbone": {"bn": {"scale": 0}}}
    assert rest == {"backbone": {"bn": {"bias": 0}}, "classifier": {"kernel": 0}}
    assert merge(rest, selected) == tree
    assert split(tree, ()) == (tree, {})
