"""Fourteen ways to reach the network, each as code that a watched process runs. None waits for an answer."""

import struct
from dataclasses import dataclass
from pathlib import Path

from settle.audit.ledger import Ledger

NAME = "fourteen.invalid"
PORT = 4711  # of the first attack; each has its own

TRY = """
def attempt(act):
    try:
        act()
    except Exception as e:
        print(type(e).__name__, e, file=sys.stderr)
"""

ATTACKS = {
    "socket": "attempt(lambda: socket.create_connection(('HOST4', PORT), 2))",
    "urllib": "import urllib.request\nattempt(lambda: urllib.request.urlopen('http://HOST4:PORT/', timeout=2))",
    "httpx": "import httpx\nattempt(lambda: httpx.get('http://HOST4:PORT/', trust_env=False, timeout=2))",
    "aiohttp on uvloop": """
import aiohttp, asyncio, uvloop
async def get():
    async with aiohttp.ClientSession() as client:
        await client.get("http://HOST4:PORT/")
attempt(lambda: uvloop.run(get()))
""",
    "ctypes": """
import ctypes, struct
libc = ctypes.CDLL(None)
address = struct.pack("=H", 2) + struct.pack("!H", PORT) + socket.inet_aton("HOST4") + bytes(8)
libc.connect(libc.socket(2, 1, 0), address, 16)
""",
    "Rust": "import jsonschema_rs\nattempt(lambda: jsonschema_rs.validator_for({'$ref': 'http://HOST4:PORT/'}))",
    "curl": "attempt(lambda: subprocess.run(['curl', '-s', '-m', '2', '--noproxy', '*', 'http://HOST4:PORT/']))",
    "double fork": """
code = '''if 1:
    import os, socket, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(0.2)
            socket.socket().connect_ex(("HOST4", PORT))
            os._exit(0)
        os._exit(0)
'''
subprocess.run([sys.executable, "-S", "-c", code])
time.sleep(0.8)
""",
    "static binary": """
path = os.path.join(os.environ["SETTLE_HOME"], "static")
with open(path, "wb") as f:
    f.write(bytes.fromhex("ELF"))
os.chmod(path, 0o700)
subprocess.run([path])
""",
    "late thread": """
late = threading.Thread(target=lambda: socket.socket().connect_ex(("HOST4", PORT)))
late.start()
late.join()
""",
    "UDP": "attempt(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('UDP4', PORT)))",
    "DNS only": "attempt(lambda: socket.getaddrinfo('NAME', PORT))",
    "IPv6": "attempt(lambda: socket.socket(socket.AF_INET6).connect_ex(('HOST6', PORT)))",
    "io_uring": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
made = libc.syscall(ctypes.c_long(425), ctypes.c_long(4), ctypes.create_string_buffer(120))
print("io_uring", made, file=sys.stderr)
assert made < 0
""",
}


def static_elf(address: str, port: int) -> bytes:
    """A program of x86-64 without a library: socket, connect, exit with the negated error."""
    octets = bytes(map(int, address.split(".")))
    target = struct.pack("<H", 2) + struct.pack(">H", port) + octets
    code = (
        bytes.fromhex("b829000000bf02000000be0100000031d20f05")  # socket(AF_INET, SOCK_STREAM, 0)
        + bytes.fromhex("89c7")  # edi = descriptor
        + b"\x6a\x00\x48\xb8" + target + b"\x50"  # push 0; rax = address; push rax
        + bytes.fromhex("4889e6ba10000000b82a0000000f05")  # connect(edi, rsp, 16)
        + bytes.fromhex("f7d889c7b83c0000000f05")  # exit(-result)
    )  # fmt: skip
    base, offset = 0x400000, 120
    size = offset + len(code)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + offset, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


@dataclass(frozen=True)
class Targets:
    """Where attacks go. Those of a test are nowhere: TCP to a group address is refused at once, without a packet, and
    the others are of the blocks for documentation."""

    tcp: str = "239.255.0.14"
    udp: str = "203.0.113.14"
    ipv6: str = "2001:db8::14"

    def port(self, name: str) -> int:
        return PORT + list(ATTACKS).index(name)

    def code(self, name: str) -> str:
        """One attack as Python."""
        port = self.port(name)
        values = {"HOST4": self.tcp, "HOST6": self.ipv6, "UDP4": self.udp, "NAME": NAME, "PORT": str(port)}
        code = TRY + ATTACKS[name].replace("ELF", static_elf(self.tcp, port).hex())
        for key, value in values.items():
            code = code.replace(key, value)
        return code

    def reached(self, name: str) -> tuple[str, int]:
        """The address and port that its ledger must have."""
        return {"UDP": self.udp, "IPv6": self.ipv6}.get(name, self.tcp), self.port(name)


def is_recorded(name: str, ledger: Ledger, targets: Targets) -> bool:
    """Whether a ledger has an attack, with the program that did it."""
    if name == "io_uring":
        return any("io_uring_setup" in line for line in ledger.denied)
    if name == "DNS only":
        return any(c.port == 53 or c.scope == "resolver" for c in ledger.connections)
    program = {"curl": "curl", "static binary": "static"}.get(name, "python")
    at = [c for c in ledger.connections if (c.address, c.port) == targets.reached(name)]
    return any(Path(c.program).name.startswith(program) and c.pid > 1 for c in at)
