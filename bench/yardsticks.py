"""What the service is measured against: started here, each with one process on the server's core.

nginx that answers by itself, Flask as one would write it first under two servers, and Apache with
mod_auth_openidc, whose session comes from a real login at the tests' provider.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import sys
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests

from bench import flask_app
from bench.load import Request
from bench.programs import BenchError, Missing, Program, ask, found
from tests.provider import FakeProvider
from tests.servers import free_port

TARGET = "/notebooks/7?x=1"
HOST = ("Host", "app.example")
MODULES = ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules")

_APACHE = """
ServerRoot {folder}
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
PidFile {folder}/apache.pid
DefaultRuntimeDir {folder}
ErrorLog /dev/stderr
LogLevel warn
{user}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule auth_openidc_module {modules}/mod_auth_openidc.so
StartServers 1
ServerLimit 1
ThreadLimit 64
ThreadsPerChild 64
MinSpareThreads 1
MaxSpareThreads 64
MaxRequestWorkers 64
KeepAlive On
MaxKeepAliveRequests 0
DocumentRoot {folder}/pages
OIDCProviderMetadataURL {issuer}/.well-known/openid-configuration
OIDCClientID authservice
OIDCClientSecret a-client-secret
OIDCRedirectURI http://127.0.0.1:{port}/callback
OIDCCryptoPassphrase a-passphrase-of-the-benchmark
OIDCScope "openid email profile"
OIDCPKCEMethod S256
OIDCSessionType server-cache
OIDCCacheType shm
OIDCSessionInactivityTimeout 3600
OIDCRemoteUserClaim email
<Location />
  AuthType openid-connect
  Require valid-user
</Location>
"""


def bare(folder: Path, core: int) -> Request:
    """The limit."""
    port = free_port()
    program = Program("bare", [sys.executable, "-m", "bench.bare", str(port)], folder, core)
    return _ready(Request(port, TARGET, (HOST,), programs=(program,)))


def nginx(folder: Path, core: int) -> Request:
    """nginx with one worker that answers every request with 200 by itself."""
    return _nginx("nginx", folder, core, "return 200;")


def application(folder: Path, core: int) -> Request:
    """The same behind a gateway, as the application."""
    return _nginx("application", folder, core, 'return 200 "hello\\n";')


def _nginx(name: str, folder: Path, core: int, answer: str) -> Request:
    port = free_port()
    server = f"server {{ listen 127.0.0.1:{port}; location / {{ {answer} }} }}"
    return _ready(Request(port, TARGET, (HOST,), programs=(nginx_program(name, folder, core, server),)))


def nginx_program(name: str, folder: Path, core: int, servers: str) -> Program:
    """nginx with one worker and these servers, without an access log."""
    folder.mkdir()
    scratch = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; {user} pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; keepalive_requests 1000000000;\n{scratch}\n{servers}\n}}\n"
    )
    return Program(name, [found("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(config)], folder, core)


def flask(folder: Path, core: int) -> Request:
    """Flask under gunicorn's thread worker."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--threads", "16", "--keep-alive", "75"]
    command += ["--workers", "1", "--bind", f"127.0.0.1:{port}", "bench.flask_app:app"]
    return _flask("flask", command, port, folder, core)


def granian(folder: Path, core: int) -> Request:
    """The same application under Granian."""
    if importlib.util.find_spec("granian") is None:
        raise Missing("granian is not installed: pip install granian")
    port = free_port()
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--no-access-log", "--no-ws", "bench.flask_app:app"]
    return _flask("granian", command, port, folder, core)


def _flask(name: str, command: list[str], port: int, folder: Path, core: int) -> Request:
    program = Program(name, command, folder, core)
    told = ("kubeflow-userid", "alice@example.com")
    return _ready(Request(port, TARGET, (HOST, ("Cookie", flask_app.COOKIE)), tells=told, programs=(program,)))


def apache(folder: Path, core: int, provider: FakeProvider) -> Request:
    """Apache's event server with mod_auth_openidc and its session cache in shared memory, in front of
    a file of one byte."""
    folder.mkdir()
    (folder / "pages").mkdir()
    (folder / "pages" / "index.html").write_text(".")
    modules = next((one for one in MODULES if Path(one, "mod_auth_openidc.so").is_file()), None)
    program_file = found("apache2")
    if modules is None:
        raise Missing("mod_auth_openidc is not installed: apt-get install libapache2-mod-auth-openidc")
    port = free_port()
    user = ""
    if Path(modules, "mod_unixd.so").is_file():
        user = f"LoadModule unixd_module {modules}/mod_unixd.so"
    if os.getuid() == 0:
        user += "\nUser www-data\nGroup www-data"
        folder.parent.chmod(0o711)
    config = folder / "apache.conf"
    config.write_text(
        _APACHE.format(folder=folder, port=port, modules=modules, user=user, issuer=provider.issuer)
    )
    program = Program("apache", [program_file, "-D", "FOREGROUND", "-f", str(config)], folder, core)
    program.wait(lambda: ask(port, "/")[0] == 401)
    cookie = _log_in(f"http://127.0.0.1:{port}/index.html", provider)
    return _ready(Request(port, "/index.html", (("Cookie", cookie),), programs=(program,)))  # it looks at the host


def _log_in(page: str, provider: FakeProvider) -> str:
    """The session cookie that a login at the provider ends with."""
    with requests.Session() as browser:
        browser.trust_env = False
        sent = browser.get(page, headers={"Accept": "text/html"}, allow_redirects=False)
        callback = urljoin(page, provider.authorize_location(sent.headers["Location"]))
        browser.get(callback, allow_redirects=False)
        session = browser.cookies.get("mod_auth_openidc_session")
    if not session:
        raise BenchError(f"the login at {urlsplit(page).netloc} gave no session")
    return f"mod_auth_openidc_session={session}"


def _ready(request: Request) -> Request:
    request.programs[0].wait(lambda: ask(request.port, request.target, request.headers)[0] == request.status)
    return request
