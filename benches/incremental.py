"""`incremental`: what `va index` costs when nothing has changed, and when one page in a hundred has.

Corpus: LibreOffice's help, 5,120 pages in both languages, indexed already (see `search`). The turns work on a copy of
that index.
"""

import argparse
import os
import pathlib
import shutil
import tempfile

from kit import help, report, server, stats


def main():
    args = argparse.ArgumentParser(prog="make bench NAME=incremental ARGS=...", description=__doc__.splitlines()[0])
    args.add_argument("--rounds", type=int, default=5, help="turns (5)")
    args.add_argument("--pages", type=int, default=help.ALL, help=f"pages of the corpus ({help.ALL})")
    args.add_argument("--save", action="store_true", help="save whatever the profile")
    args = args.parse_args()
    result = report.Report("incremental")
    cache = pathlib.Path(os.environ["VA_BENCH_CACHE"])
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        data, full = help.copy_of_index(args.pages, folder)
        with server.Server(data) as up:
            measure(result, up, full, args)
    result.finish(args.save or report.default_save((args.rounds, args.pages) != (5, help.ALL)))


def measure(result, up, full, args):
    root = help.pages(args.pages)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    client = up.client()
    still, changes = [], []
    try:
        for number in range(args.rounds):
            said, seconds = up.index(help.COLLECTION, root)
            expect(said["unchanged"] == len(files), said)
            still.append((len(files) / seconds, len(files) / said["seconds"]))

            changed = files[number::100]
            for path in changed:
                change(path, number)
            before = client.metrics()
            said, seconds = up.index(help.COLLECTION, root)
            after = client.metrics()
            expect(said["handed_over"] == len(changed), said)
            embedded = after.get(MISSES, 0) - before.get(MISSES, 0)
            expect(embedded > 0, "no chunk was embedded anew")
            known = after.get(HITS, 0) - before.get(HITS, 0)
            changes.append((len(changed), embedded, known, seconds))
    finally:
        # The folder is shared with other benchmarks: it is made anew from the corpora.
        help.made(args.pages).unlink(missing_ok=True)
        shutil.rmtree(root)
    whole, inner = (stats.median([rate[i] for rate in still]) for i in (0, 1))
    result.table(
        f"Nothing changed: {len(files):,} files (goal: at least 10,000 files/s)",
        ["files/s, whole command", "files/s, as the command says", "lowest to highest, whole"],
        [[whole, inner, f"{min(r[0] for r in still):,.0f} to {max(r[0] for r in still):,.0f}"]],
    )
    documents, embedded, known, seconds = (stats.median([c[i] for c in changes]) for i in range(4))
    result.table(
        "One page in a hundred changed (a few words in one paragraph), against the full index",
        ["what", "full index", "after the change", "share"],
        [
            ["pages handed over", full["files"], round(documents), documents / full["files"]],
            ["chunks embedded", full["chunks"], round(embedded), embedded / full["chunks"]],
            ["chunks of the changed pages whose vector was known", None, round(known), None],
            ["seconds until searchable", full["seconds"], seconds, seconds / full["seconds"]],
            ["most memory of the server, MB (limit: 1,500)", round(full["peak_mb"]), None, None],
        ],
    )


MISSES = 'va_embed_cache_total{outcome="miss"}'
HITS = 'va_embed_cache_total{outcome="hit"}'


def change(path, number):
    """A few more words at the end of the first paragraph of the page's text (what is around it is not indexed)."""
    text = path.read_text(encoding="utf-8")
    begin = text.find('class="paragraph"')
    head, end, tail = text[max(begin, 0) :].partition("</p>")
    path.write_text(f"{text[: max(begin, 0)]}{head} Checked again, number {number}.{end}{tail}", encoding="utf-8")


def expect(holds, said):
    if not holds:
        raise server.Failed(f"`va index` did not find what was changed: {said}")


if __name__ == "__main__":
    main()
