"""The quality benchmark: which text is drawn, and how tables are continued and joined."""

import gzip
import json

import pytest
import torch

from benchmarks import bench_v1, quality, zero_shot
from benchmarks.quality_table import continued, merge, with_ratios
from pruneflow import Recipe
from pruneflow.artifacts import write_json
from pruneflow.errors import InputError


@pytest.fixture
def bench_folder(tmp_path):
    """bench-v1 in small: every text says in words what it is."""
    for name in ("c4.txt", "code.txt", "technical.txt", "multilingual.txt"):
        (tmp_path / name).write_text("calibrate " * 300 + "hold out! " * 100)
    (tmp_path / "wikitext2-valid.txt").write_text("calibrate " * 300)
    (tmp_path / "wikitext2-test.txt").write_text("hold out! " * 300)
    for name, word in (("gsm8k-train.jsonl", "calibrate "), ("gsm8k-test.jsonl", "hold out! ")):
        row = json.dumps({"question": word * 50, "answer": word * 50})
        (tmp_path / name).write_text(f"{row}\n{row}\n")
    row = json.dumps({"prompt": "hold out! " * 50, "canonical_solution": "hold out! " * 100})
    (tmp_path / "humaneval.jsonl.gz").write_bytes(gzip.compress(row.encode()))
    return tmp_path


@pytest.fixture
def text(bench_folder, tiny_tokenizer):
    return bench_v1.read_bench(bench_folder, tiny_tokenizer)


def test_no_held_out_text_is_calibrated_on_and_the_reverse(text, tiny_tokenizer):
    training = {name: tiny_tokenizer.decode(ids) for name, ids in text.training.items()}
    held_out = {name: tiny_tokenizer.decode(ids) for name, ids in text.held_out.items()}
    assert set(training) == set(bench_v1.DOMAINS)
    assert set(held_out) == set(bench_v1.HELD_OUT)
    assert all("calibrate" in t and "hold" not in t for t in training.values())
    assert all("hold" in t and "calibrate" not in t for t in held_out.values())


def test_calibration_draws_as_many_windows_from_each_domain_and_none_twice():
    tokens = {name: torch.arange(1000) for name in bench_v1.DOMAINS}
    text = bench_v1.BenchText(tokens, {})
    blocks = bench_v1.calibration_blocks(text, 20, 50, seed=0)
    assert [len(block) for block in blocks.values()] == [4, 4, 3, 3, 3, 3]
    for block in blocks.values():
        assert block.shape[1] == 50
        assert (block.diff(dim=1) == 1).all()  # consecutive text
        assert len(set(block[:, 0].tolist())) == len(block)
        assert (block[:, 0] % 50 == 0).all()
    again = bench_v1.calibration_blocks(text, 20, 50, seed=0)
    other = bench_v1.calibration_blocks(text, 20, 50, seed=1)
    assert all(torch.equal(blocks[name], again[name]) for name in blocks)
    assert any(not torch.equal(blocks[name], other[name]) for name in blocks)


@pytest.mark.parametrize("sequences", [3, 121])
def test_too_little_text_is_an_error_that_says_how_much_there_is(sequences):
    text = bench_v1.BenchText({name: torch.arange(1000) for name in bench_v1.DOMAINS}, {})
    with pytest.raises(InputError, match="20 windows of 50"):
        bench_v1.calibration_blocks(text, sequences, 50, seed=0)


def test_recovery_keeps_its_validation_windows_apart_and_loses_none():
    text = bench_v1.BenchText({"web": torch.arange(1000)}, {})
    training, validation = bench_v1.recovery_blocks(text, 10, seed=0, validation_share=0.1)
    assert len(validation["web"]) == 10
    seen = torch.cat([training["web"], validation["web"]]).flatten().sort().values
    assert torch.equal(seen, torch.arange(1000))


def test_a_missing_folder_is_named(tmp_path, tiny_tokenizer):
    with pytest.raises(InputError, match=r"wikitext2-valid.*--data"):
        bench_v1.read_bench(tmp_path / "nowhere", tiny_tokenizer)


def _row(name, ratio, perplexity):
    losses = {"web": {"nll": 1.0, "tokens": 9, "perplexity": perplexity}}
    return {"row": name, "ratio": ratio, "perplexity": losses}


def test_rows_are_compared_with_the_dense_one_and_put_in_order():
    rows = [_row("flap", 0.2, 15.0), _row("dense", 0.0, 10.0), _row("random", 0.2, 30.0)]
    rows.append({"row": "osscar", "ratio": 0.2, "error": "InputError: no"})
    table = with_ratios(rows, quality.ROWS)
    assert [row["row"] for row in table] == ["dense", "random", "flap", "osscar"]
    assert table[2]["perplexity_ratio_mean"] == pytest.approx(1.5)
    assert "perplexity_ratio_mean" not in table[3]


def _table(path, setup, rows):
    write_json(path, {"setup": setup, "machines": [{"device": path.stem}], "rows": rows})
    return path


def test_tables_join_and_a_failed_row_gives_way_to_a_measured_one(tmp_path):
    failed = {"row": "flap", "ratio": 0.2, "error": "no"}
    a = _table(tmp_path / "a.json", {"seed": 0}, [_row("dense", 0.0, 10.0), failed])
    b = _table(tmp_path / "b.json", {"seed": 0}, [_row("flap", 0.2, 20.0)])
    joined = merge([a, b], quality.ROWS)
    assert [(row["row"], row.get("perplexity_ratio_mean")) for row in joined["rows"]] == [
        ("dense", pytest.approx(1.0)),
        ("flap", pytest.approx(2.0)),
    ]
    assert len(joined["machines"]) == 2
    c = _table(tmp_path / "c.json", {"seed": 1}, [])
    with pytest.raises(InputError, match="another setup"):
        merge([a, c], quality.ROWS)


def test_a_run_goes_on_from_its_own_file_and_leaves_anothers_alone(tmp_path):
    path = tmp_path / "a.json"
    assert continued(path, {"seed": 0})["rows"] == []
    _table(path, {"seed": 0}, [_row("dense", 0.0, 10.0), {"row": "x", "ratio": 0.2, "error": "!"}])
    assert [row["row"] for row in continued(path, {"seed": 0})["rows"]] == ["dense"]
    with pytest.raises(InputError, match="another setup"):
        continued(path, {"seed": 1})


def test_every_row_has_a_method_and_every_recipe_of_ours_is_valid():
    assert set(quality.QUICK_ROWS) <= set(quality.ROWS)
    for row in quality.OURS.values():
        Recipe(ratio=0.2, layout=row.layout, **row.recipe)


def test_zero_shot_takes_the_likeliest_choice_a_byte_and_the_greedy_last_word(
    tmp_path, tiny_model, tiny_tokenizer
):
    rows = {
        "arc_easy": {"query": "the cat", "choices": ["sat", "on the mat", "ran away"], "gold": 1},
        "piqa": {"query": "a dog\n", "choices": ["barks", "flies"], "gold": 0},
        "lambada_openai": {"context": "the cat sat on the", "continuation": "mat"},
    }
    for task, row in rows.items():
        (tmp_path / f"{task}.jsonl").write_text(json.dumps(row) + "\n")
    items = zero_shot.read_items(tmp_path, 5, seed=0)
    model = tiny_model(vocab_size=400).float()
    found = zero_shot.answers(model, tiny_tokenizer, items, 64)

    def scores(context, answer):
        asked, given = (
            tiny_tokenizer(text, add_special_tokens=False).input_ids for text in (context, answer)
        )
        logits = model(input_ids=torch.tensor([asked + given])).logits[0].log_softmax(-1)
        rows = logits[len(asked) - 1 : -1]
        value = float(rows[range(len(given)), given].sum())
        return value / len(answer.strip().encode()), rows.argmax(-1).tolist() == given

    for task in ("arc_easy", "piqa"):
        (item,) = items[task]
        each = [scores(item.context, answer)[0] for answer in item.answers]
        assert found[task] == [each.index(max(each)) == item.gold]
    (item,) = items["lambada_openai"]
    assert found["lambada_openai"] == [scores(item.context, item.answers[0])[1]]
    with pytest.raises(InputError, match="--zero-shot"):
        zero_shot.read_items(tmp_path / "nowhere", 5, seed=0)
