"""Tiny random models of the decoder families of transformers, and what becomes of each: its graph agrees with
transformers' eager attention, or it is refused with a reason.

    python tests/families.py            writes docs/families.md
    python tests/families.py llama      prints what becomes of one family

The oracle is the family's own model from transformers with eager attention and the dequantised weights, the vectors put
on by forward hooks; prompts of several lengths, past windows and the lengths at which rotations switch, with steps
after each, alone and as one batch padded on the right.
"""

from __future__ import annotations

import copy
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from tiny import GPT2, SHAPE, WIDE, ids, random_vectors
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qia3.base.experts import GridExperts
from qia3.base.family import auto_class, is_encoder, positions_of
from qia3.base.kind import check_kind
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.quantise import Grid, quantise_model
from qia3.bundle.layout import GRAPH
from qia3.errors import AdapterError, BaseModelError
from qia3.graph.external import write_graph
from qia3.graph.forced_encoder import OrtEncoder
from qia3.graph.in_memory import opened
from qia3.graph.passes import AccuracyLevel
from qia3.graph.preflight import preflight
from qia3.graph.preflight_encoder import preflight_encoder
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import Scaled, attach, fold, set_vectors, start_vectors

TABLE = Path(__file__).parent.parent / "docs" / "families.md"
POSITIONS = 64
AGREES = 1e-4  # of the largest logit, or of one
LENGTHS, FORCED = (5, 11, 40), (7, 9, 11, 13)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "rope_theta": 10000.0}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.05 * i for i in range(8)],
        "long_factor": [2.0 + 0.7 * i for i in range(8)]}  # fmt: skip
MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 6,
}
OPT = {"ffn_dim": 160, "word_embed_proj_dim": 96, **{k: v for k, v in WIDE.items() if k != "intermediate_size"}}
BLOOM = {"vocab_size": 101, "hidden_size": 96, "n_layer": 2, "n_head": 6}


@dataclass(frozen=True)
class Family:
    """`config` over transformers' defaults; `refused` matches the reason, None where it is to work."""

    kind: str
    config: dict[str, Any]
    refused: str | None = None
    note: str = ""
    eager: bool = True  # the oracle's attention; else torch's own
    apart: bool = False  # in the table, and among the tests of QIA3_ALL_FAMILIES=1 alone


EXPERTS = r"its feed-forwards are mixtures of experts \(.*Experts\) of a form that ONNX Runtime's QMoE"

FAMILIES = [
    Family("llama", SHAPE),
    Family("llama", SHAPE | {"rope_parameters": YARN}, note="yarn", apart=True),
    Family("llama", SHAPE | {"rope_parameters": LLAMA3}, note="llama3 rope"),
    Family("llama", SHAPE | {"rope_parameters": DYNAMIC}, note="dynamic rope, within its length"),
    Family("mistral", SHAPE | {"sliding_window": 7}, note="window", apart=True),
    Family("ministral", SHAPE | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
           note="window in one layer", apart=True),
    Family("qwen2", SHAPE, apart=True),
    Family("qwen3", SHAPE, apart=True),
    Family("qwen3", SHAPE | {"head_dim": 20}, note="heads of 20", apart=True),
    Family("gemma", SHAPE, apart=True),
    Family("gemma2", SHAPE | {"sliding_window": 7, "query_pre_attn_scalar": 16}, note="window, soft caps", apart=True),
    Family("gemma3_text", SHAPE | {"sliding_window": 7, "query_pre_attn_scalar": 16,
                                   "layer_types": ["sliding_attention", "full_attention"]}, note="window in one layer, two rotations"),
    Family("vaultgemma", SHAPE | {"sliding_window": 7, "query_pre_attn_scalar": 16}, note="window", apart=True),
    Family("olmo", SHAPE, apart=True),
    Family("olmo2", SHAPE, apart=True),
    Family("olmo3", SHAPE | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}, note="window in one layer"),
    Family("granite", SHAPE | {"logits_scaling": 3.0, "embedding_multiplier": 2.0}, note="multipliers", apart=True),
    Family("phi", SHAPE, apart=True),
    Family("phi3", SHAPE, apart=True),
    Family("phi3", SHAPE | {"rope_parameters": LONG | {"original_max_position_embeddings": 64}, "original_max_position_embeddings": 64,
                            "max_position_embeddings": 256}, note="longrope, within its original length"),
    Family("phi3", SHAPE | {"rope_parameters": LONG | {"original_max_position_embeddings": 24}, "original_max_position_embeddings": 24,
                            "max_position_embeddings": 256},
           r"uses other rotary factors in texts of more than 24 tokens \(rope_type longrope\).*set context_length = 24",
           note="longrope, beyond it"),
    Family("smollm3", SHAPE | {"no_rope_layer_interval": 2}, note="layers without rotation"),
    Family("stablelm", SHAPE, apart=True),
    Family("stablelm", SHAPE | {"use_parallel_residual": True, "qk_layernorm": True}, note="norms of queries and keys"),
    Family("starcoder2", SHAPE, apart=True),
    Family("cohere", SHAPE, apart=True),
    Family("cohere2", SHAPE | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}, note="no rotation in one layer"),
    Family("glm", SHAPE, apart=True),
    Family("glm4", SHAPE, apart=True),
    Family("helium", SHAPE, apart=True),
    Family("ernie4_5", SHAPE, apart=True),
    Family("nemotron", SHAPE, apart=True),
    Family("hunyuan_v1_dense", SHAPE, note="norms after the rotation"),
    Family("exaone4", SHAPE | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}, note="no rotation in one layer",
           apart=True),
    Family("seed_oss", SHAPE, apart=True),
    Family("apertus", SHAPE, apart=True),
    Family("arcee", SHAPE, apart=True),
    Family("cwm", SHAPE, apart=True),
    Family("nanochat", SHAPE, note="norms after the rotation", apart=True),
    Family("jais2", SHAPE, apart=True),
    Family("gpt2", GPT2, apart=True),
    Family("gpt_neox", WIDE, apart=True),
    Family("persimmon", WIDE, apart=True),
    Family("opt", OPT, apart=True),
    Family("biogpt", WIDE, apart=True),
    Family("gpt_bigcode", GPT2 | {"multi_query": False}, apart=True),
    Family("gpt_bigcode", GPT2, note="one key head"),
    Family("bitnet", SHAPE, r"no feed-forward whose inner activation can be scaled\. Linear layers seen"),
    Family("diffllama", SHAPE, r"attention that runs several times per pass in layers 0, 1"),
    Family("doge", SHAPE, r"biases on attention scores"),
    Family("minicpm3", SHAPE | MLA, note="latent attention", apart=True),
    Family("youtu", SHAPE | MLA, note="latent attention", apart=True),
    Family("bloom", BLOOM, apart=True),
    Family("gptj", GPT2 | {"rotary_dim": 8}, apart=True),
    Family("gpt_neo", {"vocab_size": 101, "hidden_size": 96, "intermediate_size": 160, "num_layers": 2, "num_heads": 6, "window_size": 7,
                       "attention_types": [[["global", "local"], 1]]}, note="window in one layer", apart=True),
    Family("codegen", GPT2 | {"n_head": 8, "rotary_dim": 8}, apart=True),
    Family("falcon", WIDE, note="one key head", apart=True),
    Family("falcon", WIDE | {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 160}, note="new decoder architecture"),
    Family("falcon", WIDE | {"alibi": True, "multi_query": False, "parallel_attn": False}, note="alibi", apart=True,
           eager=False),  # transformers 5.23 adds the biases twice in eager attention
    Family("mpt", {"vocab_size": 101, "d_model": 96, "n_layers": 2, "n_heads": 6, "max_seq_len": 64}, apart=True),
    Family("xglm", {"vocab_size": 101, "d_model": 96, "ffn_dim": 160, "num_layers": 2, "attention_heads": 6}, apart=True),
    Family("mamba", {"vocab_size": 101, "hidden_size": 96, "num_hidden_layers": 2}, r"no attention, and so no keys and values"),
    Family("recurrent_gemma", SHAPE | {"num_hidden_layers": 3, "attention_window_size": 16, "lru_width": 96},
           r"a recurrent state \(RecurrentGemmaRecurrentBlock"),
    Family("mixtral", SHAPE | MOE, note="experts", apart=True),
    Family("qwen3_moe", SHAPE | MOE | {"norm_topk_prob": True}, note="experts"),
    Family("olmoe", SHAPE | MOE, note="experts", apart=True),
    Family("qwen2_moe", SHAPE | MOE | {"shared_expert_intermediate_size": 64}, note="experts, one for all", apart=True),
    Family("glm4_moe", SHAPE | MOE | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}, note="experts", apart=True),
    Family("granitemoe", SHAPE | MOE, note="experts", apart=True),
    Family("ernie4_5_moe", SHAPE | MOE | {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0}, note="experts", apart=True),
    Family("flex_olmo", SHAPE | MOE, note="experts", apart=True),
    Family("gpt_oss", SHAPE | MOE, EXPERTS),
    Family("deepseek_v3", SHAPE | MOE | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 24,
                                        "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 6},
           note="latent attention, experts", apart=True),
    Family("lfm2", SHAPE | {"layer_types": ["conv", "full_attention"]}, r"a recurrent state \(Lfm2ShortConv\) in layer 0"),
    Family("qwen3_next", SHAPE | MOE | {"layer_types": ["linear_attention", "full_attention"]},
           r"a recurrent state \(Qwen3NextGatedDeltaNet"),
    Family("deepseek_v2", SHAPE | MOE | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 24,
                                        "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 6},
           r"rotates with complex numbers, for which ONNX has no operators"),
    Family("falcon_h1", SHAPE | {"mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 16, "num_hidden_layers": 1},
           r"a state of FalconH1Mixer", apart=True),
    Family("llama4_text", SHAPE | MOE, EXPERTS),
    Family("gemma3n_text", SHAPE | {"num_kv_shared_layers": 0, "sliding_window": 7,
                                    "layer_types": ["sliding_attention", "full_attention"]}, apart=True),
    Family("gemma4_text", SHAPE, r"heads that differ in size or number from those of layer 0"),
    Family("modernbert-decoder", WIDE | {"local_attention": 8}, note="window in two layers of three"),
    Family("bert", WIDE, note="encoder", apart=True),  # built whole in test_build_encoder.py
    Family("roberta", WIDE, note="encoder", apart=True),
    Family("xlm-roberta", WIDE, note="encoder", apart=True),
    Family("camembert", WIDE, note="encoder", apart=True),
    Family("electra", WIDE | {"embedding_size": 64}, note="encoder", apart=True),
    Family("distilbert", {"vocab_size": 101, "dim": 96, "hidden_dim": 160, "n_layers": 2, "n_heads": 6, "max_position_embeddings": 64},
           note="encoder", apart=True),
    Family("modernbert", WIDE | {"local_attention": 10, "global_attn_every_n_layers": 2}, note="encoder, window in one layer of two",
           apart=True),
    Family("nomic_bert", WIDE, note="encoder", apart=True),
    Family("eurobert", SHAPE, note="encoder", apart=True),
    Family("esm", WIDE | {"position_embedding_type": "rotary"}, note="encoder", apart=True),
    Family("deberta-v2", WIDE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8,
                                 "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
           note="encoder, as DeBERTa-v3", apart=True),  # beside PEFT in test_graph_encoder.py
    Family("deberta-v2", WIDE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
           note="encoder, positions by projections of their own, no buckets", apart=True),
    Family("deberta-v2", WIDE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8,
                                 "conv_kernel_size": 3}, note="encoder, with a convolution, as DeBERTa-v2-xlarge", apart=True),
    Family("deberta", WIDE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
           r"what it adds to its attention scores differs between layers or for longer texts", note="encoder"),
    Family("mpnet", WIDE, note="encoder", apart=True),
    Family("albert", WIDE, r"attention that runs several times per pass in", note="encoder, one layer for all"),
    Family("whisper", {"vocab_size": 101, "d_model": 96}, r"is an encoder-decoder \(whisper\)"),
]  # fmt: skip


def label(family: Family) -> str:
    return f"{family.kind}, {family.note}" if family.note else family.kind


def random_model(family: Family) -> PreTrainedModel:
    """With eager attention, and weights that are large enough to matter.

    Raises BaseModelError for kinds that are none.
    """
    config = AutoConfig.for_model(family.kind, **family.config)
    check_kind(config, "it")
    torch.manual_seed(0)
    made = auto_class(config)
    model = made.from_config(
        config, attn_implementation="eager" if family.eager else "sdpa", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.2)
            elif "norm" not in name:
                p.copy_(torch.randn_like(p) * 0.08)
    return model


@dataclass(frozen=True)
class Works:
    """Largest differences to the oracle, in parts of its largest logit: `side` one text at a time, `batch` all together,
    `merged` None where a vector has nowhere to fold.
    """

    side: float
    batch: float
    merged: float | None

    @classmethod
    def of(cls, found: list[Sequence[Any]], expected: Sequence[Any]) -> Works:
        """From what was found alone, in a batch and, where it folds, merged; a text each."""
        size = max(1.0, *(float(np.abs(e).max()) for e in expected))
        apart = [max(float(np.abs(a - e).max()) for a, e in zip(f, expected, strict=True)) / size for f in found]
        return cls(*apart, *[None] * (3 - len(apart)))

    @property
    def difference(self) -> float:
        return max(self.side, self.batch, self.merged or 0.0)


def outcome(family: Family) -> Works | str:
    """What was found; or why the family is refused."""
    try:
        oracle = random_model(family)
        model = copy.deepcopy(oracle)
        quantise_model(model, Grid(32, False))
        scaled = attach(model, find_roles(model).sites)
        if is_encoder(model.config):
            return _of_encoder(oracle, model, scaled)
        graph = preflight(model, scaled, POSITIONS, 4, "last", False, 1e-3)
    except BaseModelError as error:
        return str(error)
    _check_gradients(model, scaled)
    vectors = random_vectors(scaled)
    as_quantised(oracle, model)
    put_vectors(oracle, scaled, vectors)
    AccuracyLevel(0)(graph)
    with tempfile.TemporaryDirectory() as folder:
        write_graph(graph, Path(folder), [])
        session = ort.InferenceSession(str(Path(folder) / GRAPH), providers=["CPUExecutionProvider"])
    fed = {name: v.reshape(1, 1, -1) for name, v in vectors.items()}
    rows = [ids(1, n, seed=n)[0].tolist() for n in LENGTHS]
    expected = np.stack([_eager(oracle, row) for row in rows])
    found = [np.concatenate([run(session, [row], fed) for row in rows]), run(session, rows, fed)]
    if merged(model, scaled, vectors):
        found.append(np.stack([_eager(model, row) for row in rows]))
    return Works.of(found, expected)


def _check_gradients(model: PreTrainedModel, scaled: dict[str, Scaled]) -> None:
    """Training reaches every vector."""
    start_vectors(scaled, None)
    model(input_ids=ids(2, 11), use_cache=False).logits.square().mean().backward()
    idle = [name for name, layer in scaled.items() if layer.delta.grad is None or not bool(layer.delta.grad.any())]
    assert not idle, f"no gradient in {idle}"


def merged(model: PreTrainedModel, scaled: dict[str, Scaled], vectors: dict[str, np.ndarray]) -> bool:
    """Whether the vectors are in the model's scales now; they are not where one has nowhere to fold."""
    set_vectors(scaled, vectors)
    try:
        fold(scaled)
    except AdapterError:
        return False
    return True


def _of_encoder(oracle: PreTrainedModel, model: Any, scaled: dict[str, Scaled]) -> Works:
    """The same of an encoder's states, in parts of the largest. Raises BaseModelError."""
    positions = min(POSITIONS, positions_of(model) or POSITIONS)
    graph = preflight_encoder(model, scaled, positions, 4, False, 1e-3)
    vectors = random_vectors(scaled)
    as_quantised(oracle, model)
    put_vectors(oracle, scaled, vectors)
    AccuracyLevel(0)(graph)
    session, held = opened(graph, "encoder")
    rows = [ids(1, n, seed=n)[0].tolist() for n in LENGTHS]
    with torch.no_grad():
        expected = [oracle(input_ids=torch.tensor([row]))[0][0].numpy() for row in rows]
    fed, run = {name: v.reshape(1, 1, -1) for name, v in vectors.items()}, OrtEncoder(session)
    alone = [run.rows([row], fed)["last_hidden_state"][0] for row in rows]
    batch = [found[: len(row)] for found, row in zip(run.rows(rows, fed)["last_hidden_state"], rows, strict=True)]
    del session, held
    found = [alone, batch]
    if merged(model, scaled, vectors):
        with torch.no_grad():
            found.append([model(input_ids=torch.tensor([row]))[0][0].numpy() for row in rows])
    return Works.of(found, expected)


def as_quantised(oracle: PreTrainedModel, model: Any) -> None:
    """Gives the oracle the dequantised weights."""
    plain = {
        re.sub(r"\.base$", "", n): m for n, m in model.named_modules() if isinstance(m, GridLinear | GridEmbedding)
    }
    mixtures = {n: m for n, m in model.named_modules() if isinstance(m, GridExperts)}
    plain = {n: m for n, m in plain.items() if not n.startswith(tuple(f"{e}." for e in mixtures))}
    with torch.no_grad():
        for name, experts in mixtures.items():
            own, (up, down) = oracle.get_submodule(name), (p.weight for p in (experts.gate_up_proj, experts.down_proj))
            turned = up.reshape(len(own.down_proj), -1, 2, up.shape[1]).transpose(1, 2)
            own.gate_up_proj.copy_(turned.reshape(own.gate_up_proj.shape))
            own.down_proj.copy_(down.reshape(own.down_proj.shape))
        for name, module in plain.items():
            weight = oracle.get_submodule(name).weight
            dense = module.store.dense(torch.float32)
            weight.copy_(dense.T if isinstance(oracle.get_submodule(name), Conv1D) else dense)


def put_vectors(oracle: PreTrainedModel, scaled: dict[str, Scaled], vectors: dict[str, np.ndarray]) -> None:
    """Hooks that scale."""
    for name, layer in scaled.items():
        vector, module = torch.from_numpy(vectors[name]), oracle.get_submodule(layer.site.module)
        if layer.site.placement == "input":
            module.register_forward_pre_hook(lambda _, x, v=vector: (x[0] * v, *x[1:]))
        else:
            module.register_forward_hook(lambda _, x, y, v=vector: y * v)


def _eager(oracle: PreTrainedModel, prompt: list[int]) -> np.ndarray:
    """[1 + steps, V] after the prompt and each forced token, each by a pass over the whole text."""
    texts = [[*prompt, *FORCED[:n]] for n in range(1 + len(FORCED))]
    with torch.no_grad():
        return np.stack([oracle(input_ids=torch.tensor([t]), use_cache=False).logits[0, -1].numpy() for t in texts])


def run(session: ort.InferenceSession, prompts: list[list[int]], vectors: dict[str, np.ndarray]) -> np.ndarray:
    """[rows, 1 + steps, V] of the graph: rows padded on the right, then the forced tokens with the cache."""
    lengths = np.array([len(p) for p in prompts])
    tokens = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    names = [o.name for o in session.get_outputs()]
    cache = {i.name: np.zeros((len(prompts), i.shape[1], 0, i.shape[3]), np.float32)
             for i in session.get_inputs() if i.name.startswith("past")}  # fmt: skip
    found = []
    for token in (*FORCED, None):
        mask = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
        feeds = {"input_ids": tokens, "attention_mask": mask, **cache, **vectors}
        out = dict(zip(names, session.run(None, feeds), strict=True))
        found.append(out["logits"][:, -1])
        cache = {n: out[n.replace("past_key_values", "present")] for n in cache}
        if token is not None:
            tokens, lengths = np.full((len(prompts), 1), token, np.int64), lengths + 1
    return np.stack(found, axis=1)


FOLDS_NOWHERE = "no: an activation function stands between"
LOADERS = ["PEFT", "transformers.js", "optimum"]  # their columns are tests/loaders.py's


def told(family: Family, found: Works | str) -> str:
    """A row of the table, without the loaders' columns."""
    if isinstance(found, str):
        reason = found.split(" Linear layers seen")[0].replace("|", "/")
        cells = [f"refused: {reason}", "-", "-", "-"]
    else:
        apart = (found.side, found.batch, found.merged)
        cells = ["yes", *(FOLDS_NOWHERE if d is None else "yes" if d < AGREES else f"WRONG by {d:.2g}" for d in apart)]
    return f"| {' | '.join([family.kind, family.note, *cells])} |"


HEAD = """# Families

What happens to a base, by family: tiny random models from transformers, each taken through everything that
`qia3 build` does before it trains. "unmerged" means that the exported graph, with vectors, agrees with transformers'
own attention on the dequantised weights to 1e-4 of the largest logit (eager attention; torch's own where
tests/families.py turns `eager` off and says why: Falcon's alibi), for prompts of {lengths} tokens, beyond windows
and beyond the lengths at which rotary embeddings switch, with {steps} steps after each. "batch" is the same in a batch of
unequal rows, "merged" with the vectors folded into the scales. If there is an activation function between a
feed-forward's vector and the rows that it would scale, the vector stays unmerged (in a merged bundle of an encoder it
becomes a constant: tests/test_graph_encoder.py). "trains" means that a gradient reaches every vector. For encoders,
the states are compared. Refusals come before anything is trained, with the reason. The program has no such list: it
observes what a model does.

The last three columns show the results of other loaders (tests/loaders.py). PEFT loads our checkpoint into a plain
model and gives our logits; transformers.js {js} and optimum-onnx {optimum} open one of our
folders by name (merged if possible, otherwise the graph with unmerged vectors, which they leave at one) and give the tokens of transformers,
singly and in a batch. "-" means that there is nothing to try: refused families, and encoders in these two
(tests/test_interop_labels.py opens some); "not run" means not tried yet.

Written by `python tests/families.py` and `python tests/loaders.py`; tests/test_families.py checks every row, and `make
interop` the last columns.

| family | what of it | trains | unmerged | batch | merged | {loaders} |
|---|---|---|---|---|---|---|---|---|
"""
VERSIONS = {"js": "4.3.2", "optimum": "0.1.0 (transformers 4.57.6)"}  # Makefile's and tests/interop.txt's


def table(rows: list[str]) -> str:
    lengths = ", ".join(map(str, LENGTHS[:-1])) + f" and {LENGTHS[-1]}"
    head = HEAD.format(lengths=lengths, steps=len(FORCED), loaders=" | ".join(LOADERS), **VERSIONS)
    return head + "\n".join(rows) + "\n"


def with_loaders(rows: list[str], before: str, named_by: int) -> list[str]:
    """The rows with the loaders' columns that the table had; "not run" where it had none. The first columns name a row."""

    def name(row: str) -> tuple[str, ...]:
        return tuple(row.split("|")[1 : 1 + named_by])

    known = {name(line): line.split("|")[-1 - len(LOADERS) :] for line in before.splitlines() if line.startswith("| ")}
    none = [*[" not run "] * len(LOADERS), ""]
    return [row + "|".join(known.get(name(row), none)) for row in rows]


def main() -> None:
    asked = [f for f in FAMILIES if f.kind in sys.argv[1:]]
    rows = []
    for family in asked or FAMILIES:
        rows.append(told(family, outcome(family)))
        print(rows[-1], flush=True)
    if not asked:
        TABLE.parent.mkdir(exist_ok=True)
        before = TABLE.read_text(encoding="utf-8")
        TABLE.write_text(table(with_loaders(sorted(rows), before, 2)), encoding="utf-8")


if __name__ == "__main__":
    main()
