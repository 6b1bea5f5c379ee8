"""Every score equals its published formula, computed the long way round."""

import pytest
import torch

from pruneflow.errors import InputError, PruneflowError
from pruneflow.models.structure import layers_of
from pruneflow.models.surgery import cut_heads, cut_neurons
from pruneflow.pruning.scores import (
    OBS_RIDGE,
    SCORES,
    ScoreInputs,
    Scores,
    compute_scores,
    removal_errors,
)
from pruneflow.pruning.unit_recorder import KINDS
from tests.conftest import FAMILIES, consumer_inputs


def _inputs(model, tokens, batch_tokens=48):
    return ScoreInputs(model, tokens, batch_tokens, seed=0, label="score")


def _score(model, tokens, name, batch_tokens=48):
    return compute_scores([name], _inputs(model, tokens, batch_tokens))[name]


@pytest.fixture
def layer_one(tiny_model, tiny_tokens):
    """A model, its layer 1, and inputs and weights ``[d_out, m]`` of both consumers on "code"."""
    model = tiny_model()
    layer = layers_of(model)[1]
    consumers = {"neurons": layer.mlp_consumer, "columns": layer.attention_consumer}
    x = {k: consumer_inputs(model, tiny_tokens["code"], c) for k, c in consumers.items()}
    return model, layer, x, {k: c.weight for k, c in consumers.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_score_gives_every_unit_a_number_that_is_not_negative(
    tiny_model, tiny_tokens, family
):
    model = tiny_model(family)
    layers = layers_of(model)
    for name, scores in compute_scores(list(SCORES), _inputs(model, tiny_tokens)).items():
        for kind in KINDS:
            assert len(scores.units[kind]) == len(layers)
            for layer, values in zip(layers, scores.units[kind], strict=True):
                assert values.shape == (len(scores.domains), getattr(layer, kind)), name
                assert values.dtype == torch.double
                assert values.device.type == "cpu"
                assert bool((values >= 0).all()) and float(values.sum()) > 0, name
        data = name not in ("magnitude", "random")
        assert scores.domains == (["prose", "code"] if data else ["all"])
        assert list(scores.losses) == (["prose", "code"] if data else [])


def test_scores_follow_layers_that_differ_in_width(tiny_model, tiny_tokens):
    """As rounds of layout per_layer leave them."""
    model = tiny_model()
    layers = layers_of(model)
    cut_neurons(layers[1], torch.arange(10))
    cut_heads(layers[2], torch.tensor([[0], [3]]))
    for name, scores in compute_scores(list(SCORES), _inputs(model, tiny_tokens)).items():
        widths = {kind: [values.shape[1] for values in scores.units[kind]] for kind in KINDS}
        expected = {"neurons": [40, 10, 40], "heads": [6, 6, 2], "kv_groups": [3, 3, 2]}
        assert widths == expected, name


@pytest.mark.parametrize("name", sorted(SCORES))
def test_scores_do_not_depend_on_the_batch_size(tiny_model, tiny_tokens, name):
    model = tiny_model()
    one, many = (_score(model, tiny_tokens, name, size) for size in (16, 64))
    for kind in KINDS:
        for a, b in zip(one.units[kind], many.units[kind], strict=True):
            assert torch.allclose(a, b, rtol=1e-8, atol=1e-14)


def test_scores_computed_together_take_one_pass_and_equal_those_computed_alone(
    tiny_model, tiny_tokens
):
    model = tiny_model()
    forwards, backwards = [], []
    mlp = model.model.layers[-1].mlp
    handles = [
        mlp.register_forward_hook(lambda *_args: forwards.append(torch.is_grad_enabled())),
        mlp.register_full_backward_hook(lambda *_args: backwards.append(1)),
    ]
    one_pass = [name for name in SCORES if name != "obs"]
    together = compute_scores(one_pass, _inputs(model, tiny_tokens))
    # Two batches of two domains, forward, and again to go back.
    assert (forwards.count(False), forwards.count(True), len(backwards)) == (4, 4, 4)
    forwards.clear()
    compute_scores(["wanda_sp", "flap"], _inputs(model, tiny_tokens))
    assert forwards == [False] * 4
    assert len(backwards) == 4
    compute_scores(["magnitude", "random"], _inputs(model, tiny_tokens))
    assert len(forwards) == 4
    for handle in handles:
        handle.remove()
    for name in one_pass:
        alone = _score(model, tiny_tokens, name)
        for kind in KINDS:
            assert all(map(torch.equal, alone.units[kind], together[name].units[kind])), name


def test_wanda_sp_is_mean_weight_times_norm_of_input(layer_one, tiny_tokens):
    model, layer, x, weight = layer_one
    scores = _score(model, tiny_tokens, "wanda_sp").units

    def paper(kind, channel):
        norm = sum(float(value) ** 2 for value in x[kind][:, channel]) ** 0.5
        return float(weight[kind][:, channel].abs().mean()) * norm

    assert float(scores["neurons"][1][1, 5]) == pytest.approx(paper("neurons", 5) ** 2)
    by_column = [paper("columns", column) ** 2 for column in range(24)]
    width = layer.head_dim
    assert float(scores["heads"][1][1, 3]) == pytest.approx(sum(by_column[3 * width : 4 * width]))
    assert float(scores["kv_groups"][1][1, 1]) == pytest.approx(
        sum(by_column[2 * width : 4 * width])
    )


def test_flap_orders_all_units_by_its_z_scores(tiny_model, tiny_tokens):
    """Score per weight, over all layers and kinds, is the paper's z-score moved by one constant."""
    model = tiny_model()
    scores = _score(model, tiny_tokens, "flap").units
    moved = []
    for index, layer in enumerate(layers_of(model)):
        z = {}
        for kind, consumer in (
            ("neurons", layer.mlp_consumer),
            ("columns", layer.attention_consumer),
        ):
            x = consumer_inputs(model, tiny_tokens["code"], consumer)
            metric = x.var(0, correction=0) * consumer.weight.square().sum(0)
            metric = metric**2 if kind == "columns" else metric
            z[kind] = (metric - metric.mean()) / metric.std()
        z["heads"] = z["columns"].view(6, 4).mean(1)
        z["kv_groups"] = z["columns"].view(3, 8).mean(1)
        for kind in KINDS:
            size = layer.unit_weights(kind) / layer.unit_weights("neurons")
            per_weight = scores[kind][index][1] / size
            moved.append(per_weight - z[kind])
    offsets = torch.cat(moved)
    assert float(offsets.std()) < 1e-9
    assert float(offsets[0]) > 0


def test_removing_a_unit_costs_what_obs_says(layer_one):
    """With no ridge: half the rise of the squared output error after a least-squares refit."""
    _, layer, x, weights = layer_one
    for kind, width in (("neurons", 1), ("columns", layer.head_dim), ("columns", 8)):
        inputs, weight = x[kind], weights[kind]
        (errors,) = removal_errors(weight, inputs.T @ inputs, [width], ridge=1e-12)
        for unit in (0, 2):
            keep = [c for c in range(inputs.shape[1]) if c // width != unit]
            output = inputs @ weight.T
            refitted = torch.linalg.lstsq(inputs[:, keep], output).solution
            rise = (output - inputs[:, keep] @ refitted).square().sum()
            assert float(errors[unit]) == pytest.approx(0.5 * float(rise), rel=1e-5)


def test_obs_is_osscars_formula_on_each_domain(layer_one, tiny_tokens):
    model, layer, x, weights = layer_one
    scores = _score(model, tiny_tokens, "obs").units
    for kind, channels, width in (
        ("neurons", "neurons", 1),
        ("heads", "columns", layer.head_dim),
        ("kv_groups", "columns", 8),
    ):
        h = x[channels].T @ x[channels]
        p = torch.linalg.inv(h + OBS_RIDGE * h.diagonal().mean() * torch.eye(len(h)))
        mine = slice(2 * width, 3 * width)
        b = weights[channels].T[mine]
        expected = 0.5 * torch.trace(b.T @ torch.linalg.inv(p[mine, mine]) @ b)
        assert float(scores[kind][1][1, 2]) == pytest.approx(float(expected), rel=1e-7)


def test_obs_of_channels_that_no_token_reaches_is_zero():
    weight, silent = torch.ones(3, 6), torch.zeros(6, 6)
    assert [e.tolist() for e in removal_errors(weight, silent, [3, 2], 0.01)] == [[0] * 2, [0] * 3]
    with pytest.raises(PruneflowError, match="not finite"):
        removal_errors(weight, torch.full((6, 6), torch.nan), [1], 0.01)


def test_magnitude_is_the_squared_norm_of_a_units_columns(layer_one, tiny_tokens):
    model, _, _, weights = layer_one
    scores = _score(model, tiny_tokens, "magnitude").units
    columns = weights["columns"]
    assert float(scores["neurons"][1][0, 5]) == pytest.approx(
        float(weights["neurons"][:, 5].square().sum())
    )
    assert float(scores["heads"][1][0, 5]) == pytest.approx(float(columns[:, 20:].square().sum()))
    assert float(scores["kv_groups"][1][0, 2]) == pytest.approx(
        float(columns[:, 16:].square().sum())
    )


def test_random_scores_are_the_seeds_own(tiny_model, tiny_tokens):
    model = tiny_model()
    one, again = (_score(model, tiny_tokens, "random") for _ in range(2))
    other = compute_scores(["random"], ScoreInputs(model, tiny_tokens, 48, 1, "score"))["random"]
    assert torch.equal(one.units["neurons"][0], again.units["neurons"][0])
    assert not torch.equal(one.units["neurons"][0], other.units["neurons"][0])


def test_no_domain_shouts_and_weights_count(tiny_model, tiny_tokens):
    model = tiny_model()
    scores, loud = (_score(model, tiny_tokens, "mask_fisher") for _ in range(2))
    before = scores.combined({})
    for kind in KINDS:
        for values in loud.units[kind]:
            values[0] *= 1000
    after = loud.combined({})
    for kind in KINDS:
        assert all(torch.allclose(a, b) for a, b in zip(before[kind], after[kind], strict=True))
    total = sum(float(t.sum()) for kind in ("neurons", "kv_groups") for t in before[kind])
    assert total == pytest.approx(1)
    only_prose = scores.combined({"code": 1e-12})
    for kind in KINDS:  # heads too, by the same factor
        ratio = only_prose[kind][0] / scores.units[kind][0][0]
        assert torch.allclose(ratio, only_prose["neurons"][0][0] / scores.units["neurons"][0][0, 0])


def test_a_silent_domain_does_not_spoil_the_mean():
    units = {kind: [torch.tensor([[1.0, 3.0], [0.0, 0.0]]).double()] for kind in KINDS}
    combined = Scores(["heard", "silent"], units, {}).combined({})
    assert combined["neurons"][0].tolist() == [0.0625, 0.1875]


def test_an_unknown_score_is_refused_with_the_names_there_are(tiny_model, tiny_tokens):
    with pytest.raises(InputError, match="no score entropy: use first_order, flap"):
        _score(tiny_model(), tiny_tokens, "entropy")
