"""What became of checkpoints, for the log and the person who watches."""

from __future__ import annotations

from rankmixer.pipeline.checkpoint.save import Outcome
from rankmixer.pipeline.journal.journal import Journal

SLOW_SECONDS = 1.0  # a wait for the save before that is worth a word

REMEDIES = {
    "ENOSPC": "free space there, or lower run.keep",
    "EDQUOT": "free space there, raise the quota, or lower run.keep",
    "EROFS": "mount it to be written",
    "EACCES": "let this user write there",
    "EPERM": "let this user write there",
    "ENOENT": "leave the directory alone while the job runs",
    "ENOTDIR": "leave the directory alone while the job runs",
}


class SaveReport:
    """Tells rank 0's journal: `checkpoint` when one is whole, `warning` when one could not be written, once a cause.

    Args:
        journal: of rank 0; None on other ranks, where nothing is to tell.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._cause: set[tuple[int, str]] = set()
        self._failed = 0
        self._said_slow = self._said_waiting = False

    def tell(self, outcome: Outcome) -> None:
        """Say what became of a save."""
        if self._journal is None:
            return
        if outcome.failures:
            self._failed += 1
            cause = {(failure.rank, failure.code) for failure in outcome.failures}
            if cause != self._cause:
                message = f"{outcome}; training goes on, and the next checkpoint is tried: {remedy(outcome)}"
                self.warn(outcome.step, message)
            self._cause = cause
            return
        if self._failed:
            self.warn(outcome.step, f"checkpoints are written again, after {self._failed} that could not be written")
        self._cause, self._failed = set(), 0
        self._journal.event(
            "checkpoint",
            outcome.step,
            name=outcome.name,
            seconds=outcome.seconds,
            bytes=outcome.num_bytes,
            bytes_per_second=outcome.num_bytes / outcome.seconds,
        )
        if outcome.waiting and not self._said_waiting:
            self._said_waiting = True
            ranks = ", ".join(map(str, outcome.waiting))
            self.warn(
                outcome.step,
                f"training waits while rank {ranks} writes a checkpoint: the host has not the memory for a copy of "
                f"that rank's state; {outcome.num_bytes:,} bytes are copied on all ranks together",
            )
        for remark in outcome.remarks:
            self.warn(outcome.step, remark)

    def tell_slow(self, step: int, seconds: float) -> None:
        """Say, the first time, that a save had to wait for the one before."""
        if seconds > SLOW_SECONDS and not self._said_slow:
            self._said_slow = True
            self.warn(
                step,
                f"training waited {seconds:.1f} s to save, for the checkpoint before was still being written: they are "
                "asked for faster than the disk takes them; raise train.checkpoint_every",
            )

    def warn(self, step: int, message: str) -> None:
        """Record and show a warning."""
        if self._journal is not None:
            self._journal.event("warning", step, message=message)


def remedy(outcome: Outcome) -> str:
    """What the user can do about a save that failed.

    >>> from rankmixer.pipeline.checkpoint.save import Failure
    >>> remedy(Outcome("step-00000001", "/full/step-00000001", 1, failures=[Failure(0, "ENOSPC", "No space", 9, 0)]))
    'free space there, or lower run.keep'
    """
    known = [REMEDIES[failure.code] for failure in outcome.failures if failure.code in REMEDIES]
    return next(iter(known), "see to it that its filesystem answers")
