import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import smallest_model
from trainer import LABELS, LR, Pixels, Trainer, distance, make_batch

from deeplab_jax.checkpoints.store import Checkpoints
from deeplab_jax.config import Config, DataConfig, LossConfig, OptimConfig
from deeplab_jax.training.mixing import mix
from deeplab_jax.training.state import from_trees, state_digest, to_trees


def test_one_batch_is_learnt_to_near_zero_loss_with_one_compilation():
    # Heads of four channels need a large rate to get from the initial kernels to a loss near zero in 100 steps.
    trainer, fixed = Trainer(optim=(("lr", 8 * LR),)), make_batch()
    rows = [trainer.run(fixed) for _ in range(100)]
    assert rows[0]["loss"] > 1.0  # chance level is (1 + 0.4) log 3, because the auxiliary head has weight 0.4
    assert rows[-1]["loss"] < 0.1
    assert rows[-1]["accuracy"] > 0.97
    assert int(trainer.state.step) == 100
    assert trainer.step._cache_size() == 1


def assert_only_counters_moved(before, after, skipped):
    assert after.step == before.step + 1
    count = functools.partial(optax.tree.get, key="count")
    assert count(after.opt_state) == count(before.opt_state) + 1  # the learning rate depends on the step number
    assert after.skipped == before.skipped + skipped
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if old.dtype != np.int32:
            np.testing.assert_array_equal(new, old)


def test_a_batch_without_labelled_pixels_only_advances_the_step():
    trainer = Trainer()
    trainer.run(make_batch())  # non-zero momentum and statistics would change even with zero gradients
    for empty in ({"label": np.full((4, 64, 32), 255, np.uint8)}, {"valid": np.zeros(4, bool)}):
        before = trainer.get()
        row = trainer.run(make_batch() | empty)
        assert row["loss"] == row["grad_norm"] == row["skipped"] == row["labelled"] == 0
        assert_only_counters_moved(before, trainer.get(), skipped=0)


def test_an_update_that_is_not_finite_is_not_applied():
    trainer = Trainer()
    good = trainer.get()
    kernel = good.params["classifier"]["kernel"].copy()
    kernel[0, 0, 0, 0] = np.inf  # one infinite weight is enough
    bad = good.replace(params=good.params | {"classifier": good.params["classifier"] | {"kernel": kernel}})
    trainer.put(bad)
    row = trainer.run(make_batch())
    assert not np.isfinite([row["loss"], row["grad_norm"]]).all()
    assert row["skipped"] == 1
    assert_only_counters_moved(bad, trainer.get(), skipped=1)


def test_grad_norm_is_the_norm_of_the_full_gradient():
    trainer = Trainer()
    before = trainer.get().params
    row = trainer.run(make_batch())
    moved = jax.tree.map(lambda old, new: (old - new) / LR, before, trainer.get().params)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(moved)))
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-3)  # differences between float32 parameters are imprecise


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"data": 4}, id="data"),
        pytest.param({"data": 2, "spatial": 2, "height": 65, "dropout": 0.3}, id="odd number of rows", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_the_same_on_four_devices(settings):
    height = settings.get("height", 64)
    single, distributed = Trainer(**settings | {"data": 1, "spatial": 1}), Trainer(**settings)
    for seed in range(3):
        a, b = single.run(make_batch(seed, height=height)), distributed.run(make_batch(seed, height=height))
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    # Float32 sums are computed in a different order on several devices.
    assert distance(distributed.get().params, single.get().params) < 1e-4


IMAGES, ROWS = {"data": 4, "remat": (3, 4)}, {"data": 2, "spatial": 2}
RESNEXT = {"backbone": "resnext50_32x4d"}
DEPTHWISE = {"backbone": "seven_bottlenecks", "width": 2, "aspp_width": 2, "aspp_conv": "depthwise+bn+relu+1x1", "dropout": 0.2}


@pytest.mark.long
@pytest.mark.parametrize(("switches", "settings"), [(RESNEXT, IMAGES), (RESNEXT, ROWS), (DEPTHWISE, ROWS)])
def test_grouped_convolutions_are_the_same_on_four_devices(switches, settings):
    # In float32, rounding decides whether ReLU passes the gradient of an activation near 0, which matters in so many layers.
    with jax.enable_x64(True):
        switches = switches | {"dtype": "float64"}
        single, distributed = Trainer(**switches), Trainer(**switches | settings)
        single.run(make_batch())
        distributed.run(make_batch())
        # The parameters are float32.
        assert distance(distributed.get().params, single.get().params) < 2**-23


@pytest.mark.parametrize(
    "switches",
    [
        pytest.param({"backbone": "four_blocks", "shortcut": "avgpool+1x1", "decoder_width": 8}, marks=pytest.mark.slow),
        pytest.param({"backbone": "mobilenetv3_large"}, marks=pytest.mark.long),
        pytest.param({"backbone": "xception41", "decoder_width": 8}, marks=pytest.mark.long),
    ],
    ids=["resnet", "mobilenet", "xception"],
)
def test_rematerialised_stages_change_nothing(switches):
    plain, again = Trainer(**switches), Trainer(**switches, remat=(1, 2, 3, 4))
    assert jax.tree.structure(plain.state) == jax.tree.structure(again.state)
    assert plain.run(make_batch())["loss"] == pytest.approx(again.run(make_batch())["loss"], rel=1e-6)
    assert distance(again.get().params, plain.get().params) < 1e-6


@pytest.mark.slow
def test_micro_batches_with_equal_statistics_match_the_full_batch():
    twice = {name: x.repeat(2, 0) for name, x in make_batch(n=2).items()}  # both micro-batches get the same images
    # The parts have different numbers of labelled pixels, so a separate divisor per part would change the loss.
    twice["label"][::2, 10:] = 255
    # Use float64, because a rounding difference at a ReLU can change a float32 gradient by up to 1e-3.
    with jax.enable_x64(True):
        full, parts = Trainer(dtype="float64"), Trainer(dtype="float64", micro_batches=2)
        for trainer in (full, parts):
            trainer.put(jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, trainer.get()))
        assert full.run(twice) == pytest.approx(parts.run(twice), rel=1e-9)
        assert distance(parts.get().params, full.get().params) < 1e-9
        means = [trainer.get().batch_stats["aspp"]["fuse"]["bn"]["mean"] for trainer in (parts, full)]
        assert distance(*means) < 1e-9


@pytest.mark.slow
def test_micro_batches_do_not_depend_on_the_devices():
    single, distributed = Trainer(micro_batches=2), Trainer(data=2, micro_batches=2)
    assert single.run(make_batch())["loss"] == pytest.approx(distributed.run(make_batch())["loss"], rel=1e-4)
    assert distance(distributed.get().params, single.get().params) < 1e-4  # the float32 summation order differs


WEIGHTED = (("class_weights", (0.5, 2.0, 1.5)), ("label_smoothing", 0.1))
MINED = (*WEIGHTED, ("ohem_threshold", 0.2), ("ohem_min_kept", 900))
ALL = ("normalizer", "all")


def partly_ignored(height=64):
    rng = np.random.default_rng(5)
    sample = make_batch(height=height)
    label = np.where(rng.random(sample["label"].shape) < 0.2, 255, sample["label"])
    image = rng.integers(0, 256, sample["image"].shape)
    return sample | {"label": label.astype(np.uint8), "image": image.astype(np.uint8), "valid": np.arange(4) != 2}


def compute_head_loss(logits, sample, loss):
    """Compute one head's loss in float64 from logits at feature resolution. Hard pixels are found by sorting."""
    n, height, width = sample["label"].shape
    logits = jax.image.resize(logits, (n, height, width, 3), "bilinear", antialias=False)
    logits = np.float64(logits[sample["valid"]])
    labels = sample["label"][sample["valid"]]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weights = np.array(loss.class_weights or (1.0, 1.0, 1.0))
    kept = labels != 255
    targets = np.where(kept, labels, 0)
    label_log_p = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    if loss.ohem_threshold:
        ordered = np.sort(np.exp(label_log_p[kept]))
        at_least = ordered[min(loss.ohem_min_kept * len(labels), len(ordered) - 1)]
        assert at_least > loss.ohem_threshold  # the threshold must be raised to keep enough pixels
        kept &= np.exp(label_log_p) < at_least
    per_pixel = (1 - loss.label_smoothing) * weights[targets] * label_log_p
    per_pixel += loss.label_smoothing * (weights * log_p).mean(-1)
    counted = np.where(labels != 255, weights[targets], weights.mean()) if loss.normalizer == "all" else weights[targets] * kept
    return -np.sum(per_pixel * kept) / counted.sum()


@pytest.mark.slow
@pytest.mark.parametrize("loss", [(*WEIGHTED, ALL), MINED], ids=["all", "mined"])
def test_the_loss_matches_a_reference_on_any_mesh(loss):
    """Only the main head uses hard-pixel mining."""
    sample, settings = partly_ignored(height=65), LossConfig(**dict(loss))
    single = Trainer(network=Pixels, loss=loss, height=65)
    model, params = Pixels(smallest_model(), 3), single.get().params
    mean, std = (np.array(x, np.float32) for x in (model.config.mean, model.config.std))
    outputs = model.apply({"params": params, "batch_stats": {"none": 0.0}}, (sample["image"] - mean) / std, True)
    aux_settings = dataclasses.replace(settings, ohem_threshold=0.0)
    expected = compute_head_loss(outputs.logits, sample, settings) + 0.4 * compute_head_loss(outputs.aux, sample, aux_settings)
    row = single.run(sample)
    assert row["loss"] == pytest.approx(expected, rel=1e-5)  # float32 rounding
    for data, spatial in ((4, 1), (2, 2)):
        distributed = Trainer(network=Pixels, loss=loss, height=65, data=data, spatial=spatial)
        assert distributed.run(sample) == pytest.approx(row, rel=1e-5)
        assert distance(distributed.get().params, single.get().params) < 1e-6


@pytest.mark.parametrize("settings", [{}, {"data": 2, "spatial": 2}, {"micro_batches": 2}])
def test_colours_are_distorted_on_the_device_before_the_network_sees_them(settings):
    sample = partly_ignored(height=65)
    sample["image"] = sample["image"] // 2
    factors = np.array([[10 * i, 1, 1, 0, 0] for i in range(4)], np.float32)  # one brightness offset per image
    brighter = sample | {"image": sample["image"] + factors[:, :1, None, None].astype(np.uint8)}
    plain = Trainer(network=Pixels, height=65, **settings).run(brighter)
    distorted = Trainer(network=Pixels, height=65, photometric=True, **settings).run(sample | {"photometric": factors})
    assert distorted == pytest.approx(plain, rel=1e-6)  # float32 rounding


MIXING = (("class_mix", 0.5), ("copy_paste", 0.5), ("copy_paste_classes", ("c",)))


@pytest.mark.parametrize("settings", [{}, {"data": 2, "spatial": 2}, {"micro_batches": 2}])
def test_the_batch_is_mixed_before_it_is_distorted_and_split(settings):
    config = Config(labels=LABELS, data=DataConfig(**dict(MIXING)))
    sample = partly_ignored(height=65) | {"photometric": np.array([[10, 1.1, 0.7, 9, i % 2] for i in range(4)], np.float32)}
    plain = Trainer(network=Pixels, height=65, photometric=True, **settings)
    mixing = Trainer(network=Pixels, height=65, photometric=True, mixing=MIXING, **settings)
    for step in range(3):
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        image, label = mix(*(jnp.array(sample[name]) for name in ("image", "label", "valid")), key, config)
        assert step or (label != sample["label"]).any()
        mixed = sample | {"image": np.asarray(image), "label": np.asarray(label)}
        assert mixing.run(sample) == pytest.approx(plain.run(mixed), rel=1e-6)  # float32 rounding


def test_micro_batches_share_the_divisor_of_class_weights():
    sample = partly_ignored()
    sample["label"][::2, 10:] = 255
    full, parts = (Trainer(network=Pixels, loss=(*WEIGHTED, ALL), micro_batches=count) for count in (1, 2))
    assert full.run(sample) == pytest.approx(parts.run(sample), rel=1e-5)
    assert distance(parts.get().params, full.get().params) < 1e-6


BOTH = (("terms", ("cross_entropy", "dice")), ("weights", (1.0, 0.5)))

# Losses that couple the pixels of an image, also across split rows.
COUPLED = (
    ("terms", ("cross_entropy", "dice", "rmi")),
    ("weights", (1.0, 0.5, 0.5)),
    ("relax_border", 1),
    ("class_weights", (0.5, 2.0, 1.5)),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"data": 4}, {"data": 2, "spatial": 2}, {"micro_batches": 2}, {"data": 2, "micro_batches": 2}]
)
def test_a_sum_of_losses_depends_neither_on_devices_nor_on_micro_batches(settings):
    single, distributed = (Trainer(network=Pixels, loss=COUPLED, height=65, **each) for each in ({}, settings))
    sample = partly_ignored(height=65)
    sample["label"][1] = 255  # an image without labelled pixels
    for _ in range(3):
        assert distributed.run(sample) == pytest.approx(single.run(sample), rel=1e-5)  # float32 rounding
    assert distance(distributed.get().params, single.get().params) < 1e-6


def test_a_sum_of_losses_is_weighted():
    sample = partly_ignored()
    both, first, second = (
        Trainer(network=Pixels, loss=loss).run(sample)["loss"] for loss in (BOTH, (), (("terms", ("dice",)),))
    )
    assert both == pytest.approx(first + 0.5 * second, rel=1e-6)  # float32 rounding


ADAMW = (("name", "adamw"), ("schedule", "cosine"), ("lr", 1e-2), ("weight_decay", 0.05))


def test_a_run_with_adamw_and_cosine_learns_and_resumes_bit_for_bit(tmp_path):
    full, parts = (Trainer(network=Pixels, optim=ADAMW) for _ in range(2))
    rows = [full.run(make_batch()) for _ in range(40)]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    for _ in range(20):
        parts.run(make_batch())
    config = Config(optim=OptimConfig(ema_decay=0.15))
    with Checkpoints(str(tmp_path), config) as checkpoints:
        checkpoints.save(to_trees(parts.state), 20)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), parts.state)
    with Checkpoints(str(tmp_path), config) as checkpoints:
        step, trees = checkpoints.restore(to_trees(abstract))
    assert step == 20
    parts.put(from_trees(trees))
    for _ in range(20):
        parts.run(make_batch())
    assert state_digest(parts.get()) == state_digest(full.get())


def test_mining_does_not_hide_an_update_that_is_not_finite():
    trainer = Trainer(network=Pixels, loss=MINED, height=65)
    good = trainer.get()
    bad = good.replace(params=jax.tree.map(lambda x: np.full_like(x, np.nan), good.params))
    trainer.put(bad)
    assert trainer.run(partly_ignored(height=65))["skipped"] == 1
    assert_only_counters_moved(bad, trainer.get(), skipped=1)


def test_the_moving_average_matches_hand_computed_values():
    trainer = Trainer()
    params = [trainer.get().params]
    for seed in range(2):
        trainer.run(make_batch(seed))
        params.append(trainer.get().params)
    # The decays are min(0.15, 1 / 10) and min(0.15, 2 / 11).
    expected = jax.tree.map(lambda a, b, c: 0.15 * (0.1 * a + 0.9 * b) + 0.85 * c, *params)
    assert distance(trainer.get().ema_params, expected) < 1e-6


@pytest.mark.slow
def test_bfloat16_learns():
    trainer = Trainer(data=2, spatial=2, dtype="bfloat16")
    rows = [trainer.run(make_batch()) for _ in range(30)]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(trainer.get()))


@pytest.mark.slow
def test_settings_of_jax_do_not_change_dropout_and_mixing():
    settings = {"dropout": 0.5, "mixing": (("class_mix", 1.0),)}
    expected = Trainer(**settings).run(make_batch())
    changed = Trainer(aux_dropout=0.0, **settings)  # the same step, but not the same entry of the cache, so it is traced again
    with jax.default_prng_impl("rbg"), jax.threefry_partitionable(False), jax.enable_x64(True):
        assert changed.run(make_batch())["loss"] == pytest.approx(expected["loss"], rel=1e-5)
