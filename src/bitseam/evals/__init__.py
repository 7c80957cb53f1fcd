"""Evaluation through the split."""

from bitseam.evals.answers import Evaluation, Score, answer_room, evaluate, normal, wilson

__all__ = ["Evaluation", "Score", "answer_room", "evaluate", "normal", "wilson"]
