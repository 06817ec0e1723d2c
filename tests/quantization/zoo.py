"""Small CNNs in every shape that exporters give them: old attributes, constants, dynamic sizes, several inputs, ...

`ZOO` maps a name to a function that makes the model anew, with the same weights each time; `feeds` makes inputs for any of
them. All take pixels or numbers of about unit size and give outputs of about unit size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

Arrays = dict[str, npt.NDArray[np.generic]]
SIDE = 12


def build(
    graph: str,
    weights: Mapping[str, npt.NDArray[np.generic]],
    opset: int = 17,
    ir: int = 8,
    domains: str = "",
    functions: str = "",
) -> onnx.ModelProto:
    """Parse a graph in ONNX's text form and give it its weights; the nodes stay unnamed, as the parser leaves them."""
    for name in weights:  # the text form knows no dots in names
        graph = re.sub(rf"\b{re.escape(name)}\b", name.replace(".", "__"), graph)
    model = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{domains}]>\n{graph}\n{functions}')
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


class Weights(dict[str, npt.NDArray[np.generic]]):
    """Random weights by name, each layer's scaled so that its outputs are about as large as its inputs."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = np.random.default_rng(seed)

    def normal(self, name: str, *shape: int, fan: int | None = None, mean: float = 0.0) -> Weights:
        """Add one tensor of normal values; `fan` is the number of products that are summed up."""
        fan = fan or (int(np.prod(shape[1:])) if len(shape) > 1 else 4)
        self[name] = (self._random.normal(size=shape) * np.sqrt(2 / fan) + mean).astype(np.float32)
        return self

    def conv(self, name: str, out: int, into: int, side: int = 3, bias: bool = True) -> Weights:
        """Add `name.weight` (out, into, side, side) and `name.bias`."""
        self.normal(f"{name}.weight", out, into, side, side)
        return self.normal(f"{name}.bias", out, fan=200) if bias else self

    def norm(self, name: str, channels: int) -> Weights:
        """Add the four tensors of a batch norm: scale, bias, mean, variance."""
        self.normal(f"{name}.scale", channels, fan=20, mean=1).normal(f"{name}.shift", channels, fan=20)
        self.normal(f"{name}.mean", channels, fan=20)
        self[f"{name}.var"] = self._random.uniform(0.5, 2, channels).astype(np.float32)
        return self

    def ints(self, name: str, *values: int) -> Weights:
        """Add one tensor of int64 values."""
        self[name] = np.array(values, dtype=np.int64)
        return self

    def number(self, name: str, value: float) -> Weights:
        """Add one float32 number without dimensions."""
        self[name] = np.array(value, dtype=np.float32)
        return self


CONV = "Conv<pads=[1,1,1,1], kernel_shape=[3,3]>"
HEAD = """
    pooled = GlobalAveragePool({0})
    flat = Flatten(pooled)
    scores = Gemm<transB=1>(flat, head.weight, head.bias)
"""


def _head(weights: Weights, channels: int, classes: int = 4) -> Weights:
    return weights.normal("head.weight", classes, channels).normal("head.bias", classes, fan=200)


def _one(body: str, weights: Weights, last: str, channels: int = 8, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """Make a classifier of a float NCHW image from what lies between `image` and the pooling of `last`."""
    graph = f"net (float[N,3,{SIDE},{SIDE}] image) => (float[N,4] scores) {{ {body} {HEAD.format(last)} }}"
    return build(graph, _head(weights, channels), opset, ir)


def plain() -> onnx.ModelProto:
    """Two convolutions and a linear layer."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        b = Relu(a)
        c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
        d = {CONV}(c, two.weight, two.bias)
        e = Relu(d)
    """
    return _one(body, Weights().conv("one", 8, 3).conv("two", 8, 8), "e")


def residual() -> onnx.ModelProto:
    """A block with a shortcut, a Concat and padded average pooling."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        b = Relu(a)
        c = {CONV}(b, two.weight, two.bias)
        d = Add(c, b)
        e = Relu(d)
        f = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(e)
        g = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(e)
        h = Concat<axis=1>(f, g)
    """
    return _one(body, Weights(1).conv("one", 8, 3).conv("two", 8, 8), "h", channels=16)


def old_attributes() -> onnx.ModelProto:
    """Opset 7: what later became inputs or went away is written as attributes."""
    body = """
        p = Pad<mode="constant", pads=[0,0,1,1,0,0,1,1], value=0.25>(image)
        a = Conv<kernel_shape=[3,3]>(p, one.weight)
        n = BatchNormalization<epsilon=0.001, momentum=0.9, spatial=1>(a, bn.scale, bn.shift, bn.mean, bn.var)
        d = Dropout<ratio=0.3>(n)
        c = Clip<min=0.0, max=6.0>(d)
        s = Slice<axes=[2,3], starts=[0,1], ends=[9223372036854775807,-1]>(c)
        u = Upsample<mode="nearest", scales=[1.0,1.0,2.0,2.0]>(s)
        k = Conv<kernel_shape=[3,3], strides=[2,2]>(u, two.weight, two.bias)
        left, right = Split<axis=1, split=[4,4]>(k)
        m = Sum(left, right, left)
        v = ReduceMean<axes=[2,3], keepdims=1>(m)
        q = Squeeze<axes=[2,3]>(v)
        w = Unsqueeze<axes=[1]>(q)
        f = Reshape(w, shape)
        l = Gemm<transB=1>(f, head.weight, head.bias)
        scores = Softmax<axis=1>(l)
    """
    weights = Weights(2).conv("one", 8, 3, bias=False).norm("bn", 8).conv("two", 8, 8).ints("shape", 0, -1)
    graph = f"net (float[N,3,{SIDE},{SIDE}] image) => (float[N,4] scores) {{ {body} }}"
    return build(graph, _head(weights, 4), opset=7, ir=4)


def weights_as_inputs() -> onnx.ModelProto:
    """IR version 3: every weight is listed among the inputs too."""
    model = old_attributes()
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)) for weight in model.graph.initializer
    )  # fmt: skip
    return model


def upsample() -> onnx.ModelProto:
    """Opset 9: Upsample takes its scales as an input; linear."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        b = PRelu(a, slope)
        u = Upsample<mode="linear">(b, scales)
        e = Relu(u)
    """
    weights = Weights(3).conv("one", 8, 3).normal("slope", 8, 1, 1)
    weights["scales"] = np.array([1, 1, 2, 2], dtype=np.float32)
    return _one(body, weights, "e", opset=9, ir=4)


def resize_10() -> onnx.ModelProto:
    """Opset 10: Resize without a coordinate mode."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        b = Relu(a)
        u = Resize<mode="nearest">(b, scales)
        s = Slice(u, starts, ends, axes)
        e = {CONV}(s, two.weight, two.bias)
    """
    weights = Weights(4).conv("one", 8, 3).conv("two", 8, 8).ints("starts", 1).ints("ends", -1).ints("axes", 3)
    weights["scales"] = np.array([1, 1, 2, 2], dtype=np.float32)
    return _one(body, weights, "e", opset=10, ir=5)


def resize_11() -> onnx.ModelProto:
    """Opset 11: Resize by sizes, half pixels, linear; Clip and Pad by inputs."""
    body = f"""
        p = Pad(image, pads, fill)
        a = {CONV}(p, one.weight, one.bias)
        b = Clip(a, low, high)
        u = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(b, roi, scales)
        e = {CONV}(u, two.weight, two.bias)
    """
    weights = Weights(5).conv("one", 8, 3).conv("two", 8, 8).ints("pads", 0, 0, 1, 1, 0, 0, 1, 1)
    weights.number("fill", 0.5).number("low", 0).number("high", 6)
    weights["roi"] = np.zeros(0, dtype=np.float32)
    weights["scales"] = np.array([1, 1, 1.5, 1.5], dtype=np.float32)
    return _one(body, weights, "e", opset=11, ir=6)


def constants() -> onnx.ModelProto:
    """Opset 11: every weight is a Constant node; some go through Identity, Transpose, Reshape and Unsqueeze."""
    body = f"""
        w1 = Identity(one.weight)
        a = {CONV}(image, w1, one.bias)
        b = Relu(a)
        w2 = Transpose<perm=[3,2,0,1]>(two.weight)
        c = Conv<kernel_shape=[3,3]>(b, w2)
        plane = Unsqueeze<axes=[1,2]>(two.bias)
        d = Add(c, plane)
        pooled = GlobalAveragePool(d)
        flat = Reshape(pooled, shape)
        w3 = Reshape(head.weight, table)
        m = MatMul(flat, w3)
        scores = Add(m, head.bias)
    """
    weights = Weights(6).conv("one", 8, 3).conv("two", 3, 3).ints("shape", -1, 8).ints("table", 8, 4)
    weights.normal("two.weight", 3, 3, 8, 8, fan=72).normal("two.bias", 8).normal("head.weight", 32, fan=8)
    weights.normal("head.bias", 4, fan=200)
    model = build(f"net (float[N,3,{SIDE},{SIDE}] image) => (float[N,4] scores) {{ {body} }}", weights, 11, 6)
    nodes = [helper.make_node("Constant", [], [weight.name], value=weight) for weight in model.graph.initializer]
    nodes += [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def dynamic() -> onnx.ModelProto:
    """Batch, height and width are free; the head reads its shape from the tensor, as torch writes it."""
    graph = f"""net (float[batch,3,height,width] image) => (float[batch,classes] scores) {{
        a = {CONV}(image, one.weight, one.bias)
        b = Relu(a)
        c = Conv<kernel_shape=[3,3], strides=[2,2]>(b, two.weight, two.bias)
        pooled = GlobalAveragePool(c)
        all = Shape(pooled)
        rows = Gather<axis=0>(all, zero)
        first = Unsqueeze(rows, axes)
        shape = Concat<axis=0>(first, rest)
        flat = Reshape(pooled, shape)
        scores = Gemm<transB=1>(flat, head.weight, head.bias)
    }}"""
    weights = Weights(7).conv("one", 8, 3).conv("two", 8, 8).ints("axes", 0).ints("rest", -1)
    weights["zero"] = np.array(0, dtype=np.int64)
    return build(graph, _head(weights, 8))


def fixed_batch() -> onnx.ModelProto:
    """The batch is 1 and cannot be another: the head's Reshape holds it."""
    graph = f"""net (float[1,3,{SIDE},{SIDE}] image) => (float[1,4] scores) {{
        a = {CONV}(image, one.weight, one.bias)
        b = Relu(a)
        pooled = GlobalAveragePool(b)
        flat = Reshape(pooled, shape)
        scores = Gemm<transB=1>(flat, head.weight, head.bias)
    }}"""
    return build(graph, _head(Weights(8).conv("one", 8, 3).ints("shape", 1, 8), 8))


def two_inputs() -> onnx.ModelProto:
    """An image, and numbers that are known of it."""
    graph = f"""net (float[N,3,{SIDE},{SIDE}] image, float[N,5] known) => (float[N,4] scores) {{
        a = {CONV}(image, one.weight, one.bias)
        b = Relu(a)
        pooled = GlobalAveragePool(b)
        flat = Flatten(pooled)
        both = Concat<axis=1>(flat, known)
        scores = Gemm<transB=1>(both, head.weight, head.bias)
    }}"""
    return build(graph, _head(Weights(9).conv("one", 8, 3), 13))


def two_outputs() -> onnx.ModelProto:
    """Scores, and a map at half the size from a transposed convolution's branch."""
    graph = f"""net (float[N,3,{SIDE},{SIDE}] image) => (float[N,4] scores, float[N,2,{SIDE},{SIDE}] map) {{
        a = Conv<kernel_shape=[2,2], strides=[2,2]>(image, one.weight, one.bias)
        b = Relu(a)
        up = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(b, up.weight, up.bias)
        map = Sigmoid(up)
        {HEAD.format("b")}
    }}"""
    weights = Weights(10).conv("one", 8, 3, 2).normal("up.weight", 8, 2, 2, 2, fan=8).normal("up.bias", 2, fan=200)
    return build(graph, _head(weights, 8))


def groups() -> onnx.ModelProto:
    """Two groups, then a channel shuffle, then dilation."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        b = Relu(a)
        c = Conv<group=2, pads=[1,1,1,1], kernel_shape=[3,3]>(b, two.weight, two.bias)
        five = Reshape(c, split)
        turned = Transpose<perm=[0,2,1,3,4]>(five)
        d = Reshape(turned, joined)
        e = Conv<dilations=[2,2], kernel_shape=[3,3]>(d, three.weight, three.bias)
    """
    weights = Weights(11).conv("one", 8, 3).conv("two", 8, 4).conv("three", 8, 8)
    weights.ints("split", -1, 2, 4, SIDE, SIDE).ints("joined", -1, 8, SIDE, SIDE)
    return _one(body, weights, "e")


def depthwise() -> onnx.ModelProto:
    """MobileNet's block: expand, depthwise, project, with ReLU6 and a shortcut."""
    body = """
        a = Conv<kernel_shape=[1,1]>(image, expand.weight, expand.bias)
        b = Clip(a, low, high)
        c = Conv<group=12, pads=[1,1,1,1], kernel_shape=[3,3]>(b, depth.weight, depth.bias)
        d = Clip(c, low, high)
        e = Conv<kernel_shape=[1,1]>(d, project.weight, project.bias)
        f = Add(e, image)
    """
    weights = Weights(12).conv("expand", 12, 3, 1).conv("depth", 12, 1).conv("project", 3, 12, 1)
    return _one(body, weights.number("low", 0).number("high", 6), "f", channels=3)


def batch_norms() -> onnx.ModelProto:
    """After a convolution without a bias and one with it (both fold), before one, and after an activation (both stay)."""
    body = f"""
        z = BatchNormalization(image, zero.scale, zero.shift, zero.mean, zero.var)
        a = {CONV}(z, one.weight)
        an = BatchNormalization(a, an.scale, an.shift, an.mean, an.var)
        b = Relu(an)
        c = {CONV}(b, two.weight, two.bias)
        cn = BatchNormalization(c, cn.scale, cn.shift, cn.mean, cn.var)
        d = Relu(cn)
        dn = BatchNormalization(d, dn.scale, dn.shift, dn.mean, dn.var)
        e = Relu(dn)
    """
    weights = Weights(13).conv("one", 8, 3, bias=False).conv("two", 8, 8)
    return _one(body, weights.norm("zero", 3).norm("an", 8).norm("cn", 8).norm("dn", 8), "e")


def prelu() -> onnx.ModelProto:
    """PRelu with a slope a channel, and LeakyRelu."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        b = PRelu(a, slope)
        c = {CONV}(b, two.weight, two.bias)
        d = LeakyRelu<alpha=0.1>(c)
    """
    return _one(body, Weights(14).conv("one", 8, 3).conv("two", 8, 8).normal("slope", 8, 1, 1), "d")


def hard_swish() -> onnx.ModelProto:
    """HardSwish as one operator."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        b = HardSwish(a)
        c = {CONV}(b, two.weight, two.bias)
        d = HardSwish(c)
    """
    return _one(body, Weights(15).conv("one", 8, 3).conv("two", 8, 8), "d")


def hard_swish_in_parts() -> onnx.ModelProto:
    """HardSwish in the two ways in which exporters spell it out; opset 11."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        a3 = Add(a, three)
        a6 = Clip(a3, low, high)
        ax = Mul(a, a6)
        b = Div(ax, six)
        c = {CONV}(b, two.weight, two.bias)
        c3 = Add(c, three)
        c6 = Clip(c3, low, high)
        cx = Div(c6, six)
        d = Mul(c, cx)
    """
    weights = Weights(16).conv("one", 8, 3).conv("two", 8, 8)
    weights.number("three", 3).number("low", 0).number("high", 6).number("six", 6)
    return _one(body, weights, "d", opset=11, ir=6)


def silu() -> onnx.ModelProto:
    """SiLU, which is x times its sigmoid."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        s = Sigmoid(a)
        b = Mul(a, s)
        c = {CONV}(b, two.weight, two.bias)
        t = Sigmoid(c)
        d = Mul(c, t)
    """
    return _one(body, Weights(17).conv("one", 8, 3).conv("two", 8, 8), "d")


def squeeze_excite() -> onnx.ModelProto:
    """A squeeze-and-excitation block, with HardSigmoid as MobileNetV3 has it."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        b = Relu(a)
        p = GlobalAveragePool(b)
        q = Conv<kernel_shape=[1,1]>(p, down.weight, down.bias)
        r = Relu(q)
        s = Conv<kernel_shape=[1,1]>(r, up.weight, up.bias)
        t = HardSigmoid<alpha=0.2, beta=0.5>(s)
        c = Mul(b, t)
    """
    return _one(body, Weights(18).conv("one", 8, 3).conv("down", 4, 8, 1).conv("up", 8, 4, 1), "c")


def dropout() -> onnx.ModelProto:
    """Dropout and Identity, which do nothing."""
    body = f"""
        a = {CONV}(image, one.weight, one.bias)
        b = Identity(a)
        c = Relu(b)
        d = Dropout(c, ratio)
    """
    return _one(body, Weights(19).conv("one", 8, 3).number("ratio", 0.5), "d")


def matmul_head() -> onnx.ModelProto:
    """The linear layers are a Gemm without transB and MatMul plus Add; then Softmax."""
    graph = f"""net (float[N,1,{SIDE},{SIDE}] image) => (float[N,4] scores) {{
        a = {CONV}(image, one.weight, one.bias)
        b = Relu(a)
        pooled = GlobalAveragePool(b)
        flat = Flatten(pooled)
        g = Gemm(flat, mid.weight, mid.bias)
        h = Relu(g)
        m = MatMul(h, head.weight)
        n = Add(m, head.bias)
        scores = Softmax<axis=1>(n)
    }}"""
    weights = Weights(20).conv("one", 8, 1).normal("mid.weight", 8, 6, fan=8).normal("mid.bias", 6, fan=200)
    return build(graph, weights.normal("head.weight", 6, 4, fan=6).normal("head.bias", 4, fan=200))


def nhwc() -> onnx.ModelProto:
    """A float image with its channels last, turned in the graph, as TensorFlow's exporter writes it."""
    graph = f"""net (float[N,{SIDE},{SIDE},3] image) => (float[N,4] scores) {{
        planes = Transpose<perm=[0,3,1,2]>(image)
        a = {CONV}(planes, one.weight, one.bias)
        b = Relu(a)
        {HEAD.format("b")}
    }}"""
    return build(graph, _head(Weights(21).conv("one", 8, 3), 8))


def nhwc_uint8() -> onnx.ModelProto:
    """uint8 pixels with the normalisation in the graph, as edgecnn exports it, its notes included."""
    graph = f"""net (uint8[batch,{SIDE},{SIDE},3] image) => (float[batch,4] scores) {{
        f = Cast<to=1>(image)
        s = Sub(f, zero_point)
        m = Mul(s, scale)
        planes = Transpose<perm=[0,3,1,2]>(m)
        a = {CONV}(planes, one.weight, one.bias)
        b = Relu(a)
        {HEAD.format("b")}
    }}"""
    weights = _head(Weights(22).conv("one", 8, 3).number("zero_point", 128).number("scale", 1 / 64), 8)
    model = build(graph, weights)
    notes = {"height": SIDE, "width": SIDE, "channels": 3, "fit": "crop", "scale": 1 / 64, "zero_point": 128}
    labels = ["ant", "bee", "cat", "dog"]
    helper.set_model_props(model, {"edgecnn.preprocess": json.dumps(notes), "edgecnn.labels": json.dumps(labels)})
    return model


def local_function() -> onnx.ModelProto:
    """A convolution inside a function that the model itself defines, as torch's exporter leaves them."""
    graph = f"""net (float[N,3,{SIDE},{SIDE}] image) => (float[N,4] scores) {{
        b = here.block(image, one.weight, one.bias)
        {HEAD.format("b")}
    }}"""
    function = f"""<domain: "here", opset_import: ["" : 17]>
    block (x, w, bias) => (y) {{ a = {CONV}(x, w, bias)  y = Relu(a) }}"""
    return build(graph, _head(Weights(23).conv("one", 8, 3), 8), domains=', "here" : 1', functions=function)


ZOO: dict[str, Callable[[], onnx.ModelProto]] = {
    make.__name__: make
    for make in (
        plain, residual, old_attributes, weights_as_inputs, upsample, resize_10, resize_11, constants, dynamic, fixed_batch,
        two_inputs, two_outputs, groups, depthwise, batch_norms, prelu, hard_swish, hard_swish_in_parts, silu,
        squeeze_excite, dropout, matmul_head, nhwc, nhwc_uint8, local_function,
    )
}  # fmt: skip


def feeds(model: onnx.ModelProto, batch: int = 2, seed: int = 0) -> Arrays:
    """Make random inputs: normal numbers, or pixels for uint8; free sizes are `batch` in front and SIDE elsewhere."""
    random = np.random.default_rng(seed)
    weights = {weight.name for weight in model.graph.initializer}
    made: Arrays = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
        shape = [size if size > 0 else SIDE if axis else batch for axis, size in enumerate(sizes)]
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            made[value.name] = random.integers(0, 256, shape, dtype=np.uint8)
        else:
            made[value.name] = random.normal(size=shape).astype(np.float32)
    return made


def save(model: onnx.ModelProto, path: Path, data: str | None = None) -> Path:
    """Write a model, its weights into the file `data` beside it where one is named."""
    if data is None:
        path.write_bytes(model.SerializeToString())
    else:
        onnx.save_model(
            model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=data, size_threshold=0
        )
    return path
