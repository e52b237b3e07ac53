"""The process beside a run that reads the kernel's reports of its network calls, and writes them down.

Another process, since native code may call `connect` while it holds the interpreter's lock: no thread could answer.
Two of them: one waits, and puts another one in the place of the one that reads, should that be killed. Python's own
library only; it is run by its path, and ends when the last process of the run has ended.

A line of the ledger names who connected and where to; never what was said there, but for the name
in a question to a name server.
"""

import array
import contextlib
import errno
import fcntl
import ipaddress
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

Line = dict[str, Any]  # of the ledger: what JSON knows
Address = dict[str, Any]
RECEIVE, ANSWER, IS_VALID = 0xC0502100, 0xC0182101, 0x40082102  # ioctls of a seccomp listener
SET_FLAGS, SYNC_WAKE_UP = 0x40082104, 1
CONTINUE = 1
UNREADABLE = "an address that could not be read"
HERE = ("loopback", "own", "unix")
MOST_REPEATS = 1000  # lines of one process to one address beyond this machine; further ones are counted
ANSWER_SECONDS = 2.0  # for the run to read its child's memory
MOST_WAITING = 10_000  # lines that wait for room on the disk
DNS = 53
RESOLVERS = ("/run/systemd/resolve/", "/run/nscd/", "/var/run/nscd/", "/run/dnsmasq")  # sockets that look names up


class Refused(Exception):  # noqa: N818
    """Without a network no socket is taken back to connect anew: it may be of the time before."""


class Watcher:
    """listener: the descriptor of the reports. ledger: of the file. alarm: of a pipe to the run, for what goes beyond
    this machine. channel: to the run. task: of `watcher.py`."""

    def __init__(self, listener: int, ledger: int, alarm: int, channel: socket.socket, task: Line) -> None:
        self.listener, self.alarm = listener, alarm
        self.calls = {number: name for name, number in task["calls"].items()}
        self.arch, self.sizes, self.is_fenced = task["arch"], task["sizes"], task["is_fenced"]
        self.run_pid, self.asks = task["pid"], task["asks"]
        self.channel = channel
        self.lines = Lines(ledger)
        self.processes: dict[int, str] = {}
        self.modules: dict[int, str] = {}  # of Python processes
        self.counts: dict[tuple[object, ...], int] = {}
        self.bound: dict[tuple[int, int], Address] = {}  # by process and descriptor
        self.resolvers: set[tuple[int, int]] = set()  # sockets connected to name servers

    def run(self) -> None:
        with contextlib.suppress(OSError):  # before Linux 6.6; the caller sleeps anyway: take its core
            fcntl.ioctl(self.listener, SET_FLAGS, SYNC_WAKE_UP)
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        while True:
            events = poll.poll()[0][1]
            if not events & select.POLLIN:
                return  # nobody is left who has the filter
            report = bytearray(self.sizes[0])
            try:
                fcntl.ioctl(self.listener, RECEIVE, report)
            except OSError:
                continue  # the caller was killed
            self.answer(report)

    def answer(self, report: bytearray) -> None:
        """Writes one report down, then lets the call go on, whatever happens to the writing."""
        number, tid, _, call, arch, _, *args = struct.unpack_from("=QIIiIQ6Q", report)
        error = 0
        try:
            error = self.record(number, tid, call, arch, args)
        except Refused:
            error = errno.EAFNOSUPPORT
        except Exception as e:  # noqa: BLE001  an error of ours must not hold the run up
            line = {"kind": "unreadable", "pid": tid, "call": self.calls.get(call, "?"), "address": UNREADABLE}
            self.write({**line, "why": f"{type(e).__name__}: {e}"}, True)
        answer = bytearray(self.sizes[1])
        struct.pack_into("=QqiI", answer, 0, number, 0, -error, 0 if error else CONTINUE)
        with contextlib.suppress(OSError):  # the caller was killed
            fcntl.ioctl(self.listener, ANSWER, answer)

    def record(self, number: int, tid: int, call: int, arch: int, args: list[int]) -> int:
        """The error number that the caller gets; 0: it goes on."""
        who = self.process(tid)
        name = self.calls.get(call) if arch == self.arch else None
        if name is None or name == "io_uring_setup":
            what = name or "a network call of a 32-bit program"
            self.line(who, {"kind": "denied", "call": what}, False)
            return errno.ENOSYS
        if name == "socket":
            return self.socket(who, args)
        if name == "listen":
            address = self.bound.get((who["pid"], args[0]), {"address": "an address of the system's choice"})
            if not self.is_fenced and not is_local(address):
                self.line(who, {"kind": "listen", **address}, True)
            return 0
        error = 0
        for address, payload in self.addresses(number, tid, name, args, (who["pid"], args[0])):
            self.reached(who, name, address, payload, args[0])
            if self.is_fenced and name != "bind" and address["scope"] != "loopback":
                error = errno.ENETUNREACH  # also for a socket that was opened before the network was empty
        return error

    def socket(self, who: Line, args: list[int]) -> int:
        families = {1: "unix", 17: "packet", 40: "vsock", 31: "bluetooth", 38: "alg", 44: "xdp"}
        family = families.get(args[0], f"family {args[0]}")
        if self.is_fenced:
            self.line(who, {"kind": "denied", "call": f"socket ({family})"}, False)
            return errno.EAFNOSUPPORT
        self.line(who, {"kind": "socket", "family": family, "scope": "local" if family == "alg" else "beyond"}, True)
        return 0

    def reached(self, who: Line, call: str, address: Address, payload: bytes, fd: int) -> None:
        """A call that goes to an address, or takes one."""
        key = who["pid"], fd
        if call == "bind":
            self.bound[key] = address
            return
        port = address.get("port")
        if port == DNS and call == "connect":
            self.resolvers.add(key)
        elif call == "connect":
            self.resolvers.discard(key)
        if port == DNS and payload and (name := dns_name(payload)):
            address = {**address, "name": name}
        self.line(who, {"kind": "connect", "call": call, **address}, address["scope"] not in HERE)

    def addresses(
        self, number: int, tid: int, call: str, args: list[int], key: tuple[int, int]
    ) -> Iterator[tuple[Address, bytes]]:
        """(address, the beginning of what is sent) of each message. Raises OSError where memory is unreadable."""
        with self.memory(key[0], tid) as memory:
            found = list(sent(memory, call, args, key in self.resolvers))
        fcntl.ioctl(self.listener, IS_VALID, struct.pack("=Q", number))  # it was the caller's memory, not a successor's
        if self.is_fenced and call == "connect" and (found[0][0] or b"")[:2] == bytes(2):
            raise Refused
        for raw, payload in found:
            if raw is None:
                yield {"scope": "resolver", "port": DNS, "address": "its name server"}, payload
            elif (address := described(raw)) is not None:
                yield address, payload

    def memory(self, pid: int, tid: int) -> "BinaryIO | AskedMemory":
        """The memory of a thread. Where only ancestors may read it, as Yama has it, the run reads that of its children.
        Raises OSError."""
        try:
            if self.asks and pid != self.run_pid:
                raise PermissionError(errno.EPERM, "told to ask")
            return open(f"/proc/{tid}/mem", "rb", 0)
        except PermissionError:
            return AskedMemory(self.channel, tid)

    def process(self, tid: int) -> Line:
        """The process of a thread; written down when it is first seen, and again under another program."""
        with open(f"/proc/{tid}/status", "rb") as f:
            status = f.read(512)
        pid, parent = (int(status.partition(key)[2].split(None, 1)[0]) for key in (b"\nTgid:", b"\nPPid:"))
        try:
            program = os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115  pathlib is slow to load
        except OSError:
            program = status.partition(b"\n")[0][6:].decode("utf-8", "replace")
        if self.processes.get(pid) != program:
            self.processes[pid] = program
            line: Line = {"kind": "process", "pid": pid, "parent": parent, "program": program}
            if module := python_module(pid):
                line["module"] = self.modules[pid] = module
            self.write(line, False)
        return {"pid": pid, "tid": tid}

    def line(self, who: Line, line: Line, is_alarm: bool) -> None:
        """Writes a line unless its like was written often enough; then it is counted."""
        key = (who["pid"], self.processes.get(who["pid"]), *(line.get(k) for k in ("kind", "call", "address", "port")))
        count = self.counts[key] = self.counts.get(key, 0) + 1
        if count == 1 or (is_alarm and count <= MOST_REPEATS):
            self.write({**line, **who}, is_alarm)

    def write(self, line: Line, is_alarm: bool) -> None:
        line = {"time": round(time.time(), 3), **line}
        self.lines.write(line)
        if is_alarm:
            with contextlib.suppress(OSError):  # the run has ended, or does not read
                os.write(self.alarm, json.dumps({**line, "module": self.modules.get(line["pid"])}).encode() + b"\n")

    def close(self) -> None:
        keys = ("pid", "program", "kind", "call", "address", "port")
        repeats = [{**dict(zip(keys, key, strict=True)), "count": n} for key, n in self.counts.items() if n > 1]
        self.write({"kind": "closed", "repeats": repeats}, False)
        self.lines.close()


class AskedMemory:
    """Memory that the run reads for us. It may be unable to answer, as when native code holds the interpreter's lock:
    then nothing is known of the address, and the run goes on."""

    def __init__(self, channel: socket.socket, tid: int) -> None:
        self.channel, self.tid, self.at = channel, tid, 0

    def __enter__(self) -> "AskedMemory":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seek(self, at: int) -> None:
        self.at = at

    def read(self, size: int) -> bytes:
        """Raises OSError."""
        try:
            self.channel.settimeout(ANSWER_SECONDS)
            self.channel.send(struct.pack("=IQI", self.tid, self.at, size))
            answer = self.channel.recv(size + 1)  # one message: whether it was read, and the bytes
        except TimeoutError:
            self.channel.close()  # what is late must not be taken for the next answer
            raise
        if answer[:1] != b"+":
            raise PermissionError(errno.EPERM, "its memory is not readable")
        return answer[1:]


def sent(
    memory: BinaryIO | AskedMemory, call: str, args: list[int], is_query: bool
) -> Iterator[tuple[bytes | None, bytes]]:
    """(socket address, the beginning of what is sent) of each message of a call; None: where the socket is connected
    to, which is given only for questions to a name server."""

    def read(at: int, size: int) -> bytes:
        memory.seek(at)
        return memory.read(size)

    if call in ("connect", "bind"):
        yield read(args[1], min(args[2], 128)), b""
    elif call == "sendto":
        yield read(args[4], min(args[5], 128)), read(args[1], min(args[2], 512)) if args[2] else b""
    else:
        size, num = (56, 1) if call == "sendmsg" else (64, min(args[2], 1024))
        for i in range(num):
            name, length, _, vectors, num_vectors = struct.unpack("=QIIQQ", read(args[1] + i * size, 32))
            if name or is_query:
                at, size_of = struct.unpack("=QQ", read(vectors, 16)) if num_vectors else (0, 0)
                payload = read(at, min(size_of, 512)) if size_of else b""
                yield read(name, min(length, 128)) if name else None, payload


class Lines:
    """Appends lines to a file. What finds no room waits for it; what cannot wait is counted."""

    def __init__(self, fd: int) -> None:
        self.fd, self.num_lost = fd, 0
        self.waiting: list[bytes] = []

    def write(self, line: Line) -> None:
        self.waiting.append(json.dumps(line).encode() + b"\n")
        if len(self.waiting) > MOST_WAITING:
            del self.waiting[0]
            self.num_lost += 1
        with contextlib.suppress(OSError):
            while self.waiting:
                first = self.waiting[0]
                if os.write(self.fd, first) < len(first):
                    self.waiting[0] = b"\n" + first.lstrip(b"\n")  # ends what was half written
                    return
                del self.waiting[0]

    def close(self) -> None:
        lost = self.num_lost + len(self.waiting)
        if lost:
            self.waiting = []
            self.write({"time": time.time(), "kind": "lost", "count": lost})


def described(raw: bytes) -> Address | None:
    """A socket address as it is written down: scope, address, port; None for one that means "nowhere"."""
    family = struct.unpack_from("=H", raw)[0] if len(raw) >= 2 else 0
    if family == 2 and len(raw) >= 8:
        return internet(ipaddress.ip_address(raw[4:8]), struct.unpack_from("!H", raw, 2)[0])
    if family == 10 and len(raw) >= 24:
        return internet(ipaddress.ip_address(raw[8:24]), struct.unpack_from("!H", raw, 2)[0])
    if family == 1:
        path = raw[2:]
        text = path[1:] if path[:1] == b"\0" else path.split(b"\0")[0]
        name = ("@" if path[:1] == b"\0" else "") + text.decode("utf-8", "replace")
        is_resolver = name.startswith(RESOLVERS) and os.access(name, os.F_OK)
        return {"scope": "resolver" if is_resolver else "unix", "address": name, "family": "unix"}
    if family in (0, 16):  # a connection is given up; a question to the kernel
        return None
    return {"scope": "beyond", "address": raw.hex(), "family": f"family {family}"}


def internet(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Address:
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback or ip.is_unspecified:
        scope = "resolver" if port == DNS else "loopback"
    else:
        scope = "own" if str(ip) in own_addresses() and port != DNS else "beyond"
    return {"scope": scope, "address": str(ip), "port": port}


def own_addresses() -> set[str]:
    """Addresses of this machine's own interfaces: what goes to them stays here."""
    found = set()
    with contextlib.suppress(OSError), open("/proc/net/fib_trie") as f:
        before = ""
        for line in f:
            if "/32 host LOCAL" in line:
                found.add(before)
            before = line.split()[-1]
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as f:
        found |= {str(ipaddress.ip_address(bytes.fromhex(line.split()[0]))) for line in f}
    return found


def is_local(address: Address) -> bool:
    """Whether only this machine can connect to where a process listens."""
    if address.get("family") == "unix":
        return True
    try:
        return ipaddress.ip_address(address["address"]).is_loopback
    except (KeyError, ValueError):
        return False


def dns_name(payload: bytes) -> str | None:
    """The name that a question to a name server is about; None for anything else."""
    for start in (12, 14):  # over TCP a length comes first
        labels, at = [], start
        while at < len(payload) and 0 < payload[at] <= 63 and at + payload[at] < len(payload):
            labels.append(payload[at + 1 : at + 1 + payload[at]])
            at += 1 + payload[at]
        if labels and at < len(payload) and payload[at] == 0 and all(label.isascii() for label in labels):
            return b".".join(labels).decode("ascii").lower()
    return None


def python_module(pid: int) -> str | None:
    """The module or script of a Python process, without its arguments, which may hold secrets."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            argv = f.read().split(b"\0")
        if b"python" not in argv[0].rpartition(b"/")[2]:
            return None
        for flag, value in zip(argv[1:], argv[2:], strict=False):
            if flag == b"-m":
                return value.decode("utf-8", "replace")
        for arg in argv[1:]:
            if arg.endswith(b".py"):
                return arg.rpartition(b"/")[2].decode("utf-8", "replace")
    return None


def can_read(pid: int, at: int, expected: bytes) -> bool:
    """Whether the memory of the run is readable: without it no address is known."""
    try:
        with open(f"/proc/{pid}/mem", "rb", 0) as memory:
            memory.seek(at)
            return memory.read(len(expected)) == expected
    except OSError:
        return False


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    ledger, alarm = int(sys.argv[2]), int(sys.argv[3])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # they are the run's: we end after it
    os.set_blocking(alarm, False)
    task = json.loads(channel.recv(1 << 16))
    channel.sendall(b"yes" if can_read(task["pid"], task["probe_at"], task["probe"].encode()) else b"no")
    _, passed, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
    if not passed:
        return  # the filter could not be set
    listener = array.array("i", passed[0][2][:4])[0]
    channel.sendall(b"watching")
    while True:
        reader = os.fork()
        if reader == 0:
            watcher = Watcher(listener, ledger, alarm, channel, task)
            watcher.run()
            watcher.close()
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 0:
            return
        Lines(ledger).write({"time": time.time(), "kind": "gap", "why": "the watching process was killed"})


if __name__ == "__main__":
    main()
