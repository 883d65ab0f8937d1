"""`bulk_index`: how much of the embedder's and of the full-text writer's speed is left when documents go the whole way.

The whole way: `va index` of real help pages through a fresh `va up`, until all are searchable; parsed, cut, embedded,
in both indexes, synced to disk. Against it: the bare embedder on exactly the texts that the pipeline embeds, each once
(what the pipeline finds in its cache counts for neither side), and, for a collection without vectors, a bare full-text
writer fed the same chunks from memory. Turns alternate, each on a fresh data directory. And the memory that it takes.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

from kit import help, meter, report, server, stats

MODEL = "multilingual-e5-small"
# Texts in one call of the bare embedder at its best.
BATCH = 64
MEMORY_LIMIT_MB, IDLE_LIMIT_MB = 1500, 200


def main():
    args = argparse.ArgumentParser(prog="make bench NAME=bulk_index ARGS=...", description=__doc__.splitlines()[0])
    args.add_argument("--pages", type=int, default=200, help="pages in each turn (200)")
    # Fewer take less than a second, of which the start of the command and the last checkpoint are a good part.
    args.add_argument("--keyword-pages", type=int, default=help.ALL, help="pages in each turn without vectors (5120)")
    args.add_argument("--rounds", type=int, default=3, help="turns of each (3)")
    args.add_argument("--full", action="store_true", help="all 5,120 pages, one turn: about 20 minutes on two cores")
    args.add_argument("--save", action="store_true", help="save whatever the profile")
    args = args.parse_args()
    if args.full:
        args.pages, args.keyword_pages, args.rounds = help.ALL, help.ALL, 1
    name = "bulk_index_full" if args.full else "bulk_index"
    result = report.Report(name, "bulk_index")
    cache = pathlib.Path(os.environ["VA_BENCH_CACHE"])
    with tempfile.TemporaryDirectory(dir=cache) as folder, meter.Meter() as bare:
        folder = pathlib.Path(folder)
        bench = Bench(bare, folder, args.rounds)
        bench.vectors(result, help.pages(args.pages))
        bench.keywords(result, help.pages(args.keyword_pages))
        bench.memory(result, help.pages(args.pages))
    sizes = (args.pages, args.keyword_pages, args.rounds)
    result.finish(args.save or report.default_save(not args.full and sizes != (200, help.ALL, 3)))


class Bench:
    def __init__(self, bare, folder, rounds):
        self.bare, self.folder, self.rounds = bare, folder, rounds
        self.peak_mb = 0.0
        self.pages = 0

    def whole_way(self, docs, keyword_only, look=False):
        """Indexes everything into a fresh server once; what it took. With `look` also the chunks, read afterwards."""
        # Removed at the end only: for a minute after many files were deleted, ext4 without a journal is slow to make new
        # ones, and the next turn would pay for that.
        data = tempfile.mkdtemp(dir=self.folder)
        with server.Server(data) as up:
            client = up.client()
            client.post("/api/v1/collections", {"name": "bench", "keyword_only": keyword_only})
            if keyword_only and not look:
                # As before the turns of the bare writer: the dictionary of Chinese words is loaded once per process.
                client.post("/api/v1/collections", {"name": "warm-up", "keyword_only": True})
                upload_one(client, "warm-up", docs / "zh-CN")
            said, seconds = up.index("bench", docs)
            found = {
                "seconds": seconds,
                "embedded": client.metrics().get('va_embed_cache_total{outcome="miss"}', 0),
                "busy": up.busy_seconds(),
                "peak_mb": up.memory_mb("VmHWM"),
            }
            self.pages = said["files"]
            if look:
                found["chunks"] = server.cut_chunks(up, said["files"])
            return found

    def texts_of(self, chunks):
        """The distinct texts to embed, in two files for the meter: by document, and in equal batches."""
        distinct, batches = set(), {}
        for chunk in chunks:
            if chunk["embedded"] not in distinct:
                distinct.add(chunk["embedded"])
                batches.setdefault(chunk["document_id"], []).append(chunk["embedded"])
        self.distinct = len(distinct)
        texts = [text for batch in batches.values() for text in batch]
        self.by_document = self.folder / "by_document.json"
        self.by_document.write_text(json.dumps(list(batches.values())))
        self.by_batch = self.folder / "by_batch.json"
        self.by_batch.write_text(json.dumps([texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]))

    def vectors(self, result, docs):
        first = self.whole_way(docs, keyword_only=False, look=True)
        chunks = first["chunks"]
        self.texts_of(chunks)

        def embed(path):
            return self.distinct / self.bare.ask("embed", model=MODEL, batches=str(path))["seconds"]

        self.bare.ask("embed", model=MODEL, batches=str(self.by_document))
        ways = []

        def whole(number):
            way = first if number == 0 and self.rounds == 1 else self.whole_way(docs, keyword_only=False)
            ways.append(way)
            return way["embedded"] / way["seconds"]

        mine, same, best = stats.alternate(
            self.rounds, whole, lambda _: embed(self.by_document), lambda _: embed(self.by_batch)
        )
        self.peak_mb = max(way["peak_mb"] for way in [first, *ways])
        rows = []
        for what, rates in (("one call a document", same), (f"batches of {BATCH}", best)):
            ratio, low, high = stats.paired_ratio(mine, rates)
            rows.append([what, stats.median(mine), stats.median(rates), ratio, f"{low:.2f} to {high:.2f}"])
        result.table(
            f"{self.pages:,} pages, {len(chunks):,} chunks, {self.distinct:,} distinct (goal: ratio at least 0.9)",
            ["bare embedder gets", "whole way, chunks/s", "bare, chunks/s", "whole / bare", "lowest to highest"],
            rows,
        )
        self.where(result, "with vectors", ways)

    def keywords(self, result, docs):
        chunks = self.whole_way(docs, keyword_only=True, look=True)["chunks"]
        source = sum(len(chunk["text"].encode()) for chunk in chunks) / 1e6
        raw = sum(path.stat().st_size for path in docs.rglob("*") if path.is_file()) / 1e6
        rows = self.folder / "rows.jsonl"
        with open(rows, "w", encoding="utf-8") as file:
            for chunk in chunks:
                file.write(json.dumps(record(chunk), ensure_ascii=False) + "\n")
        ways = []

        def bare(_):
            return source / self.bare.ask("fulltext", rows=str(rows), dir=str(self.folder))["seconds"]

        def whole(_):
            ways.append(self.whole_way(docs, keyword_only=True))
            return source / ways[-1]["seconds"]

        bare(0)
        mine, peer = stats.alternate(self.rounds, whole, bare)
        ratio, low, high = stats.paired_ratio(mine, peer)
        result.table(
            f"Without vectors: {self.pages:,} pages, {source:.1f} MB text in {raw:.0f} MB HTML (goal: at least 0.7)",
            [
                "whole way, MB/s",
                "bare full-text writer, MB/s",
                "whole / bare",
                "lowest to highest",
                "whole way, MB of HTML/s",
            ],
            [
                [
                    stats.median(mine),
                    stats.median(peer),
                    ratio,
                    f"{low:.2f} to {high:.2f}",
                    stats.median(mine) * raw / source,
                ]
            ],
        )
        self.where(result, "without vectors", ways)

    def where(self, result, what, ways):
        """Seconds that each node worked; the nodes run at the same time, and waiting for a thread counts as work."""
        middle = sorted(ways, key=lambda way: way["seconds"])[len(ways) // 2]
        nodes = sorted(middle["busy"].items(), key=lambda item: -item[1])
        result.table(
            f"Where the time goes {what}: seconds each node was busy in a turn of {middle['seconds']:.1f} s",
            [name for name, _ in nodes],
            [[seconds for _, seconds in nodes]],
        )

    def memory(self, result, docs):
        pages = sum(path.is_file() for path in docs.rglob("*"))
        rows = [[f"peak while indexing {pages:,} pages with vectors", round(self.peak_mb), MEMORY_LIMIT_MB]]
        with tempfile.TemporaryDirectory(dir=self.folder) as data:
            with server.Server(data) as up:
                rows.append(["fresh `va up`, idle", round(settled(up)), IDLE_LIMIT_MB])
            with server.Server(data, {"VA_MODELS__IDLE_MS": "2000"}) as up:
                client = up.client()
                client.post("/api/v1/collections", {"name": "bench"})
                upload_one(client, "bench", docs)
                client.search("bench", "page")
                rows.append(["after indexing and searching, model in memory", round(up.memory_mb()), None])
                log = up.data / "stderr.log"
                deadline = time.monotonic() + 180
                while "idle models left memory" not in log.read_text(errors="replace"):
                    if time.monotonic() > deadline:
                        raise server.Failed("the model did not leave memory")
                    time.sleep(0.2)
                rows.append(["the same, model unloaded", round(settled(up)), IDLE_LIMIT_MB])
        result.table("Memory of the server process, MB", ["when", "MB", "limit"], rows)


def upload_one(client, collection, folder):
    """Uploads a page of the folder and waits until it is searchable."""
    page = min(folder.rglob("*.html"))
    path = f"/api/v1/collections/{collection}/documents?name=page.html&wait=ready"
    client.send("POST", path, page.read_bytes(), "text/html")


def settled(up):
    """Resident memory once it no longer changes by a megabyte within a second."""
    before, now = 0, up.memory_mb()
    while abs(now - before) > 1:
        time.sleep(1)
        before, now = now, up.memory_mb()
    return now


def record(row):
    """A chunk row of the topic as the record that indexes store."""
    kept = {key: row.get(key) for key in ("id", "title_path", "page", "start", "end", "text", "tokens", "tags")}
    document = {key: row.get(key) for key in ("name", "uri", "title", "version")}
    return {
        **kept,
        "document": {"id": row["document_id"], **document},
        "index": row["chunk_index"],
        "count": row["chunk_count"],
    }


if __name__ == "__main__":
    main()
