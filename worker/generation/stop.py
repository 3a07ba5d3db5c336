"""Stop strings: found wherever the tokens are cut, and never shown, not even in part."""

from collections.abc import Sequence


class StopMatcher:
    """Text goes in as it is decoded; what cannot belong to a stop string any more comes out.

    The match that is complete first ends the text (of two that end together, the longer one), so the answer
    is the same whatever the pieces are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """The text that may be shown now; nothing more comes after a hit."""
        if self.hit:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = len(self._held) - max((self._begun(stop) for stop in self._stops), default=0)
        shown, self._held = self._held[:keep], self._held[keep:]
        return shown

    def flush(self) -> str:
        """What was held back, once the text has ended without a match."""
        held, self._held = self._held, ""
        return held

    def _begun(self, stop: str) -> int:
        """Characters at the end of the held text that may be the beginning of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if stop.startswith(self._held[-n:])), 0)
