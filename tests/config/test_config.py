import dataclasses
import importlib.util
import math
import pathlib

import numpy as np
import pytest
from absl import flags
from conftest import CONFIGS, RECIPES
from ml_collections import config_flags

from deeplab_jax.config import (
    Config,
    DataConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    aspp_rates,
    count_by_split,
    from_dict,
    last_stage_rates,
    multi_grid_units,
    smallest_batch,
    to_dict,
    total_steps,
)
from deeplab_jax.config.fields import find_unused
from deeplab_jax.config.validation import validate_fields
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CAMVID11, LabelSet
from deeplab_jax.labels.files import write_labels
from deeplab_jax.models import validate


def load_recipe(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_survives_json_and_documents_its_command(path):
    recipe = load_recipe(path)
    config = validate(recipe.get_config())
    assert from_dict(to_dict(config)) == config
    assert path.stem in recipe.__doc__ or "make quickstart" in recipe.__doc__


@pytest.mark.parametrize("name", ["custom", "custom_lite0"])
def test_the_recipes_for_custom_data_read_a_label_set_by_name_or_from_a_file(name, tmp_path):
    recipe = load_recipe(CONFIGS / f"{name}.py")
    labels = LabelSet("pets", ("cat", "dog"), ((1, 1, 1), (2, 2, 2)), ids=(3, 7))
    write_labels(tmp_path / "labels.json", labels)
    config = validate(recipe.get_config(str(tmp_path / "labels.json")))
    assert config.labels == labels
    assert from_dict(to_dict(config)) == config
    assert recipe.get_config("ade20k").labels.num_classes == 150
    with pytest.raises(ConfigError, match="data labels ROOT"):
        recipe.get_config()


@pytest.mark.parametrize(
    ("multi_grid", "output_stride", "rates"),
    [
        ((0.5, 1, 1), 32, (1, 1, 1)),  # the undilated network
        ((0.5, 1, 1), 16, (1, 2, 2)),  # torchvision and mmsegmentation: the first block keeps the previous stage's rate
        ((0.5, 1, 1), 8, (2, 4, 4)),
        ((1, 2, 4), 16, (2, 4, 8)),  # the paper, section 3.2
        ((1, 2, 4), 8, (4, 8, 16)),
        ((0.5, 1, 2), 16, (1, 2, 4)),  # mmsegmentation's D16-MG124
    ],
)
def test_the_rates_of_the_last_stage_follow_the_output_stride(multi_grid, output_stride, rates):
    assert last_stage_rates(multi_grid, output_stride) == rates


def test_aspp_rates_double_at_output_stride_8():
    assert aspp_rates((6, 12, 18), 8) == (12, 24, 36)
    assert aspp_rates((6, 12, 18), 32) == (3, 6, 9)


def test_training_needs_a_number_of_steps_or_epochs():
    validate(Config())
    with pytest.raises(ConfigError, match=r"train\.steps"):
        total_steps(Config(), 10)


@pytest.mark.parametrize("train", [TrainConfig(steps=2**31), TrainConfig(epochs=1e9)])
def test_a_run_cannot_have_more_steps_than_can_be_counted(train):
    assert total_steps(Config(train=TrainConfig(steps=2**31 - 1)), 1) == 2**31 - 1
    with pytest.raises(ConfigError, match=r"gives the run \d+ steps. Use at most 2147483647"):
        total_steps(Config(train=train), 10_000)


@pytest.mark.parametrize("config", [None, "configs/quickstart.py", {"seed": 1}, Config])
def test_what_is_not_a_config_is_refused(config):
    with pytest.raises(ConfigError, match=r"^The config \(=.*\) is not a Config\. Give a .*get_config\(\)\.$"):
        validate_fields(config)  # the annotations of `validate`, which calls it, are checked in tests


def test_lists_and_numpy_values_become_tuples_and_numbers():
    given = Config(
        data=DataConfig(crop_size=[np.int64(64), 64], mix=[]),
        loss=LossConfig(class_weights=np.full(19, 0.5), terms=["cross_entropy"]),
        optim=OptimConfig(lr=np.float64(0.1), milestones=[], options=[["nesterov", np.True_]]),
    )
    config = validate(given)
    assert config.data.crop_size == (64, 64)
    assert config.loss.class_weights == (0.5,) * 19
    assert config.optim.options == (("nesterov", True),)
    assert from_dict(to_dict(config)) == config
    assert find_unused(config.optim) == []  # [] would not be the default ()
    assert type(config.optim.lr) is float
    assert given.data.mix == []


def test_epochs_are_rounded_up_to_full_steps():
    config = Config(data=DataConfig(batch_size=8), train=TrainConfig(epochs=20))
    assert total_steps(config, 367) == 918  # 20 epochs of 367 samples are 917.5 batches of 8
    config = Config(data=DataConfig(batch_size=10), train=TrainConfig(epochs=1.1))
    assert total_steps(config, 100) == 11  # in binary, 1.1 x 100 is more than 110


@pytest.mark.parametrize(("mix", "counts"), [((3, 1), (6, 2)), ((6, 2), (6, 2)), ((0.25, 0.75), (2, 6)), ((0.5, 0.5), (4, 4))])
def test_a_ratio_sets_the_number_of_samples_from_each_split(mix, counts):
    config = Config(data=DataConfig(batch_size=8, train_split="train+pseudo", mix=mix), train=TrainConfig(epochs=3))
    assert count_by_split(validate(config).data) == counts
    assert total_steps(config, 100) == math.ceil(3 * 100 / counts[0])  # an epoch is a pass over the first split


def test_tenths_divide_a_batch_exactly():
    # In binary floating point, 0.7 * 10 + 0.1 * 30 and similar sums are not exact.
    data = DataConfig(batch_size=30, train_split="a+b+c", mix=(0.7, 0.2, 0.1))
    assert (smallest_batch(data), count_by_split(data)) == (10, (21, 6, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ModelConfig(backbone="vgg")}, r"`model.backbone` \(='vgg'\).*resnet50"),
        ({"model": ModelConfig(output_stride=4)}, r"`model.output_stride` \(=4\)"),
        ({"model": ModelConfig(multi_grid=(0.3, 1))}, "multi_grid"),
        ({"model": ModelConfig(multi_grid=(1.5,), output_stride=32)}, r"multi_grid.* result in the rates \(3\.0, 1\.5\)"),
        ({"model": ModelConfig(multi_grid=(1.5,), output_stride=16), "eval": EvalConfig(output_stride=32)}, "multi_grid"),
        ({"model": ModelConfig(atrous_rates=(5, 7), output_stride=32)}, "atrous_rates"),
        ({"model": ModelConfig(multi_grid=())}, "multi_grid"),
        ({"eval": EvalConfig(output_stride=3)}, "eval.output_stride"),
        ({"data": DataConfig(crop_size=512)}, r"`data.crop_size` \(=512\).*Give two integers"),
        ({"optim": OptimConfig(warmup_steps=2**31)}, r"`optim.warmup_steps` \(=2147483648\).*from 0 to 2147483647"),
        ({"optim": OptimConfig(options=(("b2", 0.9), ("b2", 0.95)))}, "`optim.options` .* each name once"),
        ({"optim": OptimConfig(milestones=0.5)}, r"`optim.milestones` \(=0.5\).*Give rising fractions"),
        ({"optim": OptimConfig(frozen=None)}, r"`optim.frozen` \(=None\).*Give regular expressions"),
        ({"loss": LossConfig(class_weights=None)}, r"`loss.class_weights` \(=None\).*Give one number"),
        ({"loss": LossConfig(class_weights=np.ones((2, 19)))}, r"`loss.class_weights`.*Give one number"),
        ({"data": DataConfig(crop_size=(512,))}, r"`data.crop_size` \(=\(512,\)\).*Give two integers"),
        ({"data": DataConfig(scale=(2.0, 0.5))}, "data.scale"),
        ({"data": DataConfig(batch_size=0)}, "data.batch_size"),
        ({"data": DataConfig(source="hub:x")}, "data.source"),
        ({"data": DataConfig(channels=0)}, r"`data.channels` \(=0\).*1 to 8"),
        ({"data": DataConfig(channels=9)}, "data.channels"),
        ({"data": DataConfig(value_range=(5, 5))}, "data.value_range"),
        ({"data": DataConfig(value_range=(0, 1, 2))}, "data.value_range"),
        ({"data": DataConfig(source="tfds:x", value_range=(0, 1))}, "data.value_range.*8 bits"),
        ({"data": DataConfig(channels=4), "model": ModelConfig(mean=(1, 2, 3))}, "model.mean.*each of the 4 channels"),
        ({"model": ModelConfig(std=(1,))}, "model.std.*each of the 3 channels"),
        ({"data": DataConfig(source="tfds:")}, "data.source"),
        ({"data": DataConfig(cat_max_ratio=0.0)}, "data.cat_max_ratio"),
        ({"data": DataConfig(class_balanced=1.5)}, "data.class_balanced"),
        ({"data": DataConfig(rotation=-5.0)}, "data.rotation"),
        ({"data": DataConfig(cutout=1.0)}, "data.cutout"),
        (
            {"data": DataConfig(mix=(1, 1))},
            r"`data.mix` \(=\(1, 1\)\).*only one split.* --config.data.train_split=train\+pseudo",
        ),
        ({"data": DataConfig(mix=(1, 1), train_split="a+b+c")}, r"each of the 3 splits in data.train_split \(='a\+b\+c'\)"),
        ({"data": DataConfig(mix=(1, 0), train_split="a+b")}, "data.mix.*number above 0 for each split"),
        (
            {"data": DataConfig(mix=(1, 2), train_split="a+b")},
            r"needs a batch size that is a multiple of 3\..*batch_size \(=16\)",
        ),
        ({"data": DataConfig(mix=(0.7, 0.3), train_split="a+b")}, r"data.mix.*multiple of 10\."),
        ({"data": DataConfig(class_mix=1.5)}, "data.class_mix.*probability"),
        ({"data": DataConfig(class_mix=0.5, batch_size=1)}, "data.batch_size.*at least 2 with data.class_mix"),
        ({"data": DataConfig(copy_paste=-0.5, copy_paste_classes=("pole",))}, "data.copy_paste.*probability"),
        ({"data": DataConfig(copy_paste=0.5)}, r"`data.copy_paste` \(=0.5\).*data.copy_paste_classes"),
        ({"data": DataConfig(copy_paste_classes=("pole",))}, "data.copy_paste_classes.*data.copy_paste above 0"),
        ({"data": DataConfig(copy_paste=1.0, copy_paste_classes="pole")}, "data.copy_paste_classes.*Give class names"),
        (
            {"data": DataConfig(copy_paste=1.0, copy_paste_classes=("pole", "tram", "boat"))},
            "data.copy_paste_classes.*cityscapes has no class 'tram' or 'boat'. Its classes are: road, sidewalk,",
        ),
        ({"loss": LossConfig(class_weights=(1.0, 2.0))}, "loss.class_weights"),
        ({"loss": LossConfig(class_weights=(0.0,) * 19)}, "loss.class_weights"),
        ({"loss": LossConfig(label_smoothing=1.0)}, "loss.label_smoothing"),
        ({"loss": LossConfig(ohem_threshold=1.1)}, "loss.ohem_threshold"),
        ({"loss": LossConfig(ohem_min_kept=-1)}, "loss.ohem_min_kept"),
        ({"loss": LossConfig(normalizer="mean")}, "loss.normalizer"),
        ({"loss": LossConfig(ohem_threshold=0.7), "train": TrainConfig(micro_batches=2)}, "loss.ohem_threshold"),
        ({"loss": LossConfig(terms=())}, "loss.terms"),
        ({"loss": LossConfig(terms="dice")}, "loss.terms"),
        (
            {"loss": LossConfig(terms=("cross_entropy", "dice"))},
            r"`loss.weights` \(=\(1.0,\)\).*each entry of loss.terms \(=\('cross_entropy',",
        ),
        ({"loss": LossConfig(aux_weight=-1.0)}, "loss.aux_weight"),
        ({"optim": OptimConfig(options=("b1", 0.9))}, "optim.options"),
        ({"optim": OptimConfig(options=(("b1", "0.9"),))}, "optim.options"),
        ({"optim": OptimConfig(options=(("b1", 0.9), ("b1", 0.8)))}, "optim.options"),
        ({"optim": OptimConfig(lr=-1)}, "optim.lr"),
        ({"optim": OptimConfig(momentum=1.0)}, "optim.momentum"),
        ({"train": TrainConfig(steps=1, epochs=1)}, "train.steps"),
        ({"eval": EvalConfig(window=(64, 0))}, "eval.window"),
        ({"eval": EvalConfig(window=(64,))}, "eval.window"),
        ({"eval": EvalConfig(window_stride=(8, 8))}, "eval.window_stride"),
        ({"eval": EvalConfig(window=(64, 64), window_stride=(65, 8))}, "eval.window_stride"),
        ({"eval": EvalConfig(scales=())}, "eval.scales"),
        ({"eval": EvalConfig(scales=(1.0, 0.5, 1.0))}, "eval.scales"),
        ({"eval": EvalConfig(scales=(1e6,))}, "eval.scales"),
        ({"model": ModelConfig(backbone="mobilenetv3_large", stem="3x3")}, r"`model.stem` \(='3x3'\).*Leave it at '7x7'"),
        ({"model": ModelConfig(backbone="mobilenetv3_large", dilate_conv2=False)}, "model.dilate_conv2"),
        ({"model": ModelConfig(decoder_width=-1)}, "model.decoder_width"),
        ({"model": ModelConfig(low_level_width=0)}, "model.low_level_width"),
        ({"model": ModelConfig(aux_dropout=1.0)}, "model.aux_dropout"),
        ({"model": ModelConfig(mean=5)}, "model.mean"),
        ({"model": ModelConfig(mean=(math.nan, 1.0, 1.0))}, "model.mean"),
        ({"model": ModelConfig(multi_grid=1.0)}, "model.multi_grid"),
        ({"optim": OptimConfig(lr_factors=(("backbone", 0.0),))}, "optim.lr_factors.*optim.frozen"),
        ({"optim": OptimConfig(lr_factors=("backbone",))}, "optim.lr_factors"),
        ({"optim": OptimConfig(frozen=("(",))}, "optim.frozen"),
        ({"optim": OptimConfig(milestones=(0.5, 0.2))}, "optim.milestones"),
        ({"optim": OptimConfig(milestones=("a",))}, "optim.milestones"),
        ({"optim": OptimConfig(layer_decay=0.0)}, "optim.layer_decay"),
        ({"train": TrainConfig(steps=-5, epochs=1)}, "train.steps"),
        ({"data": DataConfig(crop_size=(64.5, 64))}, "data.crop_size"),
        ({"data": DataConfig(crop_size=("a", "b"))}, "data.crop_size"),
        ({"model": ModelConfig(atrous_rates=("a",))}, "atrous_rates"),
        ({"model": ModelConfig(mean=(1, 2))}, "model.mean"),
        ({"model": ModelConfig(std=(1, 2, 0))}, "model.std"),
        ({"data": DataConfig(batch_size="4")}, r"`data.batch_size` \(='4'\).*integer"),
        ({"optim": OptimConfig(lr=float("inf"))}, "optim.lr"),
        ({"model": ModelConfig(aux_head=1)}, "model.aux_head"),
        ({"model": 3}, "`model`"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
    ],
)
def test_an_invalid_field_is_reported_with_its_value(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        validate(Config(**({"train": TrainConfig(steps=1)} | fields)))
    assert "\n" not in str(error.value)


def list_fields(node, prefix=""):
    """Yield the dotted name and value of every config field except the label set."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from list_fields(value, f"{prefix}{field.name}.") if field.name != "labels" else ()
        else:
            yield prefix + field.name, value


def choose_new_value(default, inherited):
    """Return a value of the same type that differs from the default and from the recipe's value.

    A bool has only two values, so it can only differ from the recipe's value.
    """
    match default:
        case bool():
            return not inherited
        case int():
            candidates = (3, 5, 7)
        case float():
            candidates = (0.125, 0.25, 0.375)
        case str():
            candidates = ("a", "b", "c")
        case tuple():
            kinds = {str: (("a", "b"), ("c", "d")), float: ((3.5, 4.5), (5.5, 6.5))}
            candidates = next((kinds[type(x)] for x in default if type(x) in kinds), ((3, 4), (5, 6)))
    return next(value for value in candidates if value not in (default, inherited))


# ml_collections loads config files with a deprecated function.
LOADS_A_FILE = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@LOADS_A_FILE
def test_every_field_can_be_set_by_a_flag():
    recipe = str(RECIPES[0].parent / "cityscapes_r50_os8.py")
    inherited = dict(list_fields(load_recipe(pathlib.Path(recipe)).get_config()))
    new_values = {name: choose_new_value(default, inherited[name]) for name, default in list_fields(Config())}
    argv = ["program", f"--config={recipe}", *(f"--config.{name}={value}" for name, value in new_values.items())]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    assert dict(list_fields(values.config)) == new_values


@LOADS_A_FILE
def test_optimizer_options_can_be_set_by_a_flag_and_survive_json():
    argv = ["program", f"--config={RECIPES[0]}", "--config.optim.options=(('b1',0.95),('nesterov',True))"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    assert values.config.optim.options == (("b1", 0.95), ("nesterov", True))
    assert from_dict(to_dict(validate(values.config))) == values.config


def test_a_stored_config_without_a_newer_field_gets_its_default():
    values = to_dict(Config())
    del values["model"]["decoder_width"]
    assert from_dict(values).model.decoder_width == 0


def test_label_sets_are_stored_as_before_unless_they_merge_values():
    values = to_dict(Config())
    assert set(values["labels"]) == {"name", "names", "colors", "ids", "ignored_ids", "ignored_colors"}
    assert from_dict(values) == Config()
    merged = Config(labels=CAMVID11)
    values = to_dict(merged)
    assert values["labels"]["more_ids"][1] == [3, 31, 28, 1]  # bridge, wall, tunnel, archway
    assert from_dict(values) == merged


def test_moved_fields_of_a_stored_0_1_config_are_found():
    values = to_dict(Config())
    del values["loss"]["aux_weight"]
    values["optim"]["aux_weight"] = 0.25
    assert from_dict(values) == Config(loss=LossConfig(aux_weight=0.25))
    assert values["optim"]["aux_weight"] == 0.25  # the input must not change, because receipts contain its digest
    del values["loss"]
    assert from_dict(values).loss.aux_weight == 0.25


@pytest.mark.parametrize(
    ("stored", "fields"),
    [
        ({"aux_lr_factor": 10.0, "decay_norm_and_bias": True}, {"lr_factors": (("aux_", 10.0),)}),
        ({"aux_lr_factor": 1.0, "decay_norm_and_bias": False}, {"no_decay": (".*/(scale|bias)",)}),
    ],
)
def test_optimizer_fields_of_0_1_are_replaced_by_those_with_the_same_effect(stored, fields):
    config = Config(model=ModelConfig(aux_head=True))
    values = to_dict(config)
    values["optim"] |= stored
    assert from_dict(values) == dataclasses.replace(config, optim=OptimConfig(**fields))


def test_a_recipe_can_give_factors_as_a_dict():
    config = OptimConfig(lr_factors={"backbone": 0.1}, options={"nesterov": True})
    assert config == OptimConfig(lr_factors=(("backbone", 0.1),), options=(("nesterov", True),))


def test_an_unknown_field_in_a_stored_config_is_reported():
    values = to_dict(Config())
    values["model"]["depth"] = 50
    with pytest.raises(ConfigError, match=r"model\.depth"):
        from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": 3}, r"^`optim` \(=3\) is not a set of config fields"),
        ({"loss": None, "optim": {"aux_weight": 1.0}}, r"^`loss` \(=None\) is not a set"),
        ({"labels": {"more_ids": 3}}, r"^`labels.name` is missing"),
    ],
)
def test_a_malformed_stored_config_is_reported(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(values)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("rates", [(1.0, 2.0, 4.0), (2.0, 4.0, 4.0), (3.0,)])
def test_multi_grid_units_is_the_inverse_of_last_stage_rates(output_stride, rates):
    assert last_stage_rates(multi_grid_units(rates, output_stride), output_stride) == rates


def test_the_default_normalization_follows_the_number_of_channels():
    grey, bands = (validate(Config(data=DataConfig(channels=channels))).model for channels in (1, 5))
    assert (grey.mean, grey.std) == (pytest.approx((114.495,)), pytest.approx((57.63,)))  # the average of the ImageNet values
    assert bands.mean == (123.675, 116.28, 103.53, 123.675, 116.28)
    assert bands.channels == 5
    assert validate(Config()).model == ModelConfig()
    config = Config(data=DataConfig(channels=1), model=ModelConfig(mean=(7.0,)))
    assert validate(config).model.mean == (7.0,)


def test_a_stored_config_without_channels_is_for_rgb():
    stored = to_dict(Config())
    for name in ("channels", "value_range"):
        del stored["data"][name]
    assert from_dict(stored) == Config()
