"""Results as data (`results/NAME.json`) and as tables: on the screen, and in BENCHMARKS.md between two markers.

A result is saved when it was measured as the published ones are: release profile, default size. Anything else is only
printed, unless `--save` says otherwise; the profile stands beside every table.
"""

import datetime
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

BENCHES = pathlib.Path(__file__).resolve().parent.parent
PAGE = BENCHES.parent / "BENCHMARKS.md"


def machine():
    """What a reader must know to judge the figures."""
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=BENCHES, capture_output=True, text=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no", "--", ":!BENCHMARKS.md", ":!benches/results"],
        cwd=BENCHES,
        capture_output=True,
        text=True,
    )
    return {
        "cpu": cpu.group(1) if cpu else "unknown",
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory.group(1)) / 1e6) if memory else None,
        "system": f"{os.uname().sysname} {os.uname().release}",
        "date": datetime.date.today().isoformat(),
        "profile": os.environ["VA_BENCH_PROFILE"],
        "commit": commit.stdout.strip() + ("+" if changed.stdout.strip() else ""),
        "load_before": round(os.getloadavg()[0], 1),
    }


def command(bench):
    """What to type to get these figures again; whether they are saved makes no difference."""
    options = shlex.join(option for option in sys.argv[1:] if option != "--save")
    profile = os.environ["VA_BENCH_PROFILE"]
    before = "" if profile == "release" else f"VA_BENCH_PROFILE={profile} "
    return f"{before}make bench NAME={bench}" + (f' ARGS="{options}"' if options else "")


class Report:
    """Tables and remarks of one benchmark, in the order in which they are added."""

    def __init__(self, name, bench=None):
        self.name = name
        self.machine = machine()
        self.command = command(bench or name)
        self.parts = []

    def table(self, title, columns, rows):
        """`columns` are headings, `rows` lists of text or numbers; numbers are shown with three significant digits."""
        self.parts.append({"title": title, "columns": columns, "rows": rows})

    def note(self, text):
        self.parts.append({"note": text})

    def markdown(self):
        m = self.machine
        lines = [
            f"`{self.command}`: {m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}; {m['date']}, "
            f"profile {m['profile']}, commit {m['commit']}, load {m['load_before']} at the start.",
        ]
        for part in self.parts:
            lines.append("")
            if "note" in part:
                lines.append(part["note"])
                continue
            if part["title"]:
                lines += [f"**{part['title']}**", ""]
            cells = [part["columns"], *([shown(cell) for cell in row] for row in part["rows"])]
            widths = [max(len(row[i]) for row in cells) for i in range(len(part["columns"]))]
            padded = [[cell + " " * (widths[i] - len(cell)) for i, cell in enumerate(row)] for row in cells]
            padded.insert(1, ["-" * w for w in widths])
            lines += ["| " + " | ".join(row) + " |" for row in padded]
        return "\n".join(lines)

    def finish(self, save):
        """Prints the tables; with `save` writes the data and puts the tables into BENCHMARKS.md."""
        print(f"\n{self.name}\n{self.markdown()}\n")
        if not save:
            print("Not saved: only runs of the release profile at their default size are (or with --save).")
            return
        data = {"name": self.name, "command": self.command, "machine": self.machine, "parts": self.parts}
        path = BENCHES / "results" / f"{self.name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        text = PAGE.read_text(encoding="utf-8")
        section = re.compile(rf"(<!-- results: {self.name} -->\n).*?(<!-- end -->)", re.S)
        if not section.search(text):
            raise SystemExit(f"BENCHMARKS.md has no section `<!-- results: {self.name} -->` ... `<!-- end -->`")
        text = section.sub(lambda found: found.group(1) + self.markdown() + "\n" + found.group(2), text)
        PAGE.write_text(text, encoding="utf-8")
        print(f"saved: {path.relative_to(BENCHES.parent)}, {PAGE.name}")


def shown(cell):
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        if abs(cell) >= 100:
            return f"{cell:,.0f}"
        return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}" if abs(cell) >= 1 else f"{cell:.3f}"
    return "" if cell is None else str(cell)


def default_save(changed_size):
    """Whether a run is of the kind that is published."""
    return os.environ["VA_BENCH_PROFILE"] == "release" and not changed_size
