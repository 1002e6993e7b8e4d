"""The command line: everything wrong is said, nothing secret is, and the exit status tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from authservice import __version__
from authservice.cli import main
from authservice.settings import show
from tests.test_settings import PEM, REFUSED, REQUIRED
from tests.test_settings_rules import KUBEFLOW_1_8


def run(capsys: pytest.CaptureFixture[str], *argv: str, **environ: str) -> tuple[int, str]:
    status = main(argv, environ)
    printed = capsys.readouterr()
    return status, printed.out + printed.err


@pytest.fixture
def good(tmp_path: Path) -> dict[str, str]:
    return {**REQUIRED, "SESSION_STORE_PATH": str(tmp_path / "sessions.db")}


def test_all_well(capsys: pytest.CaptureFixture[str], good: dict[str, str], tmp_path: Path) -> None:
    status, text = run(capsys, "check-config", **good)
    assert status == 0
    assert text.startswith("AuthService would start.")
    assert "/authservice/oidc/callback" in text and str(tmp_path) in text
    assert list(tmp_path.iterdir()) == []


def test_warnings_do_not_change_the_exit_status(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, text = run(capsys, "check-config", **KUBEFLOW_1_8, SESSION_STORE_PATH=str(tmp_path / "data.db"))
    assert status == 0
    assert text.startswith("3 warnings:\n\n  - PORT: ") and "AuthService would start." in text


def test_problems_and_warnings_come_together(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(
        capsys,
        "check-config",
        OIDC_CLIENT_ID="x",
        **{name: text for name, text in REQUIRED.items() if name != "CLIENT_ID"},
    )
    assert status == 2
    assert "1 warning:\n\n  - OIDC_CLIENT_ID: has no effect. The setting is called CLIENT_ID." in text
    assert "1 problem:\n\n  - CLIENT_ID: not set." in text
    assert "AuthService would not start." in text


def test_files_are_looked_at_too(
    capsys: pytest.CaptureFixture[str], good: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "sessions.db").write_bytes(bytes(16) + b"\xed\xda\x0c\xed" + bytes(100))
    status, text = run(capsys, "check-config", **good, CA_BUNDLE="/no/such/file", TEMPLATE_PATH="/no/folder")
    assert status == 2
    assert "2 problems:" in text and "CA_BUNDLE: " in text and "TEMPLATE_PATH: " in text
    assert "1 warning:" in text and "BoltDB" in text


def test_every_setting_wrong_at_once_prints_all_and_no_secret(tmp_path: Path) -> None:
    """With a real process, its real environment and its exit status."""
    hidden = "zQ7-never-to-be-seen-9Kd"
    file = tmp_path / "pem"
    file.write_text(PEM.replace("MIIE", hidden))
    wrong = {name: texts[-1] for name, texts in REFUSED.items()} | {
        "CLIENT_SECRET": hidden,
        "CLIENT_SECRET_FILE": str(file),
        "CLIENT_PRIVATE_KEY": f"{hidden} is not PEM",
        "SESSION_STORE_REDIS_ADDR": f"redis://ann:{hidden}@redis.example:port",
        "SESSION_STORE_REDIS_PWD": hidden,
        "SESSION_STORE_REDIS_PWD_FILE": str(file),
        "SECRET_KEYS": hidden[:15],
        "SERVER_PORT": hidden,
        "OIDC_PROVIDER": f"https://ann:{hidden}@idp.example",
        "SKIP_AUTH_URLS": f"/,/{hidden}",
        "SESSION_STORE_REDIS_PASSWORD": hidden,
    }
    ran = subprocess.run(
        [sys.executable, "-m", "authservice.cli", "check-config"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **wrong},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 2, ran.stderr
    told = {line.strip(" -").partition(":")[0] for line in ran.stdout.splitlines() if line.startswith("  - ")}
    assert told >= wrong.keys() - {
        "CLIENT_SECRET_FILE",
        "SESSION_STORE_REDIS_PWD_FILE",  # told under the setting's own name
        "SESSION_STORE_PATH",  # empty is wrong for one kind of store, and the kind cannot be read
    }
    assert "CLIENT_ID" in told
    assert hidden not in ran.stdout + ran.stderr and hidden[:15] not in ran.stdout + ran.stderr


def test_the_table_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, "settings")
    assert status == 0
    assert "OIDC_PROVIDER  [required]" in text and "Or CLIENT_SECRET_FILE" in text
    assert "GROUPS_ALLOWLIST  [*]" in text and "HOMEPAGE_URL  [prefix + /site/homepage]" in text
    assert "`" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_table_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "settings", "--markdown") == (0, show.markdown())


def test_the_table_goes_into_a_document_between_its_markers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"before\n{show.BEGIN}\nold\n{show.END}\nafter\n")
    assert run(capsys, "settings", "--markdown", "--write", str(document)) == (
        0,
        f"{document}: brought up to date\n",
    )
    assert document.read_text() == f"before\n{show.BEGIN}\n\n{show.markdown()}\n{show.END}\nafter\n"
    assert run(capsys, "settings", "--markdown", "--write", str(document)) == (
        0,
        f"{document}: is up to date\n",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        show.BEGIN,
        show.END,
        f"{show.END}{show.BEGIN}",
        f"{show.BEGIN}{show.END}{show.BEGIN}{show.END}",
    ],
)
def test_a_document_without_markers_is_left_alone(
    text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = tmp_path / "README.md"
    document.write_text(text)
    status, said = run(capsys, "settings", "--markdown", "--write", str(document))
    assert status == 2 and "must stand there once" in said
    assert document.read_text() == text


def test_wrong_uses_say_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, said = run(capsys, "settings", "--markdown", "--write", str(tmp_path / "absent"))
    assert status == 2 and "No such file" in said
    status, said = run(capsys, "settings", "--write", str(tmp_path / "absent"))
    assert status == 2 and "--markdown" in said
    for argv in ([], ["serve"]):
        with pytest.raises(SystemExit) as left:
            main(argv, {})
        assert left.value.code == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"], {})
    assert left.value.code == 0
    assert capsys.readouterr().out == f"authservice {__version__}\n"
