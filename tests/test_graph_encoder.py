"""Graphs of encoders beside transformers' own models: eager, on the dequantised weights, with PEFT's IA³ on them.

`make test` makes those of two families, `make families` all.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import IA3Config, get_peft_model
from tiny import ALL, random_vectors
from tiny_encoders import EXPORTED, tiny_encoder, words, write_encoder
from torch import nn

from qia3.base.load import Asked, load_base
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.pooling import pooling_of
from qia3.base.quantise import Grid, quantise_model
from qia3.bundle.head import Head, side_by_side
from qia3.errors import AdapterError, BaseModelError
from qia3.graph.encoder import export_encoder
from qia3.graph.forced_encoder import OrtEncoder
from qia3.graph.in_memory import opened
from qia3.graph.preflight_encoder import preflight_encoder
from qia3.ia3.adapted import AdaptedBase
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, fold
from qia3.train.prompts import wrapping

TEXTS = [[5, 17, 40, 9, 61, 77, 12, 33, 8, 25, 90, 14], [7, 30, 50, 11, 64]]  # unlike lengths, longer than a window


def dequantised(model: nn.Module) -> nn.Module:
    """A copy in float whose layers are those on the grid, read out."""
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, GridLinear):
            made = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            made.weight.data = module.weight.clone()
            if module.bias is not None:
                made.bias.data = module.bias.clone()
            plain.set_submodule(name, made)
        elif isinstance(module, GridEmbedding):
            plain.set_submodule(name, nn.Embedding.from_pretrained(module.store.dense(torch.float32)))
    return plain


def by_peft(plain: nn.Module, sites, vectors: dict[str, np.ndarray]) -> nn.Module:
    """PEFT's own model, its vectors set to ours."""
    on_input = [s.module for s in sites if s.placement == "input"]
    config = IA3Config(
        target_modules=[s.module for s in sites], feedforward_modules=on_input, task_type="FEATURE_EXTRACTION"
    )
    made = get_peft_model(copy.deepcopy(plain), config).eval()
    for site in sites:
        parameter = made.base_model.model.get_submodule(site.module).ia3_l["default"]
        parameter.data = torch.from_numpy(vectors[site.name]).reshape(parameter.shape)
    return made


def mean_by_numpy(states: np.ndarray) -> np.ndarray:
    return states.astype(np.float64).mean(0)


@pytest.mark.parametrize("name", EXPORTED)
def test_a_graph_is_transformers_model_with_peft_s_vectors_on_it(name):
    model = tiny_encoder(name)
    quantise_model(model, Grid(32, False))
    plain = dequantised(model)
    scaled = attach(model, find_roles(model).sites)
    graph = preflight_encoder(model, scaled, 150, 0, False, 1e-4)
    session, held = opened(graph, name)
    worn, sites = [random_vectors(scaled, seed) for seed in (1, 2)], [layer.site for layer in scaled.values()]
    draw = np.random.default_rng(0)
    heads = [Head(draw.normal(size=(n, 96)).astype(np.float32), draw.normal(size=n).astype(np.float32)) for n in (4, 2)]
    fed = {n: np.stack([v[n][None] for v in worn]) for n in worn[0]} | side_by_side([h.inputs for h in heads], 96)
    found = OrtEncoder(session).rows(TEXTS, fed)
    for row, (text, vectors, head) in enumerate(zip(TEXTS, worn, heads, strict=True)):
        with torch.no_grad():
            states = by_peft(plain, sites, vectors)(input_ids=torch.tensor([text]))[0][0].numpy()
        np.testing.assert_allclose(found["last_hidden_state"][row, : len(text)], states, atol=2e-4)
        np.testing.assert_allclose(found["sentence_embedding"][row], mean_by_numpy(states), atol=2e-4)
        expected = mean_by_numpy(states) @ head.weight.T + head.bias
        np.testing.assert_allclose(found["logits"][row, : len(head.bias)], expected, atol=1e-3)
        assert (found["logits"][row, len(head.bias) :] < -1e8).all()
    del session, held


MERGED = [n for n in EXPORTED if n != "deberta-v2" or ALL]


@pytest.mark.parametrize("name", MERGED)
@pytest.mark.parametrize("per_token", [False, True] if ALL else [True])
def test_a_merged_graph_holds_vectors_and_head(name, per_token):
    """Where GELU stands between rows and their vector, it is a constant before the next layer, whose codes stay."""
    model = tiny_encoder(name)
    quantise_model(model, Grid(32, False))
    plain = dequantised(model)
    roles = find_roles(model)
    sites = roles.sites
    adapted = AdaptedBase(SimpleNamespace(model=model), roles, attach(model, sites))
    vectors = random_vectors(adapted.scaled)
    head = Head(np.ones((3, 96), np.float32), np.arange(3, dtype=np.float32), per_token)
    adapted.merge(vectors)
    session, held = opened(export_encoder(model, 0, 150, own=head), name)
    assert {i.name for i in session.get_inputs()} - {"token_type_ids"} == {"input_ids", "attention_mask"}
    assert [o.name for o in session.get_outputs()] == ["last_hidden_state", "sentence_embedding", "logits"]
    found = OrtEncoder(session).rows(TEXTS[:1], {})
    with torch.no_grad():
        states = by_peft(plain, sites, vectors)(input_ids=torch.tensor(TEXTS[:1]))[0][0].numpy()
    np.testing.assert_allclose(found["last_hidden_state"][0], states, atol=2e-4)
    read = states if per_token else mean_by_numpy(states)
    np.testing.assert_allclose(found["logits"][0], read @ head.weight.T + head.bias, atol=1e-3)
    del session, held


def test_projections_of_positions_alone_are_told_from_the_text_s():
    shared, apart = (find_roles(tiny_encoder("deberta-v2", share_att_key=share)) for share in (True, False))
    assert "positions" not in shared.linears.values()
    assert [n.rpartition(".")[2] for n, role in apart.linears.items() if role == "positions"] == [
        "pos_key_proj",
        "pos_query_proj",
    ] * 2
    assert shared.sites == apart.sites


def test_vectors_behind_gelu_fold_nowhere():
    model = tiny_encoder("bert")
    quantise_model(model, Grid(32, False))
    scaled = attach(model, find_roles(model).sites)
    with pytest.raises(AdapterError, match="there is an activation function between them"):
        fold(scaled)


FORMS = [
    ("bert", None),
    ("bert", "BertForMaskedLM"),
    ("bert", "BertForPreTraining"),
    ("bert", "BertForSequenceClassification"),
    ("distilbert", "DistilBertForMaskedLM"),
    ("roberta", "RobertaForSequenceClassification"),
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_folder_saved_with_a_head_is_read_without_it(name, form, tmp_path, capsys):
    write_encoder(tmp_path / "m", name, form)
    base = load_base(Asked(str(tmp_path / "m"), block_size=32))
    expected = tiny_encoder(name, len(words()), form)
    body = getattr(expected, expected.base_model_prefix) if form else expected
    quantise_model(body, Grid(32, False))
    ids = torch.tensor(TEXTS[1:])
    with torch.no_grad():
        torch.testing.assert_close(base.model(input_ids=ids)[0], body(input_ids=ids)[0])
    assert ("it belongs to another task" in capsys.readouterr().err) == (form is not None or name == "bert")


def test_what_stands_beside_a_body_is_a_head_of_somebody(tmp_path, capsys):
    """DeBERTa-v3's files have a discriminator that no class of transformers has."""
    from safetensors.torch import load_file, save_file

    folder = write_encoder(tmp_path / "m", "deberta-v2", "DebertaV2ForMaskedLM")
    tensors = load_file(folder / "model.safetensors")
    beside = {"mask_predictions.dense.weight": torch.zeros(96, 96), "lm_predictions.lm_head.bias": torch.zeros(9)}
    beside["deberta.embeddings.position_embeddings.weight"] = torch.zeros(
        160, 96
    )  # which position_biased_input leaves out
    save_file(tensors | beside, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_base(Asked(str(folder), block_size=32)).model.config.model_type == "deberta-v2"
    assert "mask_predictions.dense" in capsys.readouterr().err


def test_a_tensor_of_the_body_that_has_no_place_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_encoder(tmp_path / "m", "bert", "BertForMaskedLM")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"bert.encoder.layer.3.output.dense.bias": torch.zeros(96)}, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"bert.encoder.layer.3.output.dense.bias has no place"):
        load_base(Asked(str(folder), block_size=32))


@pytest.mark.parametrize(
    ("pooling", "told"),
    [
        ({"pooling_mode_mean_tokens": True, "normalize": True}, ("mean", True)),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, ("cls", False)),
        ({"pooling_mode_max_tokens": True}, "pools by pooling_mode_max_tokens"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            "pooling_mode_mean_tokens and pooling_mode_max_tokens",
        ),
    ],
)
def test_how_a_text_is_pooled_is_read_or_refused(pooling, told, tmp_path):
    folder = write_encoder(tmp_path / "m", "bert", pooling=dict(pooling))
    if isinstance(told, str):
        with pytest.raises(BaseModelError, match=told):
            load_base(Asked(str(folder), block_size=32))
    else:
        how = pooling_of(load_base(Asked(str(folder), block_size=32)).model.config)
        assert (how.mode, how.normalize) == told


def test_a_prompt_is_what_the_tokenizer_makes_of_a_text(tmp_path):
    base = load_base(Asked(str(write_encoder(tmp_path / "m", "bert")), block_size=32))
    wrap = wrapping(base.tokenizer, base.model.generation_config, True, reads=True)
    for text in ("turn the lights off", "what is [SEP], please"):
        ids = list(base.tokens.prompt(wrap.prefix + "{text}" + wrap.suffix, text))
        assert ids[0] == base.tokenizer.cls_token_id
        assert ids[-1] == base.tokenizer.sep_token_id
        assert base.tokenizer.sep_token_id not in ids[1:-1]  # law 11
    assert list(base.tokens.prompt("[CLS]{text}[SEP]", "play a song")) == base.tokenizer("play a song")["input_ids"]
