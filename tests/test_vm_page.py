"""The README and the page about a machine under systemd, followed to a protected page.

Every command is taken out of the Markdown and run as it stands there, in its order, with the files that are
shipped. Replaced are only places (a folder stands for ``/``), ports, and the site's name; what systemd, sudo and an
editor would do is done by `Machine`, from the unit as it was installed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests
import trustme

from authservice.settings.table import ROWS
from tests.e2e.processes import Program, listens
from tests.ports import free_port
from tests.programs import require
from tests.provider import FakeProvider
from tests.test_wheel import SOURCES
from tests.waiting import until

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/gateways/vm.md").read_text()
README = (ROOT / "README.md").read_text()
SECRET = "what the provider gave: $HOME 'quoted'"

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Mode": "navigate"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def own_environment() -> dict[str, str]:
    """That of this process, where pip finds its registry, without settings of the service."""
    ours = {row.name for row in ROWS} | {f"{row.name}_FILE" for row in ROWS} | {"PYTHONPATH", "VIRTUAL_ENV"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    return {name: value for name, value in os.environ.items() if name not in ours} | {"PATH": path}


class Machine:
    """A folder that stands for ``/``, with a checkout, an application, a certificate and a running nginx."""

    PLACES = re.compile(
        r"(?<![\w.])(/opt/authservice|/etc/(?:authservice|nginx|systemd/system|ssl/app\.example\.com)"
        r"|/usr/local/bin/authservice|/var/lib/(?:authservice|private/authservice)|/run/credentials)"
    )

    def __init__(self, folder: Path, provider: FakeProvider, authority: trustme.CA) -> None:
        self.root, self.provider = folder / "root", provider
        self.ports = {usual: str(free_port()) for usual in ("8080", "8082", "9000", "10000", "443")}
        self.site = f"https://localhost:{self.ports['443']}"
        self.environment = own_environment()
        self.environment["PATH"] = f"{self.root}/usr/local/bin:{self.environment['PATH']}"
        for name in ("etc/systemd/system", "etc/nginx/conf.d", "etc/ssl/app.example.com", "usr/local/bin", "opt"):
            (self.root / name).mkdir(parents=True)
        certificate = authority.issue_cert("localhost")
        held = self.root / "etc/ssl/app.example.com"
        certificate.private_key_pem.write_to_path(str(held / "privkey.pem"))
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(str(held / "fullchain.pem"), append=True)
        self.authority = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self.checkout = folder / "checkout"
        self._check_out()
        self.application: Program | None = None
        self.service: Program | None = None
        self.nginx = self._nginx(folder)

    def _check_out(self) -> None:
        self.checkout.mkdir()
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, self.checkout / name)
        for file in (*(self.checkout / "deploy/systemd").iterdir(), *(self.checkout / "deploy/nginx").iterdir()):
            file.write_text(self.here(file.read_text()))

    def _nginx(self, folder: Path) -> Program:
        """As Debian's package starts it: everything of conf.d in the http block, and nothing there yet."""
        scratch = folder / "nginx"
        scratch.mkdir()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "\n".join(f"{kind}_temp_path {scratch}/{kind};" for kind in kinds)
        # Its workers have to reach our folder, also where the tests run as root.
        user = "user root;" if os.getuid() == 0 else ""
        (self.root / "etc/nginx/nginx.conf").write_text(
            f"{user} worker_processes 1; pid {scratch}/pid; error_log stderr;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}\ninclude {self.root}/etc/nginx/conf.d/*.conf;\n}}\n"
        )
        self._nginx_command = [require("nginx"), "-p", str(scratch), "-e", "stderr"]
        self._nginx_command += ["-c", f"{self.root}/etc/nginx/nginx.conf"]
        program = Program("nginx", [*self._nginx_command, "-g", "daemon off;"], scratch / "log")
        program.start(lambda: (scratch / "pid").exists())
        return program

    def here(self, text: str) -> str:
        """A text of the page or of a shipped file with this machine's places, ports and name."""
        text = re.sub(r"\b(8080|8082|9000|10000|443)\b", lambda found: self.ports[found[1]], text)
        text = text.replace("https://app.example.com", self.site)
        text = text.replace("server_name app.example.com", "server_name localhost")
        return self.PLACES.sub(lambda found: f"{self.root}{found[1]}", text)

    # --- what a person types -----------------------------------------------------------------

    def types(self, block: str) -> str:
        """A block of commands, one a line; what they printed."""
        if "http.server" in block:
            log = self.root.parent / "application.log"
            self.application = Program("application", ["sh", "-c", self.here(block)], log, env=self.environment)
            self.application.start(lambda: listens(int(self.ports["9000"])))
            return ""
        return "".join(self._line(line) for line in block.splitlines())

    def _line(self, line: str) -> str:
        said = ""
        for part in self.here(line).partition("  #")[0].split(" && "):
            words = shlex.split(part.replace("sudo ", ""))
            if words[0] == "systemctl":
                self._systemctl(*words[1:])
            elif words[0] == "sudoedit":
                self._edit(Path(words[1]))
            elif words[0] != "apt-get":
                said += self._runs(" ".join(map(shlex.quote, words)))
        return said

    def _runs(self, command: str) -> str:
        if command.startswith("nginx "):
            command = shlex.join(self._nginx_command) + command.removeprefix("nginx")
        done = subprocess.run(
            ["sh", "-ec", command], cwd=self.checkout, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        if done.returncode != 0 and "No matching distribution found" in done.stdout:
            without_a_registry = "pip reaches no package registry"
            if os.environ.get("REQUIRE_PROGRAMS") == "1":
                pytest.fail(f"{without_a_registry}:\n{done.stdout}")
            pytest.skip(without_a_registry)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    # --- what an editor and systemd do for them -------------------------------------------------

    def _edit(self, file: Path) -> None:
        text = file.read_text()
        if file.name == "client-secret":
            text = f"{SECRET}\n"
        elif file.name == "authservice.env":
            for name, value in (("OIDC_PROVIDER", self.provider.issuer), ("GATEWAY", "nginx")):
                text, found = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.M)
                assert found == 1, name
            # An authority of one's own, as the page has it; and the default path is below /.
            trusted = self.root / "etc/authservice/ca.pem"
            shutil.copy(self.authority, trusted)
            text += f"CA_BUNDLE={trusted}\nSESSION_STORE_PATH={self.root}/var/lib/authservice/data.db\n"
        else:
            (theirs,) = re.findall(r"in the place of `(listen [^`]+)`", PAGE)
            (ours,) = blocks(PAGE, "nginx")
            assert text.count(self.here(theirs)) == 1
            text = text.replace(self.here(theirs), self.here(ours))
        file.write_text(text)

    def _systemctl(self, *words: str) -> None:
        if words == ("reload", "nginx"):
            os.kill(self.nginx.pid, signal.SIGHUP)
            text = "".join(file.read_text() for file in (self.root / "etc/nginx/conf.d").glob("*.conf"))
            wanted = {int(port) for port in re.findall(r"^ *listen (?:[\d.]+:)?(\d+)", text, re.M)}
            until(lambda: all(listens(port) for port in wanted))
        elif words == ("enable", "--now", "authservice"):
            self._start()
        elif words == ("restart", "authservice"):
            self._stop()
            self._start()
        elif words == ("disable", "--now", "authservice"):
            self._stop()
        else:
            assert words == ("daemon-reload",), words

    def _start(self) -> None:
        """As the installed unit says: environment, credentials, state directory, mask, notification."""
        unit = self.unit()
        environment = env_file(Path(unit["EnvironmentFile"][0]))
        environment |= dict(one.partition("=")[::2] for one in unit["Environment"])
        for credential in unit["LoadCredential"]:
            name, _, source = credential.partition(":")
            target = self.root / "run/credentials/authservice.service" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.write_bytes(Path(source).read_bytes())
        (name,) = unit["StateDirectory"]
        state = self.root / "var/lib/private" / name
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            (self.root / "var/lib" / name).symlink_to(state)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind("")  # an abstract address of the kernel's choice
            notices.setblocking(False)
            environment["NOTIFY_SOCKET"] = notices.getsockname().decode().replace("\0", "@")
            command = ["sh", "-c", f'umask {unit["UMask"][0]}; exec "$@"', "sh", *shlex.split(unit["ExecStart"][0])]
            log = self.root.parent / "service.log"
            self.service = Program("authservice", command, log, env=environment, cwd=Path("/"))
            self.service.start(lambda: is_ready(notices))

    def unit(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        text = (self.root / "etc/systemd/system/authservice.service").read_text()
        for key, value in re.findall(r"^(\w+)=(.*)$", text, re.M):
            found.setdefault(key, []).append(value.replace("%n", "authservice.service"))
        return found

    def _stop(self) -> None:
        if self.service is not None:
            self.service.stop()

    def off(self) -> None:
        for program in (self.service, self.nginx, self.application):
            if program is not None:
                program.kill_with_children()


def is_ready(notices: socket.socket) -> bool:
    with suppress(BlockingIOError):
        return b"READY=1" in notices.recv(4096)
    return False


def env_file(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    for program in ("nginx", "curl"):
        require(program)
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FakeProvider(client_secret=SECRET, tls=context) as provider:
        made = Machine(tmp_path, provider, authority)
        try:
            yield made
        finally:
            made.off()


@pytest.mark.external
@pytest.mark.slow
def test_the_page_leads_to_a_protected_page(machine: Machine) -> None:
    assert "(docs/gateways/vm.md), step by step" in README.partition("## Run it for real\n")[2].partition("\n## ")[0]
    *to_do, removing = blocks(PAGE, "sh")
    said = [machine.types(block) for block in to_do]
    printed = "\n".join(said)

    assert "AuthService would start." in printed
    assert '{"provider":"ok","store":"ok"}' in printed
    assert "HTTP/1.1 302 Found" in printed and f"location: {machine.provider.issuer}" in printed
    assert "0 problems, 0 warnings" in printed
    left = {path.name for path in machine.checkout.iterdir()} - {Path(name).name for name in SOURCES}
    assert left == set()
    assert (machine.root / "etc/authservice/client-secret").stat().st_mode & 0o777 == 0o600

    browser, page = requests.Session(), f"{machine.site}/reports/7?x=1"
    browser.headers.update(BROWSER)
    browser.verify, browser.trust_env = str(machine.authority), False
    assert browser.get(page, allow_redirects=False).status_code == 302
    machine.provider.misbehave("authorize_error", "access_denied")
    assert browser.get(page).status_code == 403
    machine.provider.behave()

    def sees(**headers: str) -> set[str]:
        answer = browser.get(page, headers=headers)
        assert (answer.status_code, answer.url) == (200, page)
        return {line for line in answer.text.splitlines() if line.lower().replace("_", "-").startswith("kubeflow-")}

    them = {"kubeflow-userid: alice@example.com", "kubeflow-groups: admins,dev"}
    assert sees() == them
    assert sees(**{"kubeflow-userid": "root@example.com", "kubeflow_groups": "x"}) == them

    commands = re.findall(r"`(sudo [^`]+)`", PAGE.partition("## Day by day\n")[2])
    (restart,) = [command for command in commands if "systemctl restart" in command]
    (listing,) = [command for command in commands if "sessions list" in command]
    machine.types(restart)
    assert sees() == them
    assert "alice@example.com" in machine.types(listing)
    assert {file.stat().st_mode & 0o777 for file in (machine.root / "var/lib/authservice/").iterdir()} == {0o600}
    same_origin = {"Origin": machine.site, "Sec-Fetch-Site": "same-origin"}
    assert browser.post(f"{machine.site}/authservice/logout", headers=same_origin).ok
    assert browser.get(page, allow_redirects=False).status_code == 302

    machine.types(removing)
    assert [str(file) for file in machine.root.rglob("*") if "authservice" in file.name] == [
        str(machine.root / "run/credentials/authservice.service")
    ]
    assert not listens(int(machine.ports["8080"]))


def test_what_the_readme_says_for_a_terminal_would_start(tmp_path: Path) -> None:
    """The commands that cost something are left out: the environment is this one, and nothing is bound."""
    block = blocks(README.partition("## Run it for real\n")[2], "sh")[0]
    *lines, serving = block.replace("~/authservice-trial/bin", str(Path(sys.executable).parent)).splitlines()
    (tmp_path / "authservice-trial").mkdir()
    lines = [line for line in lines if "-m venv" not in line and "pip install" not in line]
    script = "\n".join([*lines, serving.replace("gunicorn -c", "gunicorn --check-config -c")])
    environment = own_environment() | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euc", script], input=f"{SECRET}\n", cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would start" in done.stdout
    assert (tmp_path / "authservice-trial/client-secret").stat().st_mode & 0o777 == 0o600
