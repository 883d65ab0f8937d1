"""`fusion`: which way of putting the hits of both retrievers together finds most, on queries it was not chosen by.

Asks each retriever alone for 100 chunks of each query of `search`, fuses the lists here in many ways, and shows the
three measures on one half of the queries (to choose by) and on the other (to judge by); none of them is a query of
`search`. Relies on its index.
"""

import argparse
import json
import pathlib

import search
from kit import help, report, server, stats

DEPTH = 100


def main():
    args = argparse.ArgumentParser(prog="make bench NAME=fusion ARGS=...", description=__doc__.splitlines()[0])
    args.add_argument("--queries", type=int, default=500, help="queries for each language (500)")
    args.add_argument("--pages", type=int, default=help.ALL, help=f"pages of the corpus ({help.ALL})")
    args.add_argument("--kept", metavar="FILE", help="use the answers in this file; make it when it is not there")
    args.add_argument("--save", action="store_true", help="save whatever the profile")
    args = args.parse_args()
    kept = pathlib.Path(args.kept) if args.kept else None
    if kept and kept.exists():
        asked = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    else:
        data, _ = help.index(args.pages)
        with server.Server(data) as up:
            asked = ask(up.client(), search.choose(args.queries, seed=1, part=1, pages=args.pages))
        if kept:
            kept.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in asked), encoding="utf-8")
    result = report.Report("fusion")
    halves = {"A": asked[0::2], "B": asked[1::2]}
    rows = []
    for name, way in ways().items():
        cells = []
        for half in halves.values():
            for lang in help.LANGS:
                found = [scored(one, way) for one in half if one["lang"] == lang]
                cells += [round(sum(s[m] for s in found) / len(found), 3) for m in ("recall@5", "MRR@10", "nDCG@10")]
        rows.append([name, *cells])
    columns = [f"{half}: {lang} {m}" for half in ("A", "B") for lang in help.LANGS for m in ("recall@5", "MRR", "nDCG")]
    rows.sort(key=lambda row: -(row[3] + row[6]))
    # All of them on the screen would hide the few that tell something.
    rows = [row for place, row in enumerate(rows) if place < 12 or row[0] in TOLD]
    result.table(
        f"{len(asked):,} queries; A is the half to choose by, B the half to judge by; best nDCG of A first",
        ["way", *columns],
        rows,
    )
    best = max((row for row in rows if row[0] not in ("vector", "keyword")), key=lambda row: row[3] + row[6])[0]
    tests = []
    for lang in [*help.LANGS, "both"]:
        half = [one for one in halves["B"] if lang in (one["lang"], "both")]
        for other in ("vector", "keyword", NOW):
            for measure in ("recall@5", "MRR@10", "nDCG@10"):
                ours, theirs = ([scored(one, ways()[way])[measure] for one in half] for way in (best, other))
                mean, low, high, p = stats.paired_bootstrap(ours, theirs)
                tests.append(
                    [lang, f"{best} - {other}", measure, f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{p:.4f}"]
                )
    result.table(
        "The best of A on B: paired bootstrap", ["queries", "difference", "measure", "mean", "95 %", "p"], tests
    )
    result.finish(args.save or report.default_save((args.queries, args.pages) != (500, help.ALL)))


def ask(client, labels):
    """Each label with the lists of both retrievers: [document, page, chunk, score]."""
    asked = []
    for label in labels:
        one = {"lang": label["lang"], "query": label["query"], "pages": label["pages"]}
        for mode in ("vector", "keyword"):
            hits = client.search(help.COLLECTION, label["query"], mode, DEPTH)["hits"]
            one[mode] = [
                [
                    hit["document"]["id"],
                    hit["document"]["name"].split("/", 1)[1],
                    hit["chunk"]["id"],
                    hit["retrievers"][mode]["score"],
                ]
                for hit in hits
            ]
        asked.append(one)
    return asked


# The defaults of `search.*`: k 20, vectors 2 to keywords 3.
NOW = "RRF 20, 20 candidates, words x 1.5, by document"
# Always shown, however they do.
TOLD = ("vector", "keyword", NOW, "RRF 60, 20 candidates", "RRF 60, 20 candidates, by document")


def ways():
    found = {
        "vector": lambda one: one["vector"],
        "keyword": lambda one: one["keyword"],
    }
    for k in (2, 5, 10, 20, 60):
        for candidates in (20, 50, 100):
            for weight in (1, 1.5, 2, 3):
                for documents in (False, True):
                    name = f"RRF {k}, {candidates} candidates"
                    name += f", words x {weight}" if weight != 1 else ""
                    name += ", by document" if documents else ""
                    found[name] = rrf(k, candidates, weight, documents)
    for candidates in (20, 50, 100):
        for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
            for documents in (False, True):
                name = f"scores, {candidates} candidates, words {share:g}" + (", by document" if documents else "")
                found[name] = scores(share, candidates, documents)
    return found


def best_of_document(hits):
    """The best chunk of each document, in order."""
    seen, best = set(), []
    for hit in hits:
        if hit[0] not in seen:
            seen.add(hit[0])
            best.append(hit)
    return best


def rrf(k, candidates, weight=1.0, documents=False):
    """Reciprocal ranks, those of the words times `weight`; of chunks, or of the best chunk of each document."""

    def fuse(one):
        fused = {}
        for mode, factor in (("vector", 1.0), ("keyword", weight)):
            hits = one[mode][:candidates]
            for rank, hit in enumerate(best_of_document(hits) if documents else hits, 1):
                key = hit[0] if documents else hit[2]
                score, kept = fused.get(key, (0.0, hit))
                fused[key] = (score + factor / (k + rank), kept)
        return [hit for _, hit in sorted(fused.values(), key=lambda item: -item[0])]

    return fuse


def scores(share, candidates, documents=False):
    """The scores of both, each from 0 (the worst candidate; for words none) to 1 (the best), added with weights."""

    def fuse(one):
        fused = {}
        for mode, factor in (("vector", 1 - share), ("keyword", share)):
            hits = one[mode][:candidates]
            if documents:
                hits = best_of_document(hits)
            if not hits:
                continue
            high = hits[0][3]
            low = 0.0 if mode == "keyword" else min(hit[3] for hit in hits)
            for hit in hits:
                key = hit[0] if documents else hit[2]
                score, kept = fused.get(key, (0.0, hit))
                fused[key] = (score + factor * (hit[3] - low) / (high - low or 1.0), kept)
        return [hit for _, hit in sorted(fused.values(), key=lambda item: -item[0])]

    return fuse


def scored(one, way):
    pages = list(dict.fromkeys(hit[1] for hit in way(one)))
    return search.scores([page in one["pages"] for page in pages], len(one["pages"]))


if __name__ == "__main__":
    main()
