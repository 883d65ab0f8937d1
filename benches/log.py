"""`log`: the embedded log against a plain file that is synced as often: batches of 256 KiB, and small commits.

The log writes whole Arrow batches, checks and indexes them and keeps operator state in the same commit; the file gets
the same number of bytes of noise. Both lie in the cache folder, so on its disk. Turns alternate; medians.
"""

import argparse
import os
import tempfile

from kit import meter, report, stats

SYNCS = {"every_commit": "every commit", "interval": "every 100 ms"}


def main():
    args = argparse.ArgumentParser(prog="make bench NAME=log ARGS=...", description=__doc__.splitlines()[0])
    args.add_argument("--rounds", type=int, default=5, help="turns of each (5)")
    args.add_argument("--mib", type=int, default=128, help="MiB in each turn (128)")
    args.add_argument("--commits", type=int, default=1000, help="small commits in each turn (1000)")
    args.add_argument("--save", action="store_true", help="save whatever the profile")
    args = args.parse_args()
    result = report.Report("log")
    batches, commits = [], []
    with meter.Meter() as ours, tempfile.TemporaryDirectory(dir=os.environ["VA_BENCH_CACHE"]) as folder:
        for sync, shown in SYNCS.items():
            options = {"dir": folder, "sync": sync}
            log, file = stats.alternate(
                args.rounds,
                lambda _: ours.ask("log_batches", mib=args.mib, **options),
                lambda _: ours.ask("file_batches", mib=args.mib, **options),
            )
            for what, of in (("append", "append_mb_s"), ("consume", "consume_mb_s")):
                batches.append([what, shown, *compared([x[of] for x in log], [x[of] for x in file])])
            one, eight, file = stats.alternate(
                args.rounds,
                lambda _: ours.ask("log_commits", commits=args.commits, producers=1, **options),
                lambda _: ours.ask("log_commits", commits=args.commits, producers=8, **options),
                lambda _: ours.ask("file_commits", commits=args.commits, producers=1, **options),
            )
            for who, found in (("log, 1 writer", one), ("log, 8 writers", eight), ("file, 1 writer", file)):
                middle = [stats.median([x[of] for x in found]) for of in ("p50_ms", "p99_ms", "per_second")]
                commits.append([who, shown, *middle[:2], round(middle[2])])
    result.table(
        f"Batches of 256 KiB, one a commit, {args.mib} MiB a turn",
        ["what", "synced", "log MB/s", "file MB/s", "log / file", "lowest to highest"],
        batches,
    )
    result.table("Commits of 4 KiB", ["who", "synced", "p50 ms", "p99 ms", "commits/s"], commits)
    result.finish(args.save or report.default_save((args.rounds, args.mib, args.commits) != (5, 128, 1000)))


def compared(ours, peer):
    ratio, low, high = stats.paired_ratio(ours, peer)
    return stats.median(ours), stats.median(peer), ratio, f"{low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
