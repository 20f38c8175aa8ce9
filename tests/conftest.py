"""Four fake CPU devices, strict shapes, and tiny things that several tests share."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling is most of the time that the tests take.
jax.config.update("jax_compilation_cache_dir", os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.data import synthetic


@pytest.fixture(scope="session")
def street_scenes(tmp_path_factory):
    """A drawn Cityscapes-layout set of 6 training, 3 validation and 2 test scenes of 64x128."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    synthetic.write(root, train=6, val=3, test=2, size=(64, 128))
    return root


def tiny_model(**switches) -> ModelConfig:
    """A network that compiles in seconds."""
    return ModelConfig(**{"backbone": "resnet18", "width": 8, "aspp_width": 8} | switches)


def tiny_config(root="", **fields) -> Config:
    """A run of a few steps on 32x64 crops."""
    return Config(
        model=fields.pop("model", tiny_model()),
        data=DataConfig(root=str(root), batch_size=4, crop_size=(32, 64), scale=(0.5, 1.0)),
        optim=OptimConfig(lr=0.05),
        train=TrainConfig(steps=4, log_every=1, eval_every=4, save_every=2),
        eval=EvalConfig(batch_size=4),
        **fields,
    )
