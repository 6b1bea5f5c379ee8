"""A recipe runs its rounds, goes on from those on disk, and refuses what is not its own."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

from pruneflow import CalibrationSet, Recipe, evaluate, load_model, prune, save_model
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.models.structure import block_weights, layers_of
from pruneflow.pruning.schedule import next_weights, targets
from pruneflow.settings.pruning import Target
from tests.conftest import ROOT

TOY = {"neuron_multiple": 4, "rounds": 3}


def _prune(model, tokens, directory=None, tokenizer=None, **changes):
    recipe = Recipe(**{"ratio": 0.3, **TOY, **changes})
    return prune(model, tokens, recipe, directory=directory, tokenizer=tokenizer)


@pytest.mark.parametrize("schedule", ["linear", "geometric"])
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_a_recipe_reaches_its_ratio_round_by_round(tiny_model, tiny_tokens, schedule, layout):
    model = tiny_model()
    dense = block_weights(model)
    result = _prune(model, tiny_tokens, schedule=schedule, layout=layout)
    assert result.achieved_ratio == 1 - block_weights(result.model) / dense
    planned = targets(Target(ratio=0.3), 3, schedule)
    for facts, target in zip(result.rounds, planned, strict=True):
        assert facts.target == target
        assert target.ratio <= facts.achieved_ratio < target.ratio + 0.07
    assert torch.isfinite(result.model(input_ids=tiny_tokens["code"]).logits).all()


def test_rounds_on_disk_are_not_done_again_and_end_in_the_same_bytes(
    tiny_model, tiny_tokens, tiny_tokenizer, tmp_path
):
    def run():
        model = tiny_model(vocab_size=400).float()
        return _prune(model, tiny_tokens, tmp_path / "rounds", tiny_tokenizer)

    whole = run().model.state_dict()
    written = (tmp_path / "rounds/r1/model.safetensors").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "rounds/r3")
    resumed = run().model.state_dict()
    assert (tmp_path / "rounds/r1/model.safetensors").stat().st_mtime_ns == written
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    again = run().rounds
    assert [facts.round for facts in again] == ["r1", "r2", "r3"]


def test_a_round_of_another_run_or_a_damaged_one_is_refused(
    tiny_model, tiny_tokens, tiny_tokenizer, tmp_path
):
    def run(**changes):
        model = tiny_model(vocab_size=400).float()
        return _prune(model, tiny_tokens, tmp_path, tiny_tokenizer, rounds=1, **changes)

    run()
    with pytest.raises(InputError, match="another run"):
        run(seed=5)
    weights = tmp_path / "r1/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DamagedArtifactError, match="damaged"):
        run()
    (tmp_path / "r1/round.json").write_text(json.dumps({"round": "r1"}))
    with pytest.raises(DamagedArtifactError, match="not a RoundRecord"):
        run()


def test_a_model_with_nan_is_refused_by_the_name_of_the_tensor(tiny_model, tiny_tokens):
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[3, 2] = torch.nan
    for use in (_prune, evaluate):
        with pytest.raises(InputError, match=r"layers.1.mlp.up_proj.weight contains NaN"):
            use(model, tiny_tokens)


@pytest.mark.parametrize(
    ("tokens", "changes", "words"),
    [
        ({"a": torch.full((2, 9), 97)}, {}, "token 97, but the vocabulary has 97"),
        ({"a": torch.ones(2, 129).long()}, {}, r"129 tokens.*128 \(max_position_embeddings\)"),
        ({"a": torch.ones(2, 1).long()}, {}, r"two tokens or more \(shape \[2, 1\]\)"),
        ({}, {}, "no calibration text"),
        ({"a": torch.ones(2, 9).long()}, {"ratio": None, "parameters": 10**9}, "ask for less"),
    ],
)
def test_text_or_a_target_that_does_not_fit_the_model_is_refused(
    tiny_model, tokens, changes, words
):
    with pytest.raises(InputError, match=words):
        _prune(tiny_model(), tokens, **changes)
    if not changes:
        words = words.replace("calibration", "held-out")
        with pytest.raises(InputError, match=words):
            evaluate(tiny_model(), tokens)


def test_the_closed_loop_raises_the_weight_of_the_domain_that_lost_most():
    def losses(**nats):
        return {name: {"nll": 10 * value, "tokens": 10} for name, value in nats.items()}

    dense, pruned = losses(a=2.0, b=3.0, c=1.0), losses(a=2.1, b=4.0, c=1.1)
    weights = next_weights({"c": 2.0}, dense, pruned, 1.0)
    assert sum(weights.values()) == pytest.approx(3)
    assert weights["b"] / weights["a"] == pytest.approx(2.718281828 ** (1.0 - 0.4))
    assert weights["c"] / weights["a"] == pytest.approx(2)
    off = next_weights({"c": 2.0}, dense, pruned, 0.0)
    assert off == pytest.approx({"a": 0.75, "b": 0.75, "c": 1.5})


@pytest.fixture
def held_back(tiny_tokenizer):
    """A calibration set of two domains that holds a reserve."""
    texts = {
        "licence": [f"Clause {n}: nothing is warranted in case {n * n}." for n in range(90)],
        "code": [f"def f{n}(x):\n    return x * {n} + {n % 7}\n" for n in range(90)],
    }
    return CalibrationSet.from_texts(texts, tiny_tokenizer, sequences=12, sequence_length=32)


def test_the_closed_loop_draws_more_of_the_domain_that_lost_most(tiny_model, held_back):
    result = _prune(tiny_model(vocab_size=400), held_back, domain_feedback=9.0)
    first, second = result.rounds[:2]
    assert first.weights == {"licence": 1.0, "code": 1.0}
    assert first.sequences == {"licence": 6, "code": 6}
    assert second.sequences != first.sequences
    more, less = sorted(second.weights, key=second.weights.get, reverse=True)
    dense = evaluate(tiny_model(vocab_size=400), held_back)
    rises = {name: first.validation.pruned[name]["nll"] - dense[name]["nll"] for name in dense}
    tokens = {name: dense[name]["tokens"] for name in dense}
    assert rises[more] / tokens[more] > rises[less] / tokens[less]
    assert second.sequences[more] > 6 > second.sequences[less]
    assert sum(second.sequences.values()) == 12
    assert {facts.calibration_set for facts in result.rounds} == {held_back.digest}


def test_a_round_is_calibrated_on_what_its_record_says(tiny_model, held_back):
    """The first blocks of each domain, as tokens: the same model as from the whole set."""
    whole = _prune(tiny_model(vocab_size=400), held_back, rounds=1)
    assert whole.rounds[0].sequences == {"licence": 6, "code": 6}
    first = {name: rows[:6] for name, rows in held_back.blocks["calibration"].items()}
    assert all(len(rows) > 6 for rows in held_back.blocks["calibration"].values())
    again = _prune(tiny_model(vocab_size=400), first, rounds=1)
    expected = whole.model.state_dict()
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_without_feedback_every_round_takes_exactly_the_shares(tiny_model, tiny_tokenizer):
    texts = {
        name: [f"{name} {n}: so much for number {n * n}, and on." for n in range(200)]
        for name in ("one", "two", "three")
    }
    shares = {"one": 0.5, "two": 0.3, "three": 0.2}
    chosen = CalibrationSet.from_texts(
        texts, tiny_tokenizer, sequences=30, sequence_length=32, weights=shares
    )
    for facts in _prune(tiny_model(vocab_size=400), chosen).rounds:
        assert facts.sequences == {"one": 15, "two": 9, "three": 6}
        assert facts.weights == pytest.approx({"one": 1.5, "two": 0.9, "three": 0.6})


def test_token_ids_are_all_used_and_domains_weigh_the_same(tiny_model, tiny_tokens):
    tokens = {"prose": tiny_tokens["prose"], "code": tiny_tokens["code"][:2]}
    for facts in _prune(tiny_model(), tokens).rounds:
        assert facts.sequences == {"prose": 6, "code": 2}
        assert facts.weights == {"prose": 1.0, "code": 1.0}
        assert len(facts.calibration_set) == 64


def test_feedback_without_held_out_text_is_refused(tiny_model, tiny_tokens, held_back):
    with pytest.raises(InputError, match="domain_feedback needs held-out text, and domain prose"):
        _prune(tiny_model(), tiny_tokens, domain_feedback=1.0)
    held_back.blocks["validation"].pop("code")
    with pytest.raises(InputError, match="domain code has none"):
        _prune(tiny_model(vocab_size=400), held_back, domain_feedback=1.0)


def test_the_front_door_loads_prunes_saves_and_measures(
    tiny_model_directory, tiny_tokenizer, tmp_path
):
    model, tokenizer = load_model(tiny_model_directory, dtype="float32", device="cpu")
    texts = {"numbers": [f"{n} and {n + 1} make {2 * n + 1}. " * 3 for n in range(60)]}
    chosen = CalibrationSet.from_texts(texts, tokenizer, sequences=8, sequence_length=32)
    result = prune(model, chosen, Recipe(ratio=0.2, rounds=1, neuron_multiple=4))
    save_model(result.model, tokenizer, tmp_path / "smaller")
    with pytest.raises(InputError, match="already exists"):
        save_model(result.model, tokenizer, tmp_path / "smaller")
    card = ModelCard.load(tmp_path / "smaller/README.md")
    assert card.data.library_name == "transformers"
    assert f"{result.model.num_parameters():,} parameters" in card.text
    neurons = [layer.neurons for layer in layers_of(result.model)]
    assert f"| neurons | {min(neurons)} | {max(neurons)} |" in card.text
    again, _ = load_model(tmp_path / "smaller", dtype="float32", device="cpu")
    assert layers_of(again)[0].neurons < 40
    measured = [evaluate(network, chosen)["numbers"]["nll"] for network in (result.model, again)]
    assert measured[0] == measured[1]


def test_the_example_of_the_documentation_runs(tiny_model_directory, tmp_path, monkeypatch):
    text = (ROOT / "docs/how-to/library.md").read_text()
    example = text.split("```python\n")[1].split("```")[0]
    for large, small in (
        ("sequences=96, sequence_length=128", "sequences=8, sequence_length=32"),
        ("rounds=3", "rounds=2, neuron_multiple=4"),
        ("token_budget=1_000_000", "token_budget=600"),
    ):
        assert large in example
        example = example.replace(large, small)
    tiny_model_directory.rename(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    documents = [f"{n} and {n + 1} make {2 * n + 1}, and so on. " * 2 for n in range(60)]
    exec(compile(example, "library.md", "exec"), {"prose": documents, "code": documents[::-1]})
    smaller, _ = load_model(tmp_path / "my-smaller-model", device="cpu")
    assert layers_of(smaller)[0].neurons < 40


def test_too_little_text_for_a_calibration_set_is_refused(tiny_tokenizer):
    with pytest.raises(InputError, match=r"domain few has .* are needed"):
        CalibrationSet.from_texts({"few": ["a short text", "another"]}, tiny_tokenizer)
