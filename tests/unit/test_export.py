"""Both layouts on disk: what is reloaded is what was saved, by transformers and by pruneflow."""

import copy
import json
import sys

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pruneflow.api import save_model
from pruneflow.errors import DamagedArtifactError, PruneflowError
from pruneflow.measure import reload
from pruneflow.models.digests import model_digest
from pruneflow.models.export import rebuild, save
from pruneflow.models.loading import load_source, load_unrecorded
from pruneflow.models.structure import layers_of, widths_of
from pruneflow.models.surgery import cut_heads, cut_neurons
from pruneflow.settings.pipeline import ComputeSettings, ModelSettings
from tests.conftest import FAMILIES, SHAPES, WITHOUT_GROUPS, all_heads

NEURONS = torch.tensor([0, 3, 4, 11, 12, 13, 25, 39])
CPU = ComputeSettings(device="cpu", dtype="float32")
# What may differ between the configurations of a dense and a uniformly pruned model.
WIDTHS = {"num_attention_heads", "num_key_value_heads", "intermediate_size", "ffn_dim", "n_inner"}


def cut_alike(model):
    """The same widths in every layer; heads too, where the family's configuration can say so."""
    for layer in layers_of(model):
        cut_neurons(layer, (39 - NEURONS).flip(0) if layer.index % 2 else NEURONS)
        if layer.heads_per_group > 1:
            cut_heads(layer, all_heads(layer)[[0, 2], 1:])


def cut_apart(model):
    """Other widths in each layer, one of them left as it is."""
    for layer in layers_of(model)[:2]:
        cut_neurons(layer, NEURONS[layer.index :])
        cut_heads(layer, all_heads(layer)[-1:, :1] if layer.index else all_heads(layer)[:2])


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    """Cut and save a tiny model: the model, its directory and its configuration before."""

    def make(shape, layout, **changes):
        family, sizes = SHAPES[shape]
        model = tiny_model(family, vocab_size=400, **sizes, **changes)
        dense = model.config.to_dict()
        (cut_alike if layout == "uniform" else cut_apart)(model)
        model = rebuild(model, layout)
        directory = tmp_path / f"{shape}-{layout}"
        directory.mkdir()
        save(model, tiny_tokenizer, directory, torch.float32)
        return model, directory, dense

    return make


def by_transformers(directory, **options):
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, **options
    )
    assert not any(info.values()), info
    return model


def same_logits(one, two, tokens):
    return torch.equal(one(input_ids=tokens).logits, two(input_ids=tokens).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_uniform_model_is_an_ordinary_directory(saved, tiny_tokens, family):
    model, directory, dense = saved(family, "uniform")
    plain = by_transformers(directory, trust_remote_code=False)
    assert same_logits(plain, model, tiny_tokens["prose"])
    assert same_logits(load_unrecorded(directory, CPU), model, tiny_tokens["prose"])
    # No stale field: the configuration is the dense one but for the widths and what describes it.
    now = plain.config.to_dict()
    told = {"dtype", "architectures", "_name_or_path"}
    if family not in WITHOUT_GROUPS:
        told |= {"head_dim"}
        assert now["head_dim"] == 4
    differing = {key for key in dense.keys() | now.keys() if dense.get(key) != now.get(key)} - told
    heads = set() if family in WITHOUT_GROUPS else {"num_attention_heads", "num_key_value_heads"}
    assert differing == heads | (WIDTHS & dense.keys() - {"num_attention_heads", *heads})
    assert not list(directory.glob("*.py"))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_per_layer_model_is_loaded_by_transformers_and_pruneflow(saved, tiny_tokens, shape):
    model, directory, _dense = saved(shape, "per_layer")
    tokens = tiny_tokens["prose"]
    exported = by_transformers(directory, trust_remote_code=True)
    assert same_logits(exported, model, tokens)
    loaded = load_unrecorded(directory, CPU)
    assert same_logits(loaded, model, tokens)
    assert type(loaded).__module__.startswith("transformers.models")
    widths = [widths_of(layer) for layer in layers_of(model)]
    assert [widths_of(layer) for layer in layers_of(loaded)] == widths
    # Transformers' own view of the widths, and a dense value that cannot be taken for a layer's.
    layer_config = exported.config.per_layer_config[1]
    assert layer_config.num_attention_heads == widths[1].heads == 1
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        _ = exported.config.num_attention_heads
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    written = loaded.generate(tokens, **options)
    for cached in (True, False):
        assert torch.equal(exported.generate(tokens, use_cache=cached, **options), written)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_a_per_layer_model_is_saved_again_by_transformers(saved, tiny_tokens, tmp_path, family):
    model, directory, _dense = saved(family, "per_layer")
    by_transformers(directory, trust_remote_code=True).save_pretrained(tmp_path / "again")
    again = by_transformers(tmp_path / "again", trust_remote_code=True)
    assert same_logits(again, model, tiny_tokens["prose"])
    assert same_logits(load_unrecorded(tmp_path / "again", CPU), model, tiny_tokens["prose"])


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_per_layer_model_saves_itself_as_such(saved, tiny_tokens, tmp_path, family):
    """Its class is the family's own, whose `save_pretrained` knows nothing of the layout."""
    model, directory, _dense = saved(family, "per_layer")
    for name, each in (
        ("pruned", model),
        ("loaded", load_unrecorded(directory, CPU)),
        ("copied", copy.deepcopy(model)),
    ):
        each.save_pretrained(tmp_path / name)
        again = by_transformers(tmp_path / name, trust_remote_code=True)
        assert same_logits(again, model, tiny_tokens["prose"])
        assert same_logits(load_unrecorded(tmp_path / name, CPU), model, tiny_tokens["prose"])


def test_plain_transformers_asks_for_trust_instead_of_building_wrong_widths(saved):
    _model, directory, _dense = saved("llama", "per_layer")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False)
    config = json.loads((directory / "config.json").read_text())
    del config["auto_map"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="pruned_llama"):
        AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pruneflow_runs_no_file_of_the_directory_and_its_digest_covers_it(saved, family):
    _model, directory, _dense = saved(family, "per_layer")
    before = model_digest(directory)
    (directory / f"modeling_pruned_{family}.py").write_text("raise SystemExit('was run')")
    load_unrecorded(directory, CPU)
    _model, tokenizer = load_source(ModelSettings(source=str(directory), dtype="float32"))
    assert tokenizer.eos_token == "<end>"
    assert model_digest(directory) != before


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_loaded_per_layer_model_can_be_pruned_further(
    saved, tiny_tokenizer, tiny_tokens, tmp_path, family
):
    _model, directory, _dense = saved(family, "per_layer")
    model, _tokenizer = load_source(ModelSettings(source=str(directory), dtype="float32"))
    layer = layers_of(model)[2]
    cut_heads(layer, all_heads(layer)[1:])
    cut_neurons(layers_of(model)[0], torch.arange(3))
    (tmp_path / "next").mkdir()
    save(rebuild(model, "per_layer"), tiny_tokenizer, tmp_path / "next", torch.float32)
    loaded = load_unrecorded(tmp_path / "next", CPU)
    assert same_logits(loaded, model, tiny_tokens["prose"])
    exported = by_transformers(tmp_path / "next", trust_remote_code=True)
    assert same_logits(exported, model, tiny_tokens["prose"])


@pytest.mark.parametrize("change", ["wider", "odd heads", "no widths", "other shape", "missing"])
def test_widths_that_do_not_fit_the_weights_are_refused(saved, change):
    _model, directory, _dense = saved("llama", "per_layer")
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    words = {"wider": "cannot have", "odd heads": "cannot have", "no widths": "per_layer_config"}
    if change == "wider":
        config["per_layer_config"]["0"]["intermediate_size"] = 41
    elif change == "odd heads":
        config["per_layer_config"]["2"]["num_attention_heads"] = 5
    elif change == "no widths":
        del config["per_layer_config"]
    elif change == "other shape":
        config["per_layer_config"]["0"]["intermediate_size"] = 7
    else:
        del weights["model.layers.1.mlp.up_proj.weight"]
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(DamagedArtifactError, match=words.get(change, r"model\.layers")):
        load_unrecorded(directory, CPU)


def shares_embeddings(model):
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("tying", ["tied", "untied", "tied in config.json only"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_of_a_checkpoint_is_kept(
    tiny_model, tiny_tokenizer, tiny_tokens, tmp_path, family, tying
):
    """Whether it is the embeddings, and whatever `tie_word_embeddings` says."""
    dense = tiny_model(family, vocab_size=400, tie_word_embeddings=tying == "tied").float()
    dense.save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense/config.json").read_text())
    config["tie_word_embeddings"] = tying != "untied"
    (tmp_path / "dense/config.json").write_text(json.dumps(config))
    tokens = tiny_tokens["prose"]
    plain = by_transformers(tmp_path / "dense")
    assert same_logits(plain, dense, tokens)
    source = ModelSettings(source=str(tmp_path / "dense"), dtype="float32")
    # As the pipeline loads it, and as a user of the library may have loaded it.
    loaded = (("uniform", load_source(source)[0]), ("per_layer", plain))
    for layout, model in loaded:
        assert same_logits(model, dense, tokens)
        (cut_alike if layout == "uniform" else cut_apart)(model)
        pruned = rebuild(model, layout)
        save_model(pruned, tiny_tokenizer, tmp_path / layout)
        for reloaded in (
            load_unrecorded(tmp_path / layout, CPU),
            by_transformers(tmp_path / layout, trust_remote_code=layout == "per_layer"),
        ):
            assert same_logits(reloaded, pruned, tokens)
            assert shares_embeddings(reloaded) is (tying == "tied")
            assert reloaded.config.tie_word_embeddings is (tying == "tied")


LLAMA_3 = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}


@pytest.mark.parametrize("rope", ["default", "llama3"])
def test_a_llama_with_a_refused_head_count_is_exported_as_its_twin(
    tiny_model, tiny_tokenizer, tiny_tokens, tmp_path, rope
):
    parameters = {"rope_type": rope, "rope_theta": 5e5}
    if rope == "llama3":
        parameters |= {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        parameters["original_max_position_embeddings"] = 64
    model = tiny_model(vocab_size=400, rope_parameters=parameters, **LLAMA_3)
    for layer in layers_of(model):
        cut_heads(layer, all_heads(layer)[1:])
    twin = rebuild(model)
    assert same_logits(twin, model, tiny_tokens["prose"])
    save(twin, tiny_tokenizer, tmp_path, torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert config["sliding_window"] is None
    assert not {"attention_bias", "mlp_bias", "pretraining_tp"} & config.keys()
    assert config["rope_parameters"] == parameters
    assert same_logits(by_transformers(tmp_path), twin, tiny_tokens["prose"])


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gemma2", LLAMA_3, "6 heads in 3 KV groups"),
        ("llama", {**LLAMA_3, "mlp_bias": True}, "6 heads in 3 KV groups"),
        *((family, {}, "5 heads in 5 KV groups") for family in WITHOUT_GROUPS),
    ],
)
def test_uniform_refuses_a_head_count_that_no_configuration_accepts(
    tiny_model, family, changes, words
):
    model = tiny_model(family, **changes)
    for layer in layers_of(model):
        cut_heads(layer, all_heads(layer)[1:])
    with pytest.raises(PruneflowError, match=f"{words}: do not prune attention, or use layout per"):
        rebuild(model)


def test_layers_of_different_widths_are_refused_by_the_uniform_export(tiny_model):
    model = tiny_model()
    cut_apart(model)
    with pytest.raises(PruneflowError, match="different widths"):
        rebuild(model)


def test_lm_eval_runs_on_a_per_layer_directory(saved):
    model, directory, _dense = saved("llama", "per_layer")
    harness = HFLM(pretrained=str(directory), trust_remote_code=True, device="cpu", dtype="float32")
    asked = [("The licence", " grants"), ("You may", " not"), ("Copyright", " notice")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(asked)]
    answers = harness.loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (found, _greedy) in zip(asked, answers, strict=True):
        head = harness.tok_encode(context)
        ids = torch.tensor([harness.tok_encode(context + continuation)])
        steps = model(input_ids=ids).logits[0].log_softmax(-1)[:-1]
        expected = steps.gather(1, ids[0, 1:, None])[len(head) - 1 :].sum()
        assert found == pytest.approx(float(expected), abs=1e-4)


def test_a_per_layer_directory_reloads_where_pruneflow_cannot_be_imported(saved, monkeypatch):
    _model, directory, _dense = saved("qwen2", "per_layer")
    for name in reload.PROJECT:
        monkeypatch.setitem(sys.modules, name, None)
    assert reload.reload(str(directory), "float32", 5, "cpu")["problems"] == []
