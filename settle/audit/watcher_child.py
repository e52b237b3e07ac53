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
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from settle.audit.socket_facts import (
        DNS,
        INET,
        INET6,
        Address,
        SocketFacts,
        asked_name,
        described,
        facts_of,
        is_local,
        sent,
    )
else:
    sys.path.append(os.path.dirname(__file__))  # noqa: PTH120  it runs alone, without a place for packages
    from socket_facts import DNS, INET, INET6, Address, SocketFacts, asked_name, described, facts_of, is_local, sent

Line = dict[str, Any]  # of the ledger: what JSON knows
RECEIVE, ANSWER, IS_VALID = 0xC0502100, 0xC0182101, 0x40082102  # ioctls of a seccomp listener
SET_FLAGS, SYNC_WAKE_UP = 0x40082104, 1
CONTINUE = 1
UNREADABLE = "an address that could not be read"
HERE = ("loopback", "own", "unix")
MOST_REPEATS = 1000  # lines of one process to one address beyond this machine; further ones are counted
ANSWER_SECONDS = 2.0  # for the run to read its child's memory
MOST_WAITING = 10_000  # lines that wait for room on the disk
ROUTES = {(0, 7), (41, 57), (41, 5)}  # such an option names a first hop: IP_RETOPTS, IPV6_RTHDR, IPV6_2292RTHDR
FOR_OTHERS = ("ptrace", "pidfd_getfd", "setns", "process_vm_writev")  # calls that act for, or as, another process


class Refused(Exception):  # noqa: N818
    """A call that is not let through: (error number)."""


class Watcher:
    """The process that watches a run.

    listener: descriptor of the reports. ledger: of the file. alarm: of a pipe to the run, for what goes beyond this
    machine. channel: to the run. task: of `watcher.py`.
    """

    def __init__(self, listener: int, ledger: int, alarm: int, channel: socket.socket, task: Line) -> None:
        self.listener, self.alarm = listener, alarm
        self.calls = {number: name for name, number in task["calls"].items()}
        self.arch, self.sizes, self.is_fenced = task["arch"], task["sizes"], task["is_fenced"]
        self.run_pid, self.asks, self.routes = task["pid"], task["asks"], task["routes"]
        self.channel = channel
        self.lines = Lines(ledger)
        self.processes: dict[int, str] = {}
        self.modules: dict[int, str] = {}  # of Python processes
        self.counts: dict[tuple[object, ...], int] = {}
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
        """Write one report down, then let the call continue, whether or not it could be written."""
        number, tid, _, call, arch, _, *args = struct.unpack_from("=QIIiIQ6Q", report)
        error = 0
        try:
            error = self.record(number, tid, call, arch, args)
        except Refused as e:
            error = e.args[0]
        except Exception as e:  # noqa: BLE001  an error of ours must not hold the run up
            line = {"kind": "unreadable", "pid": tid, "call": self.calls.get(call, "?"), "address": UNREADABLE}
            self.write({**line, "why": f"{type(e).__name__}: {e}"}, True)
        answer = bytearray(self.sizes[1])
        struct.pack_into("=QqiI", answer, 0, number, 0, -error, 0 if error else CONTINUE)
        with contextlib.suppress(OSError):  # the caller was killed
            fcntl.ioctl(self.listener, ANSWER, answer)

    def record(self, number: int, tid: int, call: int, arch: int, args: list[int]) -> int:
        """Record a call; return the error number that the caller gets, 0 where the call continues."""
        who = self.process(tid)
        name = self.calls.get(call) if arch == self.arch else None
        if name is None or name.startswith("io_uring"):
            what = name or "a network call of a 32-bit program"
            self.line(who, {"kind": "denied", "call": what}, False)
            return errno.ENOSYS
        if name == "setsockopt":
            if [args[1] & 0xFFFFFFFF, args[2] & 0xFFFFFFFF] in self.routes:
                raise self.refusal(who, "a source route")
            self.line(who, {"kind": "socket", "call": "join", "family": "multicast", "scope": "beyond"}, True)
            return 0
        if name in FOR_OTHERS:
            why = f"process {who['pid']} called {name}, with which one process acts for another"
            self.line(who, {"kind": "gap", "call": name, "why": why}, False)
            return 0
        if name == "socket":
            return self.socket(who, args)
        fd = args[0] & 0xFFFFFFFF
        if name == "listen":
            self.listen(who, fd)
            return 0
        error = 0
        for address, payload, size in self.addresses(number, who, name, args, fd):
            self.reached(who, name, address, payload, size, fd)
            if self.is_fenced and address["scope"] != "loopback":
                error = errno.ENETUNREACH  # also for a socket that was opened before the network was empty
        return error

    def refusal(self, who: Line, what: str) -> Refused:
        """Refuse a call that would lead somewhere else than its address says."""
        self.line(who, {"kind": "denied", "call": what}, False)
        return Refused(errno.EPERM)

    def socket(self, who: Line, args: list[int]) -> int:
        families = {1: "unix", 17: "packet", 40: "vsock", 31: "bluetooth", 38: "alg", 44: "xdp"}
        domain, kind, protocol = (value & 0xFFFFFFFF for value in args[:3])
        family = families.get(domain, f"family {domain}")
        if domain in (INET, INET6):  # of another kind than those whose every address is seen
            family = "raw" if kind & 15 == 3 else {132: "sctp"}.get(protocol, f"protocol {protocol}")
        if self.is_fenced:
            self.line(who, {"kind": "denied", "call": f"socket ({family})"}, False)
            return errno.EAFNOSUPPORT
        self.line(who, {"kind": "socket", "family": family, "scope": "local" if family == "alg" else "beyond"}, True)
        return 0

    def listen(self, who: Line, fd: int) -> None:
        if self.is_fenced:
            return
        address: Address = {"address": UNREADABLE}
        with contextlib.suppress(OSError, ValueError):
            facts = self.facts(who, fd)
            if isinstance(facts.bound, str):
                return  # a file of this machine
            address = {"address": "0.0.0.0" if facts.family == INET else "::", "port": "of the system's choice"}
            if facts.bound is not None:
                address = {"address": facts.bound[0], "port": facts.bound[1]}
        if not is_local(address):
            self.line(who, {"kind": "listen", **address}, True)

    def reached(self, who: Line, call: str, address: Address, payload: bytes, size: int, fd: int) -> None:
        """Record a call that goes to an address. size: bytes of all that is sent, of which payload is the beginning."""
        key = who["pid"], fd
        port = address.get("port")
        if port == DNS and call == "connect":
            self.resolvers.add(key)
        elif call == "connect":
            self.resolvers.discard(key)
        line: Line = {"kind": "connect", "call": call, **address}
        if port == DNS and payload:
            name = asked_name(payload, size)
            line |= {"is_question": False} if name is None else {"name": name}
        self.line(who, line, address["scope"] not in HERE)

    def addresses(
        self, number: int, who: Line, call: str, args: list[int], fd: int
    ) -> Iterator[tuple[Address, bytes, int]]:
        """Yield the address, the beginning and the size of each message. Raises OSError where memory is unreadable."""
        with self.memory(who["pid"], who["tid"]) as memory:

            def read(at: int, size: int) -> bytes:
                memory.seek(at)
                return memory.read(size)

            found = list(sent(read, call, args, (who["pid"], fd) in self.resolvers))
        # raises unless it was the caller's memory, and not a successor's
        fcntl.ioctl(self.listener, IS_VALID, struct.pack("=Q", number))
        for raw, payload, size, options in found:
            if any((level, kind) in ROUTES for level, kind in options):
                raise self.refusal(who, "a source route")
            has_family = raw is None or raw[:2] != bytes(2)
            if self.is_fenced and call == "connect" and not has_family:
                raise Refused(errno.EAFNOSUPPORT)  # to connect a socket anew, which may be of the time before
            domain = None
            if call != "connect" and not has_family:
                domain = INET if self.is_fenced else self.facts(who, fd).family
            if raw is None:
                yield {"scope": "resolver", "port": DNS, "address": "its name server"}, payload, size
            elif (address := described(raw, domain)) is not None:
                yield address, payload, size

    def facts(self, who: Line, fd: int) -> SocketFacts:
        """Return a socket's facts. Raises OSError where they are unavailable."""
        try:
            if self.asks and who["pid"] != self.run_pid:
                raise PermissionError(errno.EPERM, "told to ask")
            return facts_of(who["pid"], who["tid"], fd)
        except PermissionError:
            family, bound, *_ = json.loads(AskedMemory(self.channel, who["tid"], who["pid"]).facts(fd))
            return SocketFacts(family, tuple(bound) if isinstance(bound, list) else bound)

    def memory(self, pid: int, tid: int) -> "BinaryIO | AskedMemory":
        """Open the memory of a thread. Raises OSError.

        Where only ancestors may read it, as Yama has it, the run reads that of its children.
        """
        try:
            if self.asks and pid != self.run_pid:
                raise PermissionError(errno.EPERM, "told to ask")
            return open(f"/proc/{tid}/mem", "rb", 0)
        except PermissionError:
            return AskedMemory(self.channel, tid, pid)

    def process(self, tid: int) -> Line:
        """Return the process of a thread; write it down when it is first seen, and again under another program."""
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
        """Write a line unless its like was written often enough; then count it."""
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
    """Memory that the run reads for us.

    The run may be unable to answer, as when native code holds the interpreter's lock: then nothing is known of the
    address, and the run continues.
    """

    def __init__(self, channel: socket.socket, tid: int, pid: int) -> None:
        self.channel, self.tid, self.pid, self.at = channel, tid, pid, 0

    def __enter__(self) -> "AskedMemory":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seek(self, at: int) -> None:
        self.at = at

    def read(self, size: int) -> bytes:
        """Read `size` bytes. Raises OSError."""
        return self.ask(self.at, size) if size else b""

    def facts(self, fd: int) -> bytes:
        """Return what the process's socket is, as JSON. Raises OSError."""
        return self.ask(fd, 0)

    def ask(self, at: int, size: int) -> bytes:
        try:
            self.channel.settimeout(ANSWER_SECONDS)
            self.channel.send(struct.pack("=IIQI", self.tid, self.pid, at, size))
            answer = self.channel.recv(max(size, 1024) + 1)  # one message: whether it was read, and the bytes
        except TimeoutError:
            self.channel.close()  # what is late must not be taken for the next answer
            raise
        if answer[:1] != b"+":
            raise PermissionError(errno.EPERM, "its memory is not readable")
        return answer[1:]


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


def python_module(pid: int) -> str | None:
    """Return the module or script of a Python process, without its arguments, which may hold secrets."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            argv = f.read().split(b"\0")
        if b"python" not in argv[0].rpartition(b"/")[2]:
            return None
        words = iter(os.fsdecode(word) for word in argv[1:])
        for word in words:
            if word[:1] != "-" or word == "-":
                return word.rpartition("/")[2]
            flags, is_module, value = word[1:].partition("m")
            if is_module and not set(flags) & set("cWX-"):
                return value or next(words, None)
            if word in ("-W", "-X"):
                next(words, None)
            elif "c" in flags:
                return None
    return None


def can_read(pid: int, at: int, expected: bytes) -> bool:
    """Return whether the memory of the run is readable: without it no address is known."""
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
