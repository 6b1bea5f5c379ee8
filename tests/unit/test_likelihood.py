"""A question and its answers in one row of one pass, against lm-eval's own class one by one."""

import io
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pruneflow.compute.placement import place, spread_over
from pruneflow.errors import InputError
from pruneflow.models.structure import layers_of
from pruneflow.models.surgery import cut_heads, cut_neurons
from pruneflow.questions.likelihood import (
    GENERATION,
    TokenBudgetLM,
    batches_by_tokens,
    by_context,
    max_row_tokens,
    score_rows,
)
from tests.conftest import FAMILIES, all_heads
from tests.pretend_devices import PretendDevices

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.0],
    "long_factor": [3.0, 5.0],
    "original_max_position_embeddings": 16,
}


def ask(lm, requests):
    return lm._loglikelihood_tokens(requests, disable_tqdm=True)


def plain(model, tokenizer):
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32")


def ours(model, tokenizer, batch_tokens, terminal=None):
    return TokenBudgetLM(model, tokenizer, batch_tokens, "dense", terminal or io.StringIO())


def greedy(model, context, tokens):
    """The tokens that the model itself would go on with."""
    ids = list(context)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(context) :]


@pytest.fixture
def questions():
    """Requests of ten questions with two to four answers of 1 to 6 tokens, out of order."""

    def make(model, longest=14, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def draw(low, high):
            return int(torch.randint(low, high + 1, (1,), generator=generator))

        requests = []
        for number in range(10):
            context = [draw(2, 96) for _ in range(draw(1, longest))]
            answers = [[draw(2, 96) for _ in range(draw(1, 6))] for _ in range(draw(1, 3))]
            if number % 3 == 0:
                answers = [answer[:1] for answer in answers]  # such as letters
            answers.append(greedy(model, context, draw(1, 4)))
            requests += [((str(number), str(answer)), context, answer) for answer in answers]
        order = torch.randperm(len(requests), generator=generator)
        return [requests[index] for index in order]

    return make


@pytest.fixture
def passes(monkeypatch):
    """Shapes of the inputs of all forward passes, and what was not left to lm-eval."""
    seen = SimpleNamespace(shapes=[], shared=[])

    def record(model):
        def note(_module, args, kwargs):
            ids = args[0] if args else kwargs["input_ids"]
            seen.shapes.append(tuple(ids.shape))

        def share(network, rows):
            seen.shared += rows
            return score_rows(network, rows)

        model.register_forward_pre_hook(note, with_kwargs=True)
        monkeypatch.setattr("pruneflow.questions.likelihood.score_rows", share)
        return seen

    return record


def assert_same(found, expected):
    for (score, is_greedy), (wanted, wanted_greedy) in zip(found, expected, strict=True):
        assert score == pytest.approx(wanted, abs=1e-4)
        assert is_greedy == wanted_greedy


@pytest.mark.parametrize("batch_tokens", [40, 512])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_lm_evals_in_every_family(
    tiny_model, tiny_tokenizer, questions, passes, family, batch_tokens
):
    model = tiny_model(family).float()
    requests = questions(model)
    expected = ask(plain(model, tiny_tokenizer), requests)
    assert {is_greedy for _, is_greedy in expected} == {True, False}
    seen = passes(model)
    assert_same(ask(ours(model, tiny_tokenizer, batch_tokens), requests), expected)
    assert len(seen.shared) > 1, "too few questions were shared: the test shows nothing"
    for rows, tokens in seen.shapes:
        assert rows * tokens <= batch_tokens or rows == 1
    window = model.config.to_dict().get("sliding_window")
    if window:
        assert any(question.longest > window for question in by_context(requests))
        assert all(question.longest <= window for question in seen.shared)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_answers_are_lm_evals_where_layers_differ_in_width(
    tiny_model, tiny_tokenizer, questions, family
):
    model = tiny_model(family).float()
    first, second, _ = layers_of(model)
    cut_neurons(first, torch.tensor([3, 11, 30]))
    cut_heads(second, all_heads(second)[1:])
    requests = questions(model, longest=6)
    assert_same(
        ask(ours(model, tiny_tokenizer, 256), requests), ask(plain(model, tiny_tokenizer), requests)
    )


@pytest.mark.parametrize("changes", [{}, {"rope_parameters": LONGROPE}])
def test_positions_that_stretch_with_length_stay_as_they_are_alone(
    tiny_model, tiny_tokenizer, questions, passes, changes
):
    fields = {"original_max_position_embeddings": 16} if changes else {}
    model = tiny_model("phi3", sliding_window=None, **changes, **fields).float()
    requests = questions(model, longest=24)
    seen = passes(model)
    found = ask(ours(model, tiny_tokenizer, 256), requests)
    assert_same(found, ask(plain(model, tiny_tokenizer), requests))
    beyond = [question for question in seen.shared if question.longest > 16]
    assert bool(beyond) != bool(changes)


def test_eager_attention_takes_the_mask_too(tiny_model, tiny_tokenizer, questions):
    model = tiny_model().float()
    requests = questions(model)
    expected = ask(plain(model, tiny_tokenizer), requests)
    model.set_attn_implementation("eager")
    assert_same(ask(ours(model, tiny_tokenizer, 256), requests), expected)
    assert max_row_tokens(model, 128) == 128
    model.config._attn_implementation = "flex_attention"
    assert max_row_tokens(model, 128) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_of_budget_is_lm_evals_batch_size_one(
    tiny_model, tiny_tokenizer, questions, passes, dtype
):
    model = tiny_model().to(dtype)
    requests = questions(model)
    seen = passes(model)
    expected = ask(plain(model, tiny_tokenizer), requests)
    once = list(seen.shapes)
    seen.shapes.clear()
    assert ask(ours(model, tiny_tokenizer, 1), requests) == expected  # to the last bit
    assert sorted(seen.shapes) == sorted(once)  # letters of one question are one pass, as there
    assert len(once) < len(requests)


def test_a_text_longer_than_the_model_is_cut_as_lm_eval_cuts_it(tiny_model, tiny_tokenizer, passes):
    model = tiny_model(max_position_embeddings=32).float()
    context = [2 + number % 90 for number in range(60)]
    requests = [(("long", str(n)), context[n:], [5 + n, 7, 9]) for n in (0, 20, 28, 29, 30, 40)]
    expected = ask(plain(model, tiny_tokenizer), requests)
    seen = passes(model)
    assert_same(ask(ours(model, tiny_tokenizer, 4096), requests), expected)
    assert sorted(len(question.context) for question in seen.shared) == [20, 30]


def test_what_has_no_tokens_or_too_many_is_refused(tiny_model, tiny_tokenizer):
    lm = ours(tiny_model(max_position_embeddings=16).float(), tiny_tokenizer, 64)
    with pytest.raises(InputError, match="gives no tokens for 'an answer'"):
        ask(lm, [(("a question", "an answer"), [4], [])])
    with pytest.raises(InputError, match="gives no tokens for the question 'a question'"):
        ask(lm, [(("a question", "an answer"), [], [4])])
    with pytest.raises(InputError, match="an answer has 17 tokens and the model supports 16"):
        ask(lm, [(("a question", "an answer"), [4], [5] * 17)])
    with pytest.raises(InputError, match="16 new tokens leave no space"):
        lm.generate_until(prompts(["a question"], 16))


def prompts(texts, new_tokens):
    options = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": new_tokens}
    return [
        Instance("generate_until", {}, (text, dict(options)), number)
        for number, text in enumerate(texts)
    ]


def test_texts_are_those_lm_eval_generates_one_by_one(tiny_model, tiny_tokenizer, passes, capfd):
    model = tiny_model(vocab_size=400).float()
    texts = ["Licence " * (1 + number % 4) + str(number) for number in range(9)]
    expected = plain(model, tiny_tokenizer).generate_until(prompts(texts, 12), disable_tqdm=True)
    assert len(set(expected)) > 3
    seen = passes(model)
    terminal = io.StringIO()
    lm = ours(model, tiny_tokenizer, 64, terminal)
    capfd.readouterr()
    assert lm.generate_until(prompts(texts, 12)) == expected
    rows = {rows for rows, _ in seen.shapes}
    assert max(rows) > 1
    assert all(rows * tokens <= GENERATION * 64 for rows, tokens in seen.shapes)
    assert labels(terminal.getvalue()) == {"dense, generated"}
    assert capfd.readouterr() == ("", "")


def labels(written):
    return {line.split(":")[0] for line in written.replace("\r", "\n").splitlines() if line}


def test_a_model_spread_over_two_gpus_answers_the_same(tiny_model, tiny_tokenizer, questions):
    model = tiny_model(vocab_size=400).float()
    requests, texts = questions(model), prompts(["A licence", "Another"], 8)
    whole = ours(model, tiny_tokenizer, 256)
    expected = ask(whole, requests), whole.generate_until(texts)
    with PretendDevices():
        gpus = ["cuda:0", "cuda:1"]
        spread = place(model, spread_over(model, gpus))
        lm = ours(spread, tiny_tokenizer, 256)
        found = ask(lm, requests), lm.generate_until(texts)
    assert_same(found[0], expected[0])
    assert found[1] == expected[1]


def test_one_bar_over_all_batches_goes_to_the_terminal(
    tiny_model, tiny_tokenizer, questions, capfd
):
    model = tiny_model("gemma2").float()  # some shared, some left to lm-eval
    requests = questions(model)
    terminal = io.StringIO()
    lm = ours(model, tiny_tokenizer, 32, terminal)
    capfd.readouterr()
    ask(lm, requests)
    assert capfd.readouterr() == ("", "")
    written = terminal.getvalue()
    assert labels(written) == {"dense"}
    assert written.count("100%") == 1


@given(
    st.lists(st.integers(0, 300), max_size=40),
    st.integers(1, 600),
)
def test_batches_hold_every_request_once_within_the_budget(lengths, batch_tokens):
    batches = batches_by_tokens(lengths, batch_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, length in zip(batches, longest, strict=True):
        assert len(batch) * length <= batch_tokens or len(batch) == 1
