# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every playbook as AWX runs it: by ansible-runner, from a project with a wrapper for each, with
extra vars as surveys give them.

The hypervisor is this machine with a libvirt of our own; its domains have no system, so what has
to be done in guests is not done here: tests/live does it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from awx_lab import PLAYBOOKS, PROJECT, SURVEYS, answers_to, extra_vars
from compact_lab import allocated, assert_same, image, sha256

MIB = 1 << 20
SECRET = "s3cr3tVN"  # noqa: S105
#: A name that reads as a number, which ansible-core makes of an answer that is nothing else.
OFF = "4711"
#: A domain that nobody has asked for.
OTHER = "awx-other"
HOST = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}


class Run:
    """What ansible-runner leaves behind of a run."""

    def __init__(self, folder: Path, output: str) -> None:
        self.folder = folder
        self.rc = int((folder / "rc").read_text())
        self.status = (folder / "status").read_text()
        self.stdout = (folder / "stdout").read_text()
        self.output = output
        self.events = [
            json.loads(path.read_text()) for path in (folder / "job_events").glob("[0-9]*-*.json")
        ]
        self.events.sort(key=lambda event: event["counter"])

    def of(self, kind: str) -> list[dict]:
        return [event["event_data"] for event in self.events if event["event"] == kind]

    @property
    def stats(self) -> dict:
        """The end: hosts by how they did, and what workflows get."""
        (stats,) = self.of("playbook_on_stats")
        return stats

    def result(self, task: str) -> dict:
        (result,) = (
            event["res"]
            for kind in ("runner_on_ok", "runner_on_failed")
            for event in self.of(kind)
            if event["task"] == task
        )
        return result

    def text(self) -> str:
        """All that is kept of the run, and could be seen by somebody."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return self.output + "".join(path.read_text(errors="replace") for path in files)


@pytest.fixture(scope="module")
def off(lab, tmp_path_factory):
    """A domain that is off, with 24 MiB of zeros on its disk and a secret; its folder."""
    folder = tmp_path_factory.mktemp("awx", numbered=True)
    (folder / "backup").mkdir()
    (folder / "restored").mkdir()
    (folder / "virtio-win.iso").write_bytes(bytes(MIB))
    disk = image(folder / "disk.qcow2")
    lab.virsh("define", str(_domain(folder, OFF, disk)))
    lab.virsh("define", str(_domain(folder, OTHER, folder / "nowhere.qcow2")))
    yield folder
    for name in (OFF, OTHER, f"{OFF}-restored"):
        if name in lab.virsh("list", "--all", "--name").split():
            lab.virsh("undefine", name)


def _domain(folder: Path, name: str, disk: Path) -> Path:
    path = folder / f"{name}.xml"
    path.write_text(f"""
    <domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>
      <os><type arch='x86_64' machine='q35'>hvm</type></os>
      <devices>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
          <source file='{disk}'/><target dev='sda' bus='scsi'/></disk>
        <controller type='scsi' model='virtio-scsi'/>
        <graphics type='vnc' port='-1' autoport='yes' passwd='{SECRET}'/>
      </devices></domain>""")
    return path


@pytest.fixture
def launch(lab, off, tmp_path):
    """Run a playbook of the project, with these answers, as AWX would have it run."""
    shutil.copytree(PROJECT, tmp_path / "project")
    for name in ("inventory", "env"):
        (tmp_path / name).mkdir()
    hypervisor = HOST | {
        "thinvirt_uri": lab.uri,
        "ansible_remote_tmp": str(off / "ansible-tmp"),
        "ansible_async_dir": str(off / "ansible-async"),
        # what a survey does not ask for
        "compact_images_poll_seconds": 1,
        "backup_images_poll_seconds": 1,
        "restore_images_poll_seconds": 1,
    }
    inventory = {
        "kvm_hosts": {"hosts": {"hypervisor": hypervisor}},
        # The guest's part is played by this machine: nothing is written in check mode.
        "kvm_linux_guests": {
            "hosts": {"guest": HOST | {"kvm_host": "hypervisor", "kvm_domain": OFF}}
        },
    }
    (tmp_path / "inventory" / "hosts.json").write_text(json.dumps(inventory))
    (tmp_path / "env" / "settings").write_text(json.dumps({"fact_cache_type": "jsonfile"}))

    number = itertools.count()

    def launch(playbook: str, answers: dict, *options: str) -> Run:
        ident = f"job{next(number)}"
        (tmp_path / "env" / "extravars").write_text(extra_vars(answers))
        (tmp_path / "env" / "cmdline").write_text(" ".join(("--diff", *options)))
        process = subprocess.run(
            ["ansible-runner", "run", tmp_path, "-p", f"{playbook}.yml", "-i", ident],
            env=os.environ | {"ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        run = Run(tmp_path / "artifacts" / ident, process.stdout)
        assert run.rc == process.returncode
        assert run.status == ("successful" if run.rc == 0 else "failed")
        text = run.text()
        assert "Traceback" not in text
        assert SECRET not in text
        assert run.of("runner_on_ok"), run.stdout
        return run

    return launch


#: What is answered besides the surveys' defaults. A playbook that has no survey takes extra vars.
ANSWERS = {
    "compact": {"compact_images_min_reclaim_bytes": MIB, "compact_images_min_free_bytes": 0},
    "reclaim": {"compact_images_min_reclaim_bytes": MIB, "compact_images_min_free_bytes": 0},
    "configure": {
        "kvm_host_manage_packages": "false",
        "kvm_host_manage_services": "false",
        "kvm_host_manage_trim": "false",
    },
    "backup": {
        "backup_images_dest_dir": "{folder}/backup",
        "backup_images_min_free_bytes": 0,
        "backup_images_quiesce": "off",  # and of this a bool
    },
    "restore": {
        "restore_images_src": f"{{folder}}/backup/{OFF}",
        "restore_images_name": f"{OFF}-restored",
        "restore_images_dest_dir": "{folder}/restored",
        "restore_images_min_free_bytes": 0,
    },
    "windows_install_prepare": {"thinvirt_virtio_win_iso": "{folder}/virtio-win.iso"},
}
#: What fails for this domain, and the words in which it does.
REFUSED = {
    "restore": "does not exist",
    "zero_fill": f"{OFF} is off. Nothing was written. Start it first.",
}


def answers(playbook: str, folder: Path) -> dict:
    given = {
        name: value.format(folder=folder) if isinstance(value, str) else value
        for name, value in ANSWERS.get(playbook, {}).items()
    }
    # As people type it: blanks, an empty line, the other line ends; and as nobody should.
    template = "{{ lookup('pipe', 'touch " + str(folder / "pwned") + "') }}*"
    given["thinvirt_domains_lines"] = f"\n  {OFF} \r\nno-such*\n{template}\n"
    return answers_to(playbook, **given) if playbook in SURVEYS else given


def state(lab, folder: Path) -> tuple:
    """What a run could change."""
    made = {name: sorted(os.listdir(folder / name)) for name in ("backup", "restored")}
    disk = folder / "disk.qcow2"
    return lab.virsh("dumpxml", OFF, "--security-info"), made, allocated(disk), sha256(disk)


@pytest.mark.parametrize("playbook", PLAYBOOKS)
@pytest.mark.slow("whole playbooks through ansible-runner")
def test_every_playbook_in_check_mode(lab, off, launch, playbook):
    before = state(lab, off)
    # Guests are played by this machine, which must not be configured as one.
    only = () if playbook in ("zero_fill", "virtio_scsi") else ("--limit=kvm_hosts",)
    run = launch(playbook, answers(playbook, off), "--check", *only)
    assert state(lab, off) == before
    assert not (off / "pwned").exists()
    assert "ansible_job_id" not in run.text()  # older cores refuse async in check mode
    if playbook in REFUSED:
        assert run.rc == 2
        assert REFUSED[playbook] in run.stdout
    else:
        assert run.rc == 0, run.stdout
        assert "FAILED" not in run.stdout
    if playbook == "audit":
        (found,) = run.stats["artifact_data"]["thinvirt_findings"].values()
        assert found["errors"] == 1  # no discard, which configure sets below


def test_compact_gives_back_and_says_how_much(off, launch):
    disk = off / "disk.qcow2"
    before = allocated(disk)
    run = launch("compact", answers("compact", off) | {"thinvirt_domains_lines": OFF})
    assert run.rc == 0, run.stdout
    freed = before - allocated(disk)
    assert freed >= 23 * MIB
    result = run.result("Compact what is worth it")
    assert result["changed"]
    assert result["freed_bytes"] == freed
    assert [domain["name"] for domain in result["domains"]] == [OFF]
    # It was polled: the work did not depend on the connection, and nothing of it is left.
    assert result["ansible_job_id"]
    assert list((off / "ansible-async").iterdir()) == []
    assert run.stats["changed"] == {"hypervisor": 1}
    assert run.stats["artifact_data"] == {"thinvirt_freed_bytes": {"hypervisor": freed}}


@pytest.mark.slow("whole playbooks through ansible-runner")
def test_configure_sets_discard_and_audit_sees_it(lab, off, launch):
    assert "discard='unmap'" not in lab.virsh("dumpxml", OFF)
    run = launch("configure", answers("configure", off), "--limit=kvm_hosts")
    assert run.rc == 0, run.stdout
    assert "discard='unmap'" in lab.virsh("dumpxml", OFF)
    assert run.stats["artifact_data"] == {"thinvirt_restart_required": {"hypervisor": []}}
    run = launch("audit", answers("audit", off))
    (found,) = run.stats["artifact_data"]["thinvirt_findings"].values()
    assert found["errors"] == 0


@pytest.mark.slow("whole playbooks through ansible-runner")
def test_a_report_of_what_was_asked_for(off, launch):
    folder = off / "report"
    run = launch("report", {"thinvirt_domains_lines": OFF, "thin_report_dir": str(folder)})
    assert run.rc == 0, run.stdout
    report = json.loads((folder / "report.json").read_text())
    assert [domain["domain"] for domain in report["domains"]] == [OFF]
    assert (folder / "report.html").is_file()


@pytest.mark.slow("whole playbooks through ansible-runner")
def test_backup_and_restore(lab, off, launch):
    run = launch("backup", answers("backup", off))
    assert run.rc == 0, run.stdout
    ((version,),) = run.stats["artifact_data"]["thinvirt_backups"].values()
    assert Path(version).parent == off / "backup" / OFF
    run = launch("restore", answers("restore", off))
    assert run.rc == 0, run.stdout
    assert f"{OFF}-restored" in lab.virsh("list", "--all", "--name").split()
    (restored,) = (off / "restored").glob("*.qcow2")
    assert_same(off / "disk.qcow2", restored)
