"""A server that answers as it is told: the dashboard, and whatever /metrics and /readyz are to be.

    with StandIn(metrics=document) as server: ...     # server.url; server.answers may be changed at any time

For what the real service never does, such as half an answer, and for figures of another size.
"""

import http.server
import json
import threading
from pathlib import Path

import pages

PAGE = Path(__file__).resolve().parents[1] / "dashboard.html"
READY = {"status": "pass", "checks": {name: [{"componentType": "system", "status": "pass"}] for name in (
    "database:shipments", "database:schema", "log:target", "service:reload")}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(self.path)
        status, content_type, body = self.server.answers.get(path, (404, "text/plain", b""))
        self.server.gate.wait()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if path == "/":
            self.send_header("Content-Security-Policy", self.server.policy)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class StandIn(http.server.ThreadingHTTPServer):
    """`asked` has the paths asked for; while `gate` is cleared, nothing is answered."""
    daemon_threads = True

    def __init__(self, metrics, ready=READY, ready_status=200):
        super().__init__(("127.0.0.1", 0), Handler)
        dashboard = pages.Dashboard(str(PAGE))
        self.policy, self.asked, self.gate = dashboard.policy, [], threading.Event()
        self.gate.set()
        self.answers = {"/": (200, "text/html; charset=utf-8", dashboard.body(""))}
        self.say("/metrics", metrics)
        self.say("/readyz", ready, ready_status)
        self.url = "http://127.0.0.1:%d/" % self.server_address[1]

    def say(self, path, document, status=200):
        """Answers this path with the document from now on."""
        self.answers[path] = status, "application/json", json.dumps(document).encode()

    def handle_error(self, request, client_address):
        pass    # a browser may leave in the middle of an answer

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.gate.set()
        self.shutdown()
        self.server_close()
