"""VAAL and TA-VAAL: they learn what is labelled, score in eval mode, and repeat none of the known defects."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from misfire_train.scores import ScoreError, compute, gather
from misfire_train.signals import Probe
from misfire_train.vaal import (
    RankerScore,
    TaVaalScore,
    TrainedVaal,
    VaalConfig,
    VaalReport,
    VaalScore,
    Vae,
    fit_ranker,
    train_vaal,
)
from misfire_train.vaal.networks import vae_loss
from misfire_train.vaal.training import epochs

pytestmark = pytest.mark.slow

CONFIG = VaalConfig(steps=150, batch=24, latent=6, size=8, width=6, learning_rate=2e-3, adversary=0.3)
SHORT = VaalConfig(steps=8, batch=24, latent=6, size=8, width=4)


def stripes(count: int, *, upright: bool, seed: int) -> Tensor:
    """Images of stripes, upright or lying, with noise."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(count, 1, 1, 1, generator=generator) * 6
    wave = torch.sin(torch.arange(8).float()[None, None, None, :] * 0.9 + phase)
    image = wave.expand(count, 1, 8, 8)
    image = image if upright else image.transpose(2, 3)
    return image + 0.1 * torch.randn(count, 1, 8, 8, generator=generator)


@pytest.fixture(scope="module")
def trained() -> TrainedVaal:
    labelled = stripes(80, upright=True, seed=0)
    unlabelled = torch.cat([stripes(80, upright=True, seed=1), stripes(80, upright=False, seed=2)])
    return train_vaal(labelled, unlabelled, config=CONFIG)


def probe() -> Probe:
    torch.manual_seed(0)
    return Probe(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)), last_layer="3")


def test_frames_unlike_the_labelled_ones_score_higher(trained: TrainedVaal) -> None:
    pool = torch.cat([stripes(40, upright=True, seed=5), stripes(40, upright=False, seed=6)])
    score = compute(probe(), pool, [VaalScore(trained)])["vaal"]
    wins = (score[40:, None] > score[None, :40]).mean()
    assert wins > 0.8


def test_the_report_says_what_was_learned(trained: TrainedVaal) -> None:
    assert not trained.report.collapsed
    assert trained.report.accuracy > 0.55
    assert 0 < trained.report.reconstruction < 0.6
    assert VaalReport(0.1, 1e-5, 0.5).collapsed


def test_pitfall_7_scores_do_not_depend_on_the_batch_even_if_someone_calls_train(
    trained: TrainedVaal,
) -> None:
    score = VaalScore(trained).train()
    assert not score.vae.training
    pool = stripes(20, upright=False, seed=7)
    signals = probe()(pool)
    with torch.no_grad():
        whole = score.combine(signals, pool)
        alone = torch.cat([score.combine(signals, pool[i : i + 1]) for i in range(20)])
        in_train_mode = copy.deepcopy(score.vae).train().encode(pool)[0]
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
    assert float((in_train_mode - score.vae.encode(pool)[0].detach()).abs().max()) > 1e-3, (
        "what the published code scores"
    )


def test_pitfall_18_nothing_comes_twice_within_an_epoch() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = list(itertools.islice(epochs(10, 4, generator), 6))
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:])), "shuffled anew"


def test_a_last_batch_of_one_is_left_out_for_batch_norms_sake() -> None:
    batches = list(itertools.islice(epochs(9, 4, torch.Generator().manual_seed(0)), 4))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4]


def test_the_divergence_is_a_mean_and_does_not_grow_with_the_batch() -> None:
    mean, log_variance = torch.ones(4, 8), torch.zeros(4, 8)
    image = torch.zeros(4, 1, 8, 8)
    _, small = vae_loss(image, image, mean, log_variance, beta=1.0)
    _, large = vae_loss(image, image, mean.repeat(16, 1), log_variance.repeat(16, 1), beta=1.0)
    assert float(small) == pytest.approx(0.5)
    assert float(large) == pytest.approx(0.5)


def test_a_summed_divergence_collapses_the_code_and_the_mean_does_not(trained: TrainedVaal) -> None:
    labelled, unlabelled = stripes(60, upright=True, seed=0), stripes(60, upright=False, seed=1)
    summed = float(CONFIG.batch * CONFIG.latent)
    as_summed = VaalConfig(steps=40, batch=24, latent=6, size=8, width=4, beta=summed, adversary=0.0)
    assert (
        train_vaal(labelled, unlabelled, config=as_summed).report.divergence < 0.1 * trained.report.divergence
    )


def test_training_is_the_same_for_the_same_seed_and_leaves_the_global_state() -> None:
    labelled, unlabelled = stripes(30, upright=True, seed=0), stripes(30, upright=False, seed=1)
    short = VaalConfig(steps=5, batch=16, latent=4, size=8, width=4)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = train_vaal(labelled, unlabelled, config=short, seed=1)
    assert torch.equal(torch.rand(2), expected)
    second = train_vaal(labelled, unlabelled, config=short, seed=1)
    for a, b in zip(first.vae.parameters(), second.vae.parameters(), strict=True):
        assert torch.equal(a, b)


def ranker_and_losses() -> tuple[RankerScore, Tensor, Tensor]:
    images = torch.cat([stripes(60, upright=True, seed=0), stripes(60, upright=False, seed=1)])
    losses = torch.cat([torch.full((60,), 0.1), torch.full((60,), 2.0)])
    fit = gather(probe(), images, torch.zeros(120, dtype=torch.long))
    return fit_ranker(fit, losses), images, losses


def test_the_ranker_ranks_and_its_rank_is_in_the_middle_on_average() -> None:
    ranker, images, _ = ranker_and_losses()
    score = compute(probe(), images, [ranker])["ta_vaal_ranker"]
    assert (score[60:, None] > score[None, :60]).mean() > 0.9
    rank = ranker.rank(probe()(images)).detach()
    assert 0 < float(rank.min()) < float(rank.max()) < 1
    assert 0.3 < float(rank.mean()) < 0.7
    assert ranker.exportable


def test_ta_vaal_sees_one_rank_in_training_and_scoring() -> None:
    ranker, images, _ = ranker_and_losses()
    source = probe()
    labelled, unlabelled = images[:50], images[50:]
    ranks = (ranker.rank(source(labelled)).detach(), ranker.rank(source(unlabelled)).detach())
    done = train_vaal(labelled, unlabelled, ranks=ranks, config=SHORT)
    score = TaVaalScore(done, ranker)
    with torch.no_grad():
        ours = score.combine(source(unlabelled), unlabelled)
        expected = -done.discriminator(done.vae.encode(unlabelled)[0], ranks[1])
    torch.testing.assert_close(ours, expected)


def test_ranker_only_ablation_runs_beside_both_in_one_call(trained: TrainedVaal) -> None:
    ranker, images, _ = ranker_and_losses()
    source = probe()
    rank = ranker.rank(source(images)).detach()
    ta = train_vaal(images[:60], images[60:], ranks=(rank[:60], rank[60:]), config=SHORT)
    result = compute(source, images, [VaalScore(trained), TaVaalScore(ta, ranker), ranker])
    assert list(result) == ["vaal", "ta_vaal", "ta_vaal_ranker"]


def test_images_of_other_sizes_are_resized() -> None:
    vae = Vae(3, size=16, latent=4, width=4).eval()
    assert vae.encode(torch.randn(2, 3, 40, 24))[0].shape == (2, 4)
    assert vae.decode(torch.randn(2, 4)).shape == (2, 3, 16, 16)


def test_wrong_sets_ranks_and_mixtures_say_why(trained: TrainedVaal) -> None:
    ranker, images, losses = ranker_and_losses()
    with pytest.raises(ScoreError, match="at least 2 images"):
        train_vaal(images[:1], images)
    with pytest.raises(ScoreError, match="unlabelled set"):
        train_vaal(images, images[:0])
    with pytest.raises(ScoreError, match="images differ"):
        train_vaal(images, torch.zeros(5, 3, 8, 8))
    with pytest.raises(ScoreError, match=r"in 0\.\.1"):
        train_vaal(images, images, ranks=(losses, losses))
    with pytest.raises(ScoreError, match="multiple of 8"):
        Vae(1, size=20)
    with pytest.raises(ScoreError, match="trained without ranks"):
        TaVaalScore(trained, ranker)
    with pytest.raises(ScoreError, match="exactly where"):
        trained.discriminator(torch.zeros(2, 6), torch.zeros(2))
    fit = gather(probe(), images, torch.zeros(120, dtype=torch.long))
    with pytest.raises(ValueError, match="not finite for #0"):
        fit_ranker(fit, losses / 0)
