"""How long the steps of a command take."""

from __future__ import annotations

import time
from typing import Callable


class Steps:
    """A stop watch. seconds: of each step that has begun, in their order; one that begins again goes on."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._now, self._since = clock, "", 0.0
        self.seconds: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """End the step before, if there is one, and begin this one."""
        self.end()
        self._now, self._since = name, self._clock()
        self.seconds.setdefault(name, 0.0)

    def end(self) -> None:
        """End the step that is going on."""
        if self._now:
            self.seconds[self._now] += self._clock() - self._since
        self._now = ""
