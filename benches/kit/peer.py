"""The peer of our embedder: onnxruntime with the same weights and tokenizer, used as well as one can.

Texts of like length go together in batches of 32, padded to the longest, and come back in their order. Mean over the
tokens, length 1. Relies on onnx_graph.py for the graph, which is made once.
"""

import json
import pathlib
import subprocess
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from kit import onnx_graph, server

BATCH = 32
PREFIX = "passage: "


class Peer:
    def __init__(self, model, cache, threads):
        directory = model_directory(model)
        out = cache / f"{model}-{ort.__version__}"
        if not (out / "model.onnx").exists():
            print("embed: making the graph for onnxruntime, once", flush=True)
            onnx_graph.export(directory, out)
        self.options = ort.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.session = self.open(str(out / "model.onnx"))
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.enable_truncation(512)
        self.tokenizer.no_padding()

    def open(self, model):
        return ort.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])

    def lengths(self, texts):
        """Tokens of each text with prefix and special ones."""
        return [len(e.ids) for e in self.tokenizer.encode_batch_fast([PREFIX + text for text in texts])]

    def embed(self, texts):
        ids = [e.ids for e in self.tokenizer.encode_batch_fast([PREFIX + text for text in texts])]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = [None] * len(ids)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            longest = max(len(ids[i]) for i in batch)
            # 1 is the padding of XLM-RoBERTa; the mask hides it.
            padded = np.full((len(batch), longest), 1, np.int64)
            mask = np.zeros((len(batch), longest), np.int64)
            for row, i in enumerate(batch):
                padded[row, : len(ids[i])] = ids[i]
                mask[row, : len(ids[i])] = 1
            (hidden,) = self.session.run(None, {"input_ids": padded, "attention_mask": mask})
            weights = mask[..., None].astype(np.float32)
            vectors = (hidden * weights).sum(1) / weights.sum(1)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            for row, i in enumerate(batch):
                out[i] = vectors[row]
        return out

    def gops(self, m, n, k, seconds):
        """Billions of operations a second of one bare product of bytes."""
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
            "product",
            [helper.make_tensor_value_info("a", TensorProto.UINT8, [m, k])],
            [helper.make_tensor_value_info("c", TensorProto.INT32, [m, n])],
            [onnx.numpy_helper.from_array(np.arange(k * n, dtype=np.int64).astype(np.int8).reshape(k, n), "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        session = self.open(model.SerializeToString())
        a = np.arange(m * k, dtype=np.int64).astype(np.uint8).reshape(m, k)
        best, started = 1e9, time.perf_counter()
        while time.perf_counter() - started < seconds:
            one = time.perf_counter()
            session.run(None, {"a": a})
            best = min(best, time.perf_counter() - one)
        return 2 * m * n * k / best / 1e9


def model_directory(model):
    """Where `va` keeps the model."""
    listed = json.loads(subprocess.run([server.VA, "model", "list", "--json"], capture_output=True, check=True).stdout)
    return pathlib.Path(listed["dir"]) / model
