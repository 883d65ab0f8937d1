"""`scale`: one pipeline on several processes over Kafka: events/s of 1, 2 and 4, pauses when one comes or goes, restore of state.

Each process is a `va up` with its log on the same broker and the same pipeline, so that they are one group. Throughput is
measured as by `kafka`: from the commit that passes the first quarter of the events to the one that holds the last.

A pause is the longest silence of any partition of the output, at a steady rate, from the moment when a process joins,
leaves (SIGTERM) or dies (SIGKILL) until the next such moment. Restoring is what a process that has nothing needs to read
the state of a group from its changelog.
"""

import argparse
import os
import pathlib
import signal
import tempfile
import threading
import time

import kafka
from kit import meter, report, server, stats

CACHE = pathlib.Path(os.environ["VA_BENCH_CACHE"])
SESSION_MS = 6_000
# Long enough for a dead member to be missed and its partitions to be taken over.
BETWEEN_S = 14


def main():
    args = argparse.ArgumentParser(prog="make bench NAME=scale ARGS=...", description=__doc__.splitlines()[0])
    args.add_argument("--rounds", type=int, default=3, help="turns of each number of processes (3)")
    args.add_argument("--events", type=int, default=2_000_000, help="events in the topic (2000000)")
    args.add_argument("--keys", type=int, default=10_000, help="customers (10000)")
    args.add_argument("--rate", type=int, default=3_000, help="events/s while pauses are measured (3000)")
    args.add_argument("--moves", type=int, default=3, help="times that a process joins, leaves and dies (3)")
    args.add_argument("--entries", type=int, default=1_000_000, help="entries of state to restore (1000000)")
    args.add_argument("--save", action="store_true", help="save whatever the profile")
    args = args.parse_args()
    args.compression, args.only = "none", ""
    usual = (args.rounds, args.events, args.keys, args.rate, args.moves, args.entries)
    result = report.Report("scale")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder, kafka.Broker(folder) as broker, meter.Meter() as ours:
        bench = Scale(args, broker, ours, pathlib.Path(folder))
        if args.rounds:
            bench.fill()
            bench.throughput(result)
        if args.moves:
            bench.pauses(result)
        if args.entries:
            bench.restore(result)
        result.note(
            f"One broker, {kafka.PARTITIONS} partitions, on the machine of the processes themselves; exactly once, a commit every "
            f"{kafka.COMMIT_MS} ms; a silent process is taken for dead after {SESSION_MS / 1000:.0f} s."
        )
    result.finish(args.save or report.default_save(usual != (3, 2_000_000, 10_000, 3_000, 3, 1_000_000)))


class Scale(kafka.Bench):
    def start(self, turn, work):
        """One more process with the pipeline of this turn."""
        os.environ["VA_LOG__KAFKA__SESSION_TIMEOUT_MS"] = str(SESSION_MS)
        process = kafka.Ours(self, work, turn)
        Scale.started += 1
        process.data = process.data.with_name(f"{process.data.name}-{Scale.started}")
        process.server.data = process.data
        process.__enter__()
        return process

    started = 0

    def throughput(self, result):
        counts, title = (1, 2, 4), {"map": "A map of each event", "count": "A count by key"}
        for work in title:
            runs = [lambda _, count=count: self.together(count, work) for count in counts]
            found = dict(zip(counts, stats.alternate(self.args.rounds, *runs)))
            rows = []
            for count, rates in found.items():
                ratio, low, high = stats.paired_ratio(rates, found[1])
                rows.append([count, round(stats.median(rates)), ratio, f"{low:.2f} to {high:.2f}"])
            result.table(f"{title[work]}, {os.cpu_count()} cores for everything", ["processes", "events/s", "to one", "lowest to highest"], rows)

    def together(self, count, work):
        turn = kafka.Turn(work)
        self.ask("kafka_create", topics=[turn.output], partitions=kafka.PARTITIONS)
        processes = []
        try:
            processes = [self.start(turn, work) for _ in range(count)]
            pids = {f"process {at}": process.pid for at, process in enumerate(processes)}
            found = self.meter.ask("kafka_watch", **self.watch(turn, pids))
        finally:
            for process in processes:
                process.__exit__()
        said = self.ask("kafka_check", topic=turn.output, work=work, events=self.args.events)
        if not said["exact"]:
            raise server.Failed(f"{count} processes, {work}: the output is not exact: {said}")
        self.ask("kafka_remove", topics=[turn.output], partitions=kafka.PARTITIONS)
        print(f"  {work}: {count} processes: {found['per_second']:,.0f} events/s", flush=True)
        return found["per_second"]

    def pauses(self, result):
        turn = kafka.Turn("map", None)
        self.ask("kafka_create", topics=[turn.input, turn.output], partitions=kafka.PARTITIONS)
        moves = [move for _ in range(self.args.moves) for move in ("joins", "leaves", "joins", "dies")]
        seconds = BETWEEN_S * (len(moves) + 1)
        staying = [self.start(turn, "map"), self.start(turn, "map")]
        found, guest, times = {}, None, []

        def watch():
            options = {"rate": self.args.rate, "warm_s": BETWEEN_S, "seconds": seconds, "keys": self.args.keys}
            found.update(self.ask("kafka_latency", input=turn.input, output=turn.output, work="map", pids={}, **options))

        watching = threading.Thread(target=watch)
        watching.start()
        time.sleep(BETWEEN_S)
        for move in moves:
            times.append((move, time.time() * 1000))
            if move == "joins":
                guest = self.start(turn, "map")
            elif move == "leaves":
                guest.__exit__()
            else:
                guest.server.process.send_signal(signal.SIGKILL)
                guest.__exit__()
            time.sleep(max(0.0, times[-1][1] / 1000 + BETWEEN_S - time.time()))
        watching.join()
        for process in staying:
            process.__exit__()
        said = self.ask("kafka_check", topic=turn.output, work="map", events=int(self.args.rate * (BETWEEN_S + seconds)))
        if not said["exact"]:
            raise server.Failed(f"the output is not exact: {said}")
        longest = {}
        for move, at in times:
            gaps = [gap for began, gap in found["gaps_ms"] if at - 1000 <= began < at + BETWEEN_S * 1000 - 1000]
            longest.setdefault(move, []).append(max(gaps, default=0))
        rows = [[f"one more {move}" if move == "joins" else f"one {move}", len(all), stats.median(all), max(all)] for move, all in longest.items()]
        result.table(
            f"Longest silence of a partition, {self.args.rate:,} events/s, two processes stay; every event came out once",
            ["when", "times", "median ms", "longest ms"],
            rows,
        )

    def restore(self, result):
        found = [self.ask("state_restore", entries=self.args.entries, value_bytes=100) for _ in range(3)]
        middle = [stats.median([turn[of] for turn in found]) for of in ("mb_s", "entries_s", "seconds")]
        result.table(
            f"Restoring {self.args.entries:,} entries of state, 100 bytes each and their keys",
            ["MB/s", "entries/s", "seconds"],
            [[middle[0], round(middle[1]), middle[2]]],
        )


if __name__ == "__main__":
    main()
