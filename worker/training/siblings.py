"""The processes of one job on several devices: when they end badly, the first to end says why."""

import os
from pathlib import Path


class Siblings:
    """Agree on the job's exit status through a file. Without one, each process is on its own."""

    def __init__(self, status: Path | None) -> None:
        """`status`: where the first one leaves its exit status; torchrun's own only says that it is not 0."""
        self._status = status

    def first(self, code: int) -> bool:
        """Leaves our exit status. False where another was first: what befell us is only that it is gone."""
        if self._status is None:
            return True
        own = self._status.with_name(f"{self._status.name}-{os.getpid()}")
        own.write_text(str(code))
        try:
            os.link(own, self._status)  # whole or not at all, and never over another's
        except FileExistsError:
            return False
        finally:
            own.unlink()
        return True

    def end(self, code: int) -> int:
        """The exit status of a process that ends as it should."""
        self.first(code)
        return code
