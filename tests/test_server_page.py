"""The server's page in headless Chromium: what it shows is what the client gets, and it asks nobody else for anything.

Run where `make browser` has set up Chromium and playwright-core; skipped elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import tiny_bundle as tiny
from running import Running, chat
from test_browser import CHROMIUM, MODULES


@pytest.mark.browser
@pytest.mark.skipif(not (CHROMIUM and MODULES), reason="make browser sets up Chromium and playwright-core")
def test_the_page_shows_each_model_s_answer(tmp_path):
    made = Running(tiny.write_bundle(tmp_path / "bundle"))
    pictures = Path(os.environ.get("QIA3_PICTURES", tmp_path))
    try:
        script = Path(__file__).parent / "browser" / "page.mjs"
        command = ["node", str(script), str(CHROMIUM), str(MODULES), f"{made.url}/", str(pictures / "server.png")]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        found = json.loads(ran.stdout)
        assert (found["complaints"], found["elsewhere"]) == ([], [])
        assert [name for name, _ in found["shown"]] == ["tiny", "echo", "lamps"]
        for name, text in found["shown"]:
            assert text == chat(made.client, name, "hello there").choices[0].message.content
    finally:
        made.stop()


def test_the_page_is_served_with_a_policy(tmp_path):
    made = Running(tiny.write_bundle(tmp_path / "bundle"))
    try:
        answer = made.http.get("/")
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "http" not in answer.text.replace("http-equiv", "")
    finally:
        made.stop()
