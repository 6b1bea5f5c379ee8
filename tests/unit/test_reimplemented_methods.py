"""The reimplemented methods against brute force, on tiny models in float64."""

import pytest
import torch

from benchmarks import method_parts
from benchmarks import reimplemented_methods as methods
from pruneflow.errors import InputError
from pruneflow.models.structure import block_weights, layers_of

RATIO = 0.2


def _problem(tokens=60, channels=8, outputs=5):
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.double)
    x = torch.randn(tokens, channels, generator=generator, dtype=torch.double) @ mixing
    weight = torch.randn(outputs, channels, generator=generator, dtype=torch.double)
    return x, weight


def _least_squares(x, weight, keep, ridge):
    """The best weights on the kept channels, and their error, by a solver that knows no H."""
    channels = x.shape[1]
    damping = ridge * (x.T @ x).diagonal().mean()
    rows = torch.cat([x, damping.sqrt() * torch.eye(channels, dtype=torch.double)])
    target = rows @ weight.T
    solution = torch.linalg.lstsq(rows[:, keep], target).solution
    return solution.T, float((rows[:, keep] @ solution - target).square().sum())


@pytest.mark.parametrize(("columns", "keep", "at_once"), [(1, 5, 1), (1, 4, 2), (2, 2, 1)])
def test_the_error_obs_predicts_is_the_actual_least_squares_error(columns, keep, at_once):
    x, weight = _problem()
    kept, solution, predicted = methods.obs_greedy(
        weight, x.T @ x, columns, keep, ridge=0.01, at_once=at_once
    )
    assert len(kept) == keep
    index = [int(unit) * columns + i for unit in kept for i in range(columns)]
    best, error = _least_squares(x, weight, index, 0.01)
    assert torch.allclose(solution, best, rtol=1e-9, atol=1e-9)
    assert predicted == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("columns", [1, 2])
def test_obs_takes_the_unit_whose_removal_leaves_the_least_error_at_every_step(columns):
    x, weight = _problem()
    units = 8 // columns
    left = list(range(units))
    for keep in range(units - 1, 1, -1):
        kept, _, _ = methods.obs_greedy(weight, x.T @ x, columns, keep)

        def error_without(unit, left=left):
            index = [u * columns + i for u in left if u != unit for i in range(columns)]
            return _least_squares(x, weight, index, methods.RIDGE)[1]

        left.remove(min(left, key=error_without))
        assert kept.tolist() == left


def test_obs_survives_channels_that_no_token_reaches():
    x, weight = _problem()
    x[:, 2] = 0
    kept, solution, _ = methods.obs_greedy(weight, x.T @ x, 1, 7)
    assert 2 not in kept.tolist()
    assert torch.allclose(solution, weight[:, kept], atol=1e-9)


def test_wanda_sp_is_mean_weight_times_the_norm_of_the_activation():
    x, weight = _problem()
    expected = [
        sum(abs(float(weight[i, j])) for i in range(5)) / 5 * float(x[:, j].norm())
        for j in range(8)
    ]
    assert methods.wanda_scores(weight, x.square().sum(0)).tolist() == pytest.approx(expected)


def _consumer_inputs(model, blocks):
    """Input of every consumer for all tokens, by kind and layer."""
    seen = {}
    handles = [
        consumer.register_forward_pre_hook(
            lambda _m, args, key=(kind, layer.index): seen.__setitem__(key, args[0].flatten(0, 1))
        )
        for layer in layers_of(model)
        for kind, consumer in (
            ("neurons", layer.mlp_consumer),
            ("kv_groups", layer.attention_consumer),
        )
    ]
    with torch.no_grad():
        model(torch.cat(list(blocks.values())))
    for handle in handles:
        handle.remove()
    return seen


def test_flaps_bias_reproduces_the_mean_output_of_what_is_removed(tiny_model, tiny_tokens):
    dense, model = tiny_model(), tiny_model()
    inputs = _consumer_inputs(dense, tiny_tokens)
    methods.prune_flap(model, tiny_tokens, 0.3, batch_tokens=40)
    cut = 0
    for before, after in zip(layers_of(dense), layers_of(model), strict=True):
        for kind, old, new in (
            ("neurons", before.mlp_consumer, after.mlp_consumer),
            ("kv_groups", before.attention_consumer, after.attention_consumer),
        ):
            if new.in_features == old.in_features:
                assert new.bias is None
                continue
            cut += 1
            x = inputs[kind, before.index]
            keep = _kept_columns(old.weight, new.weight)
            assert torch.allclose(old(x).mean(0), new(x[:, keep]).mean(0), atol=1e-10)
    assert cut >= 2


def _kept_columns(old, new):
    """Which columns of `old` are those of `new` (random weights differ)."""
    return [int((old == column[:, None]).all(0).nonzero()) for column in new.T]


def test_flap_cuts_the_units_whose_standardised_score_is_lowest(tiny_model, tiny_tokens):
    dense, model = tiny_model(), tiny_model()
    inputs = _consumer_inputs(dense, tiny_tokens)
    methods.prune_flap(model, tiny_tokens, RATIO)
    scores = {}
    for layer in layers_of(dense):
        x, w = inputs["neurons", layer.index], layer.mlp_consumer.weight
        s = torch.tensor(
            [float(x[:, j].var(correction=0) * w[:, j].norm() ** 2) for j in range(40)],
            dtype=torch.double,
        )
        for j, value in enumerate((s - s.mean()) / s.std()):
            scores["neurons", layer.index, j] = float(value)
        x, w = inputs["kv_groups", layer.index], layer.attention_consumer.weight
        s = torch.tensor(
            [float(x[:, j].var(correction=0) * w[:, j].norm() ** 2) ** 2 for j in range(24)],
            dtype=torch.double,
        )
        z = (s - s.mean()) / s.std()
        for g in range(3):
            scores["kv_groups", layer.index, g] = float(z[g * 8 : g * 8 + 8].mean())
    kept, gone = [], []
    for old, new in zip(layers_of(dense), layers_of(model), strict=True):
        rows = {
            "neurons": _kept_columns(old.mlp_consumer.weight, new.mlp_consumer.weight),
            "kv_groups": sorted(
                {
                    column // 8
                    for column in _kept_columns(
                        old.attention_consumer.weight, new.attention_consumer.weight
                    )
                }
            ),
        }
        for kind, units in (("neurons", 40), ("kv_groups", 3)):
            for unit in range(units):
                (kept if unit in rows[kind] else gone).append(scores[kind, old.index, unit])
    assert max(gone) < min(kept)


def test_llm_pruners_gradient_is_that_of_the_mean_loss_over_all_sequences(tiny_model, tiny_tokens):
    model = tiny_model()
    gradients = method_parts.weight_gradients(model, layers_of(model), tiny_tokens, batch_tokens=40)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    linear = model.model.layers[1].mlp.down_proj
    linear.weight.requires_grad_(True)
    tokens = torch.cat(list(tiny_tokens.values()))
    likelihood = model(tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])
    (-likelihood.mean()).backward()
    assert torch.allclose(gradients[linear], linear.weight.grad, atol=1e-12)


@pytest.mark.parametrize("kind", ["neurons", "kv_groups"])
def test_unit_sums_add_up_every_weight_that_goes_with_a_unit(tiny_model, kind):
    model = tiny_model()
    layer = layers_of(model)[0]
    mlp, attention = layer.module.mlp, layer.module.self_attn
    sums = method_parts.unit_sums(layer, kind, lambda linear: linear.weight.abs())
    unit = 1
    if kind == "neurons":
        parts = [
            mlp.gate_proj.weight[unit],
            mlp.up_proj.weight[unit],
            mlp.down_proj.weight[:, unit],
        ]
    else:  # one KV group: two query heads of four columns, one key and one value head
        parts = [
            attention.q_proj.weight[8:16],
            attention.k_proj.weight[4:8],
            attention.v_proj.weight[4:8],
            attention.o_proj.weight[:, 8:16],
        ]
    assert float(sums[unit]) == pytest.approx(sum(float(part.abs().sum()) for part in parts))
    weights = layer.unit_weights(kind)
    assert sum(part.numel() for part in parts) == weights


def _options():
    uniform = ("random", "magnitude", "wanda_sp", "osscar")
    yield from ((name, {}) for name in (*uniform, "flap", "llm_pruner"))
    yield from ((name, {"attention": True}) for name in uniform)
    yield "llm_pruner", {"per_weight": True}


@pytest.mark.parametrize(("name", "options"), list(_options()))
def test_every_method_reaches_the_ratio_and_still_runs(tiny_model, tiny_tokens, name, options):
    model, ratio = tiny_model(), 0.4
    before, parameters = block_weights(model), sum(p.numel() for p in model.parameters())
    step = max(layer.unit_weights("kv_groups") for layer in layers_of(model))
    if name not in ("flap", "llm_pruner"):
        step = 3 * layers_of(model)[0].unit_weights("neurons")
    achieved = methods.REIMPLEMENTED[name](model, tiny_tokens, ratio, batch_tokens=40, **options)
    assert achieved == pytest.approx(1 - block_weights(model) / before)
    assert ratio <= achieved < ratio + step / before
    biases = sum(p.numel() for n, p in model.named_parameters() if n.endswith("_proj.bias"))
    gone = parameters - sum(p.numel() for p in model.parameters()) + biases
    assert gone == before - block_weights(model)
    tokens = tiny_tokens["prose"]
    with torch.no_grad():
        whole = model(tokens).logits
        start = model(tokens[:, :9], use_cache=True)
        rest = model(tokens[:, 9:], past_key_values=start.past_key_values).logits
    assert torch.allclose(whole[:, 9:], rest, atol=1e-9)


@pytest.mark.parametrize("family", ["qwen2", "phi3", "gpt2"])
@pytest.mark.parametrize("name", ["wanda_sp", "flap", "llm_pruner", "osscar"])
def test_methods_work_on_other_families(tiny_model, tiny_tokens, family, name):
    model = tiny_model(family)
    assert methods.REIMPLEMENTED[name](model, tiny_tokens, RATIO) >= RATIO
    with torch.no_grad():
        assert torch.isfinite(model(tiny_tokens["code"]).logits).all()


def test_osscar_beats_random_removal_at_the_consumers_output(tiny_model, tiny_tokens):
    def error(prune):
        model = tiny_model(num_hidden_layers=1)
        with torch.no_grad():
            dense = model.model(tiny_tokens["prose"]).last_hidden_state
            prune(model, tiny_tokens, 0.4)
            return float((model.model(tiny_tokens["prose"]).last_hidden_state - dense).norm())

    assert error(methods.prune_osscar) < 0.8 * error(methods.prune_random)


def test_a_methods_result_does_not_depend_on_the_batch(tiny_model, tiny_tokens):
    for name in ("flap", "llm_pruner", "osscar"):
        one, many = tiny_model(), tiny_model()
        methods.REIMPLEMENTED[name](one, tiny_tokens, RATIO, batch_tokens=32)
        methods.REIMPLEMENTED[name](many, tiny_tokens, RATIO, batch_tokens=10_000)
        for (_, a), (_, b) in zip(one.named_parameters(), many.named_parameters(), strict=True):
            assert a.shape == b.shape, name
            assert torch.allclose(a, b, atol=1e-9), name


def test_a_ratio_beyond_the_minimum_widths_is_refused(tiny_model, tiny_tokens):
    for name in ("random", "llm_pruner"):
        with pytest.raises(InputError, match="lower"):
            methods.REIMPLEMENTED[name](tiny_model(), tiny_tokens, 0.97)


def test_global_methods_never_empty_a_layer(tiny_model, tiny_tokens):
    model = tiny_model()
    methods.prune_llm_pruner(model, tiny_tokens, 0.7)
    for layer in layers_of(model):
        assert layer.neurons >= 4
        assert layer.kv_groups >= 1
