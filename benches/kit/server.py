"""A `va up` of a benchmark's own on free ports, and a client that keeps its connection.

Relies on `bench.sh`, which names the binary in VA_BENCH_VA. Leaves what is asked to the benchmarks.
"""

import hashlib
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import threading
import time

VA = os.environ["VA_BENCH_VA"]
CORPORA = pathlib.Path(os.environ["VA_CORPORA"])
# Only a bench that hangs waits so long, in seconds.
PATIENCE = 3600
# Seconds after which a connection may have been closed by the server (`server.header_timeout_seconds` is 60).
IDLE = 30


class Failed(Exception):
    """Something that a benchmark needs did not happen; the text says what."""


class Client:
    """One connection to a server. Not for several threads: each takes one of its own."""

    def __init__(self, base, key):
        self.base, self.key = base, key
        self.connection = http.client.HTTPConnection(base, timeout=PATIENCE)
        self.used = time.monotonic()

    def send(self, method, path, body=None, content_type="application/json"):
        headers = {"authorization": f"Bearer {self.key}"}
        if body is not None:
            headers["content-type"] = content_type
        # A server closes connections that nobody uses; this opens another.
        if time.monotonic() - self.used > IDLE:
            self.connection.close()
        self.connection.request(method, path, body, headers)
        reply = self.connection.getresponse()
        data = reply.read()
        self.used = time.monotonic()
        if reply.status >= 300:
            raise Failed(f"{method} {path}: {reply.status} {data.decode(errors='replace')[:500]}")
        return data

    def get(self, path):
        return json.loads(self.send("GET", path))

    def post(self, path, value):
        return json.loads(self.send("POST", path, json.dumps(value)) or "null")

    def search(self, collection, query, mode="hybrid", k=5):
        reply = self.post(
            "/api/v1/retrieval/hybrid_search", {"query": query, "collection": collection, "mode": mode, "k": k}
        )
        if reply["degraded"]:
            raise Failed(f"a degraded answer says nothing: {reply['degraded']}")
        return reply

    def sql(self, query):
        return self.post("/api/v1/sql", {"query": query})["rows"]

    def metrics(self):
        """Every sample of /metrics, by its name with labels."""
        text = self.send("GET", "/metrics").decode()
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


class Server:
    """Starts the server, waits until it listens, ends it with SIGTERM. Use with `with`."""

    def __init__(self, data, settings=None):
        self.data = pathlib.Path(data)
        self.settings = settings or {}

    def environment(self):
        kept = {k: v for k, v in os.environ.items() if k not in ("VA_SERVER", "VA_TOKEN")}
        return {**kept, "VA_DATA": str(self.data), "NO_COLOR": "1", **self.settings}

    def __enter__(self):
        self.data.mkdir(parents=True, exist_ok=True)
        self.errors = open(self.data / "stderr.log", "ab")
        arguments = [VA, "up", "--listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=self.errors, env=self.environment(), text=True
        )
        self.base = None
        for line in self.process.stdout:
            found = re.search(r"http://(\S+)", line)
            self.base = found.group(1) if found else self.base
            if line.startswith("Stop with"):
                break
        if self.base is None:
            raise Failed(f"`va up` did not start, see {self.data / 'stderr.log'}")
        # Whatever it prints later must not fill the pipe.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        self.key = (self.data / "admin.key").read_text().strip()
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()

    def client(self):
        return Client(self.base, self.key)

    def run(self, *arguments):
        """Output and wall seconds of a `va` command that must succeed."""
        started = time.perf_counter()
        done = subprocess.run([VA, *arguments], env=self.environment(), capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise Failed(f"va {' '.join(arguments)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        return done.stdout, seconds

    def index(self, collection, *paths):
        """`va index` until all is searchable: its report, and wall seconds."""
        said, seconds = self.run("index", *map(str, paths), "--collection", collection, "--json")
        report = json.loads(said)
        if report["failed"]:
            raise Failed(f"some documents could not be indexed: {report['failed'][:3]}")
        return report, seconds

    def memory_mb(self, what="VmRSS"):
        """Memory of the server and its children: `VmRSS` now, `VmHWM` at most (sum of each one's most), in MB."""
        return sum(status(pid, what) for pid in [self.process.pid, *children(self.process.pid)]) / 1e6

    def busy_seconds(self, pipeline="index"):
        """Seconds that each node of a pipeline has worked."""
        prefix = "va_pipeline_busy_microseconds_total{"
        found = {}
        for name, value in self.client().metrics().items():
            labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
            if name.startswith(prefix) and labels.get("pipeline") == pipeline:
                found[labels["node"]] = value / 1e6
        return found


def status(pid, field):
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.M)
    return int(found.group(1)) * 1024 if found else 0


def children(pid):
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children(int(child))]
    return found


def cpu_seconds(pid):
    """Processor time that a process has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


CUT = """\
# The first half of the built-in `index` pipeline, once more, to see what it hands to the embedder.
pipeline: bench-cut
checkpoint: {interval_ms: 1000, rows_max: 256}
sources:
  uploads: {type: topic, topic: document.uploaded, batch_rows_max: 8}
operators:
  parse: {type: parse, input: uploads}
  chunk: {type: chunk, input: parse, tokens_max: 320, overlap_tokens: 40}
sinks:
  cut: {type: topic, input: chunk, topic: bench.cut, key: document_id}
"""


def cut_chunks(up, documents):
    """The chunk rows of everything that was uploaded, in the order of the log, each with `embedded`: the text that the
    index pipeline embeds for it. Runs the pipeline's own parser and chunker again and reads what they emit."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(CUT)
        file.flush()
        up.run("pipeline", "run", file.name)
    client = up.client()
    deadline = time.monotonic() + 600
    while True:
        # Not a busy wait: each question waits for the server.
        status = client.get("/api/v1/pipelines/bench-cut")
        if status["state"] == "failed" or time.monotonic() > deadline:
            raise Failed(f"the pipeline bench-cut did not finish: {status}")
        if status["lag_rows"] == 0:
            said, _ = up.run("topic", "consume", "bench.cut")
            rows = [json.loads(line) for line in said.splitlines()]
            if sum(row["op"] == "document" for row in rows) >= documents:
                break
        time.sleep(0.2)
    chunks = [row for row in rows if row["op"] == "chunk"]
    for chunk in chunks:
        context = chunk.get("context")
        chunk["embedded"] = f"{context}\n{chunk['text']}" if context else chunk["text"]
    return chunks


def sample_chunks(cache):
    """The chunks of the corpus `sample`; kept in `cache` as long as the binary is the same."""
    kept = pathlib.Path(cache) / f"sample-chunks-{binary_hash()}.json"
    if not kept.exists():
        for old in pathlib.Path(cache).glob("sample-chunks-*.json"):
            old.unlink()
        with tempfile.TemporaryDirectory(dir=cache) as data, Server(data) as up:
            said, _ = up.index("sample", CORPORA / "sample" / "docs")
            kept.write_text(json.dumps(cut_chunks(up, said["files"])), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def binary_hash():
    """Changes with the binary, which holds code and the pins of the models."""
    digest = hashlib.sha256()
    with open(VA, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
