"""The peer of our model gateway: the LiteLLM proxy in a process of its own, in front of the same upstream.

Relies on `bench.sh`, which names the program in VA_BENCH_LITELLM. It checks a key (its master key, for others it needs a
database), and keeps no budget and writes no usage: it does less than ours does in the same turn.
"""

import http.client
import os
import pathlib
import signal
import socket
import subprocess
import time

from kit.server import Failed

KEY = "sk-bench"
CONFIG = """\
model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: "http://{upstream}/{pace}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{telemetry: false}}
"""


class LiteLlm:
    """Starts the proxy with so many workers and waits until it answers. Use with `with`."""

    def __init__(self, folder, upstream, workers, pace="fast"):
        self.folder = pathlib.Path(folder) / f"litellm-{workers}-{pace}"
        self.config = CONFIG.format(upstream=upstream, pace=pace, key=KEY)
        self.workers = workers

    def __enter__(self):
        self.folder.mkdir()
        config = self.folder / "config.yaml"
        config.write_text(self.config)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        command = [os.environ["VA_BENCH_LITELLM"], "--config", config, "--host", "127.0.0.1", "--port", str(port)]
        self.log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(
            [*command, "--num_workers", str(self.workers)],
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, "LITELLM_LOG": "ERROR", "NO_PROXY": "127.0.0.1"},
            # Its workers are its children, and end with it.
            start_new_session=True,
        )
        deadline = time.monotonic() + 180
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise Failed(f"LiteLLM did not start, see {self.folder / 'log'}")
            time.sleep(0.5)
        return self

    def __exit__(self, *_):
        for way in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, way)
            except ProcessLookupError:
                break
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                continue
        self.log.close()

    def answers(self):
        connection = http.client.HTTPConnection(self.address, timeout=5)
        try:
            connection.request("GET", "/health/liveliness")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
