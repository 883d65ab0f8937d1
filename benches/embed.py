"""`embed`: our embedder against onnxruntime on the same weights, texts and threads, and against the processor's limit.

From texts to normalised vectors, tokenizing included, on both sides. onnxruntime runs the same weights as a graph that
its own tools quantised (int8 weights per channel, activations dynamically) and fused, gets texts of like length
together in batches of 32, and as many threads as ours. Turns alternate; what counts is the median of the ratios.
"""

import argparse
import json
import math
import os
import pathlib
import random
import tempfile
import time

from kit import meter, report, server, stats
from kit.peer import Peer

MODEL = "multilingual-e5-small"
# Texts in one call of ours: the row limit of what the pipeline hands to the embedder.
BATCH = 64
# One layer of the model: four products of hidden x hidden and two of hidden x inner, for each token.
LAYERS, HIDDEN, INNER = 12, 384, 1536
GOP_PER_TOKEN = 2 * LAYERS * (4 * HIDDEN**2 + 2 * HIDDEN * INNER) / 1e9


def main():
    args = argparse.ArgumentParser(prog="make bench NAME=embed ARGS=...", description=__doc__.splitlines()[0])
    args.add_argument("--rounds", type=int, default=7, help="turns of each (7)")
    args.add_argument("--texts", type=int, default=192, help="texts of each kind (192)")
    args.add_argument("--save", action="store_true", help="save whatever the profile")
    args = args.parse_args()
    result = report.Report("embed")
    threads = os.cpu_count()
    cache = pathlib.Path(os.environ["VA_BENCH_CACHE"])
    peer = Peer(MODEL, cache / "onnx", threads)
    kinds = texts(cache, args.texts, peer)
    rows, rates = [], {}
    with meter.Meter() as ours, tempfile.TemporaryDirectory() as folder:
        for kind, found in kinds.items():
            path = pathlib.Path(folder) / f"{len(rows)}.json"
            path.write_text(json.dumps([found[i : i + BATCH] for i in range(0, len(found), BATCH)]))
            agree = similarity(
                ours.ask("embed", model=MODEL, batches=str(path), vectors=True)["vectors"], peer.embed(found)
            )
            mine, other = stats.alternate(
                args.rounds,
                lambda _: len(found) / ours.ask("embed", model=MODEL, batches=str(path))["seconds"],
                lambda _: len(found) / timed(lambda: peer.embed(found)),
            )
            ratio, low, high = stats.paired_ratio(mine, other)
            tokens = sum(peer.lengths(found)) / len(found)
            # The limits are the best of many tries too.
            rates[kind] = (max(mine), tokens)
            rows.append(
                [
                    kind,
                    len(found),
                    round(tokens),
                    stats.median(mine),
                    stats.median(other),
                    ratio,
                    f"{low:.2f} to {high:.2f}",
                    agree,
                ]
            )
        limits = limit(ours, peer, threads, rates)
    result.table(
        f"Sequences a second, {threads} threads (goal: ratio at least 1.0)",
        [
            "texts",
            "number",
            "tokens each",
            "ours/s",
            "onnxruntime/s",
            "ours / onnxruntime",
            "lowest to highest",
            "cosine of both",
        ],
        rows,
    )
    result.table(f"How much of the processor's int8 arithmetic that is, {threads} threads", *limits)
    result.note(
        f"One token costs {GOP_PER_TOKEN * 1000:.1f} million int8 operations (a multiplication and an addition "
        "are two); attention, normalisation and tokenizing come on top and are not int8."
    )
    result.finish(args.save or report.default_save((args.rounds, args.texts) != (7, 192)))


def texts(cache, count, peer):
    """Real chunks of the sample in both languages, as the pipeline cuts them, and passages of exactly 128 tokens."""
    chunks = server.sample_chunks(cache)
    draw = random.Random(3)
    of_lang = {lang: [c["embedded"] for c in chunks if c["name"].startswith(folder)] for lang, folder in LANGS.items()}
    kinds = {
        f"chunks of the help, {lang}": draw.sample(found, min(count, len(found))) for lang, found in of_lang.items()
    }
    words = ["time", "people", "water", "world", "house", "music", "book", "city"]
    # Prefix and special tokens; each word is one token.
    used = peer.lengths([words[0]])[0] - 1
    kinds["128 tokens"] = [
        " ".join(words[(i * 5 + seed * 3 + i // 7) % 8] for i in range(128 - used)) for seed in range(count)
    ]
    return kinds


LANGS = {"zh": "zh-CN/", "en": "en-US/"}


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def similarity(ours, others):
    """The mean cosine of what both made of the same texts: near 1, or they did not do the same work."""
    total = 0.0
    for a, b in zip(ours, others):
        dot = sum(x * y for x, y in zip(a, b))
        total += dot / math.sqrt(sum(x * x for x in a) * sum(float(y) ** 2 for y in b))
    return round(float(total) / len(ours), 4)


def limit(ours, peer, threads, rates):
    """Columns and rows: operations a second of the model, of bare matrix products, and on paper."""
    # A shape as in the model, a large one, and what onnxruntime reaches on the large one.
    sizes = {"256 x 384 x 1536, as in the model": (256, 1536, 384), "1024 x 1536 x 1536": (1024, 1536, 1536)}
    found, ghz = {}, 0
    for name, (m, n, k) in sizes.items():
        answer = ours.ask("gemm", threads=threads, m=m, n=n, k=k, seconds=2)
        found[f"rten-gemm, {name}"] = answer["gops"]
        ghz = max(ghz, answer["ghz"])
    found["onnxruntime MatMulInteger, 1024 x 1536 x 1536"] = peer.gops(1024, 1536, 1536, 2)
    best = max(found.values())
    per_tick, why = on_paper()
    rows = []
    for kind, (rate, tokens) in rates.items():
        gops = rate * tokens * GOP_PER_TOKEN
        rows.append(
            [
                f"ours, {kind}, best turn",
                gops,
                gops / best,
                gops / (per_tick * ghz * threads) if ghz and per_tick else None,
            ]
        )
    for name, gops in sorted(found.items(), key=lambda item: item[1]):
        rows.append([name, gops, gops / best, gops / (per_tick * ghz * threads) if ghz and per_tick else None])
    if ghz and per_tick:
        rows.append([f"on paper: {why}, {ghz:.2f} GHz measured", per_tick * ghz * threads, None, 1.0])
    return ["what", "GOP/s", "of the best matrix product", "of the paper limit"], rows


def on_paper():
    """Operations a tick and core, from the processor's flags, for one 8-bit dot product of full width a tick."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    if "avx512_vnni" in flags:
        return 128, "one 512-bit VPDPBUSD a tick and core"
    if "avx_vnni" in flags:
        return 128, "two 256-bit VPDPBUSD a tick and core"
    if "avx2" in flags:
        return 64, "two 256-bit VPMADDUBSW a tick and core"
    return 0, ""


if __name__ == "__main__":
    main()
