"""Evaluation through the split."""

from bitseam.evals.answers import Evaluation, Score, evaluate, normal, wilson

__all__ = ["Evaluation", "Score", "evaluate", "normal", "wilson"]
