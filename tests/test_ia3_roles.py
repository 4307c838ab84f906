"""Keys, values and feed-forwards are found by what they do; the parameter count is the closed formula."""

from __future__ import annotations

import pytest
import torch
from peft import IA3Config, get_peft_model
from tiny import FAMILIES, SHAPE, tiny
from tiny_seq2seq import BART, SEQ2SEQ, T5, T5S, tiny_seq2seq
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from qia3.base.quantise import Grid, quantise_model
from qia3.errors import BaseModelError
from qia3.ia3.roles import find_roles


def closed_formula(config) -> int:
    """L (2 kv + d_ff); an encoder-decoder's decoder has keys and values twice."""
    if config.is_encoder_decoder:
        inner = config.d_kv * config.num_heads
        return config.num_layers * (2 * inner + config.d_ff) + config.num_decoder_layers * (4 * inner + config.d_ff)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inner = next(getattr(config, n) for n in ("intermediate_size", "ffn_dim", "n_inner") if getattr(config, n, None))
    return config.num_hidden_layers * (2 * heads * size + inner)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantised", [False, True])
def test_parameters_equal_the_closed_formula(family, quantised):
    model = tiny(family)
    if quantised:
        quantise_model(model, Grid(32, False))
    roles = find_roles(model)
    assert sum(s.parameters for s in roles.sites) == closed_formula(model.config)
    assert len({s.name for s in roles.sites}) == len(roles.sites)


def test_flan_t5_base_has_104448_parameters():
    config = T5Config(
        vocab_size=64,
        d_model=768,
        d_kv=64,
        num_heads=12,
        d_ff=2048,
        num_layers=12,
        num_decoder_layers=12,
        feed_forward_proj="gated-gelu",
    )
    torch.manual_seed(0)
    roles = find_roles(T5ForConditionalGeneration(config).eval())
    assert sum(s.parameters for s in roles.sites) == 104_448


# Raffel et al. 2020 and Chung et al. 2022: d_model, heads, d_ff, and layers of each stack; heads are of 64
FLAN = {
    "small": (512, 6, 1024, 8),
    "base": (768, 12, 2048, 12),
    "large": (1024, 16, 2816, 24),
    "xl": (2048, 32, 5120, 24),
}
# by hand: each layer of the decoder has keys and values twice, layers (6 heads 64 + 2 d_ff)
COUNTED = {"small": 34_816, "base": 104_448, "large": 282_624, "xl": 540_672}


@pytest.mark.parametrize("size", FLAN)
def test_a_layer_of_each_flan_t5_has_its_share_of_the_closed_formula(size):
    """One layer in each stack, which is all that depth changes; 104,448 is what PEFT trains in flan-t5-base."""
    width, heads, inner, layers = FLAN[size]
    shape = {"vocab_size": 64, "d_model": width, "d_kv": 64, "num_heads": heads, "d_ff": inner, "num_layers": 1}
    with torch.device("meta"):
        empty = T5ForConditionalGeneration(T5Config(**shape, feed_forward_proj="gated-gelu"))
    sites = find_roles(empty.to_empty(device="cpu").float().eval().apply(_fill)).sites
    assert sum(site.parameters for site in sites) * layers == COUNTED[size]
    assert [site.module.rpartition(".")[2] for site in sites] == ["k", "v", "wi_1", "k", "v", "k", "v", "wi_1"]


@pytest.mark.parametrize("size", FLAN)
def test_peft_trains_as_many_in_the_whole_model(size):
    """On torch's meta device; benchmarks/peft_counts.py has what other lists of targets give."""
    width, heads, inner, layers = FLAN[size]
    shape = {"vocab_size": 64, "d_model": width, "d_kv": 64, "num_heads": heads, "d_ff": inner, "num_layers": layers}

    def trained(*targets: str, feed_forward: tuple[str, ...] = ()) -> int:
        with torch.device("meta"):
            model = T5ForConditionalGeneration(T5Config(**shape, feed_forward_proj="gated-gelu"))
            config = IA3Config(target_modules=list(targets), feedforward_modules=list(feed_forward))
            return sum(p.numel() for p in get_peft_model(model, config).parameters() if p.requires_grad)

    assert trained("k", "v", "wo", feed_forward=("wo",)) == COUNTED[size]
    if size == "base":  # names that no layer has are passed over
        assert trained("k_proj", "v_proj", "wi_0", "wi_1") == 98_304


def _fill(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)


@pytest.mark.parametrize("name", SEQ2SEQ)
@pytest.mark.parametrize("quantised", [False, True])
def test_an_encoder_decoder_has_its_sites_in_both_stacks_and_twice_in_the_decoder_s_attention(name, quantised):
    """Names, sides and sizes, by hand; where the feed-forward is not gated, the vector is on its second layer's input."""
    model = tiny_seq2seq(name)
    if quantised:
        quantise_model(model, Grid(32, False))
    roles = find_roles(model)
    t5, gated = name in T5S, name not in ("t5", "bart", "marian")
    wanted = {}
    for stack, layers in (("encoder", 2), ("decoder", 3)):
        for i in range(layers):
            if t5:
                kinds = ["0.SelfAttention.k", "0.SelfAttention.v"]
                kinds += ["1.EncDecAttention.k", "1.EncDecAttention.v"] if stack == "decoder" else []
                down = f"{2 if stack == 'decoder' else 1}.DenseReluDense.{'wi_1' if gated else 'wo'}"
                wanted |= {f"{stack}.block.{i}.layer.{kind}": ("output", 80) for kind in kinds}
                wanted[f"{stack}.block.{i}.layer.{down}"] = ("output" if gated else "input", 224)
                continue
            cross = {"bart": "encoder_attn", "marian": "encoder_attn", "t5gemma": "cross_attn"}[name]
            for attention in ("self_attn", cross) if stack == "decoder" else ("self_attn",):
                size = 32 if name == "t5gemma" else 96
                wanted |= {f"model.{stack}.layers.{i}.{attention}.{n}_proj": ("output", size) for n in ("k", "v")}
            down = "mlp.up_proj" if gated else "fc2"
            size = {"encoder": 160, "decoder": 224}[stack]
            wanted[f"model.{stack}.layers.{i}.{down}"] = ("output" if gated else "input", size)
    assert {site.module: (site.placement, site.size) for site in roles.sites} == wanted
    assert [site.module for site in roles.sites] == [n for n, _ in model.named_modules() if n in wanted]
    assert all(site.rows is None for site in roles.sites)
    assert len(roles.queries) == 2 + 2 * 3
    assert sum(role == "head" for role in roles.linears.values()) == 1
    assert "other" not in roles.linears.values()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("longt5", T5 | {"local_radius": 4}),
        ("longt5", T5 | {"local_radius": 4, "encoder_attention_type": "transient-global", "global_block_size": 4}),
        ("bigbird_pegasus", BART),
    ],
)
def test_a_stack_whose_attention_does_not_come_by_is_refused(family, settings):
    """Its keys would be missed, and its values be taken for what they are not."""
    config = AutoConfig.for_model(family, vocab_size=101, **settings)
    torch.manual_seed(0)
    with pytest.raises(BaseModelError, match=r"its own code in 2 of the 2 layers of (model\.)?encoder\.(block|layers)"):
        find_roles(AutoModelForSeq2SeqLM.from_config(config).eval())


def test_gated_feed_forwards_scale_the_up_projection_and_ungated_ones_the_input_of_down():
    gated = {s.module.rpartition(".")[2]: s for s in find_roles(tiny("llama")).sites}
    assert gated["up_proj"].placement == "output"
    assert gated["up_proj"].down.endswith("down_proj")
    plain = {s.module.rpartition(".")[2]: s for s in find_roles(tiny("gpt2")).sites}
    assert plain["c_proj"].placement == "input"


def test_fused_rows_are_the_key_and_value_rows():
    site = next(s for s in find_roles(tiny("phi3")).sites if s.role == "qkv")
    queries = SHAPE["num_attention_heads"] * SHAPE["head_dim"]
    assert site.rows == tuple(range(queries, site.size))
    neox = next(
        s for s in find_roles(tiny("gpt_neox")).sites if s.role == "qkv"
    )  # interleaved head by head: q k v, q k v, ...
    assert neox.rows == tuple(i for i in range(neox.size) if i % 48 >= 16)


def test_fused_gate_and_up_train_the_up_half():
    site = next(s for s in find_roles(tiny("phi3")).sites if s.role == "feed_forward")
    assert site.rows == tuple(range(160, 320))


def test_query_sites_are_known_apart():
    roles = find_roles(tiny("qwen2"))
    assert [s.role for s in roles.queries] == ["query"] * 2


def test_a_base_without_roles_is_refused_with_what_was_seen():
    config = AutoConfig.for_model("gpt_oss", **SHAPE, num_local_experts=4)
    with pytest.raises(
        BaseModelError, match=r"mixtures of experts \(GptOssExperts\) of a form.*Linear layers seen: .*k_proj"
    ):
        find_roles(AutoModelForCausalLM.from_config(config).eval())


def test_probing_leaves_the_model_as_it_was():
    model = tiny("llama")
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    find_roles(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    assert not any(m._forward_hooks for m in model.modules() if isinstance(m, nn.Linear))
