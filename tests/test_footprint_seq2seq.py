"""Bytes and arithmetic of an encoder and its decoder: closed formulas against counts that others made, and the report."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_bundle_manifest import encoder_decoder
from test_footprint_account import HIDDEN, INNER, layer, manifest_of, write_bundle

from qia3.bundle.manifest import Dense, Manifest
from qia3.bundle.sites import Site
from qia3.footprint.bundle_page import bundle_page
from qia3.footprint.device import Figure
from qia3.footprint.devices import load_device
from qia3.footprint.estimate import estimate
from qia3.footprint.kernels import cross_cache_bytes, kernel_bytes, kv_cache_bytes
from qia3.footprint.lora import QUERY_VALUE, ia3_parameters, lora_parameters
from qia3.footprint.predicted import of_bundle, times
from qia3.footprint.report import build_report
from qia3.printers.markdown import markdown


def test_pefts_own_counts_for_mt0_large():
    """24 layers a stack, hidden 1024, 16 heads of 64, d_ff 2816 (huggingface.co/docs/peft: IA³ 282,624 of trainable
    parameters, LoRA r=8 2,359,296).
    """
    attention = [("query", 1024, 1024), ("key", 1024, 1024), ("value", 1024, 1024), ("attention_output", 1024, 1024)]
    forward = [("feed_forward", 1024, 2816), ("feed_forward_up", 1024, 2816)]
    one = [*(3 * attention), *(2 * forward)]  # a layer of the encoder and one of the decoder
    linears = [layer(f"{i}.{k}", role, a, b) for i in range(24) for k, (role, a, b) in enumerate(one)]
    down = [Dense(f"{i}.{k}.wo", 2816, 1024, "feed_forward_down") for i in range(24) for k in range(2)]
    trained = ("key", "value", "feed_forward_up")
    sites = [Site(x.name, "key", "output", x.outputs) for x in linears if x.role in trained]
    assert ia3_parameters(sites) == 282_624
    assert lora_parameters([*linears, *down], 8, QUERY_VALUE) == 2_359_296
    everywhere = 8 * 24 * (3 * 4 * 2048 + 2 * 3 * (1024 + 2816))
    assert lora_parameters([*linears, *down], 8) == everywhere


def test_a_token_of_t5_base_takes_as_much_of_either_cache():
    """12 layers of 12 heads of 64: keys and values of 768 floats in each."""
    shape = replace(encoder_decoder().architecture, layers=12, heads=12, kv_heads=12, head_size=64)
    assert kv_cache_bytes(shape, 1) == cross_cache_bytes(shape, 1) == 12 * 2 * 768 * 4
    assert cross_cache_bytes(shape, 512) == 512 * 73_728
    assert cross_cache_bytes(manifest_of().architecture, 512) == 0


@pytest.mark.parametrize("level", ["x64-int8", "float32"])
def test_what_runs_for_the_prompt_alone_is_held_and_not_read_for_a_token(level):
    query, eight = layer("q", "query", 96, 96), layer("head", "head", 160, 24, bits=8)
    alone, both = kernel_bytes([query])[level], kernel_bytes([query, replace(query, once=True)])[level]
    assert both.held_bytes == 2 * alone.held_bytes
    assert both.streamed_bytes == alone.streamed_bytes
    assert kernel_bytes([replace(eight, once=True)])[level].streamed_bytes == 0
    down = Dense("wo", 160, 96, "feed_forward_down")
    whole = kernel_bytes([query], [down, replace(down, once=True)])[level]
    assert whole.held_bytes == alone.held_bytes + 2 * 4 * 160 * 96
    assert whole.streamed_bytes == alone.streamed_bytes + 4 * 160 * 96


def pair(folder) -> Manifest:
    """The small bundle as an encoder-decoder's."""
    manifest = write_bundle(folder)
    (folder / "onnx/encoder.onnx").write_bytes(b"x" * 1009)
    return replace(encoder_decoder(), tensors=manifest.tensors)


def test_the_report_of_an_encoder_decoder(tmp_path):
    report, plain = build_report(tmp_path, pair(tmp_path)), build_report(tmp_path / "d", decoder(tmp_path / "d"))
    assert report.account.parts["graph"] == plain.account.parts["graph"] + 1009
    assert report.adapters[0].parameters == plain.adapters[0].parameters  # of both stacks
    assert report.memory.kernels["x64-int8"].held_bytes == plain.memory.kernels["x64-int8"].held_bytes
    ours = [x for x in manifest_of().linears if x.name.startswith("layers.1.") or x.role == "head"]
    streamed = report.memory.kernels["x64-int8"].streamed_bytes
    assert streamed == kernel_bytes(ours)["x64-int8"].streamed_bytes
    assert report.memory.cross_cache_bytes == report.memory.kv_cache_bytes == plain.memory.kv_cache_bytes // 2
    text = markdown(bundle_page(report))
    assert "the encoder's states' cache for 128 positions" in text
    assert "A token here means one of the prompt and one of the answer" in text
    assert "encoder" not in markdown(bundle_page(plain))
    bare = estimate(load_device("intel-n100"), replace(report, measured=None))
    memory = report.memory
    caches = memory.kv_cache_bytes + memory.cross_cache_bytes
    assert bare.needed_ram_bytes == memory.kernels["x64-int8"].held_bytes + memory.mapped_bytes + caches


def decoder(folder) -> Manifest:
    folder.mkdir()
    return write_bundle(folder)


def test_layers_in_float32_count_for_lora(tmp_path):
    manifest = pair(tmp_path)
    with_dense = replace(manifest, dense=(Dense("layers.0.wo", INNER, HIDDEN, "feed_forward_down", True),))
    before, after = build_report(tmp_path, manifest), build_report(tmp_path, with_dense)
    more = [b.parameters - a.parameters for a, b in zip(before.adapters, after.adapters, strict=True)]
    assert more == [0] + 5 * [0] + [rank * (INNER + HIDDEN) for rank in (1, 4, 8, 16, 64)]
    whole = replace(
        manifest, dense=(Dense("layers.0.wo", 50, 4, "feed_forward_down"),)
    )  # 800 bytes, of the file's rest
    assert build_report(tmp_path, whole).memory.mapped_bytes == before.memory.mapped_bytes - 800
    assert Manifest.from_json(with_dense.to_json()) == with_dense


def test_a_first_token_is_the_encoders_prompt_and_a_step(tmp_path):
    """Written out: 9 GB/s, 3 microseconds an operator, 80 billion operations/s, 5 nanoseconds an output."""
    terms = {
        "decode_bandwidth_low_bytes_per_second": 9e9,
        "node_seconds": 3e-6,
        "product_operations_per_second": 8e10,
        "output_seconds": 5e-9,
        "load_bytes_per_second": 5e8,
    }
    known = {k: Figure(value=v, confidence="measured", source=("a test's own",)) for k, v in terms.items()}
    device = load_device("intel-n100").model_copy(update=known)
    report = build_report(tmp_path, manifest := pair(tmp_path))
    sizes = of_bundle(manifest, report.account.parts, report.memory.kernels["x64-int8"], report.memory.nodes)
    _, first, token = times(sizes, device, 128)
    assert token == pytest.approx(sizes.kernel.streamed_bytes / 9e9 + sizes.nodes * 3e-6)
    encoder = sizes.prompt_operations(128) / 8e10 + sizes.prompt_outputs(128) * 5e-9 + sizes.nodes * 3e-6
    assert first == pytest.approx(encoder + token)
