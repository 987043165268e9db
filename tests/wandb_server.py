"""A stand-in for the W&B server on this machine: it keeps what the real client sends, for tests to look at."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

KEY = "k" * 40
"""Any key of this length is taken for one."""

OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")
STREAM = re.compile(r"^/files/[^/]+/[^/]+/(?P<run>[^/]+)/file_stream$")


@dataclass
class Kept:
    """All that the server knows of a run."""

    fields: dict[str, Any] = field(default_factory=dict)  # displayName, groupName, jobType, tags, ...
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)  # history, by line number
    summary: dict[str, Any] = field(default_factory=dict)
    preempting: bool = False
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows in order; a row sent to a line that was there already has replaced it, as on the real server."""
        return [self.lines[number] for number in sorted(self.lines)]


class WandbServer:
    """`with WandbServer() as server:` answers at ``server.url`` until the end of the block or ``stop()``.

    With ``known_key=False`` it refuses every key. ``streaming`` is set when a run has begun to send what it logs.
    """

    def __init__(self, *, known_key: bool = True) -> None:
        self.known_key = known_key
        self.runs: dict[str, Kept] = {}
        self.reports: list[dict[str, Any]] = []
        self.projects = ["quadrat"]
        self.asked: list[str] = []
        self.streaming = threading.Event()
        self._changing = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _Answers)
        self._http.about = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def stop(self) -> None:
        """Answer no more, on open connections neither."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()
        self._http.hang_up()

    def answer(self, text: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL operation; unknown ones get an empty answer."""
        found = OPERATION.search(text)
        name = found.group(1) if found else ""
        self.asked.append(name)
        with self._changing:
            answers = {
                "Viewer": self._viewer,
                "UpsertBucket": self._upsert,
                "RunResumeStatus": self._resume_status,
                "CreateRunFiles": self._run_files,
                "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
                "RunStoppedStatus": lambda _: {"project": {"run": {"stopped": False}}},
                "ProjectInternalId": self._project,
                "GetProjects": self._all_projects,
                "GetDefaultEntity": self._viewer,
                "upsertView": self._report,
            }
            return answers[name](given) if name in answers else {}

    def take(self, run: str, sent: dict[str, Any]) -> None:
        """One parcel of the file stream: rows by line number, the summary, how the run stands."""
        with self._changing:
            kept = self.runs.setdefault(run, Kept())
            files = sent.get("files") or {}
            rows = files.get("wandb-history.jsonl")
            if rows:
                kept.lines |= {rows["offset"] + i: json.loads(line) for i, line in enumerate(rows["content"])}
            if "wandb-summary.json" in files:
                kept.summary = json.loads(files["wandb-summary.json"]["content"][-1])
            kept.preempting = kept.preempting or bool(sent.get("preempting"))
            if sent.get("complete"):
                kept.exit_code = sent["exitcode"]
        self.streaming.set()

    def _viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        return {
            "viewer": {
                "id": "u1",
                "entity": "someone",
                "username": "someone",
                "email": "",
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        run = given["name"]
        new = run not in self.runs
        kept = self.runs.setdefault(run, Kept())
        if given.get("config"):
            kept.config = json.loads(given["config"])
        kept.fields |= {name: value for name, value in given.items() if value is not None}
        project = {"id": "p1", "name": given.get("project") or "", "entity": {"id": "e1", "name": "someone"}}
        bucket = {
            "id": f"bucket-{run}",
            "name": run,
            "displayName": kept.fields.get("displayName"),
            "description": None,
            "config": json.dumps(kept.config),
            "sweepName": None,
            "project": project,
            "historyLineCount": len(kept.lines),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _resume_status(self, given: dict[str, Any]) -> dict[str, Any]:
        run = given["name"]
        bucket = None
        if run in self.runs:
            kept = self.runs[run]
            bucket = {
                "id": f"bucket-{run}",
                "name": run,
                "displayName": kept.fields.get("displayName"),
                "config": json.dumps(kept.config),
                "summaryMetrics": json.dumps(kept.summary),
                "historyLineCount": len(kept.lines),
                "historyTail": json.dumps([json.dumps(row) for row in kept.history[-1:]]),
                "eventsLineCount": 0,
                "eventsTail": "[]",
                "logLineCount": 0,
                "tags": kept.fields.get("tags") or [],
                "groupName": kept.fields.get("groupName"),
                "jobType": kept.fields.get("jobType"),
                "wandbConfig": json.dumps({"t": {}}),
            }
        return {"model": {"id": "p1", "name": "", "entity": {"id": "e1", "name": "someone"}, "bucket": bucket}}

    def _project(self, given: dict[str, Any]) -> dict[str, Any]:
        known = given["projectName"] in self.projects
        return {"project": {"id": "p1", "internalId": "1"} if known else None}

    def _all_projects(self, given: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "id": name,
                "name": name,
                "entityName": given["entity"],
                "createdAt": "2026-01-01T00:00:00",
                "isBenchmark": False,
                "user": None,
            }
            for name in self.projects
        ]
        page = {"endCursor": None, "hasNextPage": False}
        return {"models": {"edges": [{"node": node, "cursor": ""} for node in nodes], "pageInfo": page}}

    def _report(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keep a report as it was sent, its spec parsed."""
        self.reports.append({**given, "spec": json.loads(given["spec"])})
        project = {"id": "p1", "name": given["projectName"], "entityName": given["entityName"]}
        kept = {name: given[name] for name in ("name", "displayName", "description", "type", "spec")}
        view = {**kept, "id": "VmlldzoxMjM=", "project": project, "updatedAt": "2026-01-01T00:00:00"}
        return {"upsertView": {"view": view, "inserted": True}}

    def _run_files(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/put/{name}"} for name in given.get("files", [])]
        return {"createRunFiles": {"runID": f"bucket-{given.get('run')}", "uploadHeaders": [], "files": files}}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    about: WandbServer

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.open: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        for connection in self.open:
            with contextlib.suppress(OSError):  # it has ended already
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error here; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print nothing."""

    def do_GET(self) -> None:
        self._send({})

    def do_PUT(self) -> None:
        self._body()
        self._send({})

    def do_POST(self) -> None:
        body, about = self._body(), self.server.about
        stream = STREAM.match(self.path)
        if not about.known_key:
            self._send({"errors": [{"message": "user is not logged in"}]}, code=401)
        elif stream:
            about.take(stream["run"], json.loads(body))
            self._send({"exitcode": None, "limits": {}})
        elif self.path.startswith("/graphql"):
            question = json.loads(body)
            self._send({"data": about.answer(question["query"], question.get("variables") or {})})
        else:
            self._send({})

    def _body(self) -> bytes:
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, answer: dict[str, Any], code: int = 200) -> None:
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
