"""The process that runs llama.cpp's server: reads its settings from the first line of its input, prints its address.

Not here: starting and asking it (llama_process, llamacpp). A process of its own because llama.cpp takes the signals of
its process for itself and ends it when an assertion fails. It ends when its input does: with its parent, at the latest.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what llama.cpp prints is for the log
    server = importlib.import_module("xllamacpp").Server(_params(settings))
    print(json.dumps({"url": server.listening_address}), file=told, flush=True)
    sys.stdin.read()
    os._exit(0)  # its threads are not waited for


def _params(settings: dict[str, Any]) -> Any:
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(file, 1.0) for file in settings["adapters"]]
    params.lora_init_without_apply = True  # each request names its own
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["key"]]
    params.n_ctx = settings["room"]
    params.n_parallel = settings["slots"]
    params.kv_unified = True
    params.n_threads_http = settings["slots"] + 4
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    if settings["exact"]:  # keys, values and flash attention's queries in 16 bits: 1e-3 nats instead of 1e-6
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_ram_mib = 0  # no prompt is kept for another owner's
    params.n_ctx_checkpoints = 0
    params.ctx_shift = False  # nothing is forgotten silently
    params.endpoint_slots = False
    params.ui = False
    params.cors_origins = "localhost"
    params.cache_idle_slots = False
    params.verbosity = 1  # errors
    return params


if __name__ == "__main__":
    main()
