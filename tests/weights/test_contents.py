import numpy as np
import pytest

from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights.contents import choose_weights
from deeplab_jax.weights.unpickle import Stub

FIRST = "layer1.0.conv1.weight"
LAST = "15.block.2.fc1.weight"  # of MobileNetV3-Large


def weights(value, prefix="", name=FIRST):
    kernel = np.full((2, 2, 1, 1), value, np.float32)
    return {f"{prefix}backbone.{name}": kernel, f"{prefix}backbone.bn1.bias": kernel[0, 0, 0]}


RAW, AVERAGE = weights(1), weights(2)
COUNTER = {"n_averaged": np.array(3)}


def choose(root, **settings):
    """Return the value of the chosen weights, their names, and the notes."""
    tensors, notes = choose_weights(root, **settings)
    (value,) = {float(x.flat[0]) for x in tensors.values()}
    return value, set(tensors), "; ".join(notes)


@pytest.mark.parametrize("name", [FIRST, LAST])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.module.",
        "model.",
        "net._orig_mod.",
        "model.net.module.",
        "a.b.c.d.",
        "model.model.",
        "backbone.",
    ],
)
def test_a_prefix_is_what_precedes_the_first_tensor(prefix, name):
    value, names, _ = choose({"state_dict": weights(1, prefix, name), "epoch": 3})
    assert (value, names) == (1, {f"backbone.{name}", "backbone.bn1.bias"})


def test_wrappers_inside_names_are_removed():
    _, names, notes = choose({f"backbone._orig_mod.{FIRST}": np.ones(1), "classifier.module.4.weight": np.ones(1)})
    assert names == {f"backbone.{FIRST}", "classifier.4.weight"}
    assert notes == "'_orig_mod.' was removed from the names; 'module.' was removed from the names"


def test_tensors_outside_the_prefix_are_listed():
    _, names, notes = choose(weights(1, "model.") | {"criterion.weight": np.ones(3)})
    assert names == set(RAW)
    assert "tensors not used: 1 (outside the prefix 'model.': criterion.weight)" in notes


@pytest.mark.parametrize("path", [("state_dict",), ("model",), ("model_state",), ("network",), ("a", "b", "c")])
def test_weights_are_found_under_any_key(path):
    root = RAW
    for key in reversed(path):
        root = {"epoch": 1, "optimizer": {"state": {0: {"momentum": np.ones(2)}}}, key: root}
    value, _, notes = choose(root)
    assert (value, notes) == (1, f"the weights come from the file's '{'.'.join(path)}' entry")


@pytest.mark.parametrize("key", ["optimal_state_dict", "optimized_model", "optimised", "optimum", "OptimalModel"])
def test_words_that_start_like_an_optimizer_are_not_one(key):
    assert choose({"epoch": 1, key: RAW})[0] == 1


@pytest.mark.parametrize(
    "key",
    [
        *("opt", "optim", "optims", "optim_state", "optimG", "g_optim", "Optim", "optim1"),
        *("optimizer", "optimizers", "optimizer_state_dict", "optimizerG", "netOptimizer", "OPTIMIZER", "optimiser"),
        *("lr_scheduler", "scaler", "grads"),
    ],
)
def test_the_state_of_an_optimizer_is_not_used(key):
    assert choose({key: {"momentum": AVERAGE}, "model": RAW})[2] == "the weights come from the file's 'model' entry"


@pytest.mark.parametrize(
    "root",
    [
        {"model": RAW, "model_ema": {f"module.{name}": x for name, x in AVERAGE.items()} | COUNTER},
        {"state_dict": RAW, "state_dict_ema": AVERAGE},
        {"state_dict": RAW, "ema_state_dict": AVERAGE},
        {"params": RAW, "params_ema": AVERAGE},
        {"model": RAW, "ema": {"shadow": AVERAGE, "decay": 0.99}},
        {"model": RAW, "swa_model": AVERAGE},
        {"state_dict": RAW, "callbacks": {"EMA": Stub("a.EMA", state={"averaged_model": AVERAGE})}},
        {"state_dict": weights(1, "model.") | weights(2, "model_ema.module.")},
        {"state_dict": weights(1, "net.") | weights(2, "shadow.")},
        {"ema": weights(1, "online_model.") | weights(2, "ema_model.") | {"step": np.array(1)}},
        weights(1) | weights(2, "ema."),
        {"net": RAW, "copy": AVERAGE | COUNTER},
    ],
)
def test_a_moving_average_is_only_used_on_request(root):
    value, names, notes = choose(root)
    assert (value, names) == (1, set(RAW))
    assert "also contains a moving average" in notes
    assert "--ema" in notes
    value, names, notes = choose(root, ema=True)
    assert (value, names) == (2, set(RAW))
    assert "the moving average of the weights is used" in notes
    assert "also contains other weights" in notes


@pytest.mark.parametrize(
    ("root", "raw", "owner"),
    [
        ({"state_dict": AVERAGE, "ema_state_dict": RAW | {"steps": np.array(1)}}, "ema_state_dict", "mmengine"),
        ({"state_dict": AVERAGE, "ema_state_dict": RAW, "meta": {"mmengine_version": "0.10"}}, "ema_state_dict", "mmengine"),
        ({"state_dict": AVERAGE, "current_model_state": RAW, "averaging_state": {}}, "current_model_state", "Lightning"),
    ],
)
def test_the_owner_of_a_file_decides_which_entry_is_the_average(root, raw, owner):
    for ema in (False, True):
        value, _, notes = choose(root, ema=ema)
        assert value == 2
        assert f"{owner} saved the moving average under 'state_dict', so the moving average is used" in notes
    assert choose(root, entry=raw)[0] == 1


def test_several_sets_of_weights_are_asked_about():
    root = {"state_dict": weights(1, "student.") | weights(2, "teacher.")}
    with pytest.raises(CheckpointError, match=r"'state_dict.student', 'state_dict.teacher'. Choose one: .*--entry="):
        choose(root)
    assert choose(root, entry="state_dict.teacher")[:2] == (2, set(RAW))
    with pytest.raises(CheckpointError, match=r"contains no weights 'x', only 'state_dict.student'"):
        choose(root, entry="x")
    with pytest.raises(CheckpointError, match=r"contains one state dict, and no entry 'x'\. Omit --entry\.$"):
        choose(RAW, entry="x")


def test_the_same_weights_under_two_keys_are_one_set():
    assert choose({"state_dict": RAW, "model": RAW})[2] == "the weights come from the file's 'state_dict' entry"


@pytest.mark.parametrize("keys", [("model_ema", "model"), ("model", "model_ema")])
@pytest.mark.parametrize("frozen", list(RAW))
def test_an_average_can_share_tensors_with_the_weights(keys, frozen):
    sets = {"model": RAW, "model_ema": AVERAGE | {frozen: RAW[frozen]}}
    root = {key: sets[key] for key in keys}
    for ema, key, note in ((False, "model", "also contains a moving average"), (True, "model_ema", "the moving average of")):
        tensors, notes = choose_weights(root, ema=ema)
        assert all(tensors[name] is value for name, value in sets[key].items())
        assert note in "; ".join(notes)


def test_an_average_without_names_is_mentioned():
    root = {"model": RAW, "ema": {"shadow_params": list(AVERAGE.values())}}
    assert "'ema.shadow_params' has no names" in choose(root)[2]
    with pytest.raises(CheckpointError, match=r"'ema.shadow_params' have no names, so they cannot be used"):
        choose(root, ema=True)


def test_other_entries_with_kernels_are_listed():
    root = {
        "backbone": {FIRST: np.ones((1, 1, 1, 1))},
        "head": {"conv.weight": np.ones((1, 1, 1, 1))},
        "scores": {"iou": np.ones(3)},
    }
    assert choose(root)[2].endswith("entries with tensors that are not used: 'head' (1)")


def test_a_network_with_an_unknown_backbone_loses_its_common_prefix():
    root = {"state_dict": {"model.features.0.weight": np.ones((1, 1, 1, 1)), "model.head.0.weight": np.ones((1, 1, 1, 1))}}
    assert choose(root)[1] == {"features.0.weight", "head.0.weight"}


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_the_counters_of_a_profiler_are_left_out(prefix):
    names = [f"{prefix}{module}{name}" for module in ("", "backbone.bn1.") for name in ("total_ops", "total_params")]
    value, tensors, notes = choose(weights(1, prefix) | dict.fromkeys(names, np.zeros(1)))
    assert (value, tensors) == (1, RAW.keys())
    assert "tensors not used: 4 (total_ops and total_params, the counters of a profiler)" in notes
