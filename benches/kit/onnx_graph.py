"""A BERT encoder as an ONNX graph, from the weights of our model store, and quantised by onnxruntime's own tool.

The graph is the plain encoder; onnxruntime's optimiser fuses it. Reads E5S1 files and safetensors. Relies on onnx and
onnxruntime (requirements.txt).
"""

import json
import struct

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic


def export(directory, out):
    """Writes `out`/model.onnx for the model in `directory`: int8 weights per channel, dynamically quantised inputs."""
    out.mkdir(parents=True, exist_ok=True)
    e5 = directory / "model.e5s1"
    build(*(e5s1(e5) if e5.exists() else safetensors(directory)), out / "model_f32.onnx")
    quantize_dynamic(
        out / "model_f32.onnx",
        out / "model.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
    )


def e5s1(path):
    data = path.read_bytes()
    hidden, layers, heads, _, _, positions, _ = struct.unpack_from("<7i", data, 8)
    at = 44
    pieces = struct.unpack_from("<i", data, at)[0]
    blob = struct.unpack_from("<Q", data, at + 20)[0]
    at += 28 + 4 * (pieces + 1) + 4 * pieces + blob
    at += 8 + struct.unpack_from("<I", data, at + 4)[0]
    count = struct.unpack_from("<i", data, at)[0]
    at += 4
    raw = {}
    for _ in range(count):
        n = struct.unpack_from("<H", data, at)[0]
        name = data[at + 2 : at + 2 + n].decode()
        kind, values, offset, size = struct.unpack_from("<BIQQ", data, at + 2 + n)
        at += 2 + n + 21
        chunk = np.frombuffer(data, np.uint8, size, offset)
        if kind:
            blocks = chunk.reshape(-1, 18)
            scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            low, high = blocks[:, 2:] & 15, blocks[:, 2:] >> 4
            tensor = (np.concatenate([low, high], 1).astype(np.float32) - 8) * scale
        else:
            tensor = chunk.view(np.float32)
        raw[name] = tensor.reshape(values)
    parts = {
        "attention.self.query": "q",
        "attention.self.key": "k",
        "attention.self.value": "v",
        "attention.output.dense": "ao",
        "attention.output.LayerNorm": "aln",
        "intermediate.dense": "fi",
        "output.dense": "fo",
        "output.LayerNorm": "oln",
    }
    out = {
        "embeddings.word_embeddings.weight": raw["emb.word"].reshape(-1, hidden),
        "embeddings.position_embeddings.weight": raw["emb.pos"].reshape(-1, hidden),
        "embeddings.token_type_embeddings.weight": raw["emb.type"].reshape(-1, hidden),
        "embeddings.LayerNorm.weight": raw["emb.ln.w"],
        "embeddings.LayerNorm.bias": raw["emb.ln.b"],
    }
    for i in range(layers):
        for long, short in parts.items():
            weight = raw[f"l{i}.{short}.w"]
            bias = raw[f"l{i}.{short}.b"]
            out[f"encoder.layer.{i}.{long}.bias"] = bias
            out[f"encoder.layer.{i}.{long}.weight"] = weight if "Norm" in long else weight.reshape(len(bias), -1)
    return out, layers, heads


def safetensors(directory):
    from safetensors.numpy import load_file

    config = json.loads((directory / "config.json").read_text())
    return load_file(directory / "model.safetensors"), config["num_hidden_layers"], config["num_attention_heads"]


def build(weights, layers, heads, path):
    nodes, constants = [], {}

    def constant(name, value):
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def node(op, inputs, **attributes):
        out = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def dense(x, name):
        w = constant(f"{name}.weight.t", weights[f"{name}.weight"].T.astype(np.float32))
        b = constant(f"{name}.bias", weights[f"{name}.bias"])
        return node("Add", [node("MatMul", [x, w]), b])

    def norm(x, name):
        w, b = constant(f"{name}.weight", weights[f"{name}.weight"]), constant(f"{name}.bias", weights[f"{name}.bias"])
        return node("LayerNormalization", [x, w, b], axis=-1, epsilon=1e-12)

    hidden = weights["embeddings.LayerNorm.weight"].shape[0]
    word = constant("word", weights["embeddings.word_embeddings.weight"])
    position = constant(
        "position",
        weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0],
    )
    zero, one = constant("zero", np.array([0], np.int64)), constant("one", np.array([1], np.int64))
    length = node("Gather", [node("Shape", ["input_ids"]), one], axis=0)
    positions = node("Slice", [position, zero, length, zero])
    x = node("Add", [node("Gather", [word, "input_ids"]), positions])
    x = norm(x, "embeddings.LayerNorm")
    mask = node("Cast", [node("Unsqueeze", ["attention_mask", constant("axes", np.array([1, 2], np.int64))])], to=1)
    mask = node("Sub", [constant("f1", np.array(1, np.float32)), mask])
    mask = node("Mul", [mask, constant("low", np.array(-1e4, np.float32))])
    split = constant("split", np.array([0, 0, heads, hidden // heads], np.int64))
    join = constant("join", np.array([0, 0, hidden], np.int64))
    scale = constant("scale", np.array(np.sqrt(hidden / heads), np.float32))
    for i in range(layers):
        at = f"encoder.layer.{i}"
        q, k, v = (
            node("Transpose", [node("Reshape", [dense(x, f"{at}.attention.self.{p}"), split])], perm=perm)
            for p, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
        )
        scores = node("Add", [node("Div", [node("MatMul", [q, k]), scale]), mask])
        mixed = node("MatMul", [node("Softmax", [scores], axis=-1), v])
        mixed = node("Reshape", [node("Transpose", [mixed], perm=[0, 2, 1, 3]), join])
        x = norm(node("Add", [dense(mixed, f"{at}.attention.output.dense"), x]), f"{at}.attention.output.LayerNorm")
        inner = dense(x, f"{at}.intermediate.dense")
        half = node("Div", [inner, constant("sqrt2", np.array(np.sqrt(2), np.float32))])
        half = node("Add", [node("Erf", [half]), constant("f1b", np.array(1, np.float32))])
        inner = node("Mul", [node("Mul", [inner, half]), constant("half", np.array(0.5, np.float32))])
        x = norm(node("Add", [dense(inner, f"{at}.output.dense"), x]), f"{at}.output.LayerNorm")
    nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"]))
    dims = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "bert",
        [helper.make_tensor_value_info(n, TensorProto.INT64, dims) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*dims, hidden])],
        list(constants.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
