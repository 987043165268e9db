"""The page as a reader meets it: opened in a real browser, which reaches no network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from quadrat.reports.collect import collect
from quadrat.reports.compare import comparison
from quadrat.reports.find import find
from quadrat.reports.page import write_report
from reported import draw, make_run, training

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WATCH = """<script>
window.troubles = [];
addEventListener("error", event => troubles.push(String(event.message || event.target.src)), true);
addEventListener("securitypolicyviolation", event => troubles.push("asks for " + event.blockedURI));
const complain = console.error; console.error = (...words) => { troubles.push(words.join(" ")); complain(...words); };
</script>"""
"""Before anything else of the page."""

POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
)
"""What the page asks for and does not hold itself is refused, and told."""

ASK = """<script>
addEventListener("load", () => {
  const column = () => [...document.querySelectorAll("#settings tbody tr")].map(row => row.cells[2].textContent);
  const heads = document.querySelectorAll("#settings th"), seen = {at_first: column()};
  heads[2].click(); seen.up = column();
  heads[2].click(); seen.down = column();
  seen.marked = heads[2].getAttribute("aria-sort");
  heads[1].click(); seen.by_number = [...document.querySelectorAll("#settings tbody tr")].map(row => row.cells[1].textContent);
  seen.images = [...document.images].map(image => image.complete && image.naturalWidth);
  seen.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.asked_for = performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:"));
  seen.troubles = troubles;
  const told = document.createElement("pre"); told.id = "seen"; told.textContent = JSON.stringify(seen);
  document.body.append(told);
});
</script>"""
"""What a reader would do and see, told in the page itself."""


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium; tests/install.sh installs one")
def test_page_in_a_browser(tmp_path: Path) -> None:
    """Every picture is shown, a click on a head sorts, nothing goes wrong and nothing is asked for."""
    for i, (weight, seed) in enumerate([(w, seed) for w in (2.0, 10.0, 0.5) for seed in (0, 1)]):
        rows, last = training(0.5 + weight / 100, seed, epochs=2)
        draw(
            make_run(
                tmp_path / f"r{i}", {"loss.weights.rpn_box": weight}, seed, 0.5 + weight / 100, rows=rows, last=last
            ),
            i,
        )
    make_run(tmp_path / "r9", {"loss.weights.rpn_box": 100.0}, state="failed", reason="<b>& no </script>")
    result = comparison("mine & <i>yours</i>", collect(find(f"{tmp_path}/r*", tmp_path).jobs))
    seen = read(write_report(result, tmp_path / "report"), tmp_path)
    best_first = ["0.600 ± 0.000", "0.520 ± 0.000", "0.505 ± 0.000", "–"]
    assert seen["at_first"] == seen["down"] == best_first
    assert seen["up"] == ["0.505 ± 0.000", "0.520 ± 0.000", "0.600 ± 0.000", "–"]  # what has no value stays last
    assert seen["marked"] == "descending"
    assert seen["by_number"] == ["0.5", "2", "10", "100"]  # as numbers, not as words
    assert (
        len(seen["images"]) == 8
    )  # curve, ranking, loss against metric, learning, losses with norms, agreement, best, worst
    assert all(seen["images"])
    assert (seen["troubles"], seen["asked_for"], seen["sideways"]) == ([], [], 0)


def read(page: Path, folder: Path) -> dict[str, Any]:
    """What is seen in a copy of the page that tells it."""
    watched = folder / "watched.html"
    watched.write_text(
        page.read_text().replace("<head>", f"<head>{POLICY}{WATCH}", 1).replace("</body>", f"{ASK}</body>", 1)
    )
    done = subprocess.run(
        [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", watched.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1]))
