"""Scores of several passes: dropout that leaves BatchNorm alone, identities of variance, mirrors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from misfire_train.scores import FitSet, ScoreError, build, compute
from misfire_train.scores.flip import FlipConsistency
from misfire_train.scores.passes import dropout_only, dropout_samples
from misfire_train.scores.sampling import (
    Aleatoric,
    Bald,
    Ensemble,
    Epistemic,
    McDropout,
    gaussian_nll,
    mean_entropy,
    predictive_variance,
    spread,
)
from misfire_train.signals import Probe, Signals
from misfire_train.tasks.answers.heatmaps import render_gaussians
from misfire_train.tasks.answers.softmax import jensen_shannon


def network(*, dropout: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    drop: nn.Module = nn.Dropout(0.5) if dropout else nn.Identity()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), drop, nn.Linear(16, 3)
    )


def images(count: int = 9) -> Tensor:
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def probe_of(model: nn.Module) -> Probe:
    return Probe(model, last_layer="5")


class Counted(nn.Module):
    """A network whose trunk counts its passes. places: where dropout stands."""

    def __init__(self, *places: str) -> None:
        super().__init__()
        self.trunk, self.last = nn.Linear(12, 16), nn.Linear(16, 3)
        self.early = nn.Dropout(0.5) if "early" in places else nn.Identity()
        self.late = nn.Dropout(0.5) if "late" in places else nn.Identity()
        self.relu = nn.ReLU(inplace="in place" in places)
        self.passes = 0

    def forward(self, image: Tensor) -> Tensor:
        self.passes += 1
        inner = self.late(self.early(self.trunk(image.flatten(1))) - 0.3)
        answer: Tensor = self.last(self.relu(inner) if isinstance(self.relu, nn.ReLU) else inner)
        return answer


@pytest.mark.parametrize(
    ("places", "trunk_passes"),
    [(("late",), 1), (("early",), 6), (("early", "late"), 6), (("late", "in place"), 6), ((), 1)],
)
def test_dropout_passes_share_the_trunk_only_where_that_changes_no_bit(
    places: tuple[str, ...], trunk_passes: int
) -> None:
    torch.manual_seed(0)
    model = Counted(*places)
    if "in place" not in places:
        model.relu = nn.Identity()
    with torch.no_grad():
        samples = dropout_samples(Probe(model, last_layer="last"), images(), passes=6, rate=0.3, seed=3)
    assert model.passes == trunk_passes
    with torch.no_grad(), torch.random.fork_rng(), dropout_only(model, last=model.last, rate=0.3):
        torch.manual_seed(3)
        explicit = torch.stack([model(images()) for _ in range(6)])
    assert torch.equal(samples, explicit)
    assert not torch.equal(samples[0], samples[1])


def test_pitfall_7_mc_dropout_leaves_batch_norm_alone() -> None:
    model = network()
    model(images())
    state = copy.deepcopy(model.state_dict())
    modes = [part.training for part in model.modules()]
    with torch.no_grad():
        dropout_samples(probe_of(model), images(), passes=5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert [part.training for part in model.modules()] == modes
    with dropout_only(model):
        assert not model[2].training
        assert model[4].training


def test_pitfall_7_a_frozen_batch_norm_stays_frozen_after_scoring() -> None:
    model = network().train()
    model[2].eval()
    compute(probe_of(model), images(), ["entropy", "mc_dropout"])
    assert model.training
    assert model[4].training
    assert not model[2].training


def test_pitfall_7_scores_do_not_depend_on_the_rest_of_the_batch() -> None:
    model = network().train()
    model(images(64))
    whole = compute(probe_of(model), images(), ["entropy", "msp"])
    alone = compute(probe_of(model), images()[:1], ["entropy", "msp"])
    assert whole["entropy"][0] == pytest.approx(alone["entropy"][0], rel=1e-6)


def test_dropout_passes_are_the_same_for_the_same_seed_and_leave_the_global_state() -> None:
    probe = probe_of(network())
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with torch.no_grad():
        first = dropout_samples(probe, images(), passes=4, seed=1)
    assert torch.equal(torch.rand(3), expected)
    with torch.no_grad():
        assert torch.equal(dropout_samples(probe, images(), passes=4, seed=1), first)
        assert not torch.equal(dropout_samples(probe, images(), passes=4, seed=2), first)
    assert float((first[0] - first[1]).abs().max()) > 0


def test_a_model_without_dropout_gets_it_before_the_last_layer() -> None:
    model = network(dropout=False)
    with torch.no_grad():
        samples = dropout_samples(probe_of(model), images(), passes=400, rate=0.3)
        model.eval()
        plain = model(images())
    assert float(samples.std(0).min()) > 0
    torch.testing.assert_close(samples.mean(0), plain, atol=0.15, rtol=0)
    assert not model[5]._forward_pre_hooks
    with pytest.raises(ScoreError, match="no dropout layer"), dropout_only(nn.Linear(2, 2)):
        pass


def test_bald_is_entropy_of_the_mean_less_mean_entropy_and_needs_disagreement() -> None:
    p = torch.softmax(torch.randn(6, 4, 3, dtype=torch.float64), 2)
    average = p.mean(0)
    expected = -(average * average.log()).sum(1) + (p * p.log()).sum(2).mean(0)
    torch.testing.assert_close(Bald().combine(p.log()), expected)
    same = p[:1].log().expand(6, -1, -1)
    assert float(Bald().combine(same).abs().max()) < 1e-12
    assert float(Bald().combine(p[:1].log()).abs().max()) < 1e-12, "one pass has no epistemic part"


def test_entropies_are_finite_for_impossible_classes() -> None:
    samples = torch.tensor([[[0.0, -math.inf], [500.0, -500.0]]])
    total, expected = mean_entropy(samples)
    assert torch.isfinite(total).all()
    assert torch.isfinite(expected).all()


def test_probabilities_are_averaged_and_not_logits() -> None:
    samples = torch.tensor([[[9.0, 0.0]], [[-9.0, 0.0]]])
    assert float(McDropout().combine(samples)) == pytest.approx(math.log(2), abs=1e-6)
    samples = torch.tensor([[[30.0, 0.0]], [[-1.0, 0.0]]])
    assert float(McDropout().combine(samples)) > 0.5


def test_total_variance_of_a_mixture_is_epistemic_plus_aleatoric() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(5, 1, 2, generator=generator, dtype=torch.float64)
    variances = torch.rand(5, 1, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(200_000, 5, 1, 2, generator=generator, dtype=torch.float64)
    sampled = (means + variances.sqrt() * noise).flatten(0, 1).var(0)
    epistemic, aleatoric = predictive_variance(means, variances)
    torch.testing.assert_close(epistemic + aleatoric, sampled, rtol=0.01, atol=0)


def test_variance_of_large_values_does_not_cancel() -> None:
    values = torch.tensor([[[10_000.0]], [[10_001.0]], [[10_002.0]]])
    assert float(Epistemic().combine(values)) == pytest.approx(2 / 3, rel=1e-4)


def test_spread_of_heatmaps_is_that_of_the_decoded_joints() -> None:
    points = torch.tensor([[[3.0, 4.0]], [[7.0, 4.0]]])
    maps = render_gaussians(points, size=(12, 12))[:, None]
    assert float(spread(maps)) == pytest.approx((4.0 + 0.0) / 2)


def test_aleatoric_learns_where_the_noise_is() -> None:
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    log_variance = 0.8 * phi[:, :1] - 1.0
    values = torch.zeros(2000, 1, dtype=torch.float64)
    targets = torch.exp(log_variance / 2) * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    score = Aleatoric.fit(FitSet(Signals(values, phi), targets, 1))
    assert float(score.weight[0, 0]) == pytest.approx(0.8, abs=0.1)
    assert float(score.bias[0]) == pytest.approx(-1.0, abs=0.1)
    torch.testing.assert_close(score(Signals(values, phi)), score.log_variance(Signals(values, phi))[:, 0])
    with pytest.raises(ScoreError, match="at least 10"):
        Aleatoric.fit(FitSet(Signals(values[:4], phi[:4]), targets[:4], 1))


def test_pitfall_6_the_gaussian_likelihood_goes_below_zero_and_the_objectives_refuse_it() -> None:
    value = gaussian_nll(torch.tensor([-8.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert float(value[0]) < 0
    from misfire_train.objectives import learning_loss_pp

    with pytest.raises(ValueError, match="shift a negative log-likelihood"):
        learning_loss_pp(torch.zeros(2), value)


def test_epistemic_and_aleatoric_serve_classes_as_bald_and_mean_entropy() -> None:
    epistemic, aleatoric, bald = build(["epistemic", "aleatoric", "bald"], task="classification")
    result = compute(probe_of(network()), images(), [epistemic, aleatoric, bald, McDropout()])
    assert result["epistemic"] == pytest.approx(result["bald"])
    assert result["epistemic"] + result["aleatoric"] == pytest.approx(result["mc_dropout"], abs=1e-5)


def test_an_ensemble_of_itself_agrees_and_of_others_does_not() -> None:
    model = network().eval()
    same = compute(probe_of(model), images(), [Ensemble([model], measure="bald")])["ensemble"]
    assert abs(same).max() < 1e-6
    torch.manual_seed(9)
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    assert compute(probe_of(model), images(), [Ensemble([other], measure="bald")])["ensemble"].min() > 0
    with pytest.raises(ScoreError, match="at least one other network"):
        Ensemble([])


def test_an_ensembles_members_are_scored_in_eval_mode_and_get_their_mode_back() -> None:
    member = network().train()
    before = copy.deepcopy(member.state_dict())
    first = compute(probe_of(network().eval()), images(), [Ensemble([member])])["ensemble"]
    again = compute(probe_of(network().eval()), images(), [Ensemble([member])])["ensemble"]
    assert (first == again).all()
    assert member.training
    assert all(torch.equal(value, before[name]) for name, value in member.state_dict().items())


class Mirror(nn.Module):
    """A segmenter or heatmap net that is exactly equivariant to mirroring, or not."""

    def __init__(self, outputs: int, *, equivariant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Conv2d(3, outputs, 1)
        self.equivariant = equivariant

    def forward(self, image: Tensor) -> Tensor:
        shifted = image if self.equivariant else image.cumsum(3)
        out: Tensor = self.last(shifted)
        return out


@pytest.mark.parametrize("task", ["segmentation", "keypoints"])
def test_flip_consistency_is_zero_for_an_equivariant_model_only(task: str) -> None:
    image = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    for equivariant in (True, False):
        probe = Probe(Mirror(5, equivariant=equivariant), last_layer="last")
        value = compute(probe, image, [FlipConsistency(task=task)])["flip_consistency"]
        assert (abs(value).max() < 1e-6) == equivariant


def test_flip_consistency_swaps_left_and_right_joints() -> None:
    maps = render_gaussians(torch.tensor([[[2.0, 3.0], [12.0, 5.0]]]), size=(16, 16))
    mirrored = maps.flip(3)[:, [1, 0]]
    plain, other = Signals(maps, maps), Signals(mirrored, mirrored)
    assert float(FlipConsistency(task="keypoints", swap=[(0, 1)]).combine(plain, other)) == 0.0
    assert float(FlipConsistency(task="keypoints").combine(plain, other)) > 5


def test_flip_consistency_of_a_regressor_needs_signs() -> None:
    with pytest.raises(ScoreError, match="signs"):
        FlipConsistency(task="regression")
    score = FlipConsistency(task="regression", signs=[-1.0, 1.0])
    plain = Signals(torch.tensor([[0.5, 2.0]]), torch.zeros(1, 1))
    assert float(score.combine(plain, Signals(torch.tensor([[-0.5, 2.0]]), torch.zeros(1, 1)))) == 0.0


def test_jensen_shannon_is_symmetric_and_at_most_ln_2() -> None:
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    torch.testing.assert_close(jensen_shannon(a, b), jensen_shannon(b, a))
    assert float(jensen_shannon(a * 100, b * 100).max()) <= math.log(2) + 1e-6


def test_a_score_of_several_passes_says_so_when_called_with_one() -> None:
    for score in (McDropout(), FlipConsistency(), Ensemble([network()])):
        assert not score.exportable
        with pytest.raises(ScoreError, match="more than one pass"):
            score(Signals(torch.zeros(1, 2), torch.zeros(1, 2)))


@pytest.mark.parametrize("options", [{"passes": 0}, {"rate": 0.0}, {"rate": 1.0}])
def test_wrong_dropout_options_are_errors(options: dict[str, float]) -> None:
    with pytest.raises(ScoreError, match="between 0 and 1"):
        McDropout(**options)  # type: ignore[arg-type]
