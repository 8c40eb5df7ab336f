"""HTTP messages: bytes in, Head out; Response in, bytes out. To RFC 9110, 9112 and 3986, for servers of GET and HEAD.

What two parsers could understand in two ways is refused, since one of the two may be a proxy in front of us. Nothing in here
waits, reads or writes: whoever has received bytes asks check_unfinished, read_head and Body.take what they are.
Errors are application/problem+json (RFC 9457).
"""

import collections
import ipaddress
import itertools
import json
import re
import urllib.parse
from http import HTTPStatus

LINE_MAX = 8192         # bytes of a request line; RFC 9112, 3 wants 8000 at least
HEAD_MAX = 32768        # bytes of a head
FIELDS_MAX = 100        # of a head
BODY_MAX = 65536        # bytes of a body, which is read and thrown away
METHOD_MAX = 32         # bytes of a method; the longest registered one has 17
NAME = "metrics_service"
PHRASES = {413: "Content Too Large", 414: "URI Too Long", 421: "Misdirected Request"}

SECURITY = (
    ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"), ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"))

# Grammar, on bytes: RFC 9110, 5 and 9112, 2 to 7; RFC 3986 for the target

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
VALUE = rb"[\t\x20-\x7e\x80-\xff]*"
REQUEST_LINE = re.compile(rb"(%s) ([!-~]+) HTTP/(\d)\.(\d)\r\n" % TOKEN)
FIELD = re.compile(rb"(%s):[ \t]*(%s)\r\n" % (TOKEN, VALUE))
FIELDS = re.compile(rb"(?:%s:%s\r\n)*\r\n" % (TOKEN, VALUE))
BARE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\0")    # where a line does not end, or nothing may stand
HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::\d{0,5})?")
PATH = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
QUERY = r"(?:\?((?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*))?"
ORIGIN = re.compile("(/%s)%s" % (PATH, QUERY))
ABSOLUTE = re.compile("[Hh][Tt][Tt][Pp][Ss]?://([^/?@:][^/?@]*)(/%s)?%s" % (PATH, QUERY))
AUTHORITY = re.compile(r"[^/?#@\[\]]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
CHUNK_BEGUN = re.compile(rb"[0-9A-Fa-f]*[ \t]*(?:;%s)?\r?" % VALUE)
CHUNK = re.compile(rb"0*([0-9A-Fa-f]{1,8})(?:[ \t]*;%s)?\r\n" % VALUE)
CHUNK_LINE_MAX = 256    # bytes of a chunk's size and extensions
REQUEST_ID = re.compile("[A-Za-z0-9._:/+=@-]{1,128}")   # of a client's, that it may stand in a line, a header and a command

Head = collections.namedtuple("Head", "method path query headers line http10 keep body expects https request_id")
CHUNKED = -1            # Head.body of a chunked one, else its length


class Refusal(Exception):
    """What was received is no request that we answer: the status, the reason as a sentence, further fields of the answer."""

    def __init__(self, status, detail, fields=()):
        super().__init__(detail)
        self.status, self.detail, self.fields = status, detail, fields


def refuse(detail):
    raise Refusal(400, detail)


def bad_field(fields):
    """Why this is no sequence of field lines (RFC 9112, 5)."""
    for line in fields.split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            return "a field is folded over two lines"
        if not FIELD.fullmatch(line + b"\r\n"):
            name = line.partition(b":")[0]
            blank = name != name.strip(b" \t") and b":" in line
            return "a blank stands before the colon of a field" if blank else "a field line is not 'name: value'"
    return "the head is not what RFC 9112 calls one"


def read_fields(data):
    """The fields as a dict of lower-case name -> list of values (RFC 9110, 5). Raises Refusal."""
    if not FIELDS.fullmatch(data):
        refuse(bad_field(data[:-4]))
    found = FIELD.findall(data)
    if len(found) > FIELDS_MAX:
        raise Refusal(431, "the head has more than %d fields" % FIELDS_MAX)
    fields = {}
    for name, value in found:
        fields.setdefault(name.lower().decode(), []).append(value.rstrip(b" \t").decode("latin-1"))
    return fields


def valid_address(host):
    """Whether what stands in brackets, if anything does, is an IPv6 address (RFC 3986, 3.2.2)."""
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:host.index("]")])
        except ValueError:
            return False
    return True


def check_host(hosts, http10):
    """One Host, and one that is valid (RFC 9112, 3.2)."""
    if len(hosts) != 1 and (hosts or not http10):
        refuse("exactly one Host field is due, there are %d" % len(hosts))
    if hosts and not (HOST.fullmatch(hosts[0]) and valid_address(hosts[0])):
        refuse("the Host field is not a host with an optional port")


def straight(path):
    """The path without its dot segments (RFC 3986, 5.2.4), then decoded. Raises Refusal."""
    path = re.sub("%2[Ee]", ".", path)
    if "/." in path:
        kept = []
        segments = path.split("/")[1:]
        for segment in segments:
            if segment == "..":
                del kept[-1:]
            elif segment != ".":
                kept.append(segment)
        path = "/" + "/".join(kept + [""] * (segments[-1] in (".", "..")))
    path = urllib.parse.unquote(path, errors="replace")
    if CONTROL.search(path):
        refuse("the path has an encoded control character")
    return path


def read_target(method, target):
    """(path, query string) of a target in any of its four forms (RFC 9112, 3.2); the path is None where the form has none."""
    origin, absolute = ORIGIN.fullmatch(target), ABSOLUTE.fullmatch(target)
    if origin and method != "CONNECT":
        return straight(origin.group(1)), origin.group(2) or ""
    if absolute and method != "CONNECT":
        authority, path, query = absolute.groups()
        check_host([authority], False)
        return straight(path or "/"), query or ""
    if target == "*" and method == "OPTIONS" or method == "CONNECT" and AUTHORITY.fullmatch(target):
        return None, ""
    return refuse("the request target is not one that this method can have")


def members(fields, name):
    """The members of a list field in lower case (RFC 9110, 5.6.1)."""
    values = (member.strip(" \t").lower() for value in fields.get(name, ()) for member in value.split(","))
    return [value for value in values if value]


def read_length(lengths):
    """The one Content-Length (RFC 9110, 8.6). Python's int() would take '+5', '1_0' and other scripts' digits too."""
    if len(lengths) != 1 or not re.fullmatch("[0-9]+", lengths[0]):
        refuse("Content-Length is not one decimal number")
    digits = lengths[0].lstrip("0") or "0"
    if len(digits) > len(str(BODY_MAX)) or int(digits) > BODY_MAX:
        raise Refusal(413, "a body may have %d bytes here" % BODY_MAX)
    return int(digits)


def read_framing(fields, http10):
    """Length of the body, or CHUNKED (RFC 9112, 6). Whatever two parsers could take in two ways is refused."""
    lengths = fields.get("content-length")
    if "transfer-encoding" not in fields:
        return read_length(lengths) if lengths else 0
    codings = members(fields, "transfer-encoding")
    if lengths:
        refuse("Content-Length and Transfer-Encoding contradict each other")
    if http10:
        refuse("HTTP/1.0 has no Transfer-Encoding")
    if codings[-1:] != ["chunked"] or codings.count("chunked") > 1:
        refuse("the last transfer coding must be chunked, and no other")
    if len(codings) > 1:
        raise Refusal(501, "of the transfer codings only chunked is understood")
    return CHUNKED


def read_expectation(fields, http10, body):
    """Whether the client waits for 100 (Continue) before it sends the body (RFC 9110, 10.1.1)."""
    expectations = [] if http10 else members(fields, "expect")
    if any(expectation != "100-continue" for expectation in expectations):
        raise Refusal(417, "of the expectations only 100-continue is understood")
    return bool(expectations and body)


def read_line(data):
    """(method, target, whether HTTP/1.0, end) of the request line (RFC 9112, 3). Raises Refusal."""
    line = REQUEST_LINE.match(data)
    if not line:
        refuse("the request line is not 'METHOD TARGET HTTP/1.1'")
    method, target, major, minor = (part.decode() for part in line.groups())
    if major != "1":
        raise Refusal(505, "HTTP/1.1 is spoken here, and HTTP/1.0")
    if len(method) > METHOD_MAX:
        raise Refusal(501, "no method has so long a name")
    return method, target, minor == "0", line.end()


def read_request_id(fields):
    """The client's own name for its request, None without a good one: of two nobody knows which is meant."""
    given = fields.get("x-request-id", ())
    return given[0] if len(given) == 1 and REQUEST_ID.fullmatch(given[0]) else None


def read_head(data):
    """The Head that these bytes are, up to and with the empty line. Raises Refusal."""
    method, target, http10, line_end = read_line(data)
    fields = read_fields(data[line_end:])
    check_host(fields.get("host", []), http10)
    path, query = read_target(method, target)
    body = read_framing(fields, http10)
    expects = read_expectation(fields, http10, body)
    options = members(fields, "connection")
    keep = "close" not in options and (not http10 or "keep-alive" in options)
    return Head(method, path, urllib.parse.parse_qs(query, keep_blank_values=True),
                {name: ", ".join(values) for name, values in fields.items()},
                data[:line_end - 2].decode("latin-1"), http10, keep and not expects, body, expects, target[:5].lower() == "https",
                read_request_id(fields))


def check_size(data, size):
    """The limits of a head of which `size` bytes have come."""
    if size > LINE_MAX and data.find(b"\r\n", 0, LINE_MAX + 2) < 0:
        raise Refusal(414, "a request line may have %d bytes" % LINE_MAX)
    if size > HEAD_MAX:
        raise Refusal(431, "a head may have %d bytes" % HEAD_MAX)


def check_unfinished(data, seen=0):
    """Refuses what cannot become a head any more, so that nobody waits for its end."""
    if BARE.search(data, max(0, seen - 1)):
        refuse("a line ends in a bare CR or LF, or the head has a NUL")
    check_size(data, len(data))
    if data.find(b"\r\n", 0, seen) < 0 and b"\r\n" in data:
        read_line(data)


class Body:
    """A body on its way, of which nothing is kept: take() what has come until `whole`."""

    def __init__(self, length):
        self.chunked = length == CHUNKED
        self.left = 0 if self.chunked else length   # bytes until its end, or until that of the chunk
        self.open = False                           # the CRLF behind a chunk is due
        self.size, self.whole = 0, False

    def take(self, data):
        """What of the data is not of the body, or not yet to be told what it is. Raises Refusal."""
        at = 0
        while not self.whole:
            if self.left:
                taken = min(self.left, len(data) - at)
                at, self.left = at + taken, self.left - taken
                if self.left:
                    break
            if not self.chunked:
                self.whole = True
                break
            end = self.end_chunk(data, at) if self.open else self.start_chunk(data, at)
            if end is None:
                break
            at = end
        return data[at:]

    def end_chunk(self, data, at):
        """Where the CRLF behind a chunk ends, None where it has not come."""
        if not b"\r\n".startswith(data[at:at + 2]):
            refuse("a chunk does not end where its size says")
        if len(data) < at + 2:
            return None
        self.open = False
        return at + 2

    def start_chunk(self, data, at):
        """Where the next chunk's bytes start, or the body ends with the last one (RFC 9112, 7.1); None as above."""
        chunk = CHUNK.match(data, at)
        if (chunk.end() if chunk else len(data)) - at > CHUNK_LINE_MAX:
            refuse("the line of a chunk's size may have %d bytes" % CHUNK_LINE_MAX)
        if not chunk:
            if not CHUNK_BEGUN.fullmatch(data, at):
                refuse("a chunk does not start with its size")
            return None
        self.left = int(chunk.group(1), 16)
        if not self.left:
            return self.end_body(data, chunk.end())
        self.size, self.open = self.size + self.left, True
        if self.size > BODY_MAX:
            raise Refusal(413, "a body may have %d bytes here" % BODY_MAX)
        return chunk.end()

    def end_body(self, data, at):
        """Where the trailer section that starts here ends (RFC 9112, 7.1.2); None as above."""
        end = data.find(b"\r\n\r\n", at - 2) + 4
        if end < 4:
            if BARE.search(data, at):
                refuse("a line of the trailers ends in a bare CR or LF")
            if len(data) - at > HEAD_MAX:
                raise Refusal(431, "trailers may have %d bytes" % HEAD_MAX)
            return None
        if not FIELDS.fullmatch(data, at, end):
            refuse("a trailer field is not 'name: value'")
        self.whole = True
        return end

    def taken(self, length):
        """Bytes that leave another Body of the length where this one is: what was in them does not matter."""
        if not self.chunked:
            return b"x" * (length - self.left)
        return b"%x\r\n" % self.left if self.left else b"1\r\nx" if self.open else b""


def stand_in(length):
    """A body of the length, as good as any that was thrown away."""
    return b"0\r\n\r\n" if length == CHUNKED else b"x" * length


# Answers

def phrase_of(status):
    """The reason phrase of RFC 9110, 15, whichever RFC this Python's http.HTTPStatus has it from."""
    return PHRASES.get(int(status)) or HTTPStatus(status).phrase


class Response:
    """An answer; `head` is what of it is the same whenever it is sent. A CR or LF in a field raises ValueError."""

    def __init__(self, status, content_type, body, fields=()):
        self.status, self.body = int(status), body
        names = {name for name, _ in fields}
        lines = ["HTTP/1.1 %d %s" % (status, phrase_of(status)), "Server: " + NAME, "Content-Type: " + content_type,
                 "Content-Length: %d" % len(body)]
        lines += ["%s: %s" % field for field in itertools.chain(fields, (f for f in SECURITY if f[0] not in names))]
        if any(CONTROL.search(line) for line in lines):
            raise ValueError("a control character in a response field")
        self.head = "\r\n".join(lines).encode("latin-1") + b"\r\n"


def json_body(document):
    """The document as bytes. NaN and infinity, which JSON does not have, raise ValueError."""
    return json.dumps(document, allow_nan=False, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def json_answer(status, document, content_type="application/json", fields=()):
    return Response(status, content_type, json_body(document), fields)


def problem(status, detail, request_id, fields=(), **members):
    """A problem+json Response: the status in words, the detail as a sentence or None, the request's id, further members."""
    phrase = phrase_of(status)
    document = {"type": "about:blank", "title": phrase, "status": int(status), "detail": detail or phrase,
                "request_id": request_id}
    document.update(members)
    return json_answer(int(status), document, "application/problem+json", fields)
