"""Sources of models, digests, and what is refused."""

import copy
import json
import shutil
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.models.digests import model_digest, tokenizer_digest
from pruneflow.models.export import save
from pruneflow.models.loading import (
    load_model,
    load_source,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from pruneflow.models.source import check_source, source_parameters
from pruneflow.settings.pipeline import ComputeSettings, ModelSettings
from tests.round_records import record_as_done

CPU = ComputeSettings(device="cpu", dtype="float32")


def test_a_local_directory_is_loaded_with_its_weights(tiny_model_directory):
    settings = ModelSettings(source=str(tiny_model_directory), dtype="float32")
    check_source(settings)
    model, tokenizer = load_source(settings)
    stored = load_file(tiny_model_directory / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())
    assert tokenizer.eos_token == "<end>"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/nowhere/model", "does not exist"),
        ("./nowhere", "does not exist"),
        ("nowhere.gguf", "does not exist"),
        ("someone/some-model", "model.revision"),
        ("package:no_such_package/model.gguf", "is not installed"),
    ],
)
def test_a_source_that_is_not_there_is_one_clear_line(source, words):
    with pytest.raises(InputError, match=words) as caught:
        check_source(ModelSettings(source=source))
    assert "\n" not in str(caught.value)


def test_an_unsupported_architecture_is_refused_before_loading(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(InputError, match=r"mamba are not supported: use one of gemma2.*llama"):
        check_source(ModelSettings(source=str(tmp_path)))


def test_a_gguf_with_another_sha256_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(InputError, match="sha256"):
        check_source(ModelSettings(source=str(path), sha256="0" * 64))


def _with_nan(tensor):
    tensor[3, 4] = torch.nan
    return tensor


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with_nan, r"layers\.1\.mlp\.up_proj\.weight contains NaN"),
        (lambda tensor: tensor.to(torch.int8), r"layers\.1\.mlp\.up_proj\.weight .*stored as I8"),
        (
            lambda tensor: tensor.to(torch.float8_e4m3fn),
            r"layers\.1\.mlp\.up_proj\.weight .*stored as F8",
        ),
        (None, r"missing keys.*layers\.1\.mlp\.up_proj"),
    ],
    ids=["nan", "int8", "float8", "missing"],
)
def test_weights_that_cannot_be_used_are_refused_and_the_tensor_is_named(
    tiny_model_directory, change, words
):
    path, name = tiny_model_directory / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    weights = load_file(path)
    tensor = weights.pop(name)
    if change is not None:
        weights[name] = change(tensor)
    save_file(weights, path, {"format": "pt"})
    refusal = InputError if change else DamagedArtifactError
    with pytest.raises(refusal, match=words) as caught:
        load_source(ModelSettings(source=str(tiny_model_directory), dtype="float32"))
    assert "\n" not in str(caught.value)


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"intermediate_size": 48},
            r"tensor model\.layers\.0\.mlp\.down_proj\.weight is \[24, 40\] in its weights and "
            r"\[24, 48\] by config.json: give weights and config.json of the same model",
        ),
        ({"num_hidden_layers": 2}, r"unexpected keys, e.g. model\.layers\.2\."),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"quantised weights \(gptq\)",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"\(bitsandbytes\): give the"),
    ],
    ids=["shape", "layers", "gptq", "bitsandbytes"],
)
def test_a_configuration_that_does_not_fit_the_weights_is_one_clear_line(
    tiny_model_directory, changes, words
):
    edit_config(tiny_model_directory, **changes)
    with pytest.raises(InputError, match=words) as caught:
        load_source(ModelSettings(source=str(tiny_model_directory)))
    assert "\n" not in str(caught.value)


def test_an_adapter_beside_a_model_is_refused_before_loading(tiny_model_directory):
    (tiny_model_directory / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has an adapter .*: merge it into the model"):
        check_source(ModelSettings(source=str(tiny_model_directory)))


def test_how_a_configuration_wants_attention_computed_is_left_aside(
    tiny_model_directory, tiny_tokens
):
    settings = ModelSettings(source=str(tiny_model_directory), dtype="float32")
    before, _ = load_source(settings)
    edit_config(tiny_model_directory, attn_implementation="flash_attention_2")
    after, _ = load_source(settings)
    tokens = tiny_tokens["prose"]
    assert torch.equal(before(input_ids=tokens).logits, after(input_ids=tokens).logits)
    assert "flash" not in json.dumps(after.config.to_dict())


def test_a_second_copy_of_the_weights_is_not_counted(tiny_model_directory, tiny_model):
    settings = ModelSettings(source=str(tiny_model_directory))
    model = tiny_model(vocab_size=400).float()
    parameters = source_parameters(settings)
    assert parameters == sum(each.numel() for each in model.parameters())
    weights = {f"layers.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(
        {k: t.clone() for k, t in weights.items()},
        tiny_model_directory / "consolidated.safetensors",
    )
    assert source_parameters(settings) == parameters
    model.save_pretrained(tiny_model_directory, max_shard_size="20KB")
    (tiny_model_directory / "model.safetensors").unlink(missing_ok=True)
    assert len(list(tiny_model_directory.glob("model-*.safetensors"))) > 1
    assert source_parameters(settings) == parameters
    load_source(settings)


@pytest.mark.parametrize("read", [source_parameters, load_source])
def test_an_index_that_names_missing_weights_is_one_clear_line(
    tiny_model_directory, tiny_model, read
):
    settings = ModelSettings(source=str(tiny_model_directory))
    tiny_model(vocab_size=400).float().save_pretrained(tiny_model_directory, max_shard_size="20KB")
    first = min(tiny_model_directory.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(InputError, match=f"names {first.name}, which is missing: give a complete"):
        read(settings)
    (tiny_model_directory / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="has no weight_map: give a complete model"):
        read(settings)


def test_code_in_a_model_directory_is_never_run(tiny_model_directory):
    config = json.loads((tiny_model_directory / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (tiny_model_directory / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    (tiny_model_directory / "own.py").write_text("raise SystemExit('was run')")
    model, _tokenizer = load_source(ModelSettings(source=str(tiny_model_directory)))
    assert "auto_map" not in model.config.to_dict()  # nor will a later reader be asked to run it


def test_pickled_weights_are_never_read(tiny_model_directory):
    path = tiny_model_directory / "model.safetensors"
    torch.save(load_file(path), tiny_model_directory / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_source(ModelSettings(source=str(tiny_model_directory)))


def test_a_flipped_byte_is_found_before_the_model_is_used(tiny_model_directory):
    record_as_done(tiny_model_directory)
    load_model(tiny_model_directory, CPU)
    path = tiny_model_directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedArtifactError, match="is damaged"):
        load_model(tiny_model_directory, CPU)


def test_a_directory_without_a_record_is_refused(tiny_model_directory):
    with pytest.raises(DamagedArtifactError, match=r"round\.json is missing"):
        load_model(tiny_model_directory, CPU)


def test_the_digest_is_over_all_files_but_cards_and_records(tiny_model_directory, tmp_path):
    digest, tokenizer = model_digest(tiny_model_directory), tokenizer_digest(tiny_model_directory)
    other = shutil.copytree(tiny_model_directory, tmp_path / "other")
    (other / "README.md").write_text("a card")
    (other / "round.json").write_text("{}")
    assert (model_digest(other), tokenizer_digest(other)) == (digest, tokenizer)
    (other / "additional_chat_templates").mkdir()
    template = other / "additional_chat_templates/tools.jinja"
    template.write_text("{{ tools }}")
    assert model_digest(other) != digest and tokenizer_digest(other) != tokenizer
    template.unlink()
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert model_digest(other) != digest
    assert tokenizer_digest(other) == tokenizer


def test_a_tokenizer_of_two_chat_templates_is_saved_by_any_user(
    tiny_model, tiny_tokenizer, tmp_path
):
    """A folder without permission to be searched would only stop those who are not root."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    model = tiny_model(vocab_size=400).float()
    folder = tmp_path / "model"
    folder.mkdir()
    save(model, tokenizer, folder, torch.float32)
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o755 == (0o755 if path.is_dir() else 0o644)
    assert load_tokenizer(folder).chat_template == tokenizer.chat_template


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(InputError, match="finds no GPU"):
        resolve_device(ComputeSettings(device="cuda"))


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_bfloat16_is_taken_where_the_processor_computes_in_it(
    tiny_model_directory, monkeypatch, native, expected
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    on_cpu = ComputeSettings(device="cpu")
    assert resolve_dtype(on_cpu, tiny_model_directory) == "float32"  # it is stored so
    config = json.loads((tiny_model_directory / "config.json").read_text())
    (tiny_model_directory / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert resolve_dtype(on_cpu, tiny_model_directory) == expected
    for dtype in ("bfloat16", "float32"):
        chosen = ComputeSettings(device="cpu", dtype=dtype)
        assert resolve_dtype(chosen, tiny_model_directory) == dtype
