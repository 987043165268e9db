"""quadrat-bench: measurements that anybody can run again, each as a table, a figure and a json file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from quadrat.configs import build, conf_dir, launch


def main() -> None:
    """The console script."""
    sys.argv[1:] = chosen(sys.argv[1:])
    launch("bench", bench)


def chosen(words: Sequence[str]) -> list[str]:
    """`rcnn-family x=1` -> `bench=rcnn_family x=1`: the first word names the benchmark."""
    known = sorted(file.stem.replace("_", "-") for file in (conf_dir() / "bench").glob("*.yaml"))
    if not words or words[0].startswith("-") or "=" in words[0]:
        return list(words)
    if words[0] not in known:
        sys.exit(f"error: there is no benchmark {words[0]}; quadrat-bench {' | '.join(known)}")
    return [f"bench={words[0].replace('-', '_')}", *words[1:]]


def bench(config: DictConfig) -> None:
    """Run the chosen benchmark; what it measures lands in ``output``."""
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    build(config.bench, out=output)
    print(f"\n{output}")


if __name__ == "__main__":
    main()
