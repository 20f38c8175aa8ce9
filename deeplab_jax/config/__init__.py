"""Typed dataclasses for run configs. This package imports neither JAX nor TensorFlow, and opens no files."""

from deeplab_jax.config.channels import adapt_to_channels, fill_defaults
from deeplab_jax.config.data import DataConfig
from deeplab_jax.config.loss import LossConfig
from deeplab_jax.config.mix import count_by_split, smallest_batch
from deeplab_jax.config.model import IMAGENET_MEAN, IMAGENET_STD, MAX_CHANNELS, ModelConfig
from deeplab_jax.config.optim import OptimConfig
from deeplab_jax.config.rates import aspp_rates, last_stage_rates, multi_grid_units, unit_of_each_block
from deeplab_jax.config.schema import (
    Config,
    EvalConfig,
    MeshConfig,
    TrainConfig,
    total_steps,
)
from deeplab_jax.config.storage import digest_of, flatten, from_dict, to_dict
