"""Training, from the client's side."""

from bitseam.train.loop import Callback, Micro, StepRecord, Training

__all__ = ["Callback", "Micro", "StepRecord", "Training"]
