"""The help of LibreOffice in Chinese and English, 5,120 pages, as a folder of our own in the cache; and its index.

The index takes about ten minutes on two cores, so it is kept as long as binary, model and documents are the same.
"""

import hashlib
import json
import os
import pathlib
import shutil

from kit import server

COLLECTION = "help"
LANGS = {"zh": ("zh-CN", "libreoffice-help-zh-cn"), "en": ("en-US", "libreoffice-help-en-us")}
FOLDER = pathlib.Path(os.environ["VA_BENCH_CACHE"]) / "help"


ALL = 5120


def pages(count=ALL):
    """The folder with `count` pages, evenly spread over both languages: `zh-CN/...` and `en-US/...`.

    Made anew when it is not as the corpora are."""
    root = FOLDER / f"pages-{count}"
    stamp = "".join((server.CORPORA / package / "PACKAGE").read_text() for _, package in LANGS.values())
    mark = made(count)
    if not mark.exists() or mark.read_text() != stamp:
        shutil.rmtree(root, ignore_errors=True)
        for folder, package in LANGS.values():
            docs = server.CORPORA / package / "docs"
            found = sorted(path for path in docs.rglob("*") if path.is_file())
            wanted = min(count // len(LANGS), len(found))
            for i in range(wanted):
                path = found[i * len(found) // wanted]
                copy = root / folder / path.relative_to(docs)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        mark.write_text(stamp)
    return root


def made(count):
    """Holds what the pages were made from; without it they are made anew."""
    return FOLDER / f"pages-{count}.made"


def index(count=ALL, fresh=False):
    """The data directory with these pages indexed, and what `va index` said when it was made, with `seconds`
    and `peak_mb`, the most memory that the server took."""
    root = pages(count)
    key = hashlib.sha256((server.binary_hash() + made(count).read_text()).encode()).hexdigest()[:16]
    data = FOLDER / f"index-{count}-{key}"
    done = data / "complete.json"
    if fresh or not done.exists():
        for old in FOLDER.glob(f"index-{count}-*"):
            shutil.rmtree(old)
        print(
            f"building the index of {count:,} pages, once for this code: 5,120 take ten minutes on two idle cores",
            flush=True,
        )
        with server.Server(data) as up:
            said, seconds = up.index(COLLECTION, root)
            chunks = up.client().get(f"/api/v1/collections/{COLLECTION}")["chunks"]
            peak = up.memory_mb("VmHWM")
        done.write_text(json.dumps({**said, "seconds": seconds, "chunks": chunks, "peak_mb": peak}))
        print(f"  {said['indexed']:,} pages, {chunks:,} chunks in {seconds:.0f} s", flush=True)
    return data, json.loads(done.read_text())


def copy_of_index(count, folder):
    """A copy of that data directory in `folder`, to be changed, and what was said when it was made."""
    data, said = index(count)
    copy = pathlib.Path(folder) / "data"
    shutil.copytree(data, copy)
    return copy, said
