"""`serving`: what the model gateway adds to a model, how even its streams are, and how answers from documents bear load.

The model costs nothing: a stub in the measuring program that answers at once with the same words, so that what is seen is
what stands in front of it. Through us each call is authenticated by an API key, counted against a budget and written down
as events; LiteLLM's proxy, in front of the same stub, checks its one key. The load generator is raw HTTP/1.1 on kept
connections, in the same process as the stub, and reads and checks every reply. Turns alternate.
"""

import argparse
import contextlib
import json
import os
import pathlib
import resource
import shutil
import tempfile
import time

from kit import help, litellm, meter, report, server, stats
from search import choose

CACHE = pathlib.Path(os.environ["VA_BENCH_CACHE"])
CONNECTIONS, STREAMS, GAP_MS, BURST = 32, 256, 20, 1000
LOOP_MS = 10
PARTS = ["gateway", "reads", "answers"]
CHUNKS = 100_000
PASSWORD = "a password for the bench"
CONFIG = """\
llm:
  default_model: m
  providers:
    fast: {{base_url: "http://{upstream}/fast/v1"}}
    steady: {{base_url: "http://{upstream}/steady-{gap}-{pieces}/v1"}}
  models:
    m: {{deployments: [{{provider: fast, model: m, prices: [{{input: 0.15, output: 0.60}}]}}]}}
    steady: {{deployments: [{{provider: steady, model: m, prices: [{{input: 0.15, output: 0.60}}]}}]}}
"""


def main():
    args = argparse.ArgumentParser(prog="make bench NAME=serving ARGS=...", description=__doc__.splitlines()[0])
    args.add_argument("--rounds", type=int, default=5, help="turns of each (5)")
    args.add_argument("--seconds", type=float, default=10, help="seconds of each turn (10)")
    args.add_argument("--chunks", type=int, default=CHUNKS, help=f"chunks of the collection that is asked ({CHUNKS})")
    args.add_argument("--quick", action="store_true", help="one short turn of each on 1,000 chunks, to see that it works")
    args.add_argument("--save", action="store_true", help="save whatever the profile")
    args.add_argument("--part", choices=PARTS, help="this part alone, which is not saved")
    args = args.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.chunks = 1, 2, 1_000
    if args.save and args.part:
        raise SystemExit("a part alone is not saved: leave out --save or --part")
    # A thousand connections on each side of us.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    result = report.Report("serving")
    wanted = [args.part] if args.part else PARTS
    corpus = Corpus(args.chunks) if "answers" in wanted else None
    with tempfile.TemporaryDirectory(dir=CACHE) as folder, meter.Meter() as ours:
        bench = Bench(args, ours, pathlib.Path(folder))
        parts = {"gateway": bench.gateway, "reads": bench.reads, "answers": lambda to: bench.answers(to, corpus)}
        for part in wanted:
            parts[part](result)
    changed = args.part is not None or (args.rounds, args.seconds, args.chunks) != (5, 10, CHUNKS)
    result.finish(args.save or report.default_save(changed))


class Loop:
    """Work that needs one processor and nothing else: adding up."""

    def __init__(self, ms):
        self.count = 1_000
        while (took := self.once()) < ms / 2:
            self.count = int(self.count * min(10, max(1.1, ms / max(took, 0.001))))
        self.count = int(self.count * ms / stats.median([self.once() for _ in range(100)]))

    def once(self):
        began = time.perf_counter()
        total = 0
        for number in range(self.count):
            total += number
        return (time.perf_counter() - began) * 1_000

    def times(self, often):
        """How long it takes, so often, in milliseconds."""
        took = [self.once() for _ in range(often)]
        return {"p50": stats.quantile(took, 0.5), "p99": stats.quantile(took, 0.99)}


class Corpus:
    """A data directory with at least so many chunks of the help. More than the help has are copies of its pages under other
    names: each text is embedded only once, but is in both indexes as often as it is there."""

    def __init__(self, chunks):
        self.pages = min(help.ALL, max(64, chunks * help.ALL // 20_000))
        self.data, said = help.index(self.pages)
        self.chunks = said["chunks"]
        copies = -(-chunks // self.chunks)
        if copies > 1:
            self.multiply(copies)

    def multiply(self, copies):
        kept = self.data.with_name(f"{self.data.name}-times-{copies}")
        done = kept / "copies.json"
        if not done.exists():
            for old in kept.parent.glob("index-*-times-*"):
                shutil.rmtree(old)
            print(f"making {copies} times {self.chunks:,} chunks, once for this code", flush=True)
            shutil.copytree(self.data, kept)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder, server.Server(kept) as up:
                for copy in range(1, copies):
                    again = pathlib.Path(folder) / f"copy-{copy}"
                    shutil.copytree(help.pages(self.pages), again)
                    up.index(help.COLLECTION, again)
                self.until_kept_up(up)
                found = up.client().get(f"/api/v1/collections/{help.COLLECTION}")["chunks"]
            done.write_text(json.dumps(found))
        self.data, self.chunks = kept, json.loads(done.read_text())


    def until_kept_up(self, up):
        """Waits for the upkeep that comes each minute and puts what was loaded into the index of vectors; no longer than two of
        them, as the last may have found little to do."""
        def built():
            return up.client().metrics().get("va_vector_index_seconds_count", 0)

        before, deadline = built(), time.monotonic() + 130
        while built() == before and time.monotonic() < deadline:
            time.sleep(1)


class Bench:
    def __init__(self, args, meter, folder):
        self.args, self.meter, self.folder = args, meter, folder
        self.upstream = meter.ask("upstream_start")["address"]
        # As long as a turn.
        self.pieces = max(50, int(args.seconds * 1000 / GAP_MS))

    def up(self, data):
        """A server with the stub as its model; nothing of this machine's own providers."""
        config = self.folder / "va.yaml"
        config.write_text(CONFIG.format(upstream=self.upstream, gap=GAP_MS, pieces=self.pieces))
        return server.Server(data, {"VA_CONFIG": str(config)})

    def ask(self, address, path, key, body=None, bodies=None, holds="", method="POST"):
        return {
            "address": address,
            "method": method,
            "path": path,
            "headers": [["authorization", f"Bearer {key}"]] if key else [],
            "bodies": bodies or ([body] if body else []),
            "holds": holds,
        }

    def load(self, ask, connections):
        options = {"warm_s": min(2, self.args.seconds / 2), "seconds": self.args.seconds}
        return self.meter.ask("http_load", ask=ask, connections=connections, **options)

    def turns(self, contenders, run):
        """The turns of each contender: {name: [what run(contender) returned]}."""
        runs = [lambda _, of=of: run(of) for of in contenders.values()]
        return dict(zip(contenders, stats.alternate(self.args.rounds, *runs)))

    def gateway(self, result):
        cores = os.cpu_count()
        with (
            self.up(self.folder / "gateway") as up,
            litellm.LiteLlm(self.folder, self.upstream, 1) as one,
            litellm.LiteLlm(self.folder, self.upstream, cores) if cores > 1 else contextlib.nullcontext() as many,
        ):
            budget = {"micros": 10**12, "window": "day"}
            made = up.client().post("/api/v1/keys", {"name": "bench", "scopes": ["write"], "budget": budget})
            key = made["key"]
            said = json.dumps({"model": "m", "messages": [{"role": "user", "content": "How do I freeze a row?"}], "max_tokens": 64})
            path = "/v1/chat/completions"

            def chat(address, path, key):
                return self.ask(address, path, key, said, holds="in the help")

            contenders = {
                "the stub alone": chat(self.upstream, f"/fast{path}", None),
                "ours": chat(up.base, path, key),
                "LiteLLM, 1 worker": chat(one.address, path, litellm.KEY),
            }
            if cores > 1:
                contenders[f"LiteLLM, {cores} workers"] = chat(many.address, path, litellm.KEY)
            sent = self.rates(result, contenders) + self.added(result, contenders)
            kept = up.client().get("/api/v1/llm/usage")["spent"]["calls"]
            # Those of the warm-up are in the books, too.
            if kept < sent:
                raise server.Failed(f"{sent} calls were measured, but only {kept} are in the books")
            self.evenness(result, up, key)

    def rates(self, result, contenders):
        found = self.turns(contenders, lambda ask: self.load(ask, CONNECTIONS))
        ours = [turn["per_second"] for turn in found["ours"]]
        rows = []
        for name, turns in found.items():
            rates = [turn["per_second"] for turn in turns]
            ratio = ["", ""]
            if name != "ours":
                middle, low, high = stats.paired_ratio(ours, rates)
                ratio = [middle, f"{low:.2f} to {high:.2f}"]
            times = [stats.median([turn["ms"][of] for turn in turns]) for of in ("p50", "p99")]
            rows.append([name, round(stats.median(rates)), *ratio, *times])
        result.table(
            f"Chat completions, {CONNECTIONS} connections (goal: at least 20 times LiteLLM's)",
            ["contender", "requests/s", "ours / it", "lowest to highest", "p50 ms", "p99 ms"],
            rows,
        )
        return sum(turn["requests"] for turn in found["ours"])

    def added(self, result, contenders):
        """With one request at a time nothing waits for a processor, so the difference is what a call costs."""
        found = self.turns(contenders, lambda ask: self.load(ask, 1))
        rows = []
        for name, turns in found.items():
            row = [name]
            for of in ("p50", "p99"):
                row.append(stats.median([turn["ms"][of] for turn in turns]))
                added = [a["ms"][of] - b["ms"][of] for a, b in zip(turns, found["the stub alone"])]
                row.append(None if name == "the stub alone" else stats.median(added))
            rows.append(row)
        synced = [self.sync_ms() for _ in range(self.args.rounds)]
        times = [stats.median([turn[of] for turn in synced]) for of in ("p50", "p99")]
        rows.append(["300 bytes appended and synced", times[0], None, times[1], None])
        result.table(
            "Time of one call, one connection (aim: p99 added by us at most 1 ms)",
            ["contender", "p50 ms", "added", "p99 ms", "added"],
            rows,
        )
        return sum(turn["requests"] for turn in found["ours"])

    def sync_ms(self):
        """What this disk takes for what a call waits for twice: its reservation and its settlement are on the disk."""
        times = []
        with open(self.folder / "synced", "wb", buffering=0) as file:
            for _ in range(2_000):
                began = time.perf_counter()
                file.write(b"x" * 300)
                os.fdatasync(file.fileno())
                times.append((time.perf_counter() - began) * 1000)
        times.sort()
        return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}

    def evenness(self, result, up, key):
        def body(model):
            return json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "Go on."}]})

        path = "/v1/chat/completions"
        direct = f"/steady-{GAP_MS}-{self.pieces}{path}"
        contenders = {
            "the stub alone": self.ask(self.upstream, direct, None, body("m"), holds="[DONE]"),
            "ours": self.ask(up.base, path, key, body("steady"), holds="[DONE]"),
        }

        def run(ask):
            options = {"connections": STREAMS, "streams": 1, "mark": '"content":"word "', "marks_min": self.pieces}
            return self.meter.ask("http_streams", ask=ask, gap_ms=GAP_MS, **options)["off_ms"]

        found = self.turns(contenders, run)
        rows = []
        for name, turns in found.items():
            rows.append([name, *(stats.median([turn[of] for turn in turns]) for of in ("p50", "p99", "max"))])
        result.table(
            f"{STREAMS} streams at once, a piece every {GAP_MS} ms: how far gaps are from that",
            ["contender", "p50 ms", "p99 ms", "max ms"],
            rows,
        )

    def reads(self, result):
        with self.up(self.folder / "reads") as up:
            admin = up.client()
            person = {"email": "ann@example.com", "password": PASSWORD, "roles": ["owner"]}
            admin.post("/api/v1/users", person)
            login = {"tenant": "default", "email": person["email"], "password": PASSWORD}
            token = admin.post("/api/v1/auth/login", login)["access_token"]
            ann = server.Client(up.base, token)
            key = ann.post("/api/v1/keys", {"name": "bench", "scopes": ["write"]})["key"]
            # Conversations belong to who holds them: a user, or a key.
            for caller in (ann, server.Client(up.base, key)):
                for number in range(20):
                    caller.post("/api/v1/conversations", {"title": f"conversation {number}"})

            def get(path, key, holds, method="GET"):
                return self.ask(up.base, path, key, holds=holds, method=method)

            listed = "/api/v1/conversations?limit=20"
            contenders = {
                "conversations, access token": get(listed, token, "conversation 19"),
                "conversations, API key": get(listed, key, "conversation 19"),
                "/api/v1/auth/verify, access token": get("/api/v1/auth/verify", token, "subject", "POST"),
                "/healthz, no credential": get("/healthz", None, "ok"),
            }
            many = self.turns(contenders, lambda ask: self.load(ask, CONNECTIONS))
            single = self.turns(contenders, lambda ask: self.load(ask, 1))
            rows = []
            for name, turns in many.items():
                alone = [stats.median([turn["ms"][of] for turn in single[name]]) for of in ("p50", "p99")]
                rows.append([name, round(stats.median([turn["per_second"] for turn in turns])), *alone])
            result.table(
                f"Reads with a credential: requests/s with {CONNECTIONS} connections, times with one",
                ["request", "requests/s", "p50 ms", "p99 ms"],
                rows,
            )

    def answers(self, result, corpus):
        """On a copy, since conversations are written down."""
        data = self.folder / "corpus"
        shutil.copytree(corpus.data, data)
        questions = [label["query"] for label in choose(200, 1, pages=corpus.pages)]
        with self.up(data) as up:
            self.first_words(result, up, questions, corpus.chunks)
            self.burst(result, up, questions)

    def first_words(self, result, up, questions, chunks):
        def bodies(field, **more):
            of = {"collection": help.COLLECTION, "stream": True, **more}
            return [json.dumps({field: question, **of}) for question in questions]

        rag = bodies("question", mode="generated")
        chat = bodies("message", mode="rag")
        model = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "Go on."}]})
        contenders = {
            "the stub alone": (self.ask(self.upstream, "/fast/v1/chat/completions", None, model, holds="[DONE]"), '"content":"'),
            "/api/v1/rag/query": (self.ask(up.base, "/api/v1/rag/query", up.key, bodies=rag, holds="[DONE]"), "event: delta"),
            "/api/v1/chat": (self.ask(up.base, "/api/v1/chat", up.key, bodies=chat, holds="event: done"), "event: delta"),
        }
        each = max(5, int(20 * self.args.seconds))
        # What the machine adds to about as much work as a question has one after the other, whatever the work is.
        loop = Loop(LOOP_MS)
        alone = f"{LOOP_MS} ms of work on one processor"

        def run(connections):
            def of(contender):
                if contender is loop:
                    return {"first_byte_ms": {"p50": None, "p99": None}, "first_mark_ms": loop.times(each)}
                ask, mark = contender
                options = {"connections": connections, "streams": each // connections + 1, "mark": mark, "marks_min": 1}
                return self.meter.ask("http_streams", ask=ask, gap_ms=None, **options)

            return of

        rows = []
        for connections in (1, 8):
            beside = {alone: loop} if connections == 1 else {}
            found = self.turns(beside | contenders, run(connections))
            model_ms = stats.median([turn["first_mark_ms"]["p50"] for turn in found["the stub alone"]])
            for name, turns in found.items():
                row = [name, connections]
                for what in ("first_byte_ms", "first_mark_ms"):
                    for of in ("p50", "p99"):
                        times = [turn[what][of] for turn in turns]
                        row.append(None if None in times else stats.median(times))
                rows.append([*row, None if name in ("the stub alone", alone) else row[-1] - model_ms])
        result.table(
            f"From a question to the first words of its answer, {chunks:,} chunks (goal: p99 beyond the model's own at most 20 ms)",
            ["stream", "clients", "first byte p50 ms", "p99", "first words p50 ms", "p99", "p99 beyond the model's"],
            rows,
        )

    def burst(self, result, up, questions):
        of = {"collection": help.COLLECTION, "mode": "generated"}
        bodies = [json.dumps({"question": question, **of}) for question in questions]
        ask = self.ask(up.base, "/api/v1/rag/query", up.key, bodies=bodies, holds='"answer"')
        rows = []
        for number in range(self.args.rounds):
            before = up.memory_mb()
            # Begins the peak anew.
            pathlib.Path(f"/proc/{up.process.pid}/clear_refs").write_text("5")
            found = self.meter.ask("http_burst", ask=ask, connections=BURST)
            times = found["ms"] or {"p50": None, "p99": None, "max": None}
            counts = [found[of] for of in ("good", "refused", "failed")]
            rows.append([number + 1, *counts, times["p50"], times["max"], round(before), round(up.memory_mb("VmHWM"))])
            for error, times_seen in list(found["errors"].items())[:5]:
                print(f"  {times_seen} times: {error}", flush=True)
        result.table(
            f"{BURST:,} questions at the same moment (goal: none fails)",
            ["turn", "answered", "503 with Retry-After", "failed", "p50 ms", "last ms", "MB before", "MB at most"],
            rows,
        )


if __name__ == "__main__":
    main()
