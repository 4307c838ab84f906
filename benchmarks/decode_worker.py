"""One contender of benchmarks/decode.py: loads its model, then answers "pp128", "pp512", "tg128", "tg64@1900" (after so many
tokens), "read" and "memory" with a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TOKEN = 100  # fed at every step: all contenders do the same work
Run = Callable[[int, int], float]  # prompt tokens, new tokens -> seconds of the last part that is asked for


def qia3(folder: Path, threads: int, adapter: str | None) -> tuple[Run, dict[str, Any]]:
    from qia3.bundle.opened import Bundle
    from qia3.footprint.kernels import kernel_bytes, kernel_here
    from qia3.runtime.adapters import AdapterBank
    from qia3.runtime.engine import Engine

    bundle = Bundle.open(folder, verify=False)
    engine = Engine(bundle, threads)
    vectors = AdapterBank(bundle).vectors(adapter) if adapter else {}
    manifest = bundle.manifest

    def run(prompt: int, new: int) -> float:
        start = time.perf_counter()
        _, cache = engine.prefill([[TOKEN] * prompt], vectors, room=new)
        if not new:
            return time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(new):
            _, cache = engine.step([TOKEN], cache, vectors)
        return time.perf_counter() - start

    return run, {
        "streamed_bytes": kernel_bytes(manifest.linears)[kernel_here(manifest)].streamed_bytes,
        "versions": {"qia3": manifest.qia3},
    }


def ort(folder: Path, threads: int, _: str | None) -> tuple[Run, dict[str, Any]]:
    """The builder's graph in plain onnxruntime, its cache bound in place, as our own engine does it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}
    sizes = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    caches = {n: (sizes["num_key_value_heads"], sizes["head_size"]) for n in names if n.startswith("past_key_values.")}

    def run(prompt: int, new: int) -> float:
        binding = session.io_binding()
        held = {
            n: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, h, prompt + new, d), np.float32))
            for n, (h, d) in caches.items()
        }
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)

        def step(tokens: int, total: int) -> None:
            feeds = {
                "input_ids": np.full((1, tokens), TOKEN, np.int64),
                "attention_mask": np.ones((1, total), np.int64),
            }
            if "position_ids" in names:
                feeds["position_ids"] = np.arange(total - tokens, total)[None]
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            binding.bind_output("logits", "cpu")
            session.run_with_iobinding(binding)
            binding.get_outputs()

        start = time.perf_counter()
        step(prompt, prompt)
        if not new:
            return time.perf_counter() - start
        start = time.perf_counter()
        for i in range(new):
            step(1, prompt + i + 1)
        return time.perf_counter() - start

    return run, {"versions": {"onnxruntime": version("onnxruntime"), "builder": version("onnxruntime-genai")}}


def genai(folder: Path, threads: int, _: str | None) -> tuple[Run, dict[str, Any]]:
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def run(prompt: int, new: int) -> float:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=prompt + new + 1, min_length=prompt + new + 1, do_sample=False)
        generator = og.Generator(model, parameters)
        start = time.perf_counter()
        generator.append_tokens(np.full((1, prompt), TOKEN, np.int32))
        if not new:
            return time.perf_counter() - start
        generator.generate_next_token()
        start = time.perf_counter()
        for _ in range(new):
            generator.generate_next_token()
        return time.perf_counter() - start

    return run, {"versions": {"onnxruntime-genai": version("onnxruntime-genai")}}


def llama(file: Path, threads: int, _: str | None) -> tuple[Run, dict[str, Any]]:
    import llama_cpp

    model = llama_cpp.Llama(
        str(file), n_ctx=2048, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def run(prompt: int, new: int) -> float:
        model.reset()
        model._ctx.kv_cache_clear()
        start = time.perf_counter()
        model.eval([TOKEN] * prompt)
        if not new:
            return time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(new):
            model.eval([TOKEN])
        return time.perf_counter() - start

    return run, {"streamed_bytes": file.stat().st_size, "versions": {"llama-cpp-python": llama_cpp.__version__}}


def openvino(folder: Path, threads: int, _: str | None) -> tuple[Run, dict[str, Any]]:
    """optimum-intel's int4 model in plain OpenVINO: its own state is the cache."""
    import openvino as ov

    core = ov.Core()
    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = core.compile_model(str(folder / "openvino_model.xml"), "CPU", hints).create_infer_request()
    names = {port.get_any_name() for port in request.get_compiled_model().inputs}

    def step(tokens: int, total: int) -> None:
        feeds = {
            "input_ids": np.full((1, tokens), TOKEN, np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - tokens, total)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request.infer({name: array for name, array in feeds.items() if name in names})

    def run(prompt: int, new: int) -> float:
        request.reset_state()
        start = time.perf_counter()
        step(prompt, prompt)
        if not new:
            return time.perf_counter() - start
        start = time.perf_counter()
        for i in range(new):
            step(1, prompt + i + 1)
        return time.perf_counter() - start

    return run, {"versions": {"openvino": version("openvino")}}


def peft(folder: Path, threads: int, _: str | None) -> tuple[Run, dict[str, Any]]:
    import torch
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    model = get_peft_model(base, config).eval()

    @torch.inference_mode()
    def run(prompt: int, new: int) -> float:
        start = time.perf_counter()
        out = model(input_ids=torch.full((1, prompt), TOKEN), use_cache=True, logits_to_keep=1)
        if not new:
            return time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(new):
            out = model(input_ids=torch.tensor([[TOKEN]]), past_key_values=out.past_key_values, use_cache=True)
        return time.perf_counter() - start

    return run, {
        "versions": {"torch": torch.__version__, "transformers": version("transformers"), "peft": version("peft")}
    }


def bandwidth(_: Path, threads: int, __: str | None) -> tuple[Run, dict[str, Any]]:
    """Seconds to read 1 GiB once."""
    import torch

    torch.set_num_threads(threads)
    block = torch.ones(1 << 28)

    def run(*_: int) -> float:
        start = time.perf_counter()
        block.sum()
        return time.perf_counter() - start

    return run, {}


KINDS = {
    "qia3": qia3,
    "ort": ort,
    "genai": genai,
    "llama": llama,
    "openvino": openvino,
    "peft": peft,
    "bandwidth": bandwidth,
}


def main() -> None:
    from seq2seq_worker import resident

    from qia3.machine import processor  # and no more of qia3: a peer's process has no ONNX Runtime in memory

    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("place", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--adapter")
    asked = parser.parse_args()
    start = time.perf_counter()
    run, facts = KINDS[asked.kind](asked.place, asked.threads, asked.adapter)
    loaded = time.perf_counter() - start
    run(128, 1)
    first = time.perf_counter() - start
    facts["machine"] = f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    print(json.dumps(facts | {"load_seconds": loaded, "first_token_seconds": first}), flush=True)
    for line in sys.stdin:
        match line.strip():
            case "memory":
                print(json.dumps(resident()), flush=True)
            case "read":
                print(json.dumps({"bytes_per_second": (1 << 30) / min(run(0, 0) for _ in range(3))}), flush=True)
            case test:
                count, past = (int(part or 1) for part in test[2:].partition("@")[::2])
                seconds = run(count, 0) if test.startswith("pp") else run(past, count)
                print(json.dumps({"tokens_per_second": count / seconds}), flush=True)


if __name__ == "__main__":
    main()
