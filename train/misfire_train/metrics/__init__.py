"""Provides the judge's numbers; numpy only, so that the export and the vehicle's tools can use them too.

A score is [N], higher meaning that a failure is likelier; `failed` is [N] bool; `loss` is [N] >= 0.

>>> import numpy as np
>>> score = np.array([0.1, 0.4, 0.35, 0.8])
>>> failed = np.array([False, False, True, True])
>>> auroc(score, failed), average_precision(score, failed)
(0.75, 0.8333333333333333)
>>> round(aurc(score, failed), 4), aurc_references(failed).random
(0.3333, 0.5)
>>> [row.recall for row in budget_table(score, failed, budgets=(0.25, 0.5))]
[0.5, 0.5]
"""

from __future__ import annotations

from misfire_train.metrics.bootstrap import (
    HIGHER_IS_BETTER,
    Comparison,
    Estimate,
    bootstrap_interval,
    bootstrap_mean,
    bootstrap_ratio_gain,
    paired_difference,
    replicate,
    resample_weights,
    wilson,
)
from misfire_train.metrics.calibration import (
    Reliability,
    ReliabilityBin,
    fit_loss_scale,
    loss_reliability,
    reliability,
)
from misfire_train.metrics.correlation import kendall, pair_accuracy, spearman
from misfire_train.metrics.counts import COUNTS, CountTable, count_table
from misfire_train.metrics.detection import (
    BUDGETS,
    BudgetRow,
    auroc,
    average_precision,
    budget_table,
    fpr_at_tpr,
)
from misfire_train.metrics.loss_curve import LossCurve, fit_loss_curve
from misfire_train.metrics.risk import (
    References,
    augrc,
    augrc_references,
    aurc,
    aurc_references,
    e_aurc,
    risk_coverage_curve,
)

__all__ = [
    "BUDGETS",
    "COUNTS",
    "HIGHER_IS_BETTER",
    "BudgetRow",
    "Comparison",
    "CountTable",
    "Estimate",
    "LossCurve",
    "References",
    "Reliability",
    "ReliabilityBin",
    "augrc",
    "augrc_references",
    "aurc",
    "aurc_references",
    "auroc",
    "average_precision",
    "bootstrap_interval",
    "bootstrap_mean",
    "bootstrap_ratio_gain",
    "budget_table",
    "count_table",
    "e_aurc",
    "fit_loss_curve",
    "fit_loss_scale",
    "fpr_at_tpr",
    "kendall",
    "loss_reliability",
    "pair_accuracy",
    "paired_difference",
    "reliability",
    "replicate",
    "resample_weights",
    "risk_coverage_curve",
    "spearman",
    "wilson",
]
