"""What the service answers to each request, and to what is none, byte for byte: a table whose rows name their section.

A row is (section, behaviour, bytes sent, expected): the status of each answer in order ("HEAD:200" is one without a body; ? and *
stand for any character and any text), then whether the connection was "kept" (proven by a further request on it) or "closed".
Sections are those of RFC 9110 and 9112, and of 3986 and 6585 where named. Every answer of this file is read by one strict parser.
"""

import calendar
import collections
import contextlib
import fnmatch
import itertools
import json
import os
import random
import re
import socket
import struct
import time

import pytest

from conftest import Service, make_database, wait_for

GET, HOST = b"GET /livez HTTP/1.1", b"Host: a"
LIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
PROBE = b"GET /probe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"  # 404: not to be taken for the answer to a hidden LIVE
HANG = 5     # s without a byte after which an answer is not coming; the service itself gives up on heads after 10
BATCH = 50   # connections in parallel where thousands of messages are tried

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
TCHARS = set(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
CONTROLS = [code for code in range(32) if code != 9] + [127]  # all but the tab
STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) [A-Z][A-Za-z' -]+\r\n")
FIELD = re.compile(rb"(" + TOKEN + rb"): ([!-~](?:[ -~]*[!-~])?)\r\n")
IMF_FIXDATE = "%a, %d %b %Y %H:%M:%S GMT"
ALWAYS = {  # fields of every answer, and what their values may be: nothing of a request gets through
    "Date": r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", "Server": "metrics_service",
    "Content-Length": r"[1-9]\d*", "Content-Type": r"application/(problem\+|health\+)?json|text/html; charset=utf-8", "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; (script-src 'sha256-[^;]+; [ -~]+; )?frame-ancestors 'none'", "X-Request-ID": "[0-9a-f]{16}-[0-9a-f]{8}"}
SOMETIMES = {"Connection": "close|keep-alive", "Allow": "GET, HEAD", "Vary": "(Accept, )?Accept-Encoding"}

Answer = collections.namedtuple("Answer", "status fields body")  # fields: name -> value
Row = collections.namedtuple("Row", "section behaviour sent expected half_close")
Row.__new__.__defaults__ = (False,)


def check(answer, bodiless):
    """What holds for every answer."""
    assert set(answer.fields) - set(SOMETIMES) == set(ALWAYS)
    for name, value in answer.fields.items():
        assert re.match(r"(%s)\Z" % dict(ALWAYS, **SOMETIMES)[name], value), (name, value)
    sent = calendar.timegm(time.strptime(answer.fields["Date"], IMF_FIXDATE))
    assert time.strftime(IMF_FIXDATE, time.gmtime(sent)) == answer.fields["Date"] and abs(time.time() - sent) < 5
    assert (answer.status == 405) == ("Allow" in answer.fields)
    assert (answer.status >= 400) == (answer.fields["Content-Type"] == "application/problem+json")
    page = answer.fields["Content-Type"].startswith("text/html")
    assert page == answer.fields["Content-Security-Policy"].startswith("default-src 'none'; script-src")
    document = {"status": answer.status} if bodiless or page else json.loads(answer.body.decode())
    if answer.status >= 400 and not bodiless:
        assert sorted(set(document) & {"type", "title", "status", "detail"}) == ["detail", "status", "title", "type"]
        assert document["request_id"] == answer.fields["X-Request-ID"]
        assert document["status"] == answer.status and document["title"] and document["detail"]


def take(data, bodiless=False):
    """(Answer, the data behind it), or None while it is incomplete."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    line = STATUS_LINE.match(head + b"\r\n")
    assert line, "no status line: %r" % data[:200]
    fields = FIELD.findall(head + b"\r\n", line.end())
    assert b"".join(b"%s: %s\r\n" % field for field in fields) == head[line.end():] + b"\r\n", "bad head: %r" % head
    assert len({name.lower() for name, _ in fields}) == len(fields), "a field twice: %r" % head
    fields = {name.decode(): value.decode() for name, value in fields}
    length = 0 if bodiless else int(fields.get("Content-Length", "0"))
    if len(rest) < length:
        return None
    answer = Answer(int(line.group(1).decode()), fields, rest[:length])
    check(answer, bodiless)
    return answer, rest[length:]


class Client:
    """A connection to the service that reads answers strictly."""

    def __init__(self, service):
        self.socket = socket.create_connection((service.host, service.port), HANG)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.data = b""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.socket.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except ConnectionError:
            pass  # closed meanwhile; what was answered before tells why

    def half_close(self):
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed meanwhile

    def abort(self):
        """Leaves with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def answer(self, bodiless=False):
        """The next Answer, None at the end of the connection."""
        while True:
            taken = take(self.data, bodiless)
            if taken:
                answer, self.data = taken
                return answer
            piece = self.socket.recv(65536)
            if not piece:
                assert self.data == b"", "the end within an answer: %r" % self.data
                return None
            self.data += piece

    def rest(self):
        """All further answers, up to the end of the connection."""
        return list(iter(self.answer, None))


def closing(answers):
    return bool(answers) and answers[-1].fields.get("Connection") == "close"


def observed(service, row):
    """What row.expected would have to be, by what came back."""
    words = row.expected.split()[:-1]
    answers = []
    with Client(service) as client:
        client.send(row.sent)
        if row.half_close:
            client.half_close()
        while len(answers) < len(words) and not closing(answers):
            answer = client.answer(words[len(answers)].startswith("HEAD:"))
            if answer is None:
                break
            answers.append(answer)
        if row.half_close or closing(answers):
            end, more = "closed", client.rest()
        else:
            client.send(PROBE)
            more = client.rest()
            end = "kept" if more and more.pop().status == 404 else "cut off"
    statuses = [("HEAD:%d" if words[place:] and words[place].startswith("HEAD:") else "%d") % answer.status
                for place, answer in enumerate(answers + more)]
    return " ".join(statuses + [end])


def message(*lines, body=b""):
    """The bytes of a head of these lines, and a body."""
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def line(text):
    """A request of this request line."""
    return message(text, HOST)


def target(text):
    return line(b"GET " + text + b" HTTP/1.1")


def hosts(*values):
    return message(GET, *[b"Host: " + value for value in values])


def get(*fields, body=b""):
    return message(GET, HOST, *fields, body=body)


def post(*fields, body=b""):
    return message(b"POST /livez HTTP/1.1", HOST, *fields, body=body)


def old(*fields, body=b""):
    return message(b"GET /livez HTTP/1.0", *fields, body=body)


def length(value, body=b""):
    return get(b"Content-Length: " + value, body=body)


def coded(value, body=b"0\r\n\r\n"):
    return get(b"Transfer-Encoding: " + value, body=body)


def chunked(body):
    return coded(b"chunked", body)


REQUEST_LINE = [
    ("9112 3", "a request line of three words is answered", LIVE, "200 kept"),
    ("9112 2.2", "an empty line before the request line is skipped", b"\r\n" + LIVE, "200 kept"),
    ("9112 2.2", "several empty lines before the request line are skipped", b"\r\n\r\n\r\n" + LIVE, "200 kept"),
    ("9112 2.2", "an empty line between two requests is skipped", LIVE + b"\r\n" + LIVE, "200 200 kept"),
    ("9112 2.2", "a bare LF before the request line is refused", b"\n" + LIVE, "400 closed"),
    ("9112 2.2", "a bare CR before the request line is refused", b"\r" + LIVE, "400 closed"),
    ("9112 2.2", "a request line that ends in a bare LF is refused", b"GET /livez HTTP/1.1\nHost: a\r\n\r\n", "400 closed"),
    ("9112 2.2", "a head of bare LF is refused", b"GET /livez HTTP/1.1\nHost: a\n\n", "400 closed", True),
    ("9112 2.2", "a request line that ends in a bare CR is refused", b"GET /livez HTTP/1.1\rHost: a\r\n\r\n", "400 closed"),
    ("9112 2.2", "a CR before the line's CRLF is refused", line(b"GET /livez HTTP/1.1\r"), "400 closed"),
    ("9112 3", "two blanks before the target are refused", line(b"GET  /livez HTTP/1.1"), "400 closed"),
    ("9112 3", "two blanks before the version are refused", line(b"GET /livez  HTTP/1.1"), "400 closed"),
    ("9112 3", "a blank before the method is refused", line(b" GET /livez HTTP/1.1"), "400 closed"),
    ("9112 3", "a blank behind the version is refused", line(b"GET /livez HTTP/1.1 "), "400 closed"),
    ("9112 3", "a tab behind the version is refused", line(b"GET /livez HTTP/1.1\t"), "400 closed"),
    ("9112 3", "a line without a version is refused", line(b"GET /livez"), "400 closed"),
    ("9112 3", "a line without a version and without a head behind it is refused", b"GET /livez\r\n", "400 closed", True),
    ("9112 3", "a line of the method alone is refused", line(b"GET"), "400 closed"),
    ("9112 3", "a line of method and version is refused", line(b"GET HTTP/1.1"), "400 closed"),
    ("9112 3", "a line of four words is refused", line(b"GET /livez x HTTP/1.1"), "400 closed"),
    ("9112 3", "an empty method is refused", line(b"/livez HTTP/1.1"), "400 closed"),
    ("9112 3", "a TLS handshake is refused in plain words",
     b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", "400 closed"),
    ("9112 3", "a line of binary zeros is refused", line(b"\0" * 100), "400 closed"),
    ("9112 3", "an answer sent as a request is refused", line(b"HTTP/1.1 200 OK"), "400 closed"),
]
REQUEST_LINE += [("9112 3", "0x%02x between the words of the line is refused" % code,
                  line(b"GET%c/livez HTTP/1.1" % code), "400 closed") for code in CONTROLS + [9, 0x80, 0xa0]]
REQUEST_LINE += [("9112 3", "0x%02x before the version is refused" % code,
                  line(b"GET /livez%cHTTP/1.1" % code), "400 closed") for code in (9, 11, 12, 13, 0x85, 0xa0)]

VERSION = [
    ("9112 2.3", "HTTP/1.0 is answered, as HTTP/1.1, and closed", old(), "200 closed"),
    ("9112 2.3", "HTTP/1.2 is taken as 1.1", line(b"GET /livez HTTP/1.2"), "200 kept"),
    ("9112 2.3", "HTTP/1.9 is taken as 1.1", line(b"GET /livez HTTP/1.9"), "200 kept"),
    ("9110 15.6.6", "HTTP/2.0 is a version not supported", line(b"GET /livez HTTP/2.0"), "505 closed"),
    ("9110 15.6.6", "HTTP/0.9 in three words is a version not supported", line(b"GET /livez HTTP/0.9"), "505 closed"),
    ("9110 15.6.6", "HTTP/3.0 is a version not supported", line(b"GET /livez HTTP/3.0"), "505 closed"),
    ("9110 15.6.6", "HTTP/9.9 without any field is a version not supported", message(b"GET /livez HTTP/9.9"), "505 closed"),
    ("9110 15.6.6", "the preface of HTTP/2 is a version not supported", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 closed"),
    ("9112 2.3", "the name HTTP in lower case is refused", line(b"GET /livez http/1.1"), "400 closed"),
    ("9112 2.3", "the name HTTP in mixed case is refused", line(b"GET /livez Http/1.1"), "400 closed"),
]
BAD_VERSIONS = ("HTTP/1", "HTTP/1.", "HTTP/.1", "HTTP/11", "HTTP/1.10", "HTTP/01.1", "HTTP/1,1", "HTTP/+1.1", "HTTP/-1.1",
                "HTTP/1.1.1", "HTTP/1.x", "HTTP/1_1", "HTTP 1.1", "HTTP/ 1.1", "HTTPS/1.1", "HTTP1.1", "ICY/1.1", "HTTP//1.1",
                "HTTP/\u0661.1", "HTTP/1.\uff11", "HTTP/\u00b9.1", "HTTP/1.1;x")
VERSION += [("9112 2.3", "the version %s is refused" % ascii(text)[1:-1], line(b"GET /livez " + text.encode()), "400 closed")
            for text in BAD_VERSIONS]

TARGET = [
    ("9112 3.2.1", "a query is no part of the path", target(b"/livez?x=1"), "200 kept"),
    ("9112 3.2.1", "an empty query is none", target(b"/livez?"), "200 kept"),
    ("3986 3.4", "every character of a query is taken", target(b"/livez?aZ09-._~!$&'()*+,;=:@/?%20"), "200 kept"),
    ("3986 3.3", "every character of a path is taken", target(b"/aZ09-._~!$&'()*+,;=:@%20/x"), "404 kept"),
    ("3986 6.2.2.1", "a path is case-sensitive", target(b"/LIVEZ"), "404 kept"),
    ("9112 3.2.1", "a slash at the end makes another path", target(b"/livez/"), "404 kept"),
    ("9112 3.2.1", "two slashes at the start are no host", target(b"//livez"), "404 kept"),
    ("9112 3.2.1", "a path without its slash is refused", target(b"livez"), "400 closed"),
    ("9112 3.2.1", "a query alone is refused", target(b"?x"), "400 closed"),
    ("9112 3.2.2", "a target in absolute form is answered", target(b"http://a/livez"), "200 kept"),
    ("9112 3.2.2", "an absolute target with a port is answered", target(b"http://a:8321/livez?x"), "200 kept"),
    ("9110 4.2.1", "an absolute target with an empty port is answered", target(b"http://a:/livez"), "200 kept"),
    ("9112 3.2.2", "an absolute target of an IPv6 address is answered", target(b"http://[::1]:80/livez"), "200 kept"),
    ("9110 4.2.3", "a scheme is case-insensitive", target(b"HTTP://A/livez"), "200 kept"),
    ("9110 7.4", "an https target is not answered without TLS", target(b"https://a/livez"), "421 kept"),
    ("9112 3.2.2", "the host of an absolute target wins over another Host",
     message(b"GET http://a/livez HTTP/1.1", b"Host: other"), "200 kept"),
    ("9112 3.2", "an absolute target does not make up for a missing Host", message(b"GET http://a/livez HTTP/1.1"), "400 closed"),
    ("9112 3.2", "an absolute target does not make up for an invalid Host",
     message(b"GET http://a/livez HTTP/1.1", b"Host: a b"), "400 closed"),
    ("9112 3.2.2", "an absolute target is answered over HTTP/1.0", message(b"GET http://a/livez HTTP/1.0"), "200 closed"),
    ("3986 5.2.4", "dot segments of an absolute target are removed", target(b"http://a/x/../livez"), "200 kept"),
    ("9112 3.2.2", "an absolute target of an unknown path is unknown", target(b"http://a/nowhere"), "404 kept"),
    ("9112 3.2.2", "another scheme is refused", target(b"ftp://a/livez"), "400 closed"),
    ("9110 4.2.1", "an absolute target without a host is refused", target(b"http:///livez"), "400 closed"),
    ("9110 4.2.1", "an absolute target of a port alone is refused", target(b"http://:80/livez"), "400 closed"),
    ("9110 4.2.4", "an absolute target with a user is refused", target(b"http://user:word@a/livez"), "400 closed"),
    ("9112 3.2.2", "an absolute target with one slash is refused", target(b"http:/livez"), "400 closed"),
    ("9112 3.2.2", "an absolute target with a bad port is refused", target(b"http://a:x/livez"), "400 closed"),
    ("9112 3.2.2", "an absolute target with an open bracket is refused", target(b"http://[::1/livez"), "400 closed"),
    ("9112 3.2.2", "an absolute target with words in brackets is refused", target(b"http://[words]/livez"), "400 closed"),
    ("9112 3.2.2", "an absolute target with a fragment is refused", target(b"http://a/livez#x"), "400 closed"),
    ("9112 3.2.3", "an authority is refused to GET", target(b"a:80"), "400 closed"),
    ("9110 9.3.6", "an authority is for CONNECT, which is not allowed", line(b"CONNECT a:80 HTTP/1.1"), "405 kept"),
    ("9110 9.3.6", "CONNECT of a path is refused", line(b"CONNECT /livez HTTP/1.1"), "400 closed"),
    ("9110 9.3.6", "CONNECT without a port is refused", line(b"CONNECT a HTTP/1.1"), "400 closed"),
    ("9110 9.3.6", "CONNECT with an empty port is refused", line(b"CONNECT a: HTTP/1.1"), "400 closed"),
    ("9112 3.2.4", "an asterisk is for OPTIONS, which is not allowed", line(b"OPTIONS * HTTP/1.1"), "405 kept"),
    ("9112 3.2.4", "an asterisk is refused to GET", target(b"*"), "400 closed"),
    ("9112 3.2.4", "an asterisk is refused to POST", line(b"POST * HTTP/1.1"), "400 closed"),
    ("9112 3.2.4", "two asterisks are refused to OPTIONS", line(b"OPTIONS ** HTTP/1.1"), "400 closed"),
    ("9112 3.2", "a fragment is refused", target(b"/livez#x"), "400 closed"),
    ("9112 3.2", "an empty fragment is refused", target(b"/livez#"), "400 closed"),
    ("3986 6.2.2.2", "an encoded letter is that letter", target(b"/%6Civez"), "200 kept"),
    ("3986 6.2.2.1", "the digits of an encoded letter are case-insensitive", target(b"/live%7a"), "200 kept"),
    ("3986 2.4", "an encoded percent sign is decoded only once", target(b"/%256Civez"), "404 kept"),
    ("3986 2.2", "an encoded question mark begins no query", target(b"/livez%3Fx"), "404 kept"),
    ("3986 2.2", "an encoded slash separates nothing", target(b"/x%2F..%2Flivez"), "404 kept"),
    ("3986 2.1", "an encoded blank is part of the path", target(b"/livez%20"), "404 kept"),
    ("3986 2.1", "encoded bytes that are no UTF-8 name no route", target(b"/%ff%fe"), "404 kept"),
    ("3986 2.1", "an overlong slash is no slash", target(b"/x/..%c0%aflivez"), "404 kept"),
    ("3986 2.1", "a percent sign at the end is refused", target(b"/livez%"), "400 closed"),
    ("3986 2.1", "a percent sign with one digit is refused", target(b"/livez%4"), "400 closed"),
    ("3986 2.1", "a percent sign with letters is refused", target(b"/%zzlivez"), "400 closed"),
    ("3986 2.1", "a percent sign with a sign is refused", target(b"/%+6civez"), "400 closed"),
    ("3986 2.1", "a percent sign with letters in the query is refused", target(b"/livez?x=%zz"), "400 closed"),
    ("9110 15.5.1", "an encoded NUL is refused", target(b"/livez%00"), "400 closed"),
    ("9110 15.5.1", "an encoded line end is refused", target(b"/livez%0d%0aX:%20y"), "400 closed"),
    ("9110 15.5.1", "an encoded escape is refused", target(b"/%1b%5B2J"), "400 closed"),
    ("9110 15.5.1", "an encoded DEL is refused", target(b"/livez%7F"), "400 closed"),
    ("3986 5.2.4", "a dot segment is removed", target(b"/./livez"), "200 kept"),
    ("3986 5.2.4", "two dots take the segment before them", target(b"/x/y/../../livez"), "200 kept"),
    ("3986 5.2.4", "two dots at the root stay there", target(b"/../../livez"), "200 kept"),
    ("3986 5.2.4", "encoded dots are dot segments", target(b"/x/%2e%2E/livez"), "200 kept"),
    ("3986 5.2.4", "dots within a segment are none", target(b"/..x/livez"), "404 kept"),
    ("3986 5.2.4", "three dots are none", target(b"/.../livez"), "404 kept"),
    ("3986 5.2.4", "a dot at the end leaves a slash", target(b"/livez/."), "404 kept"),
    ("3986 5.2.4", "two dots remove an empty segment", target(b"/x//../../livez"), "200 kept"),
    ("3986 5.2.4", "dots in a query are no segments", target(b"/livez?/../x"), "200 kept"),
    ("3986 2.1", "a value of the query is decoded", target(b"/metrics?history=%31"), "200 kept"),
    ("9110 15.5.1", "a bad value of the query is refused", target(b"/metrics?history=%0a1"), "400 *"),
]
TARGET += [("3986 2", "0x%02x in a path is refused" % code, target(b"/li%cvez" % code), "400 closed")
           for code in CONTROLS + [9, 32, 0x80, 0xff] + list(b'"<>\\^`{|}')]
TARGET += [("3986 2", "0x%02x in a query is refused" % code, target(b"/livez?a%cb" % code), "400 closed")
           for code in (0, 9, 10, 13, 27, 127, 0xc3) + tuple(b'"<>\\^`{|}')]

METHODS = [
    ("9110 9.3.2", "HEAD is answered without a body", message(b"HEAD /livez HTTP/1.1", HOST), "HEAD:200 kept"),
    ("9110 9.3.2", "HEAD of an unknown path is refused without a body", message(b"HEAD /x HTTP/1.1", HOST), "HEAD:404 kept"),
    ("9110 9.3.2", "HEAD without a Host is refused without a body", message(b"HEAD /livez HTTP/1.1"), "HEAD:400 closed"),
    ("9110 9.3.2", "HEAD over HTTP/1.0 is answered without a body", message(b"HEAD /livez HTTP/1.0"), "HEAD:200 closed"),
    ("9110 9.3.2", "HEAD with an unknown expectation is refused without a body",
     message(b"HEAD /livez HTTP/1.1", HOST, b"Expect: x"), "HEAD:417 *"),
    ("9110 9.3.2", "HEAD with too long a body is refused without a body",
     message(b"HEAD /livez HTTP/1.1", HOST, b"Content-Length: 99999"), "HEAD:413 closed"),
    ("9110 9.3.2", "HEAD and GET take turns on one connection",
     message(b"HEAD /livez HTTP/1.1", HOST) + LIVE + message(b"HEAD /x HTTP/1.1", HOST) + LIVE, "HEAD:200 200 HEAD:404 200 kept"),
    ("9110 9.1", "another method is not allowed on an unknown path either", line(b"POST /nowhere HTTP/1.1"), "405 kept"),
    ("9110 9.1", "a method of 32 characters is not allowed", line(b"M" * 32 + b" /livez HTTP/1.1"), "405 kept"),
    ("9110 15.6.2", "a method of 33 characters is not implemented", line(b"M" * 33 + b" /livez HTTP/1.1"), "501 *"),
]
METHODS += [("9110 15.5.6", "the method %s is not allowed" % method, line(method.encode() + b" /livez HTTP/1.1"), "405 kept")
            for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get", "Get", "GETT", "M-SEARCH",
                           "!#$%&'*+-.^_`|~")]
METHODS += [("9110 5.6.2", "0x%02x in a method is refused" % code, line(b"G%cT /livez HTTP/1.1" % code), "400 closed")
            for code in (0, 1, 11, 12, 13, 127, 0x80, 0xe9) + tuple(b'"(),/:;<=>?@[\\]{}')]

HOSTS = [
    ("9112 3.2", "a request without a Host is refused", message(GET), "400 closed"),
    ("9112 3.2", "a request without a Host, but with other fields, is refused", message(GET, b"X-Host: a"), "400 closed"),
    ("9112 3.2", "two Hosts are refused", hosts(b"a", b"b"), "400 closed"),
    ("9112 3.2", "two Hosts that are the same are refused", hosts(b"a", b"a"), "400 closed"),
    ("9112 3.2", "two Hosts apart from one another are refused", message(GET, b"hOST: a", b"X: y", b"HOST: b"), "400 closed"),
    ("9112 3.2", "an empty Host is taken", message(GET, b"Host:"), "200 kept"),
    ("9112 3.2", "HTTP/1.0 needs no Host", old(), "200 closed"),
    ("9112 3.2", "HTTP/1.0 may name its Host", old(HOST), "200 closed"),
    ("9112 3.2", "two Hosts are refused over HTTP/1.0", old(HOST, HOST), "400 closed"),
    ("9112 3.2", "an invalid Host is refused over HTTP/1.0", old(b"Host: a b"), "400 closed"),
    ("9110 5.1", "a field name is case-insensitive", message(GET, b"hOsT: a"), "200 kept"),
    ("9112 5", "blanks and tabs around a value are no part of it", message(GET, b"Host: \t a \t "), "200 kept"),
    ("9112 5", "no blank is needed behind the colon", message(GET, b"Host:a"), "200 kept"),
    ("9112 3.2", "a Host may come last", message(GET, b"X: y", HOST), "200 kept"),
]
GOOD_HOSTS = ("a.example", "a.example:8321", "a:", "127.0.0.1:80", "[::1]", "[::1]:8321", "[2001:db8::7]:", "a_b-c.d~e", "%61",
              "A.EXAMPLE", "xn--bcher-kva.example")
HOSTS += [("9110 7.2", "the Host %s is taken" % value, hosts(value.encode()), "200 kept")
          for value in GOOD_HOSTS]
BAD_HOSTS = ("a b", "a, b", "a/b", "a/", "/", "http://a", "user@a", "@", "a?b", "a#b", "a\\b", "a:x", "a:80:80", "a:-1", "a:+1",
             "a:\u0661", "a:8 0", "::1", "[::1", "::1]", "[]", "[::g]", "[::1]x", "[::1]:x", "[1:2]", "%zz", "%", "\"a\"",
             "<a>", "b\u00fccher.example", "a\u3002example", "a^b", "a`b", "{a}", "a|b")
HOSTS += [("9110 7.2", "the Host %s is refused" % ascii(value)[1:-1], hosts(value.encode()), "400 closed")
          for value in BAD_HOSTS]

FIELDS = [
    ("9110 5.6.2", "every character of a token is taken in a name", get(bytes(sorted(TCHARS)) + b": y"), "200 kept"),
    ("9110 5.5", "a value may be empty", get(b"X:"), "200 kept"),
    ("9110 5.5", "a value may be blank", get(b"X: \t "), "200 kept"),
    ("9110 5.5", "a value may hold tabs and blanks", get(b"X: a \t b"), "200 kept"),
    ("9110 5.5", "a value may hold any printable character", get(b"X: " + bytes(range(33, 127))), "200 kept"),
    ("9110 5.5", "a value may hold the bytes 0x80 to 0xff", get(b"X: " + bytes(range(128, 256))), "200 kept"),
    ("9110 5.3", "a field may come twice", get(b"X: a", b"X: b"), "200 kept"),
    ("9110 5.1", "an unknown field is ignored", get(b"Content-Lengthy: 5", b"Transfer_Encoding: chunked"), "200 kept"),
    ("9112 5.1", "a blank before the colon is refused", get(b"X : y"), "400 closed"),
    ("9112 5.1", "a tab before the colon is refused", get(b"X\t: y"), "400 closed"),
    ("9112 5.1", "a blank before the colon of Host is refused", message(GET, b"Host : a"), "400 closed"),
    ("9112 5.1", "a blank before the colon of Content-Length is refused",
     get(b"Content-Length : 5", body=b"hello"), "400 closed"),
    ("9112 5.1", "a blank within a name is refused", get(b"X Y: z"), "400 closed"),
    ("9112 2.2", "a blank before the first field is refused", message(GET, b" Host: a"), "400 closed"),
    ("9112 2.2", "a blank line before the first field is refused", message(GET, b" ", HOST), "400 closed"),
    ("9112 2.2", "a tab before the first field is refused", message(GET, b"\tX: y", HOST), "400 closed"),
    ("9112 5.2", "a value folded in the middle is refused", message(GET, b"X: y", b" z", HOST), "400 closed"),
    ("9112 5.2", "a value folded by a tab is refused", message(GET, b"X: y", b"\tz", HOST), "400 closed"),
    ("9112 5.2", "a folded field that looks like another is refused",
     message(GET, b"X: y", b" Content-Length: 5", HOST), "400 closed"),
    ("9112 5.2", "a last value that is folded is refused", get(b"X: y", b" z"), "400 closed"),
    ("9112 5.2", "a fold of blanks alone is refused", get(b"X: y", b"  "), "400 closed"),
    ("9112 5.2", "a folded Host is refused", message(GET, b"Host:", b" a"), "400 closed"),
    ("9112 5.2", "a folded Transfer-Encoding is refused",
     get(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"), "400 closed"),
    ("9112 5", "a line without a colon is refused", get(b"words"), "400 closed"),
    ("9112 5", "a line without a colon before the others is refused", message(GET, b"words", HOST), "400 closed"),
    ("9112 5", "an empty name is refused", get(b": y"), "400 closed"),
    ("9112 5", "a colon alone is refused", get(b":"), "400 closed"),
    ("9112 5", "a second request line among the fields is refused", message(GET, GET, HOST), "400 closed"),
    ("9112 2.2", "a bare CR within a value is refused", get(b"X: y\rz"), "400 closed"),
    ("9112 2.2", "a bare CR that hides a field is refused", get(b"X: y\rContent-Length: 5", body=b"hello"), "400 closed"),
    ("9112 2.2", "a CR before the CRLF of a field is refused", get(b"X: y\r"), "400 closed"),
    ("9112 2.2", "a bare CR as a line of its own is refused", get(b"\r"), "400 closed"),
    ("9112 2.2", "a bare LF within the fields is refused", get(b"X: y\nZ: z"), "400 closed"),
    ("9112 2.2", "a bare LF before a line's CRLF is refused", get(b"X: y\n"), "400 closed"),
    ("9112 2.2", "a head that ends in LF LF is refused", b"GET /livez HTTP/1.1\r\nHost: a\n\n", "400 closed", True),
    ("9112 2.2", "a head that ends in CRLF LF is refused", b"GET /livez HTTP/1.1\r\nHost: a\r\n\n", "400 closed", True),
    ("9112 2.2", "a head that ends in LF CRLF is refused", b"GET /livez HTTP/1.1\r\nHost: a\n\r\n", "400 closed", True),
    ("9112 2.2", "a head that ends in CR CR is refused", b"GET /livez HTTP/1.1\r\nHost: a\r\r", "400 closed", True),
]
FIELDS += [("9110 5.5", "0x%02x in a value is refused" % code, get(b"X: y%cz" % code), "400 closed") for code in CONTROLS]
FIELDS += [("9110 5.5", "0x%02x at the start of a value is refused" % code, get(b"X: %cz" % code), "400 closed")
           for code in (0, 8, 11, 12, 28, 31)]
FIELDS += [("9110 5.5", "0x%02x at the end of a value is refused" % code, get(b"X: y%c" % code), "400 closed")
           for code in (0, 8, 11, 12, 28, 31)]
FIELDS += [("9110 5.6.2", "0x%02x in a name is refused" % code, get(b"X%cY: z" % code), "400 closed")
           for code in range(256) if code not in TCHARS and code != ord(":")]

LIMITS = [
    ("9112 3", "a request line of 8000 bytes is read", line(b"GET /livez?%s HTTP/1.1" % (b"x" * 7980)), "200 kept"),
    ("9110 15.5.15", "a request line of 8300 bytes is too long", line(b"GET /livez?%s HTTP/1.1" % (b"x" * 8280)), "414 closed"),
    ("9110 15.5.15", "a request line of 200000 bytes is too long",
     line(b"GET /livez?%s HTTP/1.1" % (b"x" * 200000)), "414 closed"),
    ("9110 15.5.15", "a request line without an end is too long", b"GET /livez?" + b"x" * 20000, "414 closed"),
    ("9110 15.5.15", "a method without an end is too long", b"G" * 70000, "414 closed"),
    ("6585 5", "a head of 30000 bytes is read", get(*[b"X: " + b"y" * 7400] * 4), "200 kept"),
    ("6585 5", "a head of 33000 bytes is too large", get(*[b"X: " + b"y" * 8240] * 4), "431 closed"),
    ("6585 5", "one field of 33000 bytes is too large", get(b"X: " + b"y" * 33000), "431 closed"),
    ("6585 5", "a field without an end is too large", GET + b"\r\nX: " + b"y" * 40000, "431 closed"),
    ("6585 5", "a name without an end is too large", GET + b"\r\n" + b"y" * 40000, "431 closed"),
    ("6585 5", "a head without an end is too large", GET + b"\r\n" + b"X: y\r\n" * 7000, "431 closed"),
    ("6585 5", "a hundred fields are read", get(*[b"X: y"] * 99), "200 kept"),
    ("6585 5", "a hundred and one fields are too many", get(*[b"X: y"] * 100), "431 closed"),
    ("9110 15.5.14", "a body of 65536 bytes is read", length(b"65536", b"x" * 65536), "200 kept"),
    ("9110 15.5.14", "a body of 65537 bytes is too large", length(b"65537"), "413 closed"),
    ("9110 15.5.14", "a body of 65537 bytes is refused though it comes", length(b"65537", b"x" * 65537), "413 closed"),
    ("9110 15.5.14", "a body too large is refused to POST", post(b"Content-Length: 100000", body=b"x" * 100000), "413 closed"),
    ("9110 15.5.14", "chunks of 65536 bytes in all are read",
     chunked(b"4000\r\n%s\r\n" % (b"x" * 0x4000) * 4 + b"0\r\n\r\n"), "200 kept"),
    ("9110 15.5.14", "chunks without an end are too large", chunked(b"4000\r\n%s\r\n" % (b"x" * 0x4000) * 16), "413 closed"),
    ("9112 7.1", "a chunk that is too large is refused before it comes", chunked(b"10001\r\n"), "413 closed"),
    ("9112 7.1", "a chunk size may begin with zeros", chunked(b"000000000000005\r\nhello\r\n000000000000\r\n\r\n"), "200 kept"),
    ("9112 7.1", "a chunk's line that ends in a bare LF is refused at once", chunked(b"2\nab"), "400 closed"),
    ("9112 7.1", "a chunk that does not begin with a size is refused at once", chunked(b"zz"), "400 closed"),
    ("9112 7.1.2", "a trailer that ends in a bare LF is refused at once", chunked(b"0\r\nX: y\n"), "400 closed"),
    ("9112 7.1", "a chunk size past all integers is refused",
     chunked(b"1" + b"0" * 16 + b"5\r\nhello\r\n0\r\n\r\n"), "4?? closed"),
    ("9112 7.1", "a chunk size without an end is refused", chunked(b"0" * 100000), "4?? closed"),
    ("9112 7.1.1", "a chunk extension without an end is refused", chunked(b"5;" + b"x" * 100000), "4?? closed"),
    ("9112 7.1.2", "trailers without an end are refused", chunked(b"0\r\n" + b"X: y\r\n" * 35000), "4?? closed"),
]

LENGTHS = [
    ("9110 8.6", "a body of no bytes is none", length(b"0"), "200 kept"),
    ("9110 8.6", "a body is read and thrown away", length(b"5", b"hello"), "200 kept"),
    ("9110 8.6", "zeros before the number change nothing", length(b"0005", b"hello"), "200 kept"),
    ("9112 5", "blanks around the number are no part of it", length(b"  5 \t", b"hello"), "200 kept"),
    ("9112 6.3", "two different lengths are refused",
     get(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"), "400 closed"),
    ("9112 6.3", "two lengths that are the same are refused",
     get(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), "400 closed"),
    ("9112 6.3", "two lengths in different case are refused",
     get(b"Content-Length: 5", b"content-length: 0", body=b"hello"), "400 closed"),
    ("9112 6.3", "a bad length is refused over HTTP/1.0", old(b"Content-Length: +5", body=b"hello"), "400 closed"),
    ("9112 6.3", "a length over HTTP/1.0 frames the body",
     old(b"Content-Length: 5", b"Connection: keep-alive", body=b"hello"), "200 kept"),
]
BAD_LENGTHS = ("", "+5", "-5", "-1", "-0", "+0", "1_0", "0_5", "0x5", "0b1", "0o5", "5.0", "5.", "5e0", "5 5", "5\t5", "5, 5",
               "5,5", "5,", ",5", "5;", "5;x=y", "'5'", '"5"', "five", "NaN", "inf", "5L", "5h", "\u0665", "\uff15", "\u00b2",
               "\u2075", "\u096b", "0\u0665", "\u00a05", "5\u00a0", "\u30005", "\x0b5", "5\x0c", "\x1c5", "5\x00")
LENGTHS += [("9110 8.6", "the length %s is refused" % ascii(value)[1:-1], length(value.encode(), b"hello"), "400 closed")
            for value in BAD_LENGTHS]
LENGTHS += [("9110 8.6", "the raw bytes %s are refused as a length" % ascii(value)[2:-1], length(value, b"hello"), "400 closed")
            for value in (b"\xa05", b"5\x85", b"5\xa0", b"\xb2", b"\xb9\xb2")]
LENGTHS += [("9110 8.6", "the length %s is too large" % value, length(value.encode()), "413 closed")
            for value in ("99999", str(2**31), str(2**32 + 5), str(2**63), str(2**64 + 5), str(10**30), "9" * 5000)]

CODINGS = [
    ("9112 6.1", "a chunked body is read", coded(b"chunked"), "200 kept"),
    ("9112 7", "the name of a coding is case-insensitive", coded(b"ChunKED"), "200 kept"),
    ("9112 5", "blanks around a coding are no part of it", coded(b" \tchunked\t "), "200 kept"),
    ("9110 5.6.1", "empty elements before a coding are ignored", coded(b", ,chunked"), "200 kept"),
    ("9110 5.6.1", "an empty element behind a coding is ignored", coded(b"chunked, "), "200 kept"),
    ("9112 6.3", "a coding and a length are refused",
     get(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"), "400 closed"),
    ("9112 6.3", "a length and a coding are refused",
     get(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), "400 closed"),
    ("9112 6.3", "a coding and a length of 0 are refused",
     get(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), "400 closed"),
    ("9112 6.3", "an unknown coding and a length are refused", get(b"Transfer-Encoding: x", b"Content-Length: 0"), "400 closed"),
    ("9112 6.1", "a coding is refused over HTTP/1.0", old(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), "400 closed"),
    ("9112 6.1", "a coding over HTTP/1.0 is refused in spite of keep-alive",
     old(b"Connection: keep-alive", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + LIVE), "400 closed"),
    ("9112 6.1", "chunked twice is refused", coded(b"chunked, chunked"), "400 closed"),
    ("9112 6.1", "chunked in two fields is refused",
     get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), "400 closed"),
    ("9112 6.1", "chunked, in two fields, another behind it, is refused",
     get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", body=b"0\r\n\r\n"), "400 closed"),
    ("9112 6.1", "another coding before chunked is not implemented", coded(b"gzip, chunked"), "501 closed"),
    ("9112 6.1", "another coding before chunked, in two fields, is not implemented",
     get(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), "501 closed"),
    ("9112 6.1", "an unknown coding before chunked is not implemented", coded(b"cow, chunked"), "501 closed"),
    ("9112 6.1", "identity before chunked is not implemented", coded(b"identity, chunked"), "501 closed"),
    ("9112 7.1", "chunked with a parameter is refused", coded(b"chunked;x=y"), "400 closed"),
    ("9112 7.1", "an unread coding is refused to POST", post(b"Transfer-Encoding: gzip"), "400 closed"),
    ("9110 10.1.4", "the field TE is ignored", get(b"TE: trailers, gzip"), "200 kept"),
]
BAD_CODINGS = ("", ",", "gzip", "identity", "chunked, gzip", "chunked, identity", "chunked, x", "xchunked", "chunkedx",
               "chunke", "chunked chunked", "chunked gzip", '"chunked"', "'chunked'", "chunked;", "x=chunked", "\x0bchunked",
               "chunked\x00", "\u212aunked", "chun\u212aed", "\u00a0chunked")
CODINGS += [("9112 6.3", "the coding %s is refused" % ascii(value)[1:-1], coded(value.encode()), "400 closed")
            for value in BAD_CODINGS]

END = b"0\r\n\r\n"
CHUNKS = [
    ("9112 7.1", "one chunk is read", chunked(b"5\r\nhello\r\n" + END), "200 kept"),
    ("9112 7.1", "several chunks are read", chunked(b"5\r\nhello\r\n1\r\n \r\n6\r\nworld!\r\n" + END), "200 kept"),
    ("9112 7.1", "digits of a size are of either case", chunked(b"a\r\n0123456789\r\nA\r\n0123456789\r\n" + END), "200 kept"),
    ("9112 7.1", "zeros before a size change nothing", chunked(b"0005\r\nhello\r\n000\r\n\r\n"), "200 kept"),
    ("9112 7.1", "line ends within a chunk are data", chunked(b"9\r\n\r\n0\r\n\r\n\r\n\r\n" + END), "200 kept"),
    ("9112 7.1", "a request behind a chunked body is answered", chunked(b"5\r\nhello\r\n" + END + LIVE), "200 200 kept"),
    ("9112 7.1", "a request behind an empty chunked body is answered", chunked(END + LIVE), "200 200 kept"),
    ("9112 7.1", "chunked bodies follow one another", chunked(b"1\r\nx\r\n" + END) * 5, "200 200 200 200 200 kept"),
    ("9112 7.1.1", "an extension is ignored", chunked(b"5;a\r\nhello\r\n" + END), "200 kept"),
    ("9112 7.1.1", "an extension with a value is ignored", chunked(b"5;a=b;c=d\r\nhello\r\n0;e\r\n\r\n"), "200 kept"),
    ("9112 7.1.1", "an extension with a quoted value is ignored", chunked(b"5;a=\"b c;d\"\r\nhello\r\n" + END), "200 kept"),
    ("9112 7.1.1", "blanks around an extension are ignored", chunked(b"5 ; a = b\r\nhello\r\n" + END), "200 kept"),
    ("9112 7.1.2", "a trailer is ignored", chunked(b"5\r\nhello\r\n0\r\nX: y\r\n\r\n"), "200 kept"),
    ("9112 7.1.2", "a request behind a trailer is answered", chunked(b"0\r\nX: y\r\nZ:\r\n\r\n" + LIVE), "200 200 kept"),
    ("9112 6.5", "a trailer changes no framing",
     chunked(b"0\r\nContent-Length: 50\r\nTransfer-Encoding: gzip\r\nConnection: close\r\n\r\n" + LIVE), "200 200 kept"),
    ("9112 7.1", "a chunked body is read for POST",
     post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n" + END), "405 kept"),
    ("9112 7.1", "a chunk longer than its size is refused", chunked(b"5\r\nhello!\r\n" + END), "400 closed"),
    ("9112 7.1", "a chunk shorter than its size is refused", chunked(b"6\r\nhello\r\n" + END), "400 closed"),
    ("9112 7.1", "a chunk without its CRLF is refused", chunked(b"5\r\nhello" + END), "400 closed"),
    ("9112 7.1", "a chunk that ends in a bare LF is refused", chunked(b"5\r\nhello\n" + END), "400 closed"),
    ("9112 7.1", "a chunk that ends in a bare CR is refused", chunked(b"5\r\nhello\r" + END), "400 closed"),
    ("9112 7.1", "a size that ends in a bare LF is refused", chunked(b"5\nhello\r\n" + END), "400 closed"),
    ("9112 7.1", "a size that ends in a bare CR is refused", chunked(b"5\rhello\r\n" + END), "400 closed"),
    ("9112 7.1", "a last chunk that ends in a bare LF is refused", chunked(b"5\r\nhello\r\n0\n\r\n"), "400 closed"),
    ("9112 7.1", "a body that ends in a bare LF is refused", chunked(b"5\r\nhello\r\n0\r\n\n"), "400 closed", True),
    ("9112 7.1", "a chunk of a negative size is refused", chunked(b"-1\r\nx\r\n" + END), "400 closed"),
    ("9112 7.1.1", "a bare LF in an extension is refused", chunked(b"5;a\nb\r\nhello\r\n" + END), "400 closed"),
    ("9112 7.1.1", "a bare CR in an extension is refused", chunked(b"5;a\rb\r\nhello\r\n" + END), "400 closed"),
    ("9112 7.1.1", "a NUL in an extension is refused", chunked(b"5;a\0b\r\nhello\r\n" + END), "400 closed"),
    ("9112 7.1.1", "a request hidden in an extension is not answered",
     chunked(b"5;a\nhello\r\n0\r\n\r\n" + LIVE + b"\r\n" + END), "400 closed"),
    ("9112 7.1.2", "a trailer without a colon is refused", chunked(b"0\r\nwords\r\n\r\n"), "400 closed"),
    ("9112 7.1.2", "a folded trailer is refused", chunked(b"0\r\nX: y\r\n z\r\n\r\n"), "400 closed"),
    ("9112 7.1.2", "a trailer with a blank before the colon is refused", chunked(b"0\r\nX : y\r\n\r\n"), "400 closed"),
    ("9112 7.1.2", "a control character in a trailer is refused", chunked(b"0\r\nX: y\0\r\n\r\n"), "400 closed"),
    ("9112 7.1.2", "a bare LF in the trailers is refused", chunked(b"0\r\nX: y\nZ: z\r\n\r\n"), "400 closed"),
    ("9112 7.1.2", "a request right behind the last chunk's line is no trailer", chunked(b"0\r\n" + LIVE), "400 closed"),
]
BAD_SIZES = ("", "+5", "-5", "0x5", "0X5", " 5", "5 ", "\t5", "5\t", "5_0", "5.0", "5,", "g", "5g", "5 5", "\u0665", "\uff15",
             "\u00b2", "'5'", "5h", "5=", "=5", "\x005", "5\x00", "5\x0b", ";", ";a=b")
CHUNKS += [("9112 7.1", "the chunk size %s is refused" % ascii(value)[1:-1],
            chunked(value.encode() + b"\r\nhello\r\n" + END), "400 closed")
           for value in BAD_SIZES]

HIDDEN = post(b"Content-Length: 0")  # 405: would show if it were taken out of a body
BODIES = [
    ("9112 9.3", "the body of a GET is not the next request", length(b"%d" % len(HIDDEN), HIDDEN), "200 kept"),
    ("9112 9.3", "the body of a POST is not the next request", post(b"Content-Length: %d" % len(LIVE), body=LIVE), "405 kept"),
    ("9112 9.3", "the request behind the body of a POST is answered",
     post(b"Content-Length: %d" % len(LIVE), body=LIVE + LIVE), "405 200 kept"),
    ("9112 9.3", "the body of an unknown path is not the next request",
     message(b"GET /x HTTP/1.1", HOST, b"Content-Length: %d" % len(LIVE), body=LIVE + LIVE), "404 200 kept"),
    ("9112 9.3", "the body of a HEAD is not the next request",
     message(b"HEAD /livez HTTP/1.1", HOST, b"Content-Length: %d" % len(HIDDEN), body=HIDDEN + LIVE), "HEAD:200 200 kept"),
    ("9112 9.3", "a chunk is not the next request",
     post(b"Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n%s%s" % (len(LIVE), LIVE, END, LIVE)), "405 200 kept"),
    ("9112 9.3", "the body of a refused query is not the next request",
     message(b"GET /metrics?history=0 HTTP/1.1", HOST, b"Content-Length: %d" % len(LIVE), body=LIVE), "400 *"),
    ("9112 9.3", "a body of many pieces is not the next request",
     length(b"60000", HIDDEN * 2000 + LIVE)[:len(length(b"60000")) + 60000], "200 kept"),
    ("9112 6.3", "nothing behind a coding with a length is answered",
     post(b"Content-Length: %d" % len(END), b"Transfer-Encoding: chunked", body=END + LIVE), "400 closed"),
    ("9112 6.3", "nothing behind two lengths is answered",
     post(b"Content-Length: 0", b"Content-Length: 44", body=LIVE), "400 closed"),
    ("9112 6.3", "nothing behind a bad length is answered", length(b"0x0", LIVE), "400 closed"),
    ("9112 6.3", "nothing behind a coding not implemented is answered", coded(b"gzip, chunked", END + LIVE), "501 closed"),
    ("9110 15.5.14", "nothing behind a body too large is answered", length(b"100000", LIVE), "413 closed"),
    ("9112 7.1", "nothing behind a bad chunk is answered", chunked(b"x\r\n\r\n" + LIVE), "400 closed"),
    ("9112 5", "nothing behind a bad head is answered", get(b"words") + LIVE, "400 closed"),
    ("9112 3", "nothing behind a bad request line is answered", line(b"GET /livez") + LIVE, "400 closed"),
    ("6585 5", "nothing behind a head too large is answered", get(*[b"X: y"] * 200) + LIVE, "431 closed"),
    ("9110 10.1.1", "who expects 100-continue has the final answer at once",
     post(b"Content-Length: 5", b"Expect: 100-continue"), "405 closed"),
    ("9110 10.1.1", "who expects 100-continue for a GET has the answer at once",
     get(b"Content-Length: 5", b"Expect: 100-continue"), "200 closed"),
    ("9110 10.1.1", "an expectation is case-insensitive", post(b"Content-Length: 5", b"Expect: 100-Continue"), "405 closed"),
    ("9110 10.1.1", "who expects 100-continue for chunks has the answer at once",
     post(b"Transfer-Encoding: chunked", b"Expect: 100-continue"), "405 closed"),
    ("9110 10.1.1", "a body that did not wait for 100-continue is not the next request",
     post(b"Content-Length: %d" % len(LIVE), b"Expect: 100-continue", body=LIVE), "405 closed"),
    ("9110 10.1.1", "100-continue without a body is ignored", get(b"Expect: 100-continue"), "200 kept"),
    ("9110 10.1.1", "100-continue with an empty body is ignored", get(b"Content-Length: 0", b"Expect: 100-continue"), "200 kept"),
    ("9110 15.5.18", "another expectation fails", get(b"Expect: coffee"), "417 *"),
    ("9110 15.5.18", "another expectation beside 100-continue fails", get(b"Expect: 100-continue, coffee"), "417 *"),
    ("9110 15.5.18", "the body behind a failed expectation is not the next request",
     post(b"Content-Length: %d" % len(LIVE), b"Expect: coffee", body=LIVE), "417 *"),
    ("9110 10.1.1", "100-continue over HTTP/1.0 is ignored",
     old(b"Content-Length: 5", b"Expect: 100-continue", body=b"hello"), "200 closed"),
    ("9110 10.1.1", "another expectation over HTTP/1.0 is ignored", old(b"Expect: coffee"), "200 closed"),
]

CONNECTIONS = [
    ("9112 9.3", "HTTP/1.1 is kept", LIVE, "200 kept"),
    ("9112 9.6", "close is obeyed", get(b"Connection: close"), "200 closed"),
    ("9110 7.6.1", "close is case-insensitive", get(b"Connection: CLOSE"), "200 closed"),
    ("9110 7.6.1", "close is found in a list", get(b"Connection: keep-alive, close"), "200 closed"),
    ("9110 7.6.1", "close is found in a list without blanks", get(b"Connection: x,close,y"), "200 closed"),
    ("9110 5.6.1", "close is found behind an empty element", get(b"Connection: , close"), "200 closed"),
    ("9110 5.3", "close is found in a second field", get(b"Connection: x", b"Connection: close"), "200 closed"),
    ("9110 7.6.1", "a word that holds close is another", get(b"Connection: closed, x-close"), "200 kept"),
    ("9112 9.3", "keep-alive keeps HTTP/1.1", get(b"Connection: keep-alive"), "200 kept"),
    ("9112 9.6", "close is obeyed after an error", message(b"GET /x HTTP/1.1", HOST, b"Connection: close"), "404 closed"),
    ("9112 9.6", "close is obeyed after a HEAD", message(b"HEAD /livez HTTP/1.1", HOST, b"Connection: close"), "HEAD:200 closed"),
    ("9112 9.6", "close is obeyed after a body", get(b"Connection: close", b"Content-Length: 5", body=b"hello"), "200 closed"),
    ("9112 9.6", "nothing behind close is answered", get(b"Connection: close") + LIVE, "200 closed"),
    ("9112 9.3", "HTTP/1.0 is closed", old(), "200 closed"),
    ("9112 9.3", "HTTP/1.0 with keep-alive is kept", old(b"Connection: keep-alive"), "200 kept"),
    ("9112 9.3", "keep-alive is case-insensitive", old(b"Connection: Keep-Alive"), "200 kept"),
    ("9112 9.3", "keep-alive is found in a list", old(b"Connection: x, keep-alive"), "200 kept"),
    ("9112 9.3", "close wins over keep-alive", old(b"Connection: keep-alive, close"), "200 closed"),
    ("9112 9.3", "the field Keep-Alive keeps nothing", old(b"Keep-Alive: timeout=5"), "200 closed"),
    ("9112 9.3", "the field Proxy-Connection keeps nothing", old(b"Proxy-Connection: keep-alive"), "200 closed"),
    ("9112 9.3", "nothing behind an unkept HTTP/1.0 is answered", old() + LIVE, "200 closed"),
    ("9112 9.3", "HTTP/1.0 with keep-alive is kept after an error",
     message(b"GET /x HTTP/1.0", b"Connection: keep-alive"), "404 kept"),
    ("9112 9.3", "the version is that of each request", old(b"Connection: keep-alive") + LIVE + old(), "200 200 200 closed"),
    ("9110 7.8", "an upgrade is ignored",
     get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), "200 kept"),
    ("9110 7.8", "an upgrade to websocket is ignored", get(b"Connection: Upgrade", b"Upgrade: websocket"), "200 kept"),
    ("9110 14.2", "a range is ignored", get(b"Range: bytes=0-1"), "200 kept"),
    ("9110 13.1", "conditions are ignored",
     get(b"If-None-Match: *", b"If-Modified-Since: Mon, 23 Nov 2099 13:00:00 GMT"), "200 kept"),
    ("9112 9.3.2", "ten requests in one segment have ten answers", LIVE * 10, "200 " * 10 + "kept"),
    ("9112 9.3.2", "two hundred requests in one segment have as many answers", LIVE * 200, "200 " * 200 + "kept"),
    ("9112 9.3.2", "answers come in the order of the requests",
     LIVE + target(b"/x") + post() + length(b"5", b"hello") + target(b"/metrics") + chunked(END) + LIVE,
     "200 404 405 200 200 200 200 kept"),
    ("9112 9.3.2", "requests before a bad one are answered", LIVE + LIVE + get(b"words") + LIVE, "200 200 400 closed"),
    ("9112 9.3.2", "requests before garbage are answered", LIVE + b"\0\0\0\0\r\n\r\n", "200 400 closed"),
    ("9112 9.3.2", "requests before a close are answered", LIVE + LIVE + get(b"Connection: close") + LIVE, "200 200 200 closed"),
    ("9112 9.6", "a half-closed client has its answer", LIVE, "200 closed", True),
    ("9112 9.6", "a half-closed client has all its answers", LIVE * 10, "200 " * 10 + "closed", True),
    ("9112 9.6", "a half-closed client has its database's answer", target(b"/metrics"), "200 closed", True),
    ("9112 9.6", "a half-closed client that asked nothing has no answer", b"", "closed", True),
    ("9112 9.6", "a half-closed client has its answer after a body", length(b"5", b"hello"), "200 closed", True),
    ("9112 9.6", "an empty line and an end is no request", b"\r\n", "closed", True),
    ("9112 8", "an unfinished request line at the end is refused", b"GET /li", "400 closed", True),
    ("9112 8", "an unfinished head at the end is refused", b"GET /livez HTTP/1.1\r\nHost: a\r\n", "400 closed", True),
    ("9112 8", "a head short of its last byte at the end is refused", LIVE[:-1], "400 closed", True),
    ("9112 8", "an unfinished head behind a request is refused", LIVE + b"GET /livez HTTP/1.1\r\n", "200 400 closed", True),
]

TABLE = [Row(*row) for group in (REQUEST_LINE, VERSION, TARGET, METHODS, HOSTS, FIELDS, LIMITS, LENGTHS, CODINGS, CHUNKS, BODIES,
                                 CONNECTIONS) for row in group]


def holdings(service):
    """(threads, descriptors) of the service."""
    process = "/proc/%d/" % service.process.pid
    return len(os.listdir(process + "task")), len(os.listdir(process + "fd"))


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("http")
    service = Service(folder, make_database(folder / "shipments.db")).start()
    assert service.get("/metrics")[0] == 200  # opens what is opened once
    service.at_rest = holdings(service)
    yield service
    service.end()


def at_rest(service):
    return all(now <= then for now, then in zip(holdings(service), service.at_rest))


@pytest.fixture
def unharmed(service):
    """The service, which after the test answers, holds what it held at the start, and has logged nothing."""
    yield service
    wait_for(lambda: at_rest(service), "threads and descriptors, %s, to be %s again" % (holdings(service), service.at_rest))
    assert service.get("/livez")[0] == 200 and service.get("/metrics")[1]["logging"]["errors_total"] == 0
    assert [entry.split()[2] for entry in service.text().splitlines()] == ["service_started"]


@pytest.mark.parametrize("row", TABLE, ids=["%s: %s" % row[:2] for row in TABLE])
def test_each_request_is_answered_as_its_section_says(service, row):
    found = observed(service, row)
    assert fnmatch.fnmatchcase(found, row.expected), "%r: %s, not %s" % (row.sent[:300], found, row.expected)


def test_no_behaviour_is_in_the_table_twice():
    assert len({row[:2] for row in TABLE}) == len(TABLE)


def exchange(service, conversations):
    """(segments, answers up to the end) of each list of segments; those of a batch are sent by turns, to arrive apart."""
    for start in range(0, len(conversations), BATCH):
        batch = conversations[start:start + BATCH]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(service)) for _ in batch]
            for turn in itertools.zip_longest(*batch, fillvalue=b""):
                for client, segment in zip(clients, turn):
                    client.send(segment)
            for client in clients:
                client.half_close()
            for segments, client in zip(batch, clients):
                yield segments, client.rest()


def statuses(answers):
    assert not closing(answers[:-1]), "answered behind a close"
    return [answer.status for answer in answers]


STREAM = (post(b"Transfer-Encoding: chunked", body=b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n") + b"\r\n" + LIVE
          + length(b"%d" % len(LIVE), LIVE) + target(b"/x"))


def test_requests_cut_at_any_byte_have_the_same_answers(unharmed):
    cuts = [[STREAM[:place], STREAM[place:]] for place in range(len(STREAM))]
    for segments, answers in exchange(unharmed, cuts):
        assert statuses(answers) == [405, 200, 200, 404], segments


def test_requests_that_come_byte_by_byte_have_the_same_answers(unharmed):
    for _, answers in exchange(unharmed, [[STREAM[place:place + 1] for place in range(len(STREAM))]] * 5):
        assert statuses(answers) == [405, 200, 200, 404]


@pytest.mark.parametrize("request_of", [
    b"%s /livez HTTP/1.1\r\nHost: a\r\n\r\n", b"%s /x HTTP/1.1\r\nHost: a\r\n\r\n", b"%s /livez HTTP/1.1\r\n\r\n",
    b"%s /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"%s /livez HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n",
    b"%s /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n", b"%s * HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_head_has_the_fields_of_get(service, request_of):
    answers = []
    for method in (b"GET", b"HEAD"):
        with Client(service) as client:
            client.send(request_of % method)
            answers.append(client.answer(bodiless=method == b"HEAD"))
            del answers[-1].fields["Date"], answers[-1].fields["X-Request-ID"]
    assert answers[1] == answers[0]._replace(body=b"")


def test_an_absolute_target_without_a_path_is_the_root(service):
    roots = [target(text) for text in (b"/", b"http://a", b"http://a/", b"http://a?x")]
    first, *others = [statuses(answers) for _, answers in exchange(service, [[root] for root in roots])]
    assert others == [first] * 3


def test_http_1_0_is_told_that_it_is_kept_and_1_1_only_that_it_is_closed(service):
    requests = (old(b"Connection: keep-alive"), old(), get(b"Connection: keep-alive"), get(b"Connection: close"))
    told = [answer.fields.get("Connection") for _, (answer,) in exchange(service, [[sent] for sent in requests])]
    assert told[:2] == ["keep-alive", "close"] and told[2] in (None, "keep-alive") and told[3] == "close"


PLAIN = message(GET, HOST, b"X-Y: z")
SPOILERS = [bytes([code]) for code in list(range(33)) + [ord(":"), 127, 128, 255]]
WELL_FORMED = re.compile(rb"(\r\n)*" + TOKEN + rb" /[\w.~!$&'()*+,;=:@/?%-]* HTTP/\d\.\d\r\n("
                         + TOKEN + rb":[\t -~\x80-\xff]*\r\n)*\r\n")


@pytest.mark.parametrize("kept", [0, 1], ids=["put in place of", "put before"])
def test_a_head_with_any_byte_spoiled_is_refused(unharmed, kept):
    """kept: 1 leaves the byte at the place, behind the spoiler."""
    heads = [[PLAIN[:place] + spoiler + PLAIN[place + 1 - kept:]] for place in range(len(PLAIN) + kept) for spoiler in SPOILERS]
    for (head,), answers in exchange(unharmed, heads):
        found = statuses(answers)
        if WELL_FORMED.match(head):  # the spoiler fits where it stands, or came too late; Host may be gone
            assert found[0] in (200, 400, 404) and found[1:] in ([], [400]), (head, found)
        else:
            assert found == [400], (head, found)


FRAGMENTS = [  # HEAD is missing: its answers could not be told from those that lack their body
    LIVE, STREAM, b"GET ", b"POST ", b"OPTIONS * ", b"/livez", b"/metrics", b"/readyz?history=1", b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"Host: a\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n",
    b"Content-Length: 99999\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Connection: close\r\n",
    b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n", b"X: y\r\n" * 60, b"Accept: text/plain;q=x, */*;q=\r\n",
    b"Authorization: Basic =\r\n", b"\r\n", b"\r\n\r\n", b"hello", b"5\r\nhello\r\n", b"0\r\n\r\n", b"0", b"\r", b"\n", b"\0",
    b" ", b"\t", b":", b"%", b"/../", b"//", b"#", b"\xff\xfe", b"A" * 9000]
ERRORS = {400, 404, 405, 413, 414, 417, 431, 501, 505}


def garbage(chance):
    """Bytes that are hardly a request: noise, a splice of fragments, or good requests with a few bytes changed."""
    kind = chance.random()
    if kind < 0.1:
        return bytes(chance.getrandbits(8) for _ in range(chance.randrange(300)))
    if kind < 0.7:
        start = chance.choice([b"", GET + b"\r\n", GET + b"\r\nHost: a\r\n", LIVE])
        return start + b"".join(chance.choice(FRAGMENTS) for _ in range(chance.randrange(12)))
    data = bytearray(STREAM)
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] = chance.choice(bytes(range(256)) + b"\r\n\0 :;0123456789" * 8)
    return bytes(data)


def torn(chance, data):
    """The data in segments cut at random."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(4)))
    return [data[start:end] for start, end in zip([0] + cuts, cuts + [len(data)])]


def test_no_garbage_is_more_than_a_refusal(unharmed):
    chance = random.Random(9112)
    for segments, answers in exchange(unharmed, [torn(chance, garbage(chance)) for _ in range(2000)]):
        assert set(statuses(answers)) <= ERRORS | {200}, segments


def test_a_client_that_leaves_at_any_byte_is_no_error(unharmed):
    for place in range(len(STREAM) + 1):
        for leave in (Client.abort, Client.half_close):
            with Client(unharmed) as client:
                client.send(STREAM[:place])
                leave(client)


def test_a_client_that_leaves_before_its_figures_come_is_no_error(unharmed):
    for leave in (Client.abort, Client.half_close):
        for _ in range(50):
            with Client(unharmed) as client:
                client.send(target(b"/metrics?history=672") * 3)
                leave(client)
