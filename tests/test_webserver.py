"""webserver.Server with a small application, for what the service's own answers do not show."""

import os
import socket
import threading

import pytest

import messages
import webserver
from conftest import DEADLINE, wait_for

QUICK = b"GET /quick HTTP/1.1\r\nHost: a\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"


class Application:
    """Answers /quick at once and /slow once `gate` is set; /bad is a defect."""

    def __init__(self):
        self.gate, self.defects, self.told = threading.Event(), [], []

    def wait(self, request):
        return request.path == "/slow"

    def respond(self, request):
        if request.path == "/slow":
            assert self.gate.wait(DEADLINE)
        if request.path == "/bad":
            raise RuntimeError("a defect")
        return messages.json_answer(200, {"path": request.path})

    def observe(self, answered):
        self.told.append((answered.head and answered.head.path, answered.status))

    def defect(self, error, request_id):
        self.defects.append(str(error))

    def starved(self, error):
        raise AssertionError("no descriptors")


@pytest.fixture
def application():
    return Application()


@pytest.fixture
def server(application):
    server = webserver.Server(webserver.listening_socket(("127.0.0.1", 0)), application)
    server.start()
    yield server
    application.gate.set()
    server.stop(DEADLINE)


@pytest.fixture
def connect(server):
    clients = []

    def make(data=b""):
        clients.append(socket.create_connection(server.server_address, DEADLINE))
        clients[-1].sendall(data)
        return clients[-1]
    yield make
    for client in clients:
        client.close()


def answered(client):
    return client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_defect_of_the_application_costs_its_client_and_nobody_else(connect, application):
    assert connect(b"GET /bad HTTP/1.1\r\nHost: a\r\n\r\n").recv(1) == b""
    assert application.defects == ["a defect"]
    assert answered(connect(QUICK))


def test_more_defects_than_workers_leave_all_workers_at_work(connect, server):
    for _ in range(webserver.WORKERS + 1):
        connect(b"GET /bad HTTP/1.1\r\nHost: a\r\n\r\n").recv(1)
    assert answered(connect(QUICK))
    wait_for(lambda: server.idle == webserver.WORKERS, "all workers to rest")


def test_a_defect_of_the_poller_is_told_and_the_poller_goes_on(connect, server, application, monkeypatch):
    sweep = server.sweep
    monkeypatch.setattr(server, "sweep", lambda now: 1 / 0)
    client = connect()
    wait_for(lambda: application.defects, "the defect")
    monkeypatch.setattr(server, "sweep", sweep)
    client.sendall(QUICK)
    assert answered(client) and application.defects[0] == "division by zero"


def fail(*_):
    raise MemoryError


def test_neither_worker_nor_poller_is_lost_where_not_even_the_defect_can_be_told(connect, server, application, monkeypatch):
    sweep = server.sweep
    monkeypatch.setattr(application, "defect", fail)
    monkeypatch.setattr(server, "sweep", fail)
    for _ in range(webserver.WORKERS + 1):
        assert connect(b"GET /bad HTTP/1.1\r\nHost: a\r\n\r\n").recv(1) == b""
    monkeypatch.setattr(server, "sweep", sweep)
    assert answered(connect(QUICK))
    wait_for(lambda: server.idle == webserver.WORKERS, "all workers to rest")
    assert all(thread.is_alive() for thread in server.threads + [server.poller])


def test_a_connection_that_not_even_a_defect_could_close_is_closed_by_the_next_sweep(connect, server, monkeypatch):
    close = server.RequestHandlerClass.close
    fails = iter([fail])
    monkeypatch.setattr(server.RequestHandlerClass, "close", lambda handler: next(fails, close)(handler))
    assert connect(b"GET /bad HTTP/1.1\r\nHost: a\r\n\r\n").recv(1) == b""
    wait_for(lambda: not server.connections, "the connection to go")


def test_requests_that_wait_leave_workers_to_those_that_do_not(connect, server, application):
    waiting = [connect(SLOW) for _ in range(2 * webserver.WORKERS)]
    wait_for(lambda: len(server.deferred) == 2 * webserver.WORKERS - webserver.SLOTS, "the rest to be deferred")
    assert all(answered(connect(QUICK)) for _ in range(3))
    wait_for(lambda: server.busy() == 2 * webserver.WORKERS, "the quick ones to be done")
    application.gate.set()
    assert all(answered(client) for client in waiting)


def test_a_slot_goes_to_the_next_even_where_that_need_not_wait_any_more(connect, server, application, monkeypatch):
    waiting = [connect(SLOW) for _ in range(2 * webserver.WORKERS)]
    wait_for(lambda: len(server.deferred) == 2 * webserver.WORKERS - webserver.SLOTS, "the rest to be deferred")
    monkeypatch.setattr(application, "wait", lambda request: False)
    application.gate.set()
    assert all(answered(client) for client in waiting)
    wait_for(lambda: not server.slots, "all slots to be free")


def test_a_defect_gives_its_slot_back(connect, server, application, monkeypatch):
    monkeypatch.setattr(application, "wait", lambda request: True)
    for _ in range(webserver.SLOTS + 1):
        assert connect(b"GET /bad HTTP/1.1\r\nHost: a\r\n\r\n").recv(1) == b""
    assert answered(connect(QUICK)) and not server.deferred


def test_one_that_never_stops_asking_lets_others_in_between(connect, server, application):
    greedy = [connect(QUICK * 2000) for _ in range(webserver.WORKERS + 4)]
    assert answered(connect(QUICK))
    assert len(application.told) < 2000 * len(greedy)


def test_a_paused_server_goes_on_where_it_was(connect, server):
    kept, begun = connect(QUICK), connect(QUICK[:10])
    assert answered(kept)
    assert server.pause(DEADLINE)
    late = connect(QUICK)
    kept.sendall(QUICK)
    begun.sendall(QUICK[10:])
    server.resume()
    assert answered(kept) and answered(begun) and answered(late)


def test_a_pause_gives_up_on_a_request_that_takes_too_long(connect, server, application):
    client = connect(SLOW)
    wait_for(lambda: server.in_flight, "the request")
    assert not server.pause(0.1)
    application.gate.set()
    assert answered(client) and answered(connect(QUICK))


def test_frozen_connections_are_those_of_another_server_from_then_on(connect, server, application):
    kept, begun, idle = connect(QUICK), connect(QUICK[:10]), connect()
    assert answered(kept)
    wait_for(lambda: len(server.connections) == 3, "three connections")
    wait_for(lambda: any(handler.data for handler in server.connections.values()), "half a head")
    assert server.pause(DEADLINE)
    frozen = server.freeze()
    for state in frozen:    # a copy of the descriptor stands for the process that exec would have kept
        state["descriptor"] = os.dup(state["descriptor"])
    other = webserver.Server(webserver.listening_socket(("127.0.0.1", 0)), application, frozen=frozen)
    other.start()
    for client, data in ((kept, QUICK), (begun, QUICK[10:]), (idle, QUICK)):
        client.sendall(data)
        assert answered(client)
    assert other.stop(DEADLINE) == 0
    server.resume()


def test_while_slow_requests_hold_up_a_pause_the_others_are_served(connect, server, application):
    first, results = connect(SLOW), []
    wait_for(lambda: server.slots, "the request")
    pause = threading.Thread(target=lambda: results.append(server.pause(DEADLINE)))
    pause.start()
    wait_for(lambda: server.holding, "the pause to begin")
    later = connect(SLOW)
    wait_for(lambda: server.deferred, "the later one to be deferred")
    assert answered(connect(QUICK))
    application.gate.set()
    pause.join(DEADLINE)
    assert results == [True] and answered(first) and len(server.deferred) == 1
    state, = [state for state in server.freeze() if state["data"]]
    assert state["data"].encode() == SLOW
    server.resume()
    assert answered(later)


@pytest.mark.parametrize("change", [{"data": None}, {"served": KeyError}, {"descriptor": "7"}])
def test_a_connection_frozen_in_another_way_is_closed_and_costs_nothing_else(connect, server, application, change):
    client = connect()
    wait_for(lambda: server.connections, "the connection")
    assert server.pause(DEADLINE)
    state = server.freeze()[0]
    state["descriptor"] = os.dup(state["descriptor"])
    for name, value in change.items():
        state[name] = value
        if value is KeyError:
            del state[name]
    other = webserver.Server(webserver.listening_socket(("127.0.0.1", 0)), application, frozen=[state, {}])
    other.start()
    assert not other.connections and other.stop(DEADLINE) == 0
    server.resume()
    client.sendall(QUICK)
    assert answered(client)


def test_a_control_character_in_a_field_is_refused_where_it_is_made():
    with pytest.raises(ValueError):
        messages.Response(200, "text/plain", b"", [("X", "a\r\nSet-Cookie: b")])


def test_a_field_of_the_answer_wins_over_the_one_of_every_answer():
    head = messages.Response(200, "text/plain", b"", [("Cache-Control", "max-age=5")]).head
    assert head.count(b"Cache-Control") == 1 and b"Cache-Control: max-age=5\r\n" in head
