"""The share of a training's time that a monitor may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Budget:
    """Counts the seconds that were spent, and says whether there may be more."""

    share: float | None  # of all the time since the beginning; None: without limit
    begun: float  # the time at the beginning, in seconds
    spent: float = 0.0
    count: int = 0  # how often something was done

    def allows(self, now: float) -> bool:
        """Return whether the time that was spent is within the share; at first it always is."""
        if self.share is None or self.count == 0:
            return True
        return self.spent <= self.share * (now - self.begun)

    def add(self, seconds: float, done: bool) -> None:
        """Count seconds, and whether something was done in them."""
        self.spent += seconds
        self.count += done
