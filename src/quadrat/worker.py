"""One job from the config that lies frozen in its run folder: `python -m quadrat.worker <run folder>`.

The ranks of a job, the jobs of a sweep and the tasks of a cluster all start here, so that nothing composes a config twice.
"""

from __future__ import annotations

import os
import sys

from quadrat import signals


def run_folder(folder: str) -> None:
    """Train the run of a folder; SystemExit carries the true code: 0 done, 128 + signal stopped, 1 failed."""
    signals.arm()
    if "QUADRAT_PARENT" in os.environ:
        signals.die_with(int(os.environ["QUADRAT_PARENT"]))
    from quadrat.jobs import run_frozen

    sys.exit(run_frozen(folder))


if __name__ == "__main__":
    run_folder(sys.argv[1])
