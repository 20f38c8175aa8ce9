"""Write a network as an ONNX file for any number of images of any size. This is the only module that uses ONNX directly.

Each operation that a network calls (see models/graph.py) is translated to ONNX nodes. To support a new operation, write a
function that translates it and add the function to `_EMIT`.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
from flax import traverse_util
from onnx import TensorProto, helper, numpy_helper

from deeplab_jax.errors import CheckpointError
from deeplab_jax.models import DeepLabV3, layers, pooling
from deeplab_jax.models.convolution import conv2d, kernel_radii, kernel_shifts
from deeplab_jax.models.graph import Graph, Node, Value, abstract_images, record
from deeplab_jax.models.resize import resize_like

OPSETS = range(11, 22)  # those that the operators below are written for
DEFAULT_OPSET = 18  # released in 2022, so widely supported by runtimes


class _Writer:
    """A list of ONNX nodes in execution order. Each node computes one value, whose name is the operator plus a number.

    Args:
      graph: The network graph.
      params: The folded parameters, by path.
      opset: The ONNX operator set, one of OPSETS.
      has_fixed_size: Whether the graph was recorded at the size of the images, so that shapes are constants.
    """

    def __init__(self, graph: Graph, params: dict[tuple[str, ...], np.ndarray], opset: int, has_fixed_size: bool) -> None:
        self.opset, self.has_fixed_size = opset, has_fixed_size
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.names: dict[Value, str] = {}
        self.params = params
        self.biases = _find_convolution_biases(graph)
        self._numbers = itertools.count()

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{next(self._numbers)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def per_channel(self, values: Any) -> str:
        return self.constant(np.asarray(values, np.float32).reshape(1, -1, 1, 1))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}_{next(self._numbers)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def spatial_size(self, value: Value, name: str) -> str:
        """Return the name of a value's (height, width) as an int64 vector."""
        if self.has_fixed_size:
            return self.constant(np.array(value.shape[1:3], np.int64))
        if self.opset >= 15:
            return self.add("Shape", name, start=2, end=4)
        return self.add("Slice", self.add("Shape", name), self.constant(np.array([2])), self.constant(np.array([4])))

    def emit(self, node: Node) -> None:
        """Add the ONNX nodes for an operation.

        Raises:
          CheckpointError: The operation is not supported.
        """
        if node.operation not in _EMIT:
            raise CheckpointError(f"`--format` (=onnx) does not support {node.operation.__name__}. Use --format stablehlo.")
        arguments = {name: self._name(argument) for name, argument in node.arguments.items()}
        self.names[node.output] = _EMIT[node.operation](self, node, **arguments)

    def _name(self, argument: Any) -> Any:
        if isinstance(argument, list):
            return [self._name(each) for each in argument]
        return self.names[argument] if isinstance(argument, Value) else argument


def serialize(
    network: DeepLabV3,
    params: dict[str, Any],
    output: str,
    metadata: dict[str, Any],
    size: tuple[int, int] | None = None,
    opset: int = DEFAULT_OPSET,
) -> bytes:
    """Serialise the network to the bytes of an ONNX file.

    The exported network maps "images", uint8 [n, c, h, w], to "labels", uint8 [n, h, w], or to "logits", float32
    [n, k, h, w], both at image resolution.

    Args:
      network: The network at the desired output stride, without an auxiliary head or rematerialised stages.
      params: The variables from `folding.fold`, {"params"}.
      output: "labels" or "logits".
      metadata: JSON values to store in the file.
      size: The height and width of the images, of which there is then one, or None for any number and size.
      opset: The ONNX operator set, one of OPSETS.

    Raises:
      CheckpointError: The network uses an unsupported operation.
    """
    config = network.config

    def run(variables: Any, images: jax.Array) -> jax.Array:
        logits: Any = network.apply(variables, images, False)
        return resize_like(logits.logits, images, align_corners=config.align_corners)

    images = jax.ShapeDtypeStruct((1, *size, config.channels), np.float32) if size else abstract_images(network)
    graph = record(run, params, images)
    writer = _Writer(graph, traverse_util.flatten_dict(params), opset, size is not None)
    n, h, w = (1, *size) if size else ("n", "h", "w")
    centred = writer.add("Sub", writer.add("Cast", "images", to=TensorProto.FLOAT), writer.per_channel(config.mean))
    scale = 1 / np.asarray(config.std, np.float32)
    writer.names[graph.images] = writer.add("Mul", centred, writer.per_channel(scale))
    for node in graph.nodes:
        writer.emit(node)
    logits = writer.names[graph.outputs[0]]
    axes: Sequence[int | str]
    if output == "labels":
        y, kind, axes = writer.add("ArgMax", logits, axis=1, keepdims=0), TensorProto.UINT8, [n, h, w]
    else:
        y, kind, axes = logits, TensorProto.FLOAT, [n, network.num_classes, h, w]
    writer.nodes.append(helper.make_node("Cast", [y], [output], output, to=kind))
    proto = helper.make_graph(
        writer.nodes,
        "deeplabv3",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [n, config.channels, h, w])],
        [helper.make_tensor_value_info(output, kind, axes)],
        writer.constants,
    )
    file = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], producer_name="deeplab_jax", ir_version=8)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    helper.set_model_props(file, texts)
    onnx.checker.check_model(file, full_check=True)
    return file.SerializeToString()


def load(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs an ONNX file's network on the CPU."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def _find_convolution_biases(graph: Graph) -> dict[Value, tuple[str, ...]]:
    """Return a dict mapping the output of each biased convolution to its bias path. One Conv node computes both."""
    convolutions = {node.output for node in graph.nodes if node.operation is conv2d}
    biased = [node for node in graph.nodes if node.operation is layers.add_bias and node.arguments["x"] in convolutions]
    return {node.arguments["x"]: node.arguments["bias"].path for node in biased}


def _emit_conv2d(
    writer: _Writer, node: Node, x: str, kernel: Any, stride: int, rate: int, padding: str, border: str | None, form: str
) -> str:
    weights = writer.params[kernel.path]
    constant = writer.constant(weights.transpose(3, 2, 0, 1))
    inputs = [x if border is None else writer.add("Sub", x, border), constant]
    if node.output in writer.biases:
        inputs.append(writer.constant(writer.params[writer.biases[node.output]]))
    image = node.arguments["x"].shape
    attributes = {"kernel_shape": weights.shape[:2], "strides": [stride] * 2, "dilations": [rate] * 2}
    group = image[3] // weights.shape[2]
    y = writer.add("Conv", *inputs, group=group, **attributes, **_padding(writer, node, weights.shape, image))
    if border is None:
        return y
    taps = writer.add("Expand", border, writer.constant(np.array([1, image[3], *weights.shape[:2]])))
    return writer.add("Add", y, writer.add("Conv", taps, constant, group=group, kernel_shape=weights.shape[:2]))


def _padding(writer: _Writer, node: Node, kernel_shape: tuple[int, ...], image: tuple[int, ...]) -> dict[str, Any]:
    """Return the attributes of a Conv node that describe its padding.

    Raises:
      CheckpointError: The padding depends on the image size in a way that ONNX cannot express.
    """
    stride, rate, padding = (node.arguments[name] for name in ("stride", "rate", "padding"))
    if padding == "valid":
        return {"pads": [0] * 4}
    bottom, right = kernel_radii(kernel_shape, rate)
    # Without a fixed size, the graph was recorded at a size that is even in all strided layers.
    top, left = kernel_shifts(image[1:3], kernel_shape, stride, rate, padding)
    if writer.has_fixed_size or (top, left) == (0, 0):
        return {"pads": [bottom - top, right - left, bottom, right]}
    if rate > 1:  # ONNX Runtime does not support the combination
        raise CheckpointError('`--format` (=onnx) does not support "same" padding with stride and dilation. Give --size.')
    return {"auto_pad": "SAME_UPPER"}


def _emit_add_bias(writer: _Writer, node: Node, x: str, bias: Any) -> str:
    if node.arguments["x"] in writer.biases:
        return x
    return writer.add("Add", x, writer.per_channel(writer.params[bias.path]))


def _emit_as_pixel(writer: _Writer, node: Node, x: Any) -> str:
    return writer.per_channel(writer.params[x.path])


def _emit_operator(operator: str, **attributes: Any) -> Callable[..., str]:
    return lambda writer, node, *values, **named: writer.add(operator, *values, *named.values(), **attributes)


def _emit_average_pool_2x2(writer: _Writer, node: Node, x: str, stride: int, rate: int) -> str:
    """Add nodes for a dilated 2x2 mean over the taps inside the image.

    AveragePool does not support dilation in this opset, so convolutions compute the sum and the number of taps.
    """
    attributes = {"kernel_shape": [2, 2], "pads": [0, 0, rate, rate], "strides": [stride] * 2, "dilations": [rate] * 2}
    channels = node.output.shape[3]
    kernel = np.ones((channels, 1, 2, 2), np.float32)
    total = writer.add("Conv", x, writer.constant(kernel), group=channels, **attributes)
    size = writer.spatial_size(node.arguments["x"], x)
    one_channel = writer.add("Concat", writer.constant(np.array([1, 1])), size, axis=0)
    ones = writer.add("Expand", writer.constant(np.ones(1, np.float32)), one_channel)
    return writer.add("Div", total, writer.add("Conv", ones, writer.constant(kernel[:1]), **attributes))


def _emit_concatenate(writer: _Writer, node: Node, parts: list[str]) -> str:
    return writer.add("Concat", *parts, axis=1)


def _emit_broadcast_like(writer: _Writer, node: Node, x: str, like: str) -> str:
    size = writer.add("Concat", writer.constant(np.array([1, 1])), writer.spatial_size(node.arguments["like"], like), axis=0)
    return writer.add("Expand", x, size)


def _emit_resize_like(writer: _Writer, node: Node, x: str, like: str, align_corners: bool, by_gather: bool) -> str:
    mode = "align_corners" if align_corners else "half_pixel"
    if writer.has_fixed_size:
        n, h, w, c = node.output.shape
        sizes = writer.constant(np.array([n, c, h, w], np.int64))
    else:
        batch = writer.add("Slice", writer.add("Shape", x), writer.constant(np.array([0])), writer.constant(np.array([2])))
        sizes = writer.add("Concat", batch, writer.spatial_size(node.arguments["like"], like), axis=0)
    # The region of interest is only optional from operator set 13 on.
    region = writer.constant(np.zeros(0, np.float32)) if writer.opset < 13 else ""
    scales = writer.constant(np.zeros(0, np.float32)) if writer.opset < 13 else ""
    return writer.add("Resize", x, region, scales, sizes, mode="linear", coordinate_transformation_mode=mode)


def _emit_hard_swish(writer: _Writer, node: Node, x: str) -> str:
    if writer.opset >= 14:
        return writer.add("HardSwish", x)
    return writer.add("Mul", x, writer.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def _emit_relu6(writer: _Writer, node: Node, x: str) -> str:
    return writer.add("Clip", x, writer.constant(np.array(0, np.float32)), writer.constant(np.array(6, np.float32)))


def _emit_add_relu(writer: _Writer, node: Node, x: str, shortcut: str) -> str:
    return writer.add("Relu", writer.add("Add", x, shortcut))


_EMIT: dict[Callable[..., Any], Callable[..., str]] = {
    conv2d: _emit_conv2d,
    resize_like: _emit_resize_like,
    layers.add_bias: _emit_add_bias,
    layers.as_pixel: _emit_as_pixel,
    layers.relu: _emit_operator("Relu"),
    layers.relu6: _emit_relu6,
    layers.hard_swish: _emit_hard_swish,
    layers.hard_sigmoid: _emit_operator("HardSigmoid", alpha=1 / 6, beta=0.5),
    layers.add: _emit_operator("Add"),
    layers.add_relu: _emit_add_relu,
    layers.scale_channels: _emit_operator("Mul"),
    layers.concatenate: _emit_concatenate,
    layers.image_mean: _emit_operator("GlobalAveragePool"),
    layers.broadcast_like: _emit_broadcast_like,
    pooling.max_pool_3x3: _emit_operator("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    pooling.average_pool_2x2: _emit_average_pool_2x2,
}
