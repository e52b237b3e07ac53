"""What was declared, and which of several names a connection belongs to."""

import pytest

from settle.audit.reach import Names, Reach, scope_of

HUB, PIP = Reach("hub.example", "models"), Reach("", "wheels", "pip")


def names(*lines):
    made = Names()
    for line in lines:
        made.add(line)
    return made


def test_a_host_and_all_below_it():
    assert HUB.covers(["cdn.Hub.example."], "") and HUB.covers(["hub.example"], "")
    assert (
        not HUB.covers(["evilhub.example"], "") and not HUB.covers(["hub.example.net"], "") and not HUB.covers([], "")
    )


def test_a_module_may_reach_what_others_may_not():
    line = {"address": "192.0.2.1", "port": 443, "scope": "beyond", "pid": 1}
    assert names().is_declared(line, [PIP], "pip") and names().is_declared(line, [PIP], "pip.__main__")
    assert not names().is_declared(line, [PIP], "pipx") and not names().is_declared(line, [PIP], "")


def test_python_says_what_it_looked_up():
    site = {"kind": "site", "address": "192.0.2.1", "port": 443, "host": "hub.example"}
    line = {"address": "192.0.2.1", "port": 443, "scope": "beyond", "pid": 1}
    assert names(site).is_declared(line, [HUB], "") and not names().is_declared(line, [HUB], "")


def test_of_what_native_code_looked_up_each_has_to_be_declared():
    asked = {"time": 5.0, "pid": 1, "name": "cdn.hub.example", "port": 53, "scope": "resolver"}
    line = {"time": 6.0, "address": "192.0.2.1", "port": 443, "scope": "beyond", "pid": 1}
    assert names(asked).of(line) == ["cdn.hub.example"] and names(asked).is_declared(line, [HUB], "")
    other = {**asked, "time": 5.5, "name": "elsewhere.example"}
    assert names(asked, other).of(line) == ["elsewhere.example", "cdn.hub.example"]
    assert not names(asked, other).is_declared(line, [HUB], "")
    assert names(asked).of({**line, "time": 500.0}) == [] == names(asked).of({**line, "pid": 2})


def test_a_name_server_is_declared_with_what_it_is_asked_for():
    server = {"address": "192.0.2.53", "port": 53, "scope": "resolver", "pid": 1}
    assert names().is_declared(server, [HUB], "") and not names().is_declared(server, [], "")
    assert names().is_declared({**server, "name": "hub.example"}, [HUB], "")
    assert not names().is_declared({**server, "name": "elsewhere.example"}, [HUB], "")
    assert not names().is_declared({**server, "is_question": False}, [HUB], "")


def test_a_server_of_the_programs_own_choice_is_no_name_server():
    """What it is asked for does not say who it is, and nothing is known of its answers."""
    server = {"time": 5.0, "address": "192.0.2.53", "port": 53, "scope": "beyond", "pid": 1, "name": "hub.example"}
    then = {"time": 6.0, "address": "192.0.2.1", "port": 443, "scope": "beyond", "pid": 1}
    assert not names().is_declared(server, [HUB], "")
    assert not names(server).is_declared(then, [HUB], "") and names(server).of(then) == []


def test_python_says_which_addresses_a_name_has():
    found = {"kind": "name", "host": "hub.example", "addresses": ["192.0.2.1", "192.0.2.2"]}
    literal = {"kind": "site", "address": "192.0.2.9", "port": 443, "host": ""}
    asked = {"time": 5.0, "pid": 1, "name": "hub.example", "port": 53, "scope": "resolver"}
    line = {"time": 6.0, "port": 443, "scope": "beyond", "pid": 1}
    known = names(found, literal, asked)
    assert known.is_declared({**line, "address": "192.0.2.2"}, [HUB], "") and not known.is_guess(
        {**line, "address": "192.0.2.2"}
    )
    assert not known.is_declared({**line, "address": "192.0.2.9"}, [HUB], "")  # given to Python as such
    assert known.is_guess({**line, "address": "192.0.2.7"})  # by native code
    both = names(found, {**found, "host": "elsewhere.example"})
    assert both.of({**line, "address": "192.0.2.1"}) == ["elsewhere.example", "hub.example"]
    assert not both.is_declared({**line, "address": "192.0.2.1"}, [HUB], "")


@pytest.mark.parametrize("here", ["127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "localhost", "/run/x"])
def test_only_a_whole_address_is_this_machine(here):
    assert scope_of(here) == "loopback"


@pytest.mark.parametrize("there", ["127.0.0.1.example.org", "127.example.org", "192.0.2.1", "fe80::1%eth0"])
def test_a_name_that_looks_like_this_machine_is_not(there):
    assert scope_of(there) == "beyond"
