"""`kafka`: exactly-once work on one Kafka broker against Kafka Streams and a bare loop of rdkafka: events/s and latency.

A topic of JSON events, written once by a plain producer, is read by every contender, each with a fresh group and fresh
output topics: a map that parses each event, computes a field and writes it again, and a count by key. All commit in
transactions, every 100 ms at most. Turns alternate. The clock of a turn runs from the commit that passes the first
quarter of the events, so that starting and warming up do not count, to the commit that holds the last one, by the offsets
that the group has committed, which move with the transaction that holds the output. Then the output is read, committed
records only, and every event must be in it exactly once.

Latency: events are sent at a steady rate and watched for at the other end by a consumer that sees what is committed.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from kit import meter, report, server, stats

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ["VA_BENCH_CACHE"])
PARTITIONS = 6
THREADS = 2
COMMIT_MS = 100
INPUT = "bench.events"

EVENT = """{id: int64!, customer: string!, amount: float64, quantity: int64, country: string, channel: string,
      note: string, created_us: int64}"""
PIPELINES = {
    "map": """
operators:
  totals: {{type: map, input: events, set: {{total: amount * quantity}}}}
sinks:
  out: {{type: topic, input: totals, topic: {output}, format: {{type: json}}, key: customer}}
""",
    "count": """
operators:
  counts: {{type: aggregate, input: events, group_by: [customer], compute: {{orders: count()}}}}
sinks:
  out: {{type: topic, input: counts, topic: {output}, format: {{type: json}}, key: customer}}
""",
}
SOURCE = """pipeline: {group}
checkpoint: {{interval_ms: {commit_ms}, rows_max: {rows_max}}}
sources:
  events:
    type: topic
    topic: {input}
    format: {{type: json}}
    schema: {event}
    keyed_by: [customer]
"""
# As a checkpoint every 100 ms at full speed would have it; what ends one is the interval.
ROWS_MAX = 1_000_000

# What Kafka Streams has when nobody sets anything but exactly-once, threads and interval; and what its own guides say for
# throughput: larger batches and fetches, a cache that holds all keys, state in memory.
STREAMS = {
    "Kafka Streams": {},
    "Kafka Streams, tuned": {
        "producer.batch.size": 256 << 10,
        "producer.linger.ms": 5,
        "consumer.max.poll.records": 10_000,
        "consumer.max.partition.fetch.bytes": 4 << 20,
        "buffered.records.per.partition": 20_000,
        "statestore.cache.max.bytes": 256 << 20,
    },
}


def main():
    args = argparse.ArgumentParser(prog="make bench NAME=kafka ARGS=...", description=__doc__.splitlines()[0])
    args.add_argument("--rounds", type=int, default=5, help="turns of each (5)")
    args.add_argument("--events", type=int, default=2_000_000, help="events in the topic (2000000)")
    args.add_argument("--keys", type=int, default=10_000, help="customers (10000)")
    args.add_argument("--rate", type=int, default=20_000, help="events/s while latency is measured (20000)")
    args.add_argument("--seconds", type=int, default=20, help="seconds of each latency turn (20)")
    args.add_argument("--latency-rounds", type=int, default=3, help="latency turns of each (3)")
    args.add_argument("--compression", default="none", help="of every producer: none (Kafka's default), lz4, zstd, ...")
    args.add_argument("--only", default="", help="contenders and works whose name holds this; for trying")
    args.add_argument("--save", action="store_true", help="save whatever the profile")
    args = args.parse_args()
    usual = (args.rounds, args.events, args.keys, args.rate, args.seconds, args.latency_rounds, args.compression)
    result = report.Report("kafka")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder, Broker(folder) as broker, meter.Meter() as ours:
        bench = Bench(args, broker, ours, pathlib.Path(folder))
        bench.fill()
        if args.rounds:
            bench.throughput(result)
        if args.latency_rounds:
            bench.latency(result)
        result.note(
            f"{args.events:,} events of {bench.filled['bytes_each']:.0f} bytes of JSON, {args.keys:,} keys, {PARTITIONS} "
            f"partitions, one broker with a heap of 1 GiB, compression {args.compression}; {THREADS} stream threads; a "
            f"commit every {COMMIT_MS} ms. Every turn's output was read back: each event was in it exactly once."
        )
    default = (5, 2_000_000, 10_000, 20_000, 20, 3, "none")
    result.finish(args.save or (report.default_save(usual != default) and not args.only))


class Broker:
    """One Kafka broker with a heap and compilers as in production."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder) / "broker"

    def __enter__(self):
        jvm = {"KAFKA_HEAP_MIN": "1g", "KAFKA_HEAP_MAX": "1g", "KAFKA_JVM": "-XX:+UseG1GC"}
        said = self.script("start", self.folder, env={**os.environ, **jvm})
        self.brokers = re.search(r"^bootstrap (\S+)", said, re.M).group(1)
        self.pid = int((self.folder / "1" / "pid").read_text())
        return self

    def __exit__(self, *_):
        self.script("stop", self.folder)

    def script(self, *arguments, env=None):
        done = subprocess.run(
            [ROOT / "deploy" / "dev" / "kafka.sh", *arguments], env=env, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout


class Ours:
    """A `va up` with its log on the broker that runs the one pipeline."""

    name = "ours"

    def __init__(self, bench, work, turn):
        self.data = bench.folder / f"data-{turn.group}"
        settings = {
            "VA_LOG__BROKERS": bench.broker.brokers,
            "VA_LOG__KAFKA__REPLICATION_FACTOR": "1",
            "VA_LOG__KAFKA__COMPRESSION": bench.args.compression,
        }
        self.server = server.Server(self.data, settings)
        text = SOURCE + PIPELINES[work]
        names = {"group": turn.group, "input": turn.input, "output": turn.output}
        self.yaml = text.format(**names, commit_ms=COMMIT_MS, rows_max=ROWS_MAX, event=EVENT)

    def __enter__(self):
        self.server.__enter__()
        file = self.data / "bench.yaml"
        file.write_text(self.yaml)
        self.server.run("pipeline", "run", str(file))
        self.pid = self.server.process.pid
        return self

    def __exit__(self, *_):
        self.server.__exit__()
        shutil.rmtree(self.data, ignore_errors=True)


class Streams:
    """The Kafka Streams application of kafka-streams/, in a fresh virtual machine."""

    def __init__(self, name, bench, work, turn):
        self.state = bench.folder / f"state-{turn.group}"
        sets = {
            "num.stream.threads": THREADS,
            "commit.interval.ms": COMMIT_MS,
            "producer.compression.type": bench.args.compression,
            **STREAMS[name],
        }
        built = pathlib.Path(os.environ["VA_BENCH_STREAMS"])
        self.command = [
            *("java", "-Xms1g", "-Xmx1g", "-XX:-UsePerfData", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"),
            *("-cp", f"{built}/classes:{(built / 'classpath').read_text().strip()}", "bench.Peer", f"brokers={bench.broker.brokers}"),
            *(f"work={work}", f"input={turn.input}", f"output={turn.output}", f"group={turn.group}"),
            *(f"state={self.state}", f"store={'memory' if 'tuned' in name else 'rocksdb'}"),
            *(f"set.{key}={value}" for key, value in sets.items()),
        ]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "running":
            raise server.Failed("Kafka Streams did not start")
        self.pid = self.process.pid
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        shutil.rmtree(self.state, ignore_errors=True)


class Turn:
    """Fresh names of one turn."""

    number = 0

    def __init__(self, what, source=INPUT):
        Turn.number += 1
        self.group = f"bench-{Turn.number}-{what}"
        self.output = f"bench.out.{Turn.number}"
        self.input = source or f"bench.in.{Turn.number}"


class Bench:
    def __init__(self, args, broker, ours, folder):
        self.args, self.broker, self.meter, self.folder = args, broker, ours, folder

    def ask(self, do, **options):
        return self.meter.ask(do, brokers=self.broker.brokers, **options)

    def fill(self):
        self.ask("kafka_create", topics=[INPUT], partitions=PARTITIONS)
        self.filled = self.ask("kafka_fill", topic=INPUT, events=self.args.events, keys=self.args.keys)

    def contender(self, name, work, turn):
        return Ours(self, work, turn) if name == "ours" else Streams(name, self, work, turn)

    def wanted(self, name, work):
        return self.args.only in f"{work}: {name}"

    def watch(self, turn, pids):
        return {
            "brokers": self.broker.brokers,
            "topic": turn.input,
            "group": turn.group,
            "warm": self.args.events // 4,
            "pids": {"broker": self.broker.pid, **pids},
        }

    def run(self, name, work):
        """One turn: how fast it was, after what came out of it was found to be exact."""
        turn = Turn(work)
        self.ask("kafka_create", topics=[turn.output], partitions=PARTITIONS)
        if name.startswith("bare"):
            options = {"commit_ms": COMMIT_MS, "compression": self.args.compression, "json": "JSON" in name}
            watch = self.watch(turn, {"contender": self.meter.process.pid})
            found = self.meter.ask("kafka_loop", watch=watch, output=turn.output, **options)
        else:
            with self.contender(name, work, turn) as running:
                found = self.meter.ask("kafka_watch", **self.watch(turn, {"contender": running.pid}))
                found["memory_mb"] = server.status(running.pid, "VmHWM") / 1e6
        # A copy has no total to check.
        if name != "bare loop, copy":
            said = self.ask("kafka_check", topic=turn.output, work=work, events=self.args.events)
            wrong = work == "map" and abs(said["total"] / self.filled["total"] - 1) > 1e-9
            if not said["exact"] or wrong:
                raise server.Failed(f"{name}, {work}: the output is not exact: {said}")
            found["records"] = said["records"]
        self.ask("kafka_remove", topics=[turn.output], partitions=PARTITIONS)
        print(f"  {work}: {name}: {found['per_second']:,.0f} events/s {found['cpu_us_per_event']}", flush=True)
        return found

    def throughput(self, result):
        for work, title in (("map", "A map of each event"), ("count", "A count by key")):
            names = ["ours", *STREAMS, *(["bare loop, copy", "bare loop, JSON"] if work == "map" else [])]
            names = [name for name in names if self.wanted(name, work)]
            if not names:
                continue
            runs = [lambda _, name=name: self.run(name, work) for name in names]
            found = dict(zip(names, stats.alternate(self.args.rounds, *runs)))
            rows = []
            for name, turns in found.items():
                middle = [stats.median([turn["per_second"] for turn in turns])]
                ratio = ["", ""]
                if name != "ours" and "ours" in found:
                    pairs = ([turn["per_second"] for turn in found[of]] for of in ("ours", name))
                    middle_ratio, low, high = stats.paired_ratio(*pairs)
                    ratio = [middle_ratio, f"{low:.2f} to {high:.2f}"]
                used = [stats.median([turn["cpu_us_per_event"][of] for turn in turns]) for of in ("contender", "broker")]
                memory = [turn["memory_mb"] for turn in turns if "memory_mb" in turn]
                rows.append([name, round(middle[0]), *ratio, *used, round(max(memory)) if memory else None])
            result.table(
                f"{title}, exactly once (goals: ours / Kafka Streams at least 2, ours / bare loop at least 0.8)",
                ["contender", "events/s", "ours / it", "lowest to highest", "its CPU µs/event", "broker's", "MB at most"],
                rows,
            )

    def wait(self, name, work):
        """One turn of latency, on topics of its own."""
        turn = Turn(work, None)
        self.ask("kafka_create", topics=[turn.input, turn.output], partitions=PARTITIONS)
        with self.contender(name, work, turn) as running:
            options = {"rate": self.args.rate, "warm_s": 10, "seconds": self.args.seconds, "keys": self.args.keys}
            pids = {"contender": running.pid, "broker": self.broker.pid}
            topics = {"input": turn.input, "output": turn.output}
            found = self.ask("kafka_latency", **topics, **options, work=work, pids=pids)
        self.ask("kafka_remove", topics=[turn.input, turn.output], partitions=PARTITIONS)
        print(f"  {work}: {name}: {found}", flush=True)
        return found

    def latency(self, result):
        rows = []
        for work in ("map", "count"):
            names = [name for name in ("ours", *STREAMS) if self.wanted(name, work)]
            if not names:
                continue
            turns = stats.alternate(
                self.args.latency_rounds, *(lambda _, name=name: self.wait(name, work) for name in names)
            )
            for name, found in zip(names, turns):
                middle = [stats.median([turn[of] for turn in found]) for of in ("p50_ms", "p99_ms", "p999_ms")]
                used = [stats.median([turn["cpu_us_per_event"][of] for turn in found]) for of in ("contender", "broker")]
                rows.append([work, name, *middle, *used])
        if rows:
            result.table(
                f"From an event to its committed output, {self.args.rate:,} events/s (goal: p99 below Kafka Streams')",
                ["work", "contender", "p50 ms", "p99 ms", "p99.9 ms", "its CPU µs/event", "broker's"],
                rows,
            )


if __name__ == "__main__":
    main()
