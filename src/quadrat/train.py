"""quadrat-train: a config in, a run folder out. The same command again goes on where the run stopped."""

from __future__ import annotations

from quadrat import signals


def main() -> None:
    """The console script."""
    signals.arm()  # before the slow imports
    from quadrat.configs import launch
    from quadrat.jobs import run_job

    launch("train", run_job)


if __name__ == "__main__":
    main()
