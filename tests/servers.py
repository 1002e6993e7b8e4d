"""Real Redis and Valkey servers for tests: on a free port of 127.0.0.1, ended by their own pid.

Used by the store tests and by the end-to-end tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
import trustme
from redis.crc import key_slot

from tests.ports import free_port
from tests.programs import require
from tests.waiting import until


def any_redis() -> str:
    """The program of whichever Redis-like server is here; skips, or fails, as `require` does."""
    return require("redis-server" if shutil.which("redis-server") else "valkey-server")


class RedisServer:
    """One server. ``durable`` writes every change to the disk, so that a killed and restarted
    server knows what it knew; without it a restart begins empty."""

    def __init__(
        self,
        program: str,
        folder: Path,
        *,
        durable: bool = False,
        options: Sequence[str] = (),
        before: Sequence[str] = (),
    ) -> None:
        """``before`` are arguments that stand before all others: a configuration file, its mode."""
        self._program = program
        self._folder = folder
        self._before = before
        self._options = [*(("--appendonly", "yes", "--appendfsync", "always") if durable else ()), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, on the same port as before if it ran before, and waits until it answers."""
        for _ in range(5):
            port = self.port or free_port()
            self._process = self._spawn(port)
            process = self._process
            until(lambda: process.poll() is not None or _answers(port))
            if process.poll() is None:
                self.port = port
                return
        raise AssertionError(f"{self._program} does not start: {self._log().read_text()[-2000:]}")

    def start_again(self) -> None:
        """Starts it unless it runs."""
        if self._process is None or self._process.poll() is not None:
            self.start()

    def add_options(self, *options: str) -> None:
        """For the next start."""
        self._options += options

    def kill(self) -> None:
        """SIGKILL: no good-bye to clients, nothing written that is not written yet."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; harmless when it does not run."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """The server stops answering without closing anything, until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        command = [self._program, *self._before, "--port", str(port), "--bind", "127.0.0.1"]
        command += [] if self._before else ["--save", ""]
        command += ["--dir", str(self._folder), *self._options]
        with self._log().open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": os.environ.get("PATH", "")})

    def _log(self) -> Path:
        return self._folder / "server.log"

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _answers(port: int) -> bool:
    """Whether it takes questions: a server with data to load listens before it has them."""
    with socket.socket() as client:
        client.settimeout(1)
        try:
            client.connect(("127.0.0.1", port))
            client.sendall(b"PING\r\n")
            reply = client.recv(64)
        except OSError:
            return False
    return bool(reply) and not reply.startswith(b"-LOADING")


@contextmanager
def running_redis(
    program: str, folder: Path, *, durable: bool = False, options: Sequence[str] = ()
) -> Iterator[RedisServer]:
    """A started server, which is stopped in the end whatever happened to it meanwhile."""
    server = RedisServer(program, folder, durable=durable, options=options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class RedisFamily:
    """A master with its replicas and the Sentinels that look after them."""

    MASTER = "mymaster"

    def __init__(self, servers: list[RedisServer], sentinels: list[RedisServer]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    @property
    def address(self) -> str:
        """Where the Sentinels are."""
        return ",".join(sentinel.address for sentinel in self.sentinels)

    def master(self) -> RedisServer:
        """The one that most Sentinels name."""
        named = [self._named_by(sentinel) for sentinel in self.sentinels]
        port = max(set(named), key=named.count)
        return next(server for server in self.servers if server.port == port)

    def settle(self, replicas: int = 1) -> None:
        """Waits until every server runs, and all Sentinels name one master that has so many replicas.
        (A master that was replaced while it ran is made a replica only after some ten seconds.)"""
        for server in self.servers:
            server.start_again()
        until(lambda: self._settled(replicas), 30)

    def fail_over(self) -> None:
        """A planned failover: the old master goes on running."""
        before = self.master()
        until(lambda: self._ask(self.sentinels[0], "SENTINEL", "FAILOVER", self.MASTER), 20, every=0.2)
        until(lambda: before.port not in {self._named_by(one) for one in self.sentinels}, 20)

    def _named_by(self, sentinel: RedisServer) -> int:
        answer = self._ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.MASTER)
        return int(answer[1]) if answer else 0

    def _settled(self, replicas: int) -> bool:
        masters = {self._named_by(sentinel) for sentinel in self.sentinels}
        if len(masters) != 1:
            return False
        for sentinel in self.sentinels:
            answer = self._ask(sentinel, "SENTINEL", "MASTER", self.MASTER)
            state = dict(zip(answer[::2], answer[1::2]))
            if (state[b"num-other-sentinels"], state[b"num-slaves"], state[b"flags"]) != (b"2", b"2", b"master"):
                return False
        (port,) = masters
        roles = [self._ask(server, "ROLE") or [b""] for server in self.servers]
        in_step = [role for role in roles if role[0] == b"slave" and role[2] == port and role[3] == b"connected"]
        return len(in_step) >= replicas

    @staticmethod
    def _ask(server: RedisServer, *command: str) -> Any:
        """The answer; nothing when there is none."""
        try:
            with redis.Redis(port=server.port, protocol=2, socket_timeout=2) as client:
                return client.execute_command(*command)
        except redis.RedisError:
            return None


@contextmanager
def running_sentinels(program: str, folder: Path) -> Iterator[RedisFamily]:
    """Three servers and three Sentinels that agree about them, which notice within half a second that
    the master is gone. Debian's sentinel is the server's own program."""
    folders = [folder / name for name in ("a", "b", "c", "sa", "sb", "sc")]
    for each in folders:
        each.mkdir()
    servers = [RedisServer(program, each, options=("--repl-diskless-sync-delay", "0")) for each in folders[:3]]
    sentinels = []
    try:
        for server in servers:
            if server is not servers[0]:
                server.add_options("--replicaof", f"127.0.0.1 {servers[0].port}")
            server.start()
        for each in folders[3:]:
            file = each / "sentinel.conf"
            file.write_text(
                f"sentinel monitor {RedisFamily.MASTER} 127.0.0.1 {servers[0].port} 2\n"
                f"sentinel down-after-milliseconds {RedisFamily.MASTER} 500\n"
                f"sentinel failover-timeout {RedisFamily.MASTER} 1000\n"
            )
            sentinels.append(RedisServer(program, each, before=(str(file), "--sentinel")))
            sentinels[-1].start()
        family = RedisFamily(servers, sentinels)
        family.settle(2)
        yield family
    finally:
        for server in (*sentinels, *servers):
            server.stop()


class RedisCluster:
    """Masters that share the hash slots, and the replicas of each."""

    def __init__(self, masters: list[RedisServer], replicas: list[RedisServer]) -> None:
        self.masters = masters
        self.replicas = replicas

    @property
    def servers(self) -> list[RedisServer]:
        return [*self.masters, *self.replicas]

    @property
    def address(self) -> str:
        return ",".join(server.address for server in self.servers)

    def ask(self, server: RedisServer, *command: str | int) -> Any:
        with redis.Redis(port=server.port, protocol=2, socket_timeout=2) as client:
            return client.execute_command(*command)

    def holder(self, key: str) -> RedisServer:
        """The master that has the key's slot."""
        slot = key_slot(key.encode())
        answers = map(self._slots, self.servers)
        ranges = max((found for found in answers if found), key=len)
        port = next(int(node[1]) for first, last, node, *_ in ranges if first <= slot <= last)
        return next(server for server in self.servers if server.port == port)

    def settle(self) -> None:
        """Waits until every server runs and all agree that all is well."""
        for server in self.servers:
            server.start_again()
        until(lambda: len({str(self._well(server)) for server in self.servers} - {"False"}) == 1
              and all(self._well(server) for server in self.servers), 30)

    def _well(self, server: RedisServer) -> object:
        """What this node says of who has which slots; nothing unless all is well there."""
        try:
            info = self.ask(server, "CLUSTER", "INFO")
            nodes = self.ask(server, "CLUSTER", "NODES").decode().splitlines()
        except redis.RedisError:
            return False
        if b"cluster_state:ok" not in info or len(nodes) != len(self.servers):
            return False
        if any("fail" in line.split()[2] or "handshake" in line.split()[2] for line in nodes):
            return False
        replicas = [server for line in nodes if "slave" in line.split()[2]]
        if len(replicas) != len(self.replicas):
            return False
        role = self.ask(server, "ROLE")
        if role[0] == b"slave" and role[3] != b"connected":
            return False
        return sorted((line.split()[0], *line.split()[8:]) for line in nodes if "master" in line.split()[2])

    def _slots(self, server: RedisServer) -> Any:
        try:
            return self.ask(server, "CLUSTER", "SLOTS")
        except redis.RedisError:
            return None


@contextmanager
def running_cluster(program: str, folder: Path, *, replicas: int = 1) -> Iterator[RedisCluster]:
    """Three masters with ``replicas`` each, which take over within about a second."""
    options = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "1000")
    options += ("--repl-diskless-sync-delay", "0")
    servers = []
    for number in range(3 + 3 * replicas):
        (folder / str(number)).mkdir()
        servers.append(RedisServer(program, folder / str(number), options=options))
    cluster = RedisCluster(servers[:3], servers[3:])
    try:
        for server in servers:
            server.start()
        for number, master in enumerate(cluster.masters):
            first, last = number * 5462, min((number + 1) * 5462, 16384) - 1
            cluster.ask(master, "CLUSTER", "ADDSLOTSRANGE", first, last)
        for number, server in enumerate(servers, start=1):
            cluster.ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number)
        for server in servers[1:]:
            cluster.ask(servers[0], "CLUSTER", "MEET", "127.0.0.1", server.port)
        number = len(servers)
        until(lambda: all(len(cluster.ask(one, "CLUSTER", "NODES").splitlines()) == number for one in servers), 30)
        for turn, replica in enumerate(cluster.replicas):
            name = cluster.ask(cluster.masters[turn % 3], "CLUSTER", "MYID").decode()
            until(lambda name=name, replica=replica: _accepted(cluster, replica, name), 20)
        cluster.settle()
        yield cluster
    finally:
        for server in servers:
            server.stop()


def _accepted(cluster: RedisCluster, replica: RedisServer, master: str) -> bool:
    """A node can follow a master only when it has heard of it."""
    try:
        return bool(cluster.ask(replica, "CLUSTER", "REPLICATE", master))
    except redis.ResponseError:
        return False


class Wire:
    """A way to a server that can fall silent: what is sent on it then arrives nowhere, and nobody
    is told. Connections made later are not concerned; they lead to ``target``."""

    def __init__(self, port: int) -> None:
        self.target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._silent = threading.Event()
        self._sockets: list[socket.socket] = []
        self.address = "127.0.0.1:{}".format(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> None:
        self._silent.set()
        self._silent = threading.Event()

    def close(self) -> None:
        self._listener.close()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink, self._silent), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket, silent: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not silent.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


class Certificates:
    """An authority's certificate, one for ``localhost`` and one for a client, as PEM files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca, self.cert, self.key = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
        self.client_cert, self.client_key = folder / "client-cert.pem", folder / "client-key.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        for issued, cert, key in (
            (authority.issue_cert("localhost", "127.0.0.1"), self.cert, self.key),
            (authority.issue_cert("authservice"), self.client_cert, self.client_key),
        ):
            issued.cert_chain_pems[0].write_to_path(str(cert))
            issued.private_key_pem.write_to_path(str(key))

    def options(self, port: int, *, clients: bool) -> tuple[str, ...]:
        """For a server that listens with TLS on this port; ``clients`` have to show a certificate too."""
        return (
            "--tls-port", str(port), "--tls-auth-clients", "yes" if clients else "no",
            "--tls-ca-cert-file", str(self.ca), "--tls-cert-file", str(self.cert), "--tls-key-file", str(self.key),
        )
