"""A network as an ONNX graph, for any number of images of any size. The only module that knows ONNX."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deeplab_jax.config import ModelConfig, aspp_rates
from deeplab_jax.models.backbones.mobilenetv3 import Block, blocks_of
from deeplab_jax.models.backbones.resnet import DEPTHS
from deeplab_jax.models.stages import stage_dilations

OPSET = 18  # of 2022: what runtimes know


class _Graph:
    """Nodes in the order in which they are added; each gives one value, named after its operator and number."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._numbers = itertools.count()

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{next(self._numbers)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}_{next(self._numbers)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def conv(
        self, x: str, params: dict[str, Any], name: str, *, stride: int = 1, rate: int = 1, group: int = 1, relu: bool = False
    ) -> str:
        """The convolution `name` of a module's folded parameters, with the bias that is its own or its norm's."""
        kernel = np.asarray(params[name]["kernel"])
        bias = params[name]["bias"] if "bias" in params[name] else params[name.replace("conv", "bn")]["bias"]
        pad = rate * (kernel.shape[0] - 1) // 2
        weights = self.constant(kernel.transpose(3, 2, 0, 1)), self.constant(np.asarray(bias))
        size = kernel.shape[0]
        attributes = {"kernel_shape": [size, size], "pads": [pad] * 4, "strides": [stride] * 2, "dilations": [rate] * 2}
        y = self.add("Conv", x, *weights, group=group, **attributes)
        return self.add("Relu", y) if relu else y


def serialized(model: ModelConfig, params: dict[str, Any], num_classes: int, output: str, metadata: dict[str, str]) -> bytes:
    """uint8 [n, 3, h, w] "images" -> uint8 [n, h, w] "labels" or float32 [n, k, h, w] "logits", at the images' size.

    Args:
      model: the network, at the output stride that is wanted.
      params: `folded`'s "params".
      num_classes: channels of the logits.
      output: "labels" or "logits".
      metadata: put into the file.
    """
    graph = _Graph()
    x = graph.add("Cast", "images", to=TensorProto.FLOAT)
    mean, scale = np.asarray(model.mean, np.float32), 1 / np.asarray(model.std, np.float32)
    x = graph.add("Mul", graph.add("Sub", x, _per_channel(graph, mean)), _per_channel(graph, scale))
    low, last = _backbone(graph, x, params["backbone"], model)
    x = _aspp(graph, last, params["aspp"], model)
    if model.decoder_width:
        x = _decoder(graph, x, low, params["decoder"], model.align_corners)
    logits = _resized_like(graph, graph.conv(x, params, "classifier"), "images", model.align_corners)
    axes: Sequence[int | str]
    if output == "labels":
        y, kind, axes = graph.add("ArgMax", logits, axis=1, keepdims=0), TensorProto.UINT8, ["n", "h", "w"]
    else:
        y, kind, axes = logits, TensorProto.FLOAT, ["n", num_classes, "h", "w"]
    graph.nodes.append(helper.make_node("Cast", [y], [output], output, to=kind))
    proto = helper.make_graph(
        graph.nodes,
        "deeplabv3",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info(output, kind, axes)],
        graph.constants,
    )
    file = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="deeplab_jax", ir_version=8)
    helper.set_model_props(file, metadata)
    onnx.checker.check_model(file, full_check=True)
    return file.SerializeToString()


def _per_channel(graph: _Graph, values: np.ndarray) -> str:
    return graph.constant(values.reshape(1, -1, 1, 1))


def _backbone(graph: _Graph, x: str, params: dict[str, Any], model: ModelConfig) -> tuple[str, str]:
    """The low-level and the last of `models.stages.Features`."""
    return (_resnet if model.backbone in DEPTHS else _mobilenetv3)(graph, x, params, model)


def _mobilenetv3(graph: _Graph, x: str, params: dict[str, Any], model: ModelConfig) -> tuple[str, str]:
    """`models.mobilenetv3.MobileNetV3`."""
    (stem,), *stages = blocks_of(model.width)
    x = graph.add("HardSwish", graph.conv(x, params, "stem_conv", stride=2))
    x = _inverted_residual(graph, x, params["stem_block"], stem, 1, 1)
    found = []
    dilations = stage_dilations([len(stage) for stage in stages], model.output_stride, model.multi_grid, stem_stride=2)
    for i, (stage, own) in enumerate(zip(stages, dilations, strict=True), start=1):
        for j, (block, dilation) in enumerate(zip(stage, own, strict=True), start=1):
            x = _inverted_residual(graph, x, params[f"stage{i}_block{j}"], block, dilation.stride, dilation.rate)
        found.append(x)
    return found[0], graph.add("HardSwish", graph.conv(x, params, "stage4_conv"))


def _inverted_residual(graph: _Graph, x: str, params: dict[str, Any], block: Block, stride: int, rate: int) -> str:
    """`models.mobilenetv3.InvertedResidual`."""
    activation = "HardSwish" if block.config.is_hard_swish else "Relu"
    y = graph.add(activation, graph.conv(x, params, "expand_conv")) if block.expands else x
    y = graph.conv(y, params, "depthwise_conv", stride=stride, rate=rate, group=block.config.expanded)
    y = graph.add(activation, y)
    if block.config.squeezes:
        scale = graph.conv(graph.add("GlobalAveragePool", y), params["se"], "reduce", relu=True)
        scale = graph.add("HardSigmoid", graph.conv(scale, params["se"], "expand"), alpha=1 / 6, beta=0.5)
        y = graph.add("Mul", y, scale)
    y = graph.conv(y, params, "project_conv")
    return graph.add("Add", x, y) if block.is_residual else y


def _resnet(graph: _Graph, x: str, params: dict[str, Any], model: ModelConfig) -> tuple[str, str]:
    """`models.resnet.ResNet`."""
    if model.stem == "7x7":
        x = graph.conv(x, params, "stem_conv", stride=2, relu=True)
    else:
        for i, stride in ((1, 2), (2, 1), (3, 1)):
            x = graph.conv(x, params, f"stem_conv{i}", stride=stride, relu=True)
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    blocks, is_bottleneck = DEPTHS[model.backbone]
    stages = []
    dilations = stage_dilations(blocks, model.output_stride, model.multi_grid, dilate_conv2=model.dilate_conv2)
    for i, stage in enumerate(dilations, start=1):
        for j, (stride, rate, inner_rate, shortcut_rate) in enumerate(stage, start=1):
            own = params[f"stage{i}_block{j}"]
            if is_bottleneck:
                y = graph.conv(x, own, "conv1", relu=True)
                y = graph.conv(y, own, "conv2", stride=stride, rate=rate, relu=True)
                y = graph.conv(y, own, "conv3")
            else:
                y = graph.conv(x, own, "conv1", stride=stride, rate=rate, relu=True)
                y = graph.conv(y, own, "conv2", rate=inner_rate)
            if "downsample_conv" in own:
                if model.shortcut == "avgpool+1x1" and shortcut_rate:
                    x, stride = _averaged(graph, x, own["downsample_conv"]["kernel"].shape[2], stride, shortcut_rate), 1
                x = graph.conv(x, own, "downsample_conv", stride=stride)
            x = graph.add("Relu", graph.add("Add", y, x))
        stages.append(x)
    return stages[0], stages[3]


def _averaged(graph: _Graph, x: str, channels: int, stride: int, rate: int) -> str:
    """`models.layers.average_pool_2x2`: sums over the taps inside the image by their number; AveragePool has no rate."""
    attributes = {"kernel_shape": [2, 2], "pads": [0, 0, rate, rate], "strides": [stride] * 2, "dilations": [rate] * 2}
    kernel = np.ones((channels, 1, 2, 2), np.float32)
    total = graph.add("Conv", x, graph.constant(kernel), group=channels, **attributes)
    one_channel = graph.add("Concat", graph.constant(np.array([1, 1])), graph.add("Shape", x, start=2, end=4), axis=0)
    ones = graph.add("Expand", graph.constant(np.ones(1, np.float32)), one_channel)
    return graph.add("Div", total, graph.add("Conv", ones, graph.constant(kernel[:1]), **attributes))


def _aspp(graph: _Graph, x: str, params: dict[str, Any], model: ModelConfig) -> str:
    """`models.aspp.ASPP`."""
    branches = [graph.conv(x, params["branch_1x1"], "conv", relu=True)]
    for i, rate in enumerate(aspp_rates(model.atrous_rates, model.output_stride), start=1):
        branches.append(graph.conv(x, params[f"branch_rate{i}"], "conv", rate=int(rate), relu=True))
    pooled = graph.conv(graph.add("GlobalAveragePool", x), params["branch_pool"], "conv", relu=True)
    branches.append(graph.add("Expand", pooled, graph.add("Shape", branches[0])))
    x = graph.conv(graph.add("Concat", *branches, axis=1), params["fuse"], "conv", relu=True)
    return graph.conv(x, params["refine"], "conv", relu=True) if "refine" in params else x


def _decoder(graph: _Graph, x: str, low: str, params: dict[str, Any], align_corners: bool) -> str:
    """`models.decoder.Decoder`."""
    low = graph.conv(low, params["reduce"], "conv", relu=True)
    x = graph.add("Concat", _resized_like(graph, x, low, align_corners), low, axis=1)
    x = graph.conv(x, params["refine1"], "conv", relu=True)
    return graph.conv(x, params["refine2"], "conv", relu=True)


def _resized_like(graph: _Graph, x: str, like: str, align_corners: bool) -> str:
    channels, size = graph.add("Shape", x, start=0, end=2), graph.add("Shape", like, start=2, end=4)
    mode = "align_corners" if align_corners else "half_pixel"
    sizes = graph.add("Concat", channels, size, axis=0)
    return graph.add("Resize", x, "", "", sizes, mode="linear", coordinate_transformation_mode=mode)
