"""`freshness`: how soon a change can be found under a steady load of changes, and what that does to searches.

Small Markdown documents, half of them new and half changed, are uploaded at fixed times, twenty a second, each with
`wait=ready`: the answer comes when the document is searchable. Once a second the change is also looked for by a word
that only it has, asked again and again until it is found. Meanwhile one client searches ten times a second, as it does
in the quiet phases between.
"""

import argparse
import os
import pathlib
import queue
import random
import tempfile
import threading
import time

from kit import report, server, stats

COLLECTION = "fresh"
# Enough that a slow answer never delays the next change.
UPLOADERS = 64
SEARCHES_PER_SECOND = 10
# Documents that are there before, and are changed in turn: each so seldom that no change overtakes another.
DOCUMENTS = 400


def main():
    args = argparse.ArgumentParser(prog="make bench NAME=freshness ARGS=...", description=__doc__.splitlines()[0])
    args.add_argument("--rate", type=float, default=20, help="changes a second (20)")
    args.add_argument("--seconds", type=float, default=30, help="seconds of each of the two busy phases (30)")
    args.add_argument("--save", action="store_true", help="save whatever the profile")
    args = args.parse_args()
    result = report.Report("freshness")
    cache = pathlib.Path(os.environ["VA_BENCH_CACHE"])
    rows, searches = [], []
    for keyword_only, name in ((False, "with vectors"), (True, "without vectors")):
        with tempfile.TemporaryDirectory(dir=cache) as data, server.Server(data) as up:
            load = Load(up, keyword_only, args.rate)
            load.prepare()
            quiet, busy = [], []
            before = up.busy_seconds()
            for _ in range(2):
                quiet += load.phase(args.seconds / 2, changing=False)
                busy += load.phase(args.seconds, changing=True)
            after = up.busy_seconds()
            own = (after["embed"] - before["embed"]) / max(1, len(load.ready)) * 1e3
            for what, times in (("answer of the upload", load.ready), ("found by search", load.found)):
                p50, p99 = (stats.quantile(times, share) * 1e3 for share in (0.5, 0.99))
                rows.append([name, what, len(times), p50, p99, max(0, p50 - own), max(0, p99 - own)])
            at_rest, under = ([stats.quantile(times, share) * 1e3 for share in (0.5, 0.99)] for times in (quiet, busy))
            searches.append(
                [
                    name,
                    len(busy),
                    at_rest[0],
                    under[0],
                    under[0] / at_rest[0],
                    at_rest[1],
                    under[1],
                    under[1] / at_rest[1],
                ]
            )
            rows[-1].append(own)
            rows[-2].append(own)
    result.table(
        f"From a change to searchable, {args.rate:g} changes/s (aim: p99 below 1,000 ms without the embedder)",
        [
            "collection",
            "until",
            "changes",
            "p50 ms",
            "p99 ms",
            "p50 less embedder",
            "p99 less embedder",
            "embedder ms/document",
        ],
        rows,
    )
    result.table(
        "Searches at rest and while documents change, one client, ten a second",
        ["collection", "searches", "p50 ms at rest", "p50 ms busy", "ratio", "p99 ms at rest", "p99 ms busy", "ratio "],
        searches,
    )
    result.note(
        "The embedder's share is the time that the pipeline's `embed` node was busy, divided by the documents; the "
        "last two rows have no embedder at all."
    )
    result.finish(args.save or report.default_save((args.rate, args.seconds) != (20, 30)))


class Load:
    def __init__(self, up, keyword_only, rate):
        self.up, self.keyword_only, self.rate = up, keyword_only, rate
        self.ready, self.found = [], []
        self.failures = []
        self.number = 0

    def prepare(self):
        """A collection with some documents, both models and indexes warm."""
        client = self.up.client()
        client.post("/api/v1/collections", {"name": COLLECTION, "keyword_only": self.keyword_only})
        for number in range(DOCUMENTS):
            client.send("POST", place("note", number), text(number).encode(), "text/markdown")
        while True:
            states = client.get(f"/api/v1/collections/{COLLECTION}")["states"]
            if states.get("READY", 0) == DOCUMENTS:
                break
            if states.get("FAILED", 0):
                raise server.Failed(f"documents could not be indexed: {states}")
            time.sleep(0.2)
        self.number = DOCUMENTS
        for _ in range(20):
            self.search(client, "冻结行 freeze rows")

    def search(self, client, query):
        started = time.perf_counter()
        client.search(COLLECTION, query, "keyword" if self.keyword_only else "hybrid")
        return time.perf_counter() - started

    def upload(self, client, document, change):
        """One change, until it is searchable; its time is kept."""
        started = time.perf_counter()
        path = place("note", document) + "&wait=ready"
        reply = client.send("POST", path, text(change).encode(), "text/markdown")
        if b'"READY"' not in reply:
            raise server.Failed(f"a change did not become searchable: {reply.decode()}")
        self.ready.append(time.perf_counter() - started)

    def phase(self, seconds, changing):
        """Times of the searches in these seconds, with changes beside them or without."""
        work, threads = queue.Queue(), []
        if changing:
            threads += [threading.Thread(target=self.guarded, args=(self.uploader, work)) for _ in range(UPLOADERS)]
        times, end = [], time.perf_counter() + seconds
        threads.append(threading.Thread(target=self.guarded, args=(self.searcher, end, times)))
        for thread in threads:
            thread.start()
        begun, sent = time.perf_counter(), 0
        while changing and not self.failures and time.perf_counter() < end:
            # Fixed times, whatever the answers take.
            due = begun + sent / self.rate
            time.sleep(max(0, due - time.perf_counter()))
            work.put((self.number, sent))
            self.number, sent = self.number + 1, sent + 1
        for _ in range(UPLOADERS if changing else 0):
            work.put(None)
        for thread in threads:
            thread.join()
        if self.failures:
            raise self.failures[0]
        return times

    def guarded(self, function, *arguments):
        try:
            function(*arguments)
        except Exception as error:
            self.failures.append(error)

    def uploader(self, work):
        client = self.up.client()
        while (job := work.get()) is not None:
            change, sent = job
            # Every second change is of a document that is there.
            document = change if change % 2 == 0 else change // 2 % DOCUMENTS
            if sent % round(self.rate) == 0:
                self.look_for(client, change)
            else:
                self.upload(client, document, change)

    def look_for(self, client, change):
        """A new document, asked for by its own word until it is found."""
        started = time.perf_counter()
        client.send("POST", place("seen", change), text(change).encode(), "text/markdown")
        while time.perf_counter() - started < 60:
            hits = client.search(COLLECTION, word(change), "keyword", 1)["hits"]
            if hits and word(change) in hits[0]["chunk"]["text"]:
                self.found.append(time.perf_counter() - started)
                return
            time.sleep(0.02)
        raise server.Failed(f"change {change} was not found within a minute")

    def searcher(self, end, times):
        client = self.up.client()
        due = time.perf_counter()
        queries = ["冻结行", "freeze rows", "打印标题行", "how do I protect cells", "页脚"]
        while time.perf_counter() < end:
            time.sleep(max(0, due - time.perf_counter()))
            times.append(self.search(client, queries[len(times) % len(queries)]))
            due = max(due + 1 / SEARCHES_PER_SECOND, time.perf_counter())


def place(kind, number):
    return f"/api/v1/collections/{COLLECTION}/documents?name={kind}-{number}.md&uri=bench:{kind}-{number}"


def word(change):
    return f"zq{change}x"


PARTS = [
    "要在滚动时保持某些行或列可见，请选择“视图 - 冻结单元格”。",
    "Rows above the selected cell stay visible while you scroll.",
    "打印时每一页都会重复标题行，除非您在打印范围中关闭了它。",
    "Protected cells cannot be changed until the sheet is unlocked again.",
    "页脚可以包含日期、页码和作者。",
    "Each slide can have a footer of its own.",
]


def text(change):
    """A note of a few sentences in both languages, like no other."""
    draw = random.Random(change)
    return f"# Note {word(change)}\n\n" + "\n\n".join(draw.sample(PARTS, 3)) + f"\n\nChange {change}.\n"


if __name__ == "__main__":
    main()
