"""`search`: how well and how fast labelled questions are answered, by vectors, by words and by both.

Corpus: LibreOffice's help in Chinese and English, 5,120 pages in one collection. Queries: keywords of the help's own
index with the pages they lead to (make-labels.py), a fixed random choice for each language. What counts is the page: of
several chunks of a page the best one stands for it, and the same page in the other language is as right, as it is for
a reader of both. The three modes answer the same queries, so differences are judged by the paired bootstrap.

The index is kept in the cache folder and used again as long as binary, model and documents are the same.
"""

import argparse
import json
import math
import random
import threading
import time

from kit import help, report, server, stats

MODES = ["vector", "keyword", "hybrid"]
# Chunks asked for: as many as each retriever brings to the fusion by default, so that the ranking is the one users get.
DEPTH = 20
# The embedder remembers the vectors of so many questions; with no more of them the times would be without embedding.
REMEMBERED = 64
CHECKED_AT = {"recall@5": 5, "MRR@10": 10, "nDCG@10": 10}


def main():
    args = argparse.ArgumentParser(prog="make bench NAME=search ARGS=...", description=__doc__.splitlines()[0])
    args.add_argument("--queries", type=int, default=500, help="queries for each language (500)")
    args.add_argument("--seed", type=int, default=1, help="which queries (1)")
    args.add_argument("--seconds", type=float, default=20, help="seconds of each measurement of latency (20)")
    args.add_argument(
        "--pages", type=int, default=help.ALL, help=f"pages of the corpus ({help.ALL}); labels of others are left out"
    )
    args.add_argument("--fresh", action="store_true", help="build the index anew")
    args.add_argument("--dump", metavar="FILE", help="write every answer (ranks of both retrievers) as JSON lines")
    args.add_argument("--save", action="store_true", help="save whatever the profile")
    args = args.parse_args()

    data, _ = help.index(args.pages, args.fresh)
    labels = choose(args.queries, args.seed, pages=args.pages)
    if len(labels) <= REMEMBERED:
        raise SystemExit(f"{len(labels)} queries are too few to measure with: take more than {REMEMBERED}")
    result = report.Report("search")
    with server.Server(data) as up:
        client = up.client()
        pages = client.get(f"/api/v1/collections/{help.COLLECTION}")
        answers = ask(client, labels, args.dump)
        quality(result, answers, pages)
        latency(result, up, labels, args.seconds)
    result.finish(args.save or report.default_save((args.queries, args.seed, args.pages) != (500, 1, help.ALL)))


def choose(count, seed, part=0, pages=help.ALL):
    """The same queries for the same seed, about pages that are there; `part` 0 and 1 have none in common."""
    root = help.pages(pages)
    with open(server.CORPORA / "labels.jsonl", encoding="utf-8") as file:
        labels = [json.loads(line) for line in file]
    chosen = []
    for lang, (folder, _) in help.LANGS.items():
        of_lang = [label for label in labels if label["lang"] == lang][part::2]
        of_lang = [label for label in of_lang if all((root / folder / page).exists() for page in label["pages"])]
        chosen += random.Random(seed).sample(of_lang, min(count, len(of_lang)))
    return chosen


def ask(client, labels, dump):
    """[(label, {mode: relevance of each page in order})]"""
    answers = []
    out = open(dump, "w", encoding="utf-8") if dump else None
    for label in labels:
        found = {}
        for mode in MODES:
            hits = client.search(help.COLLECTION, label["query"], mode, DEPTH)["hits"]
            found[mode] = relevance(hits, label["pages"])
            if out:
                kept = [
                    [h["document"]["name"], h["document"]["uri"], h["chunk"]["id"], h["score"], h["retrievers"]]
                    for h in hits
                ]
                out.write(json.dumps({"label": label, "mode": mode, "hits": kept}, ensure_ascii=False) + "\n")
        answers.append((label, found))
    return answers


def relevance(hits, right):
    """For the distinct pages of the hits in order: whether each is right. A page in both languages counts once."""
    pages = list(dict.fromkeys(hit["document"]["name"].split("/", 1)[1] for hit in hits))
    return [page in right for page in pages]


def scores(found, right):
    """The three measures of one answer; binary relevance."""
    first = next((rank for rank, hit in enumerate(found[:10], 1) if hit), None)
    gained = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(found[:10], 1) if hit)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(10, right) + 1))
    return {
        "recall@5": sum(found[:5]) / min(5, right),
        "MRR@10": 1 / first if first else 0.0,
        "nDCG@10": gained / ideal,
    }


def quality(result, answers, pages):
    columns = ["queries", "mode", *CHECKED_AT]
    rows, tests = [], []
    for lang in [*help.LANGS, "both"]:
        of_lang = [(label, found) for label, found in answers if lang in (label["lang"], "both")]
        by_mode = {mode: [scores(found[mode], len(label["pages"])) for label, found in of_lang] for mode in MODES}
        for mode in MODES:
            means = [sum(s[m] for s in by_mode[mode]) / len(of_lang) for m in CHECKED_AT]
            rows.append([f"{len(of_lang)} {lang}", mode, *(round(mean, 3) for mean in means)])
        for other in ["vector", "keyword"]:
            for measure in CHECKED_AT:
                hybrid = [s[measure] for s in by_mode["hybrid"]]
                mean, low, high, p = stats.paired_bootstrap(hybrid, [s[measure] for s in by_mode[other]])
                tests.append(
                    [lang, f"hybrid - {other}", measure, f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{p:.4f}"]
                )
    result.table(f"Quality over {pages['documents']:,} pages, {pages['chunks']:,} chunks", columns, rows)
    result.table(
        "Is hybrid better? Mean difference over the same queries, 95 % interval, one-sided p (paired bootstrap)",
        ["queries", "difference", "measure", "mean", "95 %", "p"],
        tests,
    )


def latency(result, up, labels, seconds):
    """Whole replies over HTTP on kept connections, as a program would ask: 5 hits, all of the reply read."""
    rows = []
    for mode in MODES:
        for clients in (1, 8):
            times, passed = load(up, labels, mode, clients, seconds)
            at = [stats.quantile(times, share) * 1e3 for share in (0.5, 0.99)]
            rows.append([mode, clients, at[0], at[1], len(times) / passed])
    result.table(
        "Latency over HTTP, 5 hits, server and clients on the same machine",
        ["mode", "clients", "p50 ms", "p99 ms", "searches/s"],
        rows,
    )


def load(up, labels, mode, clients, seconds):
    """Times of all searches that `clients` send one after the other, each for itself, and the seconds it took."""
    times, lock, failures = [], threading.Lock(), []

    def work(number):
        client, own = up.client(), []
        queries = [label["query"] for label in labels]
        random.Random(number).shuffle(queries)
        try:
            for query in queries[:10]:
                client.search(help.COLLECTION, query, mode)
            begun = time.perf_counter()
            while time.perf_counter() - begun < seconds:
                started = time.perf_counter()
                client.search(help.COLLECTION, queries[len(own) % len(queries)], mode)
                own.append(time.perf_counter() - started)
        except Exception as error:
            failures.append(error)
        with lock:
            times.extend(own)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return times, time.perf_counter() - started


if __name__ == "__main__":
    main()
