"""The jobs of a sweep one after another on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from quadrat import signals
from quadrat.launchers.base import Draft
from quadrat.launchers.process import Attempt, attended
from quadrat.sweeps.ledger import Sweep


class Local:
    """Each job in a process of its own; what it prints is shown here and kept in the sweep's folder."""

    def check(self, drafts: Sequence[Draft]) -> None:
        """Every job can run here."""

    def run(self, sweep: Sweep, drafts: Sequence[Draft]) -> None:
        """See every job to its end; after a stopping signal the running one is stopped and no other is started."""
        with attended() as lifeline:
            for number, draft in enumerate(drafts, start=1):
                signals.leave_if_asked()
                job = draft.job
                print(f"\n--- {number} of {len(drafts)}: {job.label}  ({os.path.relpath(job.run.folder)})", flush=True)
                attempt = Attempt(job, lifeline)
                attempt.follow()
                attempt.settle()
            signals.leave_if_asked()
