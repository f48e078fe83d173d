"""A real Kafka on loopback, for development and tests: one or three KRaft nodes of our own.

pom.xml --Maven--> jars --Java--> nodes in a folder, on 127.0.0.1 -> HOST:PORT[,HOST:PORT]

A folder keeps its size, ports, users and data: a node that was killed comes back under the same address with what it
had acknowledged. Only a process that runs with this folder's own properties is ever signalled.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from adapters.kafka.client import Connection
from app.errors import KafkaUnavailable, SetupRefused

POM = Path(__file__).with_name("pom.xml")
CACHE = Path(__file__).parents[2] / ".tools" / "kafka"
HOST = "127.0.0.1"
# Below the range the system takes for outgoing connections: a client that keeps trying a dead port inside that range
# can connect to itself and then holds the port, so that the broker cannot come back.
PORTS = range(20_000, 32_000)
ADMIN = "admin"  # with users: the one who may do everything
MECHANISM = "SCRAM-SHA-512"
JAVA_AT_LEAST = 17
FETCH_WITHIN_S = 300.0
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 15.0
POLL_S = 0.05
PR_SET_PDEATHSIG = 1
JVM = (
    "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What a folder keeps for ever; written last, so that a first start that was interrupted begins anew."""

    ports: list[tuple[int, int]]  # of each node: for clients, for the controllers among themselves
    passwords: dict[str, str] = field(default_factory=dict)  # by user; none: everybody may come, unencrypted


@dataclass(frozen=True)
class Status:
    node: int
    address: str
    pid: int | None  # None: it does not run


class Cluster:
    """One or more nodes, numbered from 1. With `sasl` clients speak SASL_SSL and are users; with `acls` they may do
    nothing that nobody has granted them, except `admin`.

    Start it from the main thread: with `die_with_parent` the kernel kills the nodes when the thread that started them
    ends, even by SIGKILL.
    """

    def __init__(
        self, folder: Path, brokers: int | None = None, *, sasl: bool = False, acls: bool = False,
        users: Sequence[str] = (), properties: Mapping[str, object] | None = None,
        jvm: Sequence[str] = (), jars: Path | None = None, die_with_parent: bool = False,
    ) -> None:  # fmt: skip
        """`brokers` None: as many as the folder has, else one. `properties` are Kafka's own, for a new folder;
        `jvm` are Java's. `jars` is a folder to use (and fill) instead of the checkout's cache."""
        self.folder = folder.resolve()
        self._asked, self._acls, self._properties = brokers, acls, dict(properties or {})
        self._users = (ADMIN, *users) if sasl or acls else ()
        self._java = ("-Xmx512m", *JVM, *jvm)
        self._jars, self._die_with_parent = jars, die_with_parent
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._layout = self._read_layout()

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- what it is

    @property
    def exists(self) -> bool:
        return self._layout is not None

    @property
    def nodes(self) -> range:
        return range(1, len(self._known().ports) + 1)

    @property
    def bootstrap(self) -> str:
        return ",".join(self.address(node) for node in self.nodes)

    @property
    def certificate(self) -> Path:
        """Who signed the nodes' certificates: itself."""
        return self.folder / "certificate.pem"

    def address(self, node: int) -> str:
        return f"{HOST}:{self._known().ports[node - 1][0]}"

    def connection(self, user: str = ADMIN, node: int | None = None) -> Connection:
        """How a client of this user reaches the cluster, or one node of it first."""
        bootstrap, passwords = self.address(node) if node else self.bootstrap, self._known().passwords
        if not passwords:
            return Connection(bootstrap)
        return Connection(
            bootstrap, "SASL_SSL", MECHANISM, user, passwords[user], ca_file=str(self.certificate),
        )  # fmt: skip

    def log(self, node: int) -> Path:
        """The file with what a node says."""
        return self.folder / f"node{node}.log"

    def pid(self, node: int) -> int | None:
        """Of the node's process, while it lives and is really ours: a file with a pid may be older than a reboot."""
        child = self._children.get(node)
        if child is not None:
            return child.pid if child.poll() is None else None
        try:
            pid = int(self._file(node, "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            ended = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self._file(node, "properties")) in command and not ended else None

    def status(self) -> list[Status]:
        return [Status(node, self.address(node), self.pid(node)) for node in self.nodes] if self.exists else []

    # --- start

    def start(self, timeout_s: float = READY_WITHIN_S) -> str:
        """Start what does not run, wait until all of it serves, give the address. Called twice it changes nothing.

        Raises KafkaUnavailable without Java or Maven, SetupRefused when a node does not come up.
        """
        with self._alone():
            self._layout = self._read_layout()
            if self._layout is None:
                self._layout = self._make(self._asked or 1)
            elif self._asked not in (None, len(self._layout.ports)):
                raise SetupRefused(
                    f"{self.folder} holds a cluster of {len(self._layout.ports)}, not {self._asked}: "
                    "`python -m app kafka wipe` first"
                )
            for node in self.nodes:
                self.start_node(node)
        self.wait_ready(timeout_s)
        return self.bootstrap

    def start_node(self, node: int) -> None:
        """Start one node unless it runs; does not wait for it."""
        if self.pid(node):
            return
        command = [
            java(), *self._java, "-cp", f"{fetch(self._jars)}/*",
            "kafka.Kafka", str(self._file(node, "properties")),
        ]  # fmt: skip
        with self.log(node).open("ab") as log:
            child = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=_ends_with(os.getpid()) if self._die_with_parent else None,  # noqa: PLW1509 (one system call)
            )  # fmt: skip
        self._children[node] = child
        self._file(node, "pid").write_text(str(child.pid))

    def wait_ready(self, timeout_s: float = READY_WITHIN_S, nodes: Iterable[int] | None = None) -> None:
        """Until each of these nodes (all, if none are named) answers and knows as many."""
        wanted, give_up_s = tuple(nodes or self.nodes), time.monotonic() + timeout_s
        for node in wanted:
            client = AdminClient(
                self.connection(node=node).librdkafka()
                | {"log_level": 0, "error_cb": lambda _: None, "reconnect.backoff.max.ms": 200}
            )
            while _brokers_seen(client) < len(wanted):
                if not self.pid(node):
                    raise SetupRefused(f"Kafka's node {node} ended: {self._last_word(node)}")
                if time.monotonic() > give_up_s:
                    raise SetupRefused(
                        f"Kafka's node {node} was not ready within {timeout_s:g} s: see {self.log(node)}"
                    )

    # --- stop and break

    def kill_node(self, node: int, number: int = signal.SIGKILL, timeout_s: float = STOP_WITHIN_S) -> None:
        """Send the signal and wait until the process has gone; one that does not go is killed."""
        pid, give_up_s = self.pid(node), time.monotonic() + timeout_s
        self._signal(node, number)
        while self.pid(node) == pid is not None:
            if time.monotonic() > give_up_s:
                self._signal(node, signal.SIGKILL)
            time.sleep(POLL_S)

    def pause(self, node: int) -> None:
        """The node keeps its connections and says nothing any more."""
        self._signal(node, signal.SIGSTOP)

    def resume(self, node: int) -> None:
        self._signal(node, signal.SIGCONT)

    def stop(self) -> None:
        """End all nodes in good order, at once: the last ones of a quorum cannot say good-bye to anybody."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End all nodes as a power cut would, without waiting for them to tidy up."""
        self._end(signal.SIGKILL)

    def wipe(self) -> None:
        """Kill the nodes and remove the folder; nothing else than a cluster's folder is removed."""
        if self.exists:
            self.kill()
            shutil.rmtree(self.folder)
            self._layout = None

    def _end(self, number: int) -> None:
        nodes = self.nodes if self.exists else ()
        for node in nodes:
            self._signal(node, number)
            self._signal(node, signal.SIGCONT)  # one that is paused hears nothing else
        for node in nodes:
            self.kill_node(node, number)

    def _signal(self, node: int, number: int) -> None:
        if pid := self.pid(node):
            os.kill(pid, number)

    # --- a new folder

    def _make(self, brokers: int) -> Layout:
        for left in self.folder.glob("data*"):  # by a first start that was interrupted
            shutil.rmtree(left)
        layout = Layout(_free_ports(brokers), {user: secrets.token_hex(12) for user in self._users})
        if layout.passwords:
            self._make_certificate()
        cluster_id = "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
        formats = [self._format(node, layout, cluster_id) for node in range(1, brokers + 1)]
        for process in formats:
            said, _ = process.communicate()
            if process.returncode:
                raise SetupRefused(f"Kafka could not make its storage in {self.folder}: {_reason(said)}")
        (self.folder / "cluster.json").write_text(json.dumps(asdict(layout)))
        return layout

    def _format(self, node: int, layout: Layout, cluster_id: str) -> subprocess.Popen[str]:
        properties = self._node_properties(node, layout) | self._properties
        text = "".join(f"{name}={value}\n" for name, value in properties.items())
        self._file(node, "properties").write_text(text)
        scram = [f"{MECHANISM}=[name={user},password={password}]" for user, password in layout.passwords.items()]
        command = [
            java(), "-Xmx128m", "-XX:TieredStopAtLevel=1", *JVM, "-cp", f"{fetch(self._jars)}/*",
            "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(self._file(node, "properties")),
            *(part for user in scram for part in ("--add-scram", user)),
        ]  # fmt: skip
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def _node_properties(self, node: int, layout: Layout) -> dict[str, object]:
        clients, controllers = layout.ports[node - 1]
        voters = (f"{number}@{HOST}:{port}" for number, (_, port) in enumerate(layout.ports, 1))
        replicas = min(3, len(layout.ports))
        in_sync = max(1, replicas - 1)
        return {
            "process.roles": "broker,controller",
            "node.id": node,
            "controller.quorum.voters": ",".join(voters),
            "listeners": f"CLIENTS://{HOST}:{clients},CONTROLLER://{HOST}:{controllers}",
            "advertised.listeners": f"CLIENTS://{HOST}:{clients}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "CLIENTS",
            "listener.security.protocol.map":
                f"CLIENTS:{'SASL_SSL' if layout.passwords else 'PLAINTEXT'},CONTROLLER:PLAINTEXT",
            "log.dirs": self.folder / f"data{node}",
            # A client that mentions a topic must not make it: a changelog made so would not be compacted.
            "auto.create.topics.enable": "false",
            "num.partitions": 4,
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": in_sync,
            "group.initial.rebalance.delay.ms": 0,
            "log.cleaner.dedupe.buffer.size": 16 << 20,  # of the heap; the default is a quarter of ours
            # A killed node may only come back once its old session has run out: 9 s by default.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            **(self._security(layout) if layout.passwords else {}),
        }  # fmt: skip

    def _security(self, layout: Layout) -> dict[str, object]:
        login = f'username="{ADMIN}" password="{layout.passwords[ADMIN]}"'
        properties: dict[str, object] = {
            "sasl.enabled.mechanisms": MECHANISM,
            "sasl.mechanism.inter.broker.protocol": MECHANISM,
            f"listener.name.clients.{MECHANISM.lower()}.sasl.jaas.config":
                f"org.apache.kafka.common.security.scram.ScramLoginModule required {login};",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.folder / "keystore.pem",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.certificate,
        }  # fmt: skip
        if self._acls:
            properties |= {
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                # The controllers' own listener, on loopback, knows no users.
                "super.users": f"User:{ADMIN};User:ANONYMOUS",
            }
        return properties

    def _make_certificate(self) -> None:
        """A key and a certificate that vouches for itself, good for loopback only."""
        key = self.folder / "key.pem"
        command = [
            _tool("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650",
            "-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{HOST},DNS:localhost",
            "-keyout", str(key), "-out", str(self.certificate),
        ]  # fmt: skip
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise SetupRefused(f"openssl could not make a certificate: {made.stderr.strip()[-300:]}")
        (self.folder / "keystore.pem").write_text(key.read_text() + self.certificate.read_text())

    # --- its files

    def _file(self, node: int, kind: str) -> Path:
        return self.folder / f"node{node}.{kind}"

    def _last_word(self, node: int) -> str:
        return f"{_reason(self.log(node).read_text(errors='replace'))} (all of it: {self.log(node)})"

    def _known(self) -> Layout:
        if self._layout is None:
            raise SetupRefused(f"{self.folder} holds no cluster yet: start it first")
        return self._layout

    def _read_layout(self) -> Layout | None:
        try:
            kept = json.loads((self.folder / "cluster.json").read_text())
        except FileNotFoundError:
            return None
        return Layout([(clients, controllers) for clients, controllers in kept["ports"]], kept["passwords"])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One start at a time in a folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


# --- Java, Maven and their jars


def fetch(folder: Path | None = None) -> Path:
    """The folder with the jars that pom.xml names; Maven is asked once for each version of pom.xml.

    Raises KafkaUnavailable when it cannot be.
    """
    folder = (folder or CACHE / hashlib.sha256(POM.read_bytes()).hexdigest()[:12]).resolve()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    maven = _tool("mvn", "maven")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as work:
        command = [
            maven, "-B", "-q", "-ntp", "-C", "-f", str(POM), "dependency:copy-dependencies",
            f"-DoutputDirectory={work}/jars", "-DincludeScope=runtime",
        ]  # fmt: skip
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FETCH_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise KafkaUnavailable(f"Maven did not fetch Kafka within {FETCH_WITHIN_S:g} s") from None
        if ran.returncode:
            raise KafkaUnavailable(f"Maven could not fetch Kafka: {(ran.stdout + ran.stderr).strip()[:500]}")
        try:
            Path(work, "jars").rename(folder)
        except OSError:  # somebody else was faster
            if not folder.is_dir():
                raise
    return folder


@cache
def java() -> str:
    """The Java on the PATH. Raises KafkaUnavailable when there is none, or too old a one."""
    program = _tool("java", "openjdk-17-jre-headless")
    said = subprocess.run([program, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'"(\d+)', said)
    if version is None or int(version[1]) < JAVA_AT_LEAST:
        raise KafkaUnavailable(f"Kafka needs Java {JAVA_AT_LEAST} or newer; {program} is {said.partition(chr(10))[0]}")
    return program


def _tool(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise KafkaUnavailable(f"a local Kafka needs `{program}` on the PATH; on Debian: apt-get install {package}")
    return found


def _ends_with(parent: int) -> Callable[[], None]:
    """Runs in the child: the kernel kills it when its parent ends, however that ends, even while it is paused."""
    prctl = ctypes.CDLL(None).prctl  # looked up here: the child of a process with threads must not load anything

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we could ask
            os._exit(0)

    return arrange


def _free_ports(brokers: int) -> list[tuple[int, int]]:
    found: list[int] = []
    while len(found) < 2 * brokers:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if port not in found and not _taken(probe, port):
                found.append(port)
    return list(zip(found[::2], found[1::2], strict=True))


def _taken(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind((HOST, port))
    except OSError:
        return True
    return False


def _brokers_seen(client: AdminClient) -> int:
    try:
        return len(client.list_topics(timeout=0.3).brokers)
    except KafkaException:
        return 0


def _reason(said: str) -> str:
    """The line that tells most of what a Java program said before it ended."""
    lines = [line.strip() for line in said.splitlines() if not line.strip().startswith("at ")]
    telling = [line for line in lines if "ERROR" in line or "Exception" in line] or lines or ["it said nothing"]
    return telling[-1][:300]


if __name__ == "__main__":
    fetch()
