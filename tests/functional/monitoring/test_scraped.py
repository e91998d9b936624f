# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module writes, on its whole way: node_exporter, Prometheus, each query of the dashboard.

Both are Debian's programs, on ports of the loopback device, with nothing but our file to tell.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from metrics_parts import (
    GIB,
    HOSTILE_NAMES,
    audit,
    compaction,
    disk,
    domain,
    file_system,
    finding,
    trim,
)
from prometheus_client.parser import text_string_to_metric_families
from support import run_module

DASHBOARD = Path(__file__).parents[3] / "docs" / "monitoring" / "dashboard.json"
#: What Grafana puts in for its variables.
VARIABLES = {"$__range": "1h", "$__interval": "1h", "$instance": ".*"}
CONFIG = """
global: {scrape_interval: 500ms, scrape_timeout: 500ms}
scrape_configs:
  - job_name: node
    static_configs: [{targets: ["127.0.0.1:%d"]}]
"""


def fetch(url, **query):
    address = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - ours
        return answer.read().decode()


def until(condition, *, what, patience=60):
    """The first true value that the condition has; a server that comes up may fail until then."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if value := condition():
                return value
        time.sleep(0.2)
    raise AssertionError(f"not within {patience} s: {what}")


@contextlib.contextmanager
def server(log, argv, *, ready):
    """A server on a free port of its own: ``PORT`` in argv and ``ready``; its address."""
    for _attempt in range(5):  # somebody else may take the port before it does
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        command = [word.replace("PORT", str(port)) for word in argv]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        try:
            until(
                lambda at=url, of=process: of.poll() is not None or fetch(at + ready),
                what=f"{argv[0]} answers",
            )
            if process.poll() is None:
                yield port
                return
        finally:
            process.kill()
            process.wait(30)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that node_exporter reads, with a fleet's worth of what may be in it."""
    folder = tmp_path_factory.mktemp("textfile")
    broken = disk("vdb", verdict="broken", findings=[finding("discard-ignored")])
    domains = [domain(name, disk(), broken) for name in HOSTILE_NAMES]
    result = run_module(
        "thin_metrics",
        dest=str(folder / "thinvirt.prom"),
        audit=audit(*domains, file_systems=[file_system(), file_system("/more")]),
        trims=[*(trim(name) for name in HOSTILE_NAMES), *map(compaction, HOSTILE_NAMES)],
    )
    assert not result["failed"], result["msg"]
    # What a run that is killed leaves behind: node_exporter must not see it.
    (folder / "thinvirt.prom.tmp").write_text("thinvirt_fake{")
    return folder


@pytest.fixture(scope="module")
def exporter(folder, tmp_path_factory):
    """The port of a node_exporter that reads it, and nothing else."""
    argv = [
        "prometheus-node-exporter",
        "--web.listen-address=127.0.0.1:PORT",
        "--collector.disable-defaults",
        "--web.disable-exporter-metrics",
        "--collector.textfile",
        f"--collector.textfile.directory={folder}",
    ]
    log = tmp_path_factory.mktemp("exporter") / "log"
    with server(log, argv, ready="/metrics") as port:
        yield port


@pytest.fixture(scope="module")
def prometheus(exporter, tmp_path_factory):
    """The address of a Prometheus that has scraped it at least three times."""
    state = tmp_path_factory.mktemp("prometheus")
    (state / "prometheus.yml").write_text(CONFIG % exporter)
    argv = [
        "prometheus",
        f"--config.file={state / 'prometheus.yml'}",
        f"--storage.tsdb.path={state / 'data'}",
        "--web.listen-address=127.0.0.1:PORT",
    ]
    with server(state / "log", argv, ready="/-/ready") as port:
        url = f"http://127.0.0.1:{port}"
        count = "count_over_time(thinvirt_audit_timestamp_seconds[1h]) >= 3"
        until(lambda: query(url, count), what="it has scraped three times")
        yield url


def query(url, expr):
    answer = json.loads(fetch(f"{url}/api/v1/query", query=expr))
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def samples(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("thinvirt_")
    }


def test_node_exporter_tells_all_that_is_in_the_file(exporter, folder):
    told = fetch(f"http://127.0.0.1:{exporter}/metrics")
    assert "node_textfile_scrape_error 0\n" in told
    assert samples(told) == samples((folder / "thinvirt.prom").read_bytes().decode())
    assert "thinvirt_fake" not in re.sub('".*?"', "", told)
    assert "# TYPE thinvirt_domain_freed_bytes_total counter\n" in told


def test_names_arrive_as_they_are(prometheus):
    found = query(prometheus, "thinvirt_domain_running")
    # An empty label is as good as none.
    assert {each["metric"].get("domain", "") for each in found} == set(HOSTILE_NAMES)


def test_figures_arrive(prometheus):
    (found,) = query(prometheus, 'thinvirt_filesystem_size_bytes{mountpoint="/more"}')
    assert int(found["value"][1]) == 100 * GIB


def expressions():
    """Every query of the dashboard with the title of its panel, its variables filled in."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"]
            for variable, value in VARIABLES.items():
                expr = expr.replace(variable, value)
            yield pytest.param(expr, id=f"{panel['title']} {target['refId']}")


@pytest.mark.parametrize("expr", list(expressions()))
def test_every_query_of_the_dashboard_has_an_answer(prometheus, expr):
    assert "$" not in expr
    assert query(prometheus, expr), expr


def test_queries_are_valid_to_promtool(tmp_path):
    """promtool parses expressions of rules, so they are made rules."""
    exprs = [param.values[0] for param in expressions()]
    assert len(exprs) > 10
    rules = [{"record": f"dashboard:{n}", "expr": expr} for n, expr in enumerate(exprs)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(exprs)} rules found" in checked.stdout


def test_the_dashboard_can_be_imported_anywhere():
    """No source of data is named, only the variable; panels fit and do not overlap."""
    text = DASHBOARD.read_text(encoding="utf-8")
    dashboard = json.loads(text)
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == (
        "datasource",
        "prometheus",
    )
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"${datasource}", dashboard["uid"]}
    assert dashboard["schemaVersion"] >= 41
    assert "id" not in dashboard
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y) for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }  # fmt: skip
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"]


def test_every_metric_of_rules_dashboard_and_readme_exists(folder):
    written = {name for name, _labels in samples((folder / "thinvirt.prom").read_bytes().decode())}
    written.add("thinvirt_filesystem_guest_used_bytes")  # not known in this audit
    files = {each: each.read_text(encoding="utf-8") for each in DASHBOARD.parent.iterdir()}
    named = {
        name
        for text in files.values()
        for name in re.findall(
            r"\bthinvirt_(?:audit|disk|domain|filesystem|finding|pool)_\w+", text
        )
    }
    assert named <= written
    readme = files[DASHBOARD.parent / "README.md"]
    assert not [name for name in written if f"`{name}`" not in readme]
