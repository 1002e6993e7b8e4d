"""Start-up checks: what the settings' texts alone cannot tell, looked up on this machine.

``authservice check-config`` and the start itself ask the same questions here, so that both give the
same list. Nothing is left behind, changed or asked over the network: the provider and Redis may
well come later than we do.
"""

from __future__ import annotations

import errno
import os
import ssl
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from authservice import policies
from authservice.errors import SettingsError
from authservice.kubernetes.access import NoAccess
from authservice.kubernetes.cluster import MOUNTED, find_cluster
from authservice.oidc.client import read_private_key
from authservice.outbound import Http
from authservice.pages import Pages, TemplateProblems
from authservice.sessions.redis_access import Access, Address
from authservice.sessions.sqlite_file import foreign_content
from authservice.settings import Settings, load

# A full disk is no reason to stay away: logins fail until there is room, and sessions go on being read.
_PASSING = (errno.ENOSPC, errno.EDQUOT)

HELP = "`authservice settings` explains every setting; `authservice check-config` checks them again."


def checked(environ: Mapping[str, str] | None = None, shared: Path | None = None) -> Settings:
    """The settings of an environment (the process's own by default) with which a start succeeds; in a folder
    ``shared`` by workers the policies of those that run already may be found.

    Raises `errors.SettingsError` with all problems of their texts, or of what the texts name.
    """
    settings = load(environ)
    found = problems(settings, shared)
    if found:
        raise SettingsError(list(found), [*settings.warnings, *warnings(settings)])
    return settings


def problems(settings: Settings, shared: Path | None = None) -> tuple[str, ...]:
    """Every reason why a service with these settings could not serve, each naming its variable."""
    return (
        *_key_problems(settings),
        *_certificate_problems(settings),
        *_redis_problems(settings),
        *_kubernetes_problems(settings),
        *_store_problems(settings),
        *policies.problems(settings, shared),
        *_page_findings(settings)[0],
    )


def warnings(settings: Settings) -> tuple[str, ...]:
    """What is odd but no reason not to start."""
    return (*kubernetes_warnings(settings), *_store_warnings(settings), *_page_findings(settings)[1])


def explain(error: SettingsError) -> str:
    """The lines for the person whose service did not start."""
    lines = [f"AuthService cannot start: {_count(len(error.problems), 'problem')} in its settings.", ""]
    lines += [f"  - {problem}" for problem in error.problems]
    if error.warnings:
        lines += ["", "Also noticed:", "", *(f"  - {warning}" for warning in error.warnings)]
    lines += ["", HELP]
    return "\n".join(lines) + "\n"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def build_pages(settings: Settings) -> Pages:
    """The pages of this deployment. Raises `pages.TemplateProblems`."""
    return Pages(
        template_paths=[str(path) for path in settings.template_path],
        client_name=settings.client_name,
        themes_url=settings.themes_url,
        theme=settings.theme,
        provider_url=settings.oidc_provider,
        frontend=settings.template_context,
        site_url=f"{settings.prefix_path}/site/",
    )


def _page_findings(settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        return (), tuple(build_pages(settings).warnings)
    except TemplateProblems as found:
        return found.problems, ()


def _key_problems(settings: Settings) -> Iterator[str]:
    if settings.oidc_client_auth_method != "private_key_jwt":
        return
    try:
        read_private_key(settings.client_private_key.reveal())
    except ValueError as error:
        yield f"CLIENT_PRIVATE_KEY: {error}."


def _certificate_problems(settings: Settings) -> Iterator[str]:
    bundles = [("CA_BUNDLE", settings.ca_bundle)]
    bundles += [(f"BEARER_ISSUERS: ca_bundle of {one.issuer}", one.ca_bundle) for one in settings.bearer_issuers]
    for name, bundle in bundles:
        try:
            if bundle is not None:
                Http(bundle)
        except ssl.SSLError:
            yield f"{name}: {bundle} holds no certificates in PEM form."
        except OSError as error:
            yield f"{name}: {bundle} cannot be read ({error.strerror})."


def _redis_problems(settings: Settings) -> Iterator[str]:
    """Of the address's options and the files for TLS; the servers themselves may come later."""
    if settings.session_store_type != "redis":
        return
    try:
        Access(Address.parse(settings.session_store_redis_addr))
    except ValueError as error:
        yield f"SESSION_STORE_REDIS_ADDR: {error}."
    bundle, certificate = settings.session_store_redis_ca_bundle, settings.session_store_redis_client_cert
    name, file = "SESSION_STORE_REDIS_CA_BUNDLE", bundle
    try:
        context = ssl.create_default_context(cafile=bundle)
        if certificate:
            name, file = "SESSION_STORE_REDIS_CLIENT_CERT", certificate
            context.load_cert_chain(certificate, settings.session_store_redis_client_key, password=lambda: "")
    except ssl.SSLError:
        held = "certificates" if file is bundle else "certificate, or not one of the key without passphrase"
        yield f"{name}: {file} holds no {held} in PEM form."
    except OSError as error:
        yield f"{name}: {file}, or its key, cannot be read ({error.strerror})."


def _kubernetes_problems(settings: Settings) -> Iterator[str]:
    if settings.kubernetes_authn_enabled is not True:
        return
    if not settings.audiences:
        yield (
            "AUDIENCES: empty, so no Kubernetes token could be for us. Name one, or set "
            "KUBERNETES_AUTHN_ENABLED=false."
        )
    try:
        if find_cluster(settings.kubernetes_environ) is None:
            yield (
                "KUBERNETES_AUTHN_ENABLED: true, but there is no cluster to ask: no service account in "
                f"{MOUNTED}, nothing in KUBECONFIG, and no ~/.kube/config."
            )
    except NoAccess as fault:
        yield f"KUBERNETES_AUTHN_ENABLED: true, but {fault}."


def kubernetes_warnings(settings: Settings) -> Iterator[str]:
    if settings.kubernetes_authn_enabled is not None:
        return
    try:
        find_cluster(settings.kubernetes_environ)
    except NoAccess as fault:
        yield f"KUBERNETES_AUTHN_ENABLED: Kubernetes tokens are not accepted, since {fault}."


def _store_problems(settings: Settings) -> Iterator[str]:
    """The store makes missing folders itself, so the nearest one that exists must be ours."""
    if settings.session_store_type != "filesystem":
        return
    path = settings.session_store_path
    try:
        file = path.resolve()
        folder = next(parent for parent in file.parents if parent.exists())
        head = _head(file)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "a loop of links"
        yield f"SESSION_STORE_PATH: {path} cannot be used ({reason})."
        return
    if not folder.is_dir():
        yield f"SESSION_STORE_PATH: {folder} is not a folder."
        return
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if error.errno in _PASSING:
            return
        yield (
            f"SESSION_STORE_PATH: nothing can be written in {folder} by user {os.geteuid()} "
            f"({error.strerror}). Make the folder writable, or name a file in another one."
        )
    if head and not foreign_content(head) and not os.access(file, os.R_OK | os.W_OK):
        yield f"SESSION_STORE_PATH: we may not read and write {file} (we are user {os.geteuid()})."


def _store_warnings(settings: Settings) -> Iterator[str]:
    if settings.session_store_type != "filesystem":
        return
    file = settings.session_store_path
    try:
        head = _head(file)
    except (OSError, RuntimeError):
        return
    foreign = foreign_content(head) if head else ""
    if foreign:
        yield (
            f"SESSION_STORE_PATH: {file} is {foreign} and is left untouched; sessions are kept in "
            f"{file.name}.sqlite beside it. People log in once more."
        )


def _head(file: Path) -> bytes | None:
    """A file's beginning; empty when it is no file or may not be read, ``None`` when it does not exist.
    Raises OSError when it cannot be looked at (a loop of links, a closed folder)."""
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(mode) or not os.access(file, os.R_OK):
        return b""
    with file.open("rb") as opened:
        return opened.read(64)
