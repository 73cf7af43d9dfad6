"""The doctor names each problem and what to do, and tells no secret."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from kagglekit import doctor
from kagglekit.doctor import Finding
from tests.kaggle_server import TOKEN, Server

SECRET = "KGAT_0123456789abcdef"
VARIABLES = (
    "KAGGLE_API_TOKEN",
    "KAGGLE_USERNAME",
    "KAGGLE_KEY",
    "KAGGLE_CONFIG_DIR",
    "KAGGLE_API_ENVIRONMENT",
    "XDG_CONFIG_HOME",
    *(f"KAGGLEKIT_{name}" for name in ("DATA", "RUNS", "SUBMISSIONS", "CACHE", "COMPETITIONS")),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> Path:
    """An empty home with a project in it, and none of this machine's settings."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "competitions").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def private(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def kaggle_json(home: Path, mode: int = 0o600) -> Path:
    content = json.dumps({"username": "someone", "key": SECRET})
    return private(home / ".kaggle" / "kaggle.json", content, mode)


def credentials() -> Finding:
    (finding,) = doctor._credentials()
    return finding


def shown(findings: list[Finding], width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(doctor.table(findings))
    return capture.get() + json.dumps(doctor.as_json(findings))


def test_an_examination_covers_everything_and_leaves_nothing_behind(home: Path):
    before = sorted(home.rglob("*"))
    findings = doctor.examine()
    names = {finding.name for finding in findings}
    assert names > {"Python", "kagglekit", "torch", "precision", "CPU", "C++ compiler", "memory"}
    assert names > {"data", "runs", "submissions", "cache", "competitions", "Kaggle credentials"}
    assert any(name.startswith("GPU") for name in names)
    assert not [finding for finding in findings if "could not be examined" in finding.found]
    assert all(finding.remedy for finding in findings if finding.status != "ok")
    assert sorted(home.rglob("*")) == before


def test_every_line_of_the_table_fits_eighty_columns():
    findings = [Finding("runs", "problem", "a " * 90, "do " * 60), Finding("torch", "ok", "2.4")]
    told = shown(findings).rsplit("{", 3)[0]
    assert max(map(len, told.splitlines())) <= 80
    assert "-> do do" in told


def test_the_json_counts_the_problems():
    findings = [Finding("a", "ok", "x"), Finding("b", "problem", "y", "z")]
    told = doctor.as_json(findings)
    assert told["problems"] == 1
    assert doctor.has_problem(findings)
    assert told["findings"][1] == {"name": "b", "status": "problem", "found": "y", "remedy": "z"}
    assert not doctor.has_problem(findings[:1])


PLANTS = {
    "a token": {"KAGGLE_API_TOKEN": SECRET},
    "a token with a blank": {"KAGGLE_API_TOKEN": f"{SECRET} {SECRET}"},
    "a token like a path": {"KAGGLE_API_TOKEN": f"/{SECRET}"},
    "a very long token": {"KAGGLE_API_TOKEN": SECRET * 500},
    "user and key": {"KAGGLE_USERNAME": SECRET, "KAGGLE_KEY": SECRET},
    "a key alone": {"KAGGLE_KEY": SECRET},
    "a wrong place": {"KAGGLE_API_ENVIRONMENT": SECRET},
    "none": {},
}


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("form", ["whole", "damaged"])
def test_no_secret_is_told_wherever_it_is(home: Path, monkeypatch, plant, form):
    for name, value in PLANTS[plant].items():
        monkeypatch.setenv(name, value)
    damage = "" if form == "whole" else "{broken: "
    private(home / ".kaggle" / "access_token", damage + SECRET, 0o644)
    private(home / ".kaggle" / "kaggle.json", damage + json.dumps({"key": SECRET}), 0o644)
    private(home / ".kaggle" / "credentials.json", damage + json.dumps({"refresh_token": SECRET}))
    findings = [*doctor._credentials(), *doctor._kaggle_client()]
    for part in (SECRET, SECRET[:8], SECRET[-8:]):
        assert part not in shown(findings, width=20_000)


def test_a_check_that_fails_tells_the_kind_of_error_alone():
    def fails():
        raise RuntimeError(SECRET)

    (finding,) = doctor._guarded("x", fails)
    assert finding.status == "problem"
    assert "RuntimeError" in finding.found
    assert SECRET not in shown([finding])


def test_the_sources_of_credentials_come_in_the_client_s_order(home: Path, monkeypatch):
    assert credentials().status == "note"
    assert "access_token" in credentials().remedy
    oauth = json.dumps({"refresh_token": SECRET})
    private(home / ".kaggle" / "credentials.json", oauth)
    assert credentials().found.startswith("~/.kaggle/credentials.json (OAuth) is in force")
    kaggle_json(home)
    assert credentials().found.startswith(
        "~/.kaggle/kaggle.json is in force; not used: ~/.kaggle/c"
    )
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    assert credentials().found.startswith("KAGGLE_USERNAME with ~/.kaggle/kaggle.json is in force")
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    assert credentials().found.startswith("KAGGLE_USERNAME with KAGGLE_KEY is in force")
    private(home / ".kaggle" / "access_token.txt", SECRET)
    assert credentials().found.startswith("~/.kaggle/access_token.txt is in force")
    token = private(home / "token", SECRET + "\n")
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(token))
    assert credentials().found.startswith("the file that KAGGLE_API_TOKEN names is in force")
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    assert credentials().found.startswith("KAGGLE_API_TOKEN (a value) is in force; not used: ~")
    assert credentials().status == "ok"


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"KAGGLE_API_TOKEN": "two words"}, "no token"),
        ({"KAGGLE_API_TOKEN": "/no/such/file"}, "no such file"),
        ({"KAGGLE_KEY": SECRET}, "no username"),
        ({"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": ""}, "no key"),
    ],
)
def test_credentials_of_the_wrong_form_are_a_problem(monkeypatch, variables, fault):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    finding = credentials()
    assert finding.status == "problem"
    assert fault in finding.found


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_key_that_others_can_read_is_a_problem_with_the_command_to_mend_it(home: Path):
    path = kaggle_json(home, 0o644)
    assert credentials().status == "problem"
    assert credentials().remedy == f"`chmod 600 {path}`"
    path.chmod(0o600)
    assert credentials().status == "ok"


def test_an_empty_variable_beats_a_sound_kaggle_json(home: Path, monkeypatch):
    kaggle_json(home)
    monkeypatch.setenv("KAGGLE_KEY", "")
    assert credentials().status == "problem"
    assert "no key" in credentials().found


def test_kaggle_json_is_looked_for_where_the_client_looks(home: Path, monkeypatch):
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home / "elsewhere"))
    content = json.dumps({"username": "someone", "key": SECRET})
    private(home / "elsewhere" / "kaggle.json", content)
    assert credentials().found == "~/elsewhere/kaggle.json is in force"


@pytest.mark.parametrize("name", ["runs", "submissions", "cache"])
def test_a_folder_that_cannot_be_written_is_named(home: Path, monkeypatch, name):
    (home / "in_the_way").write_text("a file")
    folder = home / "in_the_way" / name
    monkeypatch.setenv(f"KAGGLEKIT_{name.upper()}", str(folder))
    findings = {finding.name: finding for finding in doctor._folders()}
    assert findings[name].status == "problem"
    assert str(folder) in findings[name].found
    assert "in the way" in findings[name].found
    assert f"$KAGGLEKIT_{name.upper()}" in findings[name].remedy
    assert all(f.status != "problem" for other, f in findings.items() if other != name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_named(home: Path):
    (home / "runs").mkdir(mode=0o500)
    findings = {finding.name: finding for finding in doctor._folders()}
    assert findings["runs"].status == "problem"
    assert "ermission" in findings["runs"].found


def test_data_that_can_only_be_read_are_no_problem(home: Path, monkeypatch):
    (home / "data").mkdir()

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    (finding,) = doctor._data()
    assert finding.status == "note"
    assert "reading works" in finding.remedy


def test_a_full_disk_is_a_problem_and_a_nearly_full_one_a_note(home: Path, monkeypatch):
    usage = type(doctor.shutil.disk_usage(home))
    for free, status in ((1 << 20, "problem"), (1 << 30, "note"), (1 << 40, "ok")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: usage(1, 1, free))
        assert doctor._writable("runs", home, "$X").status == status


def test_competitions_that_are_missing_are_a_problem(home: Path):
    (home / "competitions").rmdir()
    findings = {finding.name: finding for finding in doctor._folders()}
    assert findings["competitions"].status == "problem"
    assert "$KAGGLEKIT_COMPETITIONS" in findings["competitions"].remedy


def test_a_missing_or_old_package_is_a_problem_with_the_command_to_install_it(monkeypatch):
    wanted = ["torch>=2.4", "rich (>=13.0)", "absent[extra]>=1.2; python_version>'3'", "bare"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: [*wanted, "pytest; extra == 'dev'"])
    assert doctor._wanted() == [("torch", "2.4"), ("rich", "13.0"), ("absent", "1.2"), ("bare", "")]
    versions = {"kagglekit": "1.0", "torch": "2.3.1+cu121", "rich": "13.0.0", "bare": "0.1"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    findings = {finding.name: finding for finding in doctor._packages()}
    assert "bare" in findings
    assert findings["rich"].status == "ok"
    assert findings["torch"].found == "2.3.1+cu121 is older than 2.4"
    assert findings["absent"].status == "problem"
    assert 'pip install "absent>=1.2"' in findings["absent"].remedy


@pytest.mark.parametrize(
    ("built_for", "capability", "served"),
    [
        (["sm_80", "sm_90"], (8, 6), True),
        (["sm_80", "sm_90"], (7, 5), False),
        (["sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (9, 0), True),
        (["sm_90a", "sm_120"], (12, 0), True),
    ],
)
def test_a_gpu_is_served_by_kernels_of_its_own_generation_or_older_ptx(
    built_for, capability, served
):
    assert doctor._has_kernels(built_for, capability) is served


def test_a_compiler_that_cannot_compile_is_noted(home: Path, monkeypatch):
    compiler = private(home / "broken-g++", "#!/bin/sh\nexit 1\n", 0o700)
    monkeypatch.setenv("CXX", str(compiler))
    (finding,) = doctor._compiler()
    assert finding.status == "note"
    assert str(compiler) in finding.found
    monkeypatch.setenv("CXX", "no-such-compiler")
    (finding,) = doctor._compiler()
    assert finding.status == "note"
    assert "not found" in finding.found


def test_the_credentials_in_force_are_tried(home: Path, monkeypatch):
    assert list(doctor._login()) == []  # there are none
    with Server() as kaggle:
        for name, value in kaggle.environment().items():
            monkeypatch.setenv(name, value)
        assert [(f.name, f.status) for f in doctor._login()] == [("Kaggle login", "ok")]
        monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
        (finding,) = doctor._login()
        assert (finding.status, "KAGGLE_API_TOKEN (a value)" in finding.remedy) == ("problem", True)
        assert SECRET not in shown([finding], width=20_000)
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
        kaggle.fail("ListCompetitions", "500 before")
        assert [finding.status for finding in doctor._login()] == ["note"]
    assert [finding.status for finding in doctor._login()] == ["note"]


def test_the_kaggle_package_is_never_imported():
    program = (
        "import sys; from kagglekit import doctor; assert 'torch' not in sys.modules;"
        "list(doctor._kaggle_client()); list(doctor._credentials());"
        "sys.exit('kaggle' in sys.modules or 'kagglesdk' in sys.modules)"
    )
    root = str(Path(doctor.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0
