"""What W&B's client has written into a `.wandb` file, read back."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

START = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
"""The file's first bytes: a name, a magic number, a version."""

BLOCK = 32 * 1024
CHUNK = struct.Struct("<IHB")  # checksum, length, and which part of a record it is; never astride two blocks
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Written:
    """One attempt of a run, as its file tells it."""

    run: Any = None  # RunRecord: run_id, display_name, run_group, job_type, tags, ...
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)  # the x axis of a metric, or of all that begin so
    preempting: bool = False
    exit_code: int | None = None

    def steps(self) -> list[int]:
        """The steps of the trainer that have a row, in the order written."""
        return [row["trainer/global_step"] for row in self.history]


def read_attempt(folder: Path) -> Written:
    """The one file of an attempt's folder."""
    (path,) = folder.glob("*.wandb")
    written = Written()
    for record in records(path.read_bytes()):
        _add(record, written)
    return written


def read_attempts(folder: Path) -> list[Written]:
    """All attempts of a run folder, oldest first."""
    kept = [path for path in (folder / "wandb").iterdir() if path.is_dir() and not path.is_symlink()]
    return [read_attempt(path) for path in sorted(kept, key=lambda path: path.name.removeprefix("offline-"))]


def records(data: bytes) -> Iterator[Record]:
    """The records of a file; a ValueError says what is damaged, the torn end of a killed run excepted."""
    if not data.startswith(START):
        raise ValueError(f"no .wandb file: it begins with {data[: len(START)]!r}")
    whole = b""
    for part, content in _chunks(data):
        whole = content if part in (WHOLE, FIRST) else whole + content
        if part in (WHOLE, LAST):
            yield Record.FromString(whole)


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = len(START)
    while at + CHUNK.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < CHUNK.size:  # too little for a chunk is left empty
            at += left
            continue
        checksum, length, part = CHUNK.unpack_from(data, at)
        content = data[at + CHUNK.size : at + CHUNK.size + length]
        if len(content) < length:
            return
        if zlib.crc32(bytes([part]) + content) != checksum:
            raise ValueError(f"the chunk at byte {at} does not agree with its checksum")
        yield part, content
        at += CHUNK.size + length


def _add(record: Record, written: Written) -> None:
    match record.WhichOneof("record_type"):
        case "run":
            written.run = record.run
            written.config |= _values(record.run.config.update)
        case "config":
            written.config |= _values(record.config.update)
        case "history":
            written.history.append(_values(record.history.item))
        case "summary":
            written.summary |= _values(record.summary.update)
        case "metric":
            written.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        case "preempting":
            written.preempting = True
        case "exit":
            written.exit_code = record.exit.exit_code


def _values(items: Iterable[Any]) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
