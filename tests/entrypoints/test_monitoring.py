# SPDX-License-Identifier: Apache-2.0
"""The alert rules and the dashboard of deploy/, with a real Prometheus that scrapes a real server
under load."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.entrypoints.server import PATIENCE, Server, free_port

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/speech_rules.yml"
DASHBOARD = json.loads((ROOT / "deploy/grafana/speech_dashboard.json").read_text("utf-8"))
PANELS = {panel["title"]: panel["targets"] for panel in DASHBOARD["panels"]}
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text("utf-8"))
VARIABLES = {"$__rate_interval": "30s", "$model": ".*", "$instance": ".*"}
SPEECH = "/v1/audio/speech"

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus is not installed (Debian's package has promtool too)",
)


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_well_formed() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(RULES))


def histogram(name: str, seconds: float, bounds: tuple[str, ...]) -> dict[str, str]:
    """Series of a histogram in which every value is `seconds`, one a second."""
    return {
        f'vllm:{name}_bucket{{instance="a", le="{bound}"}}': (
            "0+60x60" if seconds <= float(bound) else "0x60"
        )
        for bound in bounds
    }


BOUNDS = ("0.1", "1.0", "5.0", "+Inf")
GOOD = {
    'up{job="unison", instance="a"}': "1x60",
    'vllm:request_success_total{finished_reason="error", instance="a"}': "0x60",
    'vllm:request_success_total{finished_reason="stop", instance="a"}': "0+60x60",
    'vllm:audio_underruns_total{instance="a"}': "0x60",
    'vllm:audio_seconds_total{instance="a"}': "0+600x60",
    'vllm:num_requests_waiting{instance="a"}': "0x60",
    'vllm:num_requests_running{instance="a"}': "5x60",
    'vllm:admission_rejections_total{instance="a"}': "0x60",
    'vllm:num_preemptions_total{instance="a"}': "0x60",
    **histogram("time_to_first_audio_seconds", 0.1, BOUNDS),
    **histogram("audio_real_time_factor", 0.1, BOUNDS),
    **histogram("audio_inter_chunk_seconds", 0.1, BOUNDS),
}
BAD: dict[str, dict[str, str]] = {
    "SpeechServerDown": {'up{job="unison", instance="a"}': "0x60"},
    "SpeechRequestsFail": {
        'vllm:request_success_total{finished_reason="error", instance="a"}': "0+2x60"
    },
    "SpeechFirstAudioLate": histogram("time_to_first_audio_seconds", 5, BOUNDS),
    "SpeechUnderruns": {'vllm:audio_underruns_total{instance="a"}': "0+30x60"},
    "SpeechSlowerThanRealTime": histogram("audio_real_time_factor", 5, BOUNDS),
    "SpeechGaps": histogram("audio_inter_chunk_seconds", 5, BOUNDS),
    "SpeechQueueLong": {'vllm:num_requests_waiting{instance="a"}': "6x60"},
    "SpeechRequestsTurnedAway": {'vllm:admission_rejections_total{instance="a"}': "0+1x60"},
    "SpeechPreemptions": {'vllm:num_preemptions_total{instance="a"}': "0+12x60"},
}


def firing(series: dict[str, str], alert: str, is_firing: bool) -> dict[str, Any]:
    """What promtool is to find of an alert after 40 minutes of these series."""
    labels = {"severity": "x", "instance": "a"}
    rule = RULES.read_text("utf-8").partition(f"alert: {alert}\n")[2].partition("- alert:")[0]
    severity = re.search(r"severity: (\w+)", rule)
    assert severity is not None
    labels["severity"] = severity[1]
    if alert == "SpeechServerDown":
        labels["job"] = "unison"
    expression = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
    found = {"labels": expression[:-1] + "".join(f', {k}="{v}"' for k, v in labels.items()) + "}"}
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": "40m",
                "exp_samples": [found | {"value": 1}] if is_firing else [],
            }
        ],
    }


def test_each_alert_fires_when_it_should_and_no_other(tmp_path: Path) -> None:
    assert set(BAD) == set(ALERTS)
    tests = [firing(GOOD, alert, False) for alert in ALERTS]
    for cause, series in BAD.items():
        tests += [firing(GOOD | series, alert, alert == cause) for alert in ALERTS]
    # JSON is YAML.
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": tests}))
    promtool("test", "rules", str(file))


@contextlib.contextmanager
def prometheus(server: Server, folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes a server every second; its address."""
    target = server.url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "unison", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextlib.contextmanager
def load(server: Server) -> Iterator[None]:
    """Guided and unguided requests, until the context ends."""
    is_over = threading.Event()

    def ask(scale: float) -> None:
        body = json.dumps({"input": "hello there", "max_tokens": 100, "guidance_scale": scale})
        while not is_over.is_set():
            assert server.request(SPEECH, body.encode())[0] == 200

    threads = [threading.Thread(target=ask, args=(scale,)) for scale in (1.0, 3.0)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def ask(url: str, path: str, **fields: str) -> Any:
    """What Prometheus answers; None while it is not up."""
    query = urllib.parse.urlencode(fields)
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=PATIENCE) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        if error.code == 503:
            return None
        raise AssertionError(error.read()) from None
    except urllib.error.URLError:
        return None


def expression(text: str) -> str:
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text
    return text


@pytest.mark.slow
def test_every_panel_shows_a_server_under_load(server: Server, tmp_path: Path) -> None:
    left = {
        f"{title}: {target['legendFormat']}": expression(target["expr"])
        for title, targets in PANELS.items()
        for target in targets
    }
    assert len(left) > 2 * len(ALERTS)
    pause = threading.Event()
    with prometheus(server, tmp_path) as url, load(server):
        for _ in range(PATIENCE):
            for name, query in list(left.items()):
                found = ask(url, "query", query=query)
                values = [float(one["value"][1]) for one in found["result"]] if found else []
                if values and not any(map(math.isnan, values)):
                    del left[name]
            if not left:
                break
            pause.wait(1)
        assert not left
        (group,) = ask(url, "rules")["groups"]
    assert {rule["name"]: rule["health"] for rule in group["rules"]} == dict.fromkeys(ALERTS, "ok")
