"""Finding the cluster that we run in, or that we are told of.

A pod is told its cluster by two variables and a mounted folder, whose files change while it runs:
the token about every hour, the authorities when the cluster's are renewed. So nothing of them is
kept. Called with the settings' `kubernetes_environ` by `authservice.startup`, which tells what is
wrong with it, and by `authservice.authn.kubernetes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from authservice.kubernetes import kubeconfig
from authservice.kubernetes.access import Access, Credentials, NoAccess, TlsFiles

MOUNTED = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet mounts a pod's service account."""


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The account of the pod that we are in."""

    address: str
    folder: Path

    def access(self) -> Access:
        try:
            token = (self.folder / "token").read_text(encoding="ascii").strip()
            files = TlsFiles.of(authorities=self.folder / "ca.crt")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no token"
            raise NoAccess(f"the service account in {self.folder} cannot be read ({reason})") from None
        if not token:
            raise NoAccess(f"the service account in {self.folder} has an empty token")
        return Access(self.address, f"Bearer {token}", files)

    def forget(self) -> None:
        """Nothing is kept."""


def find_cluster(environ: Mapping[str, str]) -> Credentials | None:
    """The credentials for the cluster that these variables and this machine's files tell of; ``None``
    when they tell of none.

    In the original's order: the files of ``KUBECONFIG``, the pod's service account (by
    ``KUBERNETES_SERVICE_HOST`` and ``KUBERNETES_SERVICE_PORT``), ``~/.kube/config`` (by ``HOME``).
    Raises `NoAccess` for a kubeconfig that cannot be used. Nothing is asked over the network.
    """
    named = environ.get("KUBECONFIG", "")
    if named:
        return kubeconfig.Kubeconfig(named)
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    # A pod that is not to call the API server has the variables too, but no service account.
    if host and port and all((MOUNTED / name).is_file() for name in ("token", "ca.crt")):
        return ServiceAccount(f"https://{f'[{host}]' if ':' in host else host}:{port}", MOUNTED)
    home = environ.get("HOME", "")
    usual = Path(home, ".kube", "config")
    return kubeconfig.Kubeconfig(str(usual)) if home and usual.is_file() else None
