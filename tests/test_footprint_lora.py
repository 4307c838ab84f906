"""Closed formulas against counts that others made: PEFT's own benchmark and the models' published shapes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from test_footprint_account import LAYERS, layer, manifest_of, write_bundle

from qia3.bundle.manifest import Dense, Pooling, Vector
from qia3.bundle.sites import Site
from qia3.footprint.account import account
from qia3.footprint.kernels import bundle_kernels, kernel_bytes, kv_cache_bytes, mapped_bytes
from qia3.footprint.lora import (
    QUERY_VALUE,
    RANKS,
    adapter_costs,
    ia3_cost,
    ia3_entries,
    ia3_parameters,
    lora_parameters,
)
from qia3.footprint.systems import claim, systems

# layers, hidden, keys (heads of keys times their size), inner size
MODELS = {
    "SmolLM2-135M": (30, 576, 192, 1536),
    "Qwen2.5-0.5B": (24, 896, 128, 4864),
    "Llama-3.2-1B": (16, 2048, 512, 8192),
    "Llama-3.2-3B": (28, 3072, 1024, 8192),
    "Llama-2-7B": (32, 4096, 4096, 11008),
    "Llama-3.1-8B": (32, 4096, 1024, 14336),
}
# IA³, LoRA r=8 on q and v, LoRA r=16 on all linear layers (in millions): reference/peers-peft.md, 1.9
COUNTS = {
    "SmolLM2-135M": (57_600, 460_800, 4.88),
    "Qwen2.5-0.5B": (122_880, 540_672, 8.80),
    "Llama-3.2-1B": (147_456, 851_968, 11.27),
    "Llama-3.2-3B": (286_720, 2_293_760, 24.3),
    "Llama-2-7B": (614_400, 4_194_304, 40.0),
    "Llama-3.1-8B": (524_288, 3_407_872, 41.9),
}


def shapes(layers: int, hidden: int, keys: int, inner: int):
    """Linear layers, a head among them, and vectors."""
    one = [
        ("query", hidden, hidden),
        ("key", hidden, keys),
        ("value", hidden, keys),
        ("attention_output", hidden, hidden),
    ]
    one += [("feed_forward", hidden, inner), ("feed_forward_up", hidden, inner), ("feed_forward_down", inner, hidden)]
    linears = [layer(f"{i}.{role}", role, inputs, outputs) for i in range(layers) for role, inputs, outputs in one]
    sizes = {"key": keys, "value": keys, "feed_forward": inner}
    vectors = [Site(f"{i}.{role}", role, "output", n) for i in range(layers) for role, n in sizes.items()]
    return [*linears, layer("head", "head", hidden, 50_000)], vectors


@pytest.mark.parametrize("name", MODELS)
def test_counts_of_published_models(name):
    linears, vectors = shapes(*MODELS[name])
    ia3, on_qv, everywhere = COUNTS[name]
    assert ia3_parameters(vectors) == ia3_entries(vectors) == ia3
    assert lora_parameters(linears, 8, QUERY_VALUE) == on_qv
    assert lora_parameters(linears, 16) / 1e6 == pytest.approx(everywhere, rel=2e-3)


def test_pefts_own_counts_for_llama_3_2_3b():
    linears, vectors = shapes(*MODELS["Llama-3.2-3B"])
    assert ia3_parameters(vectors) == 286_720
    assert lora_parameters(linears, 32, QUERY_VALUE) == 9_175_040
    assert lora_parameters(linears, 64, QUERY_VALUE) == 18_350_080
    assert lora_parameters(linears, 10, ("feed_forward", "feed_forward_up", "feed_forward_down")) == 9_461_760


def test_flan_t5_base_with_k_v_and_wo():
    """12 encoder layers with one attention, 12 decoder layers with two; 12 heads of 64; an inner size of 2048."""
    keys, inner = 12 * 64, 2048
    encoder = [("key", keys), ("value", keys), ("feed_forward", inner)]
    decoder = [("key", keys), ("value", keys), ("key", keys), ("value", keys), ("feed_forward", inner)]
    vectors = [Site(str(i), role, "output", n) for i in range(12) for role, n in encoder + decoder]
    assert ia3_parameters(vectors) == 104_448


def test_a_fused_layer_trains_its_rows_and_multiplies_all_and_takes_lora_whole():
    vectors = [
        Site("qkv", "qkv", "output", 144, rows=tuple(range(96, 144))),
        Site("q", "query", "output", 96),
    ]
    assert (ia3_parameters(vectors), ia3_entries(vectors)) == (48, 240)
    assert lora_parameters(
        [layer("qkv", "qkv", 96, 144), layer("o", "attention_output", 96, 96)], 4, QUERY_VALUE
    ) == 4 * (96 + 144)


def test_costs_follow_from_the_parameters():
    linears, _ = shapes(*MODELS["SmolLM2-135M"])
    ia3, *lora = adapter_costs(linears, ia3_cost(57_600, 57_600, 239_456))
    assert (ia3.disk_bytes, ia3.runtime_bytes, ia3.training_state_bytes, ia3.operations_per_token) == (
        239_456,
        230_400,
        921_600,
        57_600,
    )
    assert [a.method for a in lora] == [
        f"LoRA r={r} on {w}" for w, r in itertools.product(("q, v", "all linear"), RANKS)
    ]
    for cost in lora:
        four = (cost.disk_bytes, cost.runtime_bytes, cost.training_state_bytes, cost.operations_per_token)
        assert four == tuple(n * cost.parameters for n in (4, 4, 16, 2))
    assert lora[0].parameters == ia3.parameters  # LoRA r=1 on q and v is as small, and the report says so


@pytest.mark.parametrize(("block", "level_4", "level_0"), [(32, 7.0, 5.0), (64, 5.5, 4.5), (128, 4.75, 4.25)])
def test_resident_bits_are_those_measured(block, level_4, level_0):
    linears = [replace(layer("w", "query", 2048, 2048), block_size=block)] * 24
    weights = 24 * 2048**2
    found = kernel_bytes(linears)
    assert found["x64-int8"].held_bytes * 8 / weights == level_4
    assert found["x64-int8"].streamed_bytes * 8 / weights == 4 + 64 / block
    assert found["float32"].held_bytes * 8 / weights == found["float32"].streamed_bytes * 8 / weights == level_0
    for arm in ("arm-dotprod", "arm-i8mm"):  # measured on QEMU's cortex-a76 and neoverse-v1
        assert found[arm].held_bytes * 8 / weights == found[arm].streamed_bytes * 8 / weights == 4 + 64 / block
        packed = kernel_bytes([replace(each, symmetric=True) for each in linears])[arm]
        assert packed.held_bytes * 8 / weights == packed.streamed_bytes * 8 / weights == 4 + 16 / block + 64 / 2048


# anonymous memory of a session of one layer, less the 1.4 MB that a session of any layer took; onnxruntime 1.32,
# benchmarks/LOG.md
HELD = [(8192, 2048, 64, 19_922_944), (8192, 2048, 128, 18_350_080), (8200, 2000, 64, 19_943_424)]


@pytest.mark.parametrize(("outputs", "inputs", "block", "measured"), HELD)
def test_a_layer_at_eight_bits_holds_what_was_measured(outputs, inputs, block, measured):
    found = kernel_bytes([replace(layer("w", "head", inputs, outputs, symmetric=True, bits=8), block_size=block)])
    assert found["x64-int8"].held_bytes == measured


def test_eight_bits_are_packed_on_arm_with_dot_products_and_so_mixed_bits_cost_no_float32():
    four = replace(layer("up", "feed_forward_up", 2048, 4096), block_size=64)
    eight, weights = replace(layer("up", "feed_forward_up", 2048, 4096, bits=8), block_size=64), 2048 * 4096
    for arm, bits in (("arm-dotprod", 9.5), ("arm-i8mm", 9.0)):  # of one layer, measured as above
        for symmetric in (True, False):
            found = kernel_bytes([replace(eight, symmetric=symmetric)])[arm]
            assert found.held_bytes * 8 == bits * weights
        mixed = kernel_bytes([four, eight])[arm]
        assert mixed.held_bytes * 8 == mixed.streamed_bytes * 8 == (5 + bits) * weights


def test_smollm2_on_arm_reads_what_was_worked_out_from_the_measured_layers():
    """MB per token at block 64; with its head at 8 bits a board without dot products dequantises 28 million weights."""
    layers = [replace(each, block_size=64) for each in shapes(*MODELS["SmolLM2-135M"])[0][:-1]]
    for bits, dotted, plain in ((4, 84.0, 75.6), (8, 100, 316)):
        head = replace(layer("head", "head", 576, 49_152, bits=bits), block_size=64)
        found = kernel_bytes([*layers, head])
        assert found["arm-dotprod"].streamed_bytes / 1e6 == pytest.approx(dotted, rel=0.01)
        assert found["float32"].streamed_bytes / 1e6 == pytest.approx(plain, rel=0.01)


def test_on_arm_blocks_that_are_not_whole_go_the_way_of_float32():
    whole, short = (replace(layer("w", "query", inputs, 512), block_size=64) for inputs in (576, 600))
    finer = replace(whole, block_size=16)
    found = kernel_bytes([whole, short, finer])
    assert kernel_bytes([short, finer])["arm-i8mm"] == kernel_bytes([short, finer])["float32"]
    assert found["arm-i8mm"].held_bytes == found["float32"].held_bytes + 4 * 512 * 9
    read_once = kernel_bytes([replace(whole, once=True)])["arm-dotprod"]
    assert (read_once.held_bytes, read_once.streamed_bytes) == (512 * 9 * 40, 0)


def test_without_a_kernel_for_eight_bits_a_layer_is_dequantised_whole_and_stays_in_the_file():
    eight, four = layer("down", "feed_forward_down", 160, 96, bits=8), layer("query", "query", 96, 96)
    whole = manifest_of(tied=False)
    manifest = replace(whole, linears=(four, eight, eight))
    found, codes = kernel_bytes(manifest.linears)["float32"], 96 * 5 * (32 + 4)
    assert found.held_bytes == 96 * 3 * (16 + 4) + 4 * 96 * 160
    assert found.streamed_bytes == 96 * 3 * (16 + 4) + 2 * (codes + 8 * 96 * 160)
    points = 96 * 3 // 2 + 2 * 96 * 5  # of all three layers, mapped with any kernel
    assert mapped_bytes(manifest, {"zero_points": points}) == points
    unpacked = {name: k.unpacked_bytes for name, k in bundle_kernels(manifest, {}).items()}
    assert unpacked == {"x64-int8": 0, "float32": 2 * codes, "arm-dotprod": 0, "arm-i8mm": 0}


def test_a_float_head_is_held_and_read_like_a_layer():
    """On NF4 the table and a tied head are one float tensor: rows are looked up in the file, the product has its own."""
    whole = manifest_of()
    manifest = replace(whole, linears=tuple(x for x in whole.linears if x.role != "head"))
    table = 4 * whole.architecture.vocab_size * whole.architecture.hidden_size
    parts = {"embedding_weights": table}
    without, found = bundle_kernels(manifest, {})["float32"], bundle_kernels(manifest, parts)["float32"]
    assert found.held_bytes - without.held_bytes == found.streamed_bytes - without.streamed_bytes == table
    assert found.float_bytes == table
    assert mapped_bytes(manifest, parts) == table
    untied = replace(manifest, architecture=replace(whole.architecture, tied_embedding=False))
    assert mapped_bytes(untied, {"embedding_weights": 2 * table}) == table  # the head's own is packed
    reads = replace(manifest, architecture=replace(whole.architecture, pooling=Pooling("mean", False)))
    assert bundle_kernels(reads, parts)["float32"] == without


def test_block_sums_are_rounded_up_to_sixteen_rows():
    linears = [replace(layer("w", "query", 65, 17), block_size=32)]
    assert kernel_bytes(linears)["x64-int8"].held_bytes == 17 * 3 * 16 + 2 * 4 * 17 * 3 + 4 * 32 * 3


def test_cache_of_published_models():
    for layers, heads, a_token in ((30, 3, 46_080), (16, 8, 65_536)):
        shape = replace(manifest_of().architecture, layers=layers, kv_heads=heads, head_size=64)
        assert kv_cache_bytes(shape, 1) == a_token
        assert kv_cache_bytes(shape, 2048) == 2048 * a_token


@pytest.mark.parametrize("mode", ["side", "merged"])
def test_systems_and_the_claim(tmp_path, mode):
    manifest = write_bundle(tmp_path)
    if mode == "merged":
        graphs, tasks = {"decoder": replace(manifest.decoder, vectors=())}, {"lamps": manifest.tasks["lamps"]}
        manifest = replace(manifest, mode=mode, merged_task="lamps", graphs=graphs, tasks=tasks)
    totals = account(tmp_path, manifest)
    found = systems(manifest, totals, ia3_cost(416, 416 if mode == "side" else 0, 2111))
    lora, tasks = lora_parameters(manifest.linears, 8), len(manifest.tasks)
    parameters = manifest.base.parameters
    base = [4 * parameters, 2 * parameters, totals.weights]
    assert [s.disk_bytes for s in found[:3]] == [n + 4 * lora * tasks for n in base]
    assert found[3].disk_bytes == totals.weights + 2111 * tasks
    assert (found[4].disk_bytes, found[4].model_files) == (totals.weights * tasks, tasks)
    assert [s.measured_resident_bytes for s in found] == [None] * 3 + (
        [235048960, None] if mode == "side" else [None, 235048960]
    )
    assert [s.operations_per_token for s in found] == [2 * lora] * 3 + [LAYERS * 208, 0]
    assert found[0].weights_resident_bytes == 4 * parameters + 4 * lora
    verdict = claim(found)
    for i, name in enumerate(("float32", "bfloat16")):
        ratio = found[i].disk_bytes / found[3].disk_bytes
        assert verdict.disk_ratio[name] == round(ratio, 2)
        assert verdict.holds[name] is (ratio >= 3.5)


def test_a_model_that_cannot_be_merged_has_no_merged_row(tmp_path):
    """A vector behind an activation function, on the input of a 4-bit layer, of a model that generates."""
    manifest = write_bundle(tmp_path)
    graph, down = manifest.decoder, manifest.linears[-1]
    behind = Vector.of(Site(down.name, "feed_forward", "input", 40))
    graphs = {"decoder": replace(graph, vectors=(*graph.vectors, behind))}
    stuck, totals = replace(manifest, graphs=graphs), account(tmp_path, manifest)
    floats = replace(
        stuck, dense=(Dense(down.name, 40, 24, "feed_forward"),)
    )  # it folds into the columns of a float layer
    rows = [systems(m, totals, ia3_cost(416, 416, 2111))[4:] for m in (manifest, stuck, floats)]
    assert [[(s.name, s.operations_per_token) for s in row] for row in rows] == [
        [("4-bit base, IA³ merged", 0)],
        [],
        [("4-bit base, IA³ merged", 0)],
    ]


def test_the_claim_is_denied_where_it_does_not_hold(tmp_path):
    """The figures of SmolLM2-135M with two tasks: 6.35 times in float32, 3.29 times in bfloat16."""
    manifest = write_bundle(tmp_path)
    found = systems(manifest, account(tmp_path, manifest), ia3_cost(416, 416, 2111))
    sizes = {0: 557_597_952, 1: 288_567_936, 3: 87_835_208}
    verdict = claim([replace(s, disk_bytes=sizes.get(i, s.disk_bytes)) for i, s in enumerate(found)])
    assert verdict.disk_ratio == {"float32": 6.35, "bfloat16": 3.29}
    assert verdict.holds == {"float32": True, "bfloat16": False}
