"""llama.cpp's server with one model on a port of loopback, until it is killed: llama_server.py MODEL PORT. See llama.sh."""

import os
import signal
import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.model_alias = {"smollm2"} if isinstance(params.model_alias, set) else "smollm2"
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[2])
# Two requests at a time, each with half of it.
params.n_parallel = 2
params.n_ctx = 4096
params.cpuparams.n_threads = min(4, os.cpu_count() or 1)
params.use_jinja = True
params.warmup = False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.pause()
