"""Kubeconfig files: certificates, tokens and login helpers, as the official client reads them.

That client is an optional extra and slow to import, so it is imported when there is a file to read
and not before. It only reads; requests are made by `authservice.outbound` like all others.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from authservice.kubernetes.access import Access, NoAccess, TlsFiles

if TYPE_CHECKING:
    from kubernetes.client import Configuration
    from kubernetes.config.kube_config import KubeConfigLoader

EXTRA = "authservice[kubernetes]"
_REFUSED = {
    "insecure-skip-tls-verify": "TLS without checking the server",
    "tls-server-name": "another TLS name",
    "proxy-url": "a proxy of its own (the proxy variables are honoured)",
}


class Kubeconfig:
    """The current context of kubeconfig files, given as a list like ``KUBECONFIG``'s. What is read
    stays until `forget`, but for tokens that a helper gives for a time. Safe for threads."""

    def __init__(self, paths: str) -> None:
        """Runs no helper yet. Raises `NoAccess` when the extra is missing, when the files cannot be
        read or have no current context, and when they ask for what is refused here."""
        self._paths = paths
        self._lock = threading.Lock()
        self._loaded: Configuration | None = None
        self._loader()

    def access(self) -> Access:
        from kubernetes.client import Configuration

        with self._lock:
            try:
                if self._loaded is None:
                    loaded = type.__call__(Configuration)
                    self._loader().load_and_set(loaded)
                    self._loaded = loaded
                found = self._loaded
                # Asks the login helper again when what it gave has expired.
                authorization = found.get_api_key_with_prefix("BearerToken", "authorization") or ""
                files = TlsFiles.of(*map(_path, (found.ssl_ca_cert, found.cert_file, found.key_file)))
            except _faults() as error:
                raise self._unusable(error) from None
        if not authorization and files.certificate is None:
            raise NoAccess(f"the kubeconfig {self._paths} gives neither a token nor a certificate")
        return Access(found.host, authorization, files)

    def forget(self) -> None:
        with self._lock:
            self._loaded = None

    def _loader(self) -> KubeConfigLoader:
        try:
            from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger
        except ImportError:
            raise NoAccess(
                f"reading the kubeconfig {self._paths} takes an extra: pip install '{EXTRA}'"
            ) from None
        try:
            merged = KubeConfigMerger(self._paths).config
            loader = KubeConfigLoader(merged, config_base_path=None)
            name = loader.current_context["context"]["cluster"]
            cluster = merged["clusters"].get_with_name(name)["cluster"]
            refused = [words for member, words in _REFUSED.items() if cluster.safe_get(member)]
            encrypted = cluster["server"].startswith("https://")
        except _faults() as error:
            raise self._unusable(error) from None
        if refused or not encrypted:
            asked = ", ".join(refused) or "a server without TLS"
            raise NoAccess(f"the kubeconfig {self._paths} asks for {asked}, which is not supported")
        return loader

    def _unusable(self, error: Exception) -> NoAccess:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return NoAccess(f"the kubeconfig {self._paths} cannot be used ({reason})")


def _path(name: Any) -> Path | None:
    return Path(name) if name else None


def _faults() -> tuple[type[Exception], ...]:
    """What the client raises for files that are missing, no YAML, or shaped otherwise. Its texts
    quote what it read."""
    from kubernetes.config import ConfigException
    from yaml import YAMLError

    return (ConfigException, YAMLError, OSError, ValueError, TypeError, LookupError, AttributeError)
