"""The measuring program (meter/) as a child that is asked one thing at a time."""

import json
import os
import subprocess

from kit.server import Failed


class Meter:
    """Use with `with`; `ask` returns the answer of one command."""

    def __enter__(self):
        # Its log lines would be between the tables.
        environment = {"RUST_LOG": "error", **os.environ}
        self.process = subprocess.Popen(
            [os.environ["VA_BENCH_METER"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, do, **options):
        self.process.stdin.write(json.dumps({"do": do, **options}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended without an answer"}
        if "error" in answer:
            raise Failed(f"{do}: {answer['error']}")
        return answer
