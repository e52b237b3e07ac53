"""Level watched: what each way of reaching the network leaves in the ledger."""

from tests.audit.conftest import Watched

ADDRESS = "203.0.113.7"  # of the block for documentation: nobody answers there


def test_nothing_left(can_watch, home):
    watched = Watched("""
        listening = socket.socket(); listening.bind(("127.0.0.1", 0)); listening.listen()
        for _ in range(3):
            socket.create_connection(listening.getsockname()).close()
    """)
    assert watched.level == "watched" and not watched.told
    assert [(c.address, c.scope) for c in watched.ledger.connections] == [("127.0.0.1", "loopback")]
    assert watched.ledger.sentence.startswith("Nothing left this machine; watched, 1 process")


def test_an_undeclared_connection_is_told_at_once(can_watch, home):
    watched = Watched(f"""
        connecting = socket.socket(); connecting.setblocking(False); connecting.connect_ex(("{ADDRESS}", 4711))
    """)
    assert [(line["address"], line["port"]) for line in watched.told] == [(ADDRESS, 4711)]
    assert watched.ledger.sentence.startswith(f"Undeclared connections: {ADDRESS}:4711 by python")


def test_a_declared_one_is_not(can_watch, home):
    code = f"""
        connecting = socket.socket(); connecting.setblocking(False); connecting.connect_ex(("{ADDRESS}", 4711))
    """
    watched = Watched(code, [ADDRESS])
    assert not watched.told and watched.ledger.sentence.startswith(f"Only declared connections: {ADDRESS}:4711")
