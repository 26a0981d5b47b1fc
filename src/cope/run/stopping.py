"""When a run ends: after ``trainer.steps``, or earlier, once its validation loss has stopped falling.

The rule is one for all encodings. With ``trainer.patience=n`` a run that has not improved for n steps ends; with
``optimizer.schedule=wsd`` the learning rate first falls to the end, over a fifth of all steps (warm-up, stable, decay; Hägele
et al. 2024, arXiv 2405.18392, find it as good as a cosine that knows its length). A cosine or a line down to ``trainer.steps``
would leave a run that ends early with a rate that never fell.
"""

from __future__ import annotations

from typing import Any

DECAY_SHARE = 0.2  # of all steps
LEAST_FALL = 0.01  # of the loss: less is no improvement
LEAST_NATS = 0.001  # nor is less than this, so that a solved task ends too


class Stopping:
    """Decides at each validation whether it is time to end.

    Args:
        steps: at most.
        patience: steps without an improvement after which a run ends; None never ends one early.
        decays: whether the learning rate falls over the last ``DECAY_SHARE`` of the steps.
    """

    def __init__(self, steps: int, patience: int | None, decays: bool) -> None:
        self.patience = patience
        self.decay_share = DECAY_SHARE if decays else 0.0
        self.last_step = steps
        self.decay_from = steps - round(self.decay_share * steps)  # the step whose rate is the first to be lower
        self.lowest: float | None = None  # the loss at the last improvement
        self.improved_at = 0
        self.ran_out = False  # of patience

    def see(self, loss: float, step: int) -> bool:
        """Take in the validation loss at ``step``; True if it decides that the run is to end early."""
        if self.patience is None or step >= self.decay_from:
            return False
        if self.lowest is None or self.lowest - loss >= max(LEAST_FALL * self.lowest, LEAST_NATS):
            self.lowest, self.improved_at = loss, step
        self.ran_out = step - self.improved_at >= self.patience
        if self.ran_out:
            self.decay_from = step
            self.last_step = min(self.last_step, round(step / (1.0 - self.decay_share)))
        return self.ran_out

    @property
    def found(self) -> dict[str, Any]:
        """What ``result.json`` says of it: nothing of a run without patience, which never asked."""
        if self.patience is None:
            return {}
        could_fall = self.lowest is None or self.lowest >= LEAST_NATS
        return {"stopped": "patience" if self.ran_out else "cap", "still_improving": could_fall and not self.ran_out}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {key: getattr(self, key) for key in ("last_step", "decay_from", "lowest", "improved_at", "ran_out")}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        vars(self).update(state)
