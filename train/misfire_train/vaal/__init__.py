"""Implements VAAL and TA-VAAL: whether a frame looks like the labelled set to a small adversary.

    ranker = fit_ranker(fit, losses)                                   # TA-VAAL only
    trained = train_vaal(labelled, unlabelled, ranker_labelled=..., ranker_unlabelled=...)
    scores.compute(probe, pool, [VaalScore(trained), TaVaalScore(trained, ranker), ranker])

This differs from the published code, which has: networks in train mode while scoring, so that a
frame's score depends on its batch; a summed KL against a mean error, which collapses the code; the rank
squashed for the decoder and raw for the discriminator; a random baseline drawn with replacement.
"""

from __future__ import annotations

from misfire_train.vaal.networks import Discriminator, Vae
from misfire_train.vaal.scores import RankerScore, TaVaalScore, VaalScore, fit_ranker
from misfire_train.vaal.training import TrainedVaal, VaalConfig, VaalReport, train_vaal

__all__ = [
    "Discriminator",
    "RankerScore",
    "TaVaalScore",
    "TrainedVaal",
    "VaalConfig",
    "VaalReport",
    "VaalScore",
    "Vae",
    "fit_ranker",
    "train_vaal",
]
