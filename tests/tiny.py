"""Define tiny test networks, and configs for them. Test processes load this file as a recipe."""

import functools

import jax.numpy as jnp
from flax import linen as nn

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.models.backbones import BACKBONES, resnet
from deeplab_jax.models.layers import BatchNorm, Conv, relu
from deeplab_jax.models.stages import Backbone, Features, stage_dilations


class FourConvolutions(nn.Module):
    """A backbone with one convolution per stage. Most of the time in a short run goes into tracing the network."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(Conv, self.config.width, 3, dtype=jnp.dtype(self.config.dtype))
        x = relu(BatchNorm(name="stem_bn")(conv(2, name="stem_conv")(x), train))
        outputs = []
        for i, (dilation,) in enumerate(stage_dilations((1, 1, 1, 1), self.config, stem_stride=2), start=1):
            x = conv(dilation.stride, dilation.rate, name=f"stage{i}_conv")(x)
            x = relu(BatchNorm(name=f"stage{i}_bn")(x, train))
            outputs.append(x)
        return Features(low=outputs[0], aux=outputs[2], last=outputs[3])


BACKBONES["four_convolutions"] = Backbone(
    make=functools.partial(FourConvolutions, name="backbone"),
    blocks=(1, 1, 1, 1),
    switches=frozenset(),
    tensor_names=lambda config, source: {},
    recognize=lambda shapes: None,
    first_tensors=(),
)


def _register(name, blocks, is_bottleneck):
    BACKBONES[name] = Backbone(
        make=functools.partial(resnet.ResNet, blocks=blocks, is_bottleneck=is_bottleneck, name="backbone"),
        blocks=blocks,
        switches=BACKBONES["resnet50" if is_bottleneck else "resnet18"].switches,
        tensor_names=functools.partial(resnet.tensor_names, blocks=blocks),
        recognize=resnet.recognize,
        first_tensors=(resnet.FIRST_TENSOR,),
    )


# These networks compile twice as fast as ResNet-18 and ResNet-50.
_register("four_blocks", (1, 1, 1, 1), is_bottleneck=False)
_register("seven_bottlenecks", (1, 1, 2, 3), is_bottleneck=True)


def tiny_model(**switches) -> ModelConfig:
    """Return the config of a network that compiles in seconds."""
    return ModelConfig(**{"backbone": "four_blocks", "width": 8, "aspp_width": 8} | switches)


# For tests of everything but the network.
smallest_model = functools.partial(tiny_model, backbone="four_convolutions", atrous_rates=(6,))

# For tests with weights and files, which need a backbone with published tensor names.
tiny_resnet18 = functools.partial(tiny_model, backbone="resnet18")


def tiny_config(root="", **fields) -> Config:
    """Return the config for a four-step run on 32x64 crops."""
    return Config(
        model=fields.pop("model", smallest_model()),
        data=DataConfig(root=str(root), batch_size=4, crop_size=(32, 64), scale=(0.5, 1.0)),
        optim=fields.pop("optim", OptimConfig(lr=0.05)),
        train=TrainConfig(steps=4, log_every=1, eval_every=4, save_every=2),
        eval=EvalConfig(batch_size=4),
        **fields,
    )


def get_config() -> Config:
    """Return the config for a six-step run, which also saves and evaluates before its last step."""
    config = tiny_config(model=smallest_model(output_stride=8, dropout=0.0))
    config.train.steps, config.train.eval_every = 6, 3
    return config
