"""Which file runs when, where two processes share the suite.

Files that use the same running service go to one process, which starts it once. Every second process takes
from the front of the queue, where the files are that start trainers and browsers, the others from its back:
so a file that waits for those has one beside it that uses the cores meanwhile, and the last to run are short.
"""

from typing import Any

from xdist.scheduler import LoadFileScheduling

# By what their names begin with, and what they share.
TOGETHER = {
    "tests/browser/": "the shared stack",
    "tests/cli/test_main_job.py": "the shared stack",
    "tests/flow/test_chat.py": "the stack of tests/flow",
    "tests/flow/test_main_job.py": "the stack of tests/flow",
}
# Of those that start many processes the longest first.
FRONT = (
    "the shared stack",
    "the stack of tests/flow",
    "tests/store/test_flow.py",
    "tests/embedded/test_up.py",
    "tests/training/test_process.py",
    "tests/worker/test_supervision.py",
    "tests/worker/test_outcomes.py",
    "tests/flow/test_namespaces.py",
    "tests/training/test_nodes.py",
    "tests/training/test_sharding.py",
)


class Order(LoadFileScheduling):  # type: ignore[misc]
    """Hands out files; a file's tests stay together, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return next((shared for begin, shared in TOGETHER.items() if file.startswith(begin)), file)

    def _assign_work_unit(self, node: Any) -> None:
        ranked = sorted(self.workqueue, key=rank)
        self.workqueue.move_to_end(ranked[-(self.nodes.index(node) % 2)], last=False)
        super()._assign_work_unit(node)


def rank(scope: str) -> int:
    return FRONT.index(scope) if scope in FRONT else len(FRONT)
