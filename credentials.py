"""The password file of the service: who may ask, by HTTP Basic authentication (RFC 7617).

    Credentials(path).verify(value of the Authorization header or None) -> Verdict(allowed, user, retry_after)
    hash_line(user) -> the line of the file for a password typed at the terminal or piped in

A line is user:pbkdf2_sha256$ITERATIONS$SALT$HASH, salt and hash in base64; # begins a comment line. Such a hash is slow on
purpose (RFC 8018), and the rest follows from that: what was found good is remembered, an unknown user costs as much as a known
one, one hash is computed at a time, and wrong attempts are limited, by address and in all, so that none keeps the machine busy.
"""

import base64
import collections
import getpass
import hashlib
import hmac
import ipaddress
import math
import os
import re
import shlex
import stat
import threading
import time
from concurrent.futures import Future

ITERATIONS = 600000     # of a new hash: OWASP Password Storage Cheat Sheet, PBKDF2-HMAC-SHA256
ITERATIONS_MIN, ITERATIONS_MAX = 1000, 10000000     # RFC 8018 section 4.2; some seconds of work
SALT_BYTES = 16         # NIST SP 800-132 section 5.1
PASSWORD_MAX = 1024     # bytes, well within the longest header that a server takes
FILE_MAX = 65536        # bytes, some 600 users
LOOK = 1.0              # s between two looks at whether the file has changed
BURST, RATE = 5, 0.2    # wrong attempts of one address that are hashed at once, and each second after that
ALL_BURST, ALL_RATE = 20, 1.0   # those of all: one that hammers leaves room for the others, and all leave most of a core
ADDRESSES = 1024        # of which attempts are remembered, the latest
PLACES = 16             # hashes that may be waited for at a time

HASH = re.compile(rb"pbkdf2_sha256\$([0-9]{1,9})\$([A-Za-z0-9+/]{22}==)\$([A-Za-z0-9+/]{43}=)\Z")   # 16 and 32 bytes
CONTROL = re.compile(rb"[\x00-\x1f\x7f]")   # forbidden by RFC 7617; and to PBKDF2 "x" and "x\0" would be the same

Entry = collections.namedtuple("Entry", "iterations salt hash")
Book = collections.namedtuple("Book", "users cost dummy good")  # one state of the file: name -> Entry; good: digest -> name
Verdict = collections.namedtuple("Verdict", "allowed user retry_after")  # retry_after: whole seconds, else None

REFUSED = Verdict(False, None, None)


class CredentialsError(Exception):
    """A password file or a password cannot be used; the message says why and names the cure, and never shows a hash."""


# A password and its hash

def derive(password, salt, iterations):
    """The 32 bytes of PBKDF2 with HMAC-SHA-256. Other threads run meanwhile."""
    return hashlib.pbkdf2_hmac("sha256", password, salt, iterations)


def hash_password(password):
    """The hash of a password, which is bytes, with a new salt, as it stands in the file."""
    salt = os.urandom(SALT_BYTES)
    parts = [base64.b64encode(raw).decode("ascii") for raw in (salt, derive(password, salt, ITERATIONS))]
    return "$".join(["pbkdf2_sha256", str(ITERATIONS)] + parts)


def unbase64(text):
    """The bytes that base64 (RFC 4648 section 4) stands for. Raises ValueError for anything else."""
    raw = base64.b64decode(text)
    if base64.b64encode(raw) != text:     # b64decode passes over foreign characters and stray bits
        raise ValueError("not base64")
    return raw


def check_user(name):
    """Raises CredentialsError where a name cannot stand in the file, or be sent."""
    if not name or name != name.strip() or name.startswith("#") or ":" in name or not name.isprintable():
        raise CredentialsError("a user name is printable, without a colon, a leading # or blanks at its ends; choose another")


# The file

def is_credential(file):
    """Whether an open file lies under $CREDENTIALS_DIRECTORY, where systemd keeps what it passes to a service."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and os.readlink("/proc/self/fd/%d" % file.fileno()).startswith(os.path.realpath(folder) + "/")


def exposure(file, path):
    """Why an open file is none to keep secrets in, with the cure; None where it is. The group's bits include those of an ACL."""
    status = os.fstat(file.fileno())
    mode, root = stat.S_IMODE(status.st_mode), status.st_uid == 0
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file; name one"
    if mode & 0o006:
        fault = "is open to every user"
    elif mode & 0o020:
        fault = "can be changed by its group"
    elif mode & 0o040 and not root and not is_credential(file):
        fault = "can be read by its group, which is right for a file of root's only"
    else:
        return None
    wanted = "640" if root and status.st_gid else "600"    # root's with a group of its own: that group is to read it
    return "%s (mode %o); run: chmod %s %s" % (fault, mode, wanted, shlex.quote(path))


def open_at_once(path, flags):
    return os.open(path, flags | os.O_NONBLOCK)     # a FIFO that nobody writes would hold us up for ever


def read_secret(path):
    """The content of a file that nobody else may read, judged while it is open. Raises CredentialsError."""
    try:
        with open(path, "rb", opener=open_at_once) as file:
            fault = exposure(file, path)
            content = b"" if fault else file.read(FILE_MAX + 1)
    except OSError as error:
        raise CredentialsError("%s: could not be read by uid %d: %s; make it with --hash-password, or let that user read it" % (
            path, os.geteuid(), error.strerror)) from error
    if len(content) > FILE_MAX:
        fault = "is larger than %d bytes; keep one line user:hash for each user" % FILE_MAX
    if fault:
        raise CredentialsError("%s: %s" % (path, fault))
    return content


def parse_hash(text):
    """The Entry of a hash as it stands in the file. Raises ValueError, which does not show the hash."""
    match = HASH.match(text)
    if not match:
        raise ValueError("is not pbkdf2_sha256$ITERATIONS$SALT$HASH")
    iterations, salt, digest = match.groups()
    if not ITERATIONS_MIN <= int(iterations) <= ITERATIONS_MAX:
        raise ValueError("has %d iterations, wanted are %d to %d" % (int(iterations), ITERATIONS_MIN, ITERATIONS_MAX))
    return Entry(int(iterations), base64.b64decode(salt), base64.b64decode(digest))


def parse_line(line):
    """(user, Entry) of a line. Raises CredentialsError, which shows the name at most: the rest may be a password."""
    user, colon, text = line.partition(b":")
    if not colon:
        raise CredentialsError("is no user:hash; write the line that --hash-password USER prints, or # before a comment")
    try:
        name = user.decode("utf-8")
        check_user(name)
        return user, parse_hash(text)
    except UnicodeDecodeError:
        raise CredentialsError("the user name is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:
        raise CredentialsError("the hash of user %s %s; make it anew with --hash-password" % (name, error)) from None


def read_users(path):
    """User name, as bytes, -> Entry of a password file. Raises CredentialsError.

    A user may stand there once: to try a wrong password against two hashes would take twice the time, which tells that there is
    such a user, and whoever removed one of the lines would take the user for gone. A password is rotated by adding another user.
    """
    users, places = {}, {}
    for number, line in enumerate(map(bytes.strip, read_secret(path).splitlines()), 1):
        if not line or line.startswith(b"#"):
            continue
        try:
            user, entry = parse_line(line)
            if user in users:
                raise CredentialsError("user %s stands in line %d already; remove one of the two, or rename the user of one" % (
                    user.decode("utf-8"), places[user]))
        except CredentialsError as error:
            raise CredentialsError("%s:%d: %s" % (path, number, error)) from None
        users[user], places[user] = entry, number
    if not users:
        raise CredentialsError("%s: lists no user; add the line that --hash-password USER prints" % path)
    return users


def read_book(path):
    """The Book of a password file. Raises CredentialsError."""
    users = read_users(path)
    cost = max(entry.iterations for entry in users.values())
    return Book(users, cost, Entry(cost, os.urandom(SALT_BYTES), os.urandom(32)), {})


def matches(book, user, password):
    """Whether the password is the user's. Takes the iterations of the costliest user, for whomever."""
    entry = book.users.get(user, book.dummy)
    equal = hmac.compare_digest(derive(password, entry.salt, entry.iterations), entry.hash)
    if entry.iterations < book.cost:
        derive(password, entry.salt, book.cost - entry.iterations)
    return equal and user in book.users


def stamp(path):
    """What becomes another with every write, rename and chmod of a file; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:     # reading it will tell why
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


# The header

def basic_pair(authorization):
    """(user, password) as bytes of the value of an Authorization header; None where it is no well-formed Basic one."""
    scheme, _, token = (authorization or "").partition(" ")
    try:
        pair = unbase64(token.lstrip(" ").encode("ascii")) if scheme.lower() == "basic" else b""
    except ValueError:  # not base64, or not even ASCII
        return None
    user, colon, password = pair.partition(b":")
    return (user, password) if colon and not CONTROL.search(pair) else None


class Bucket:
    """Wrong attempts that may still be made: so many at once, then so many a second. Whoever calls holds a lock."""

    def __init__(self, burst, rate, clock):
        self.burst, self.rate, self.clock, self.tokens, self.filled_at = burst, rate, clock, burst, clock()

    def take(self):
        """Takes one and returns 0, or returns the whole seconds until there is one."""
        now = self.clock()
        self.tokens, self.filled_at = min(self.burst, self.tokens + self.rate * (now - self.filled_at)), now
        if self.tokens < 1:
            return math.ceil((1 - self.tokens) / self.rate)
        self.tokens -= 1
        return 0

    def give_back(self):
        self.tokens += 1


def source(address):
    """What stands for all addresses that one host can choose from: of IPv6 the network, of 64 bits (RFC 4291, 2.5.1)."""
    try:
        parsed = ipaddress.IPv6Address((address or "").partition("%")[0])
    except ValueError:
        return address
    return address if parsed.ipv4_mapped else int(parsed) >> 64


class Limit:
    """The wrong attempts that one address may still make, and all together. Whoever calls holds a lock."""

    def __init__(self, clock):
        self.clock, self.everybody, self.addresses = clock, Bucket(ALL_BURST, ALL_RATE, clock), collections.OrderedDict()

    def bucket(self, address):
        address = source(address)
        bucket = self.addresses.setdefault(address, Bucket(BURST, RATE, self.clock))
        self.addresses.move_to_end(address)
        if len(self.addresses) > ADDRESSES:
            self.addresses.popitem(last=False)
        return bucket

    def take(self, address):
        """Takes an attempt and returns 0, or returns the whole seconds until there is one."""
        bucket = self.bucket(address)
        wait = bucket.take()
        if not wait:
            wait = self.everybody.take()
            if wait:
                bucket.give_back()
        return wait

    def give_back(self, address):
        self.bucket(address).give_back()
        self.everybody.give_back()


class Credentials:
    """The users of a password file, which is read again when it changes. Any thread may call its methods.

    While a changed file is bad the users of the last good one stay in force, and `fault` says in words what is wrong; else it is
    None. changed(fault) is called when that becomes another. Raises CredentialsError where the file is bad from the start.
    """

    def __init__(self, path, changed=lambda fault: None, clock=time.monotonic):
        self.path, self.changed, self.clock = path, changed, clock
        self.stamp, self.look_at = stamp(path), clock() + LOOK
        self.book, self.fault = read_book(path), None
        self.looking = threading.Lock()     # held by the one that reads the file; nobody waits for it
        self.hashing = threading.Lock()     # held while a hash is computed
        self.lock = threading.Lock()        # guards what follows, for moments
        self.limit = Limit(clock)
        self.attempts = {}                  # digest -> Future of the Verdict being worked out for it
        self.key = os.urandom(32)

    def reread(self):
        fault = None
        try:
            book = read_book(self.path)
            # What was found good by a line that is gone, or another by now, is gone with it.
            book.good.update((key, name) for key, name in list(self.book.good.items())
                             if book.users.get(name.encode()) == self.book.users[name.encode()])
            self.book = book
        except CredentialsError as error:
            fault = str(error)
        if fault != self.fault:
            self.fault = fault
            self.changed(fault)

    def refresh(self):
        """Looks at the file, at most once in LOOK seconds, and reads it if it has changed or was bad."""
        if self.clock() < self.look_at or not self.looking.acquire(blocking=False):
            return
        try:
            self.look_at = self.clock() + LOOK
            seen = stamp(self.path)     # before reading: what is written in between differs at the next look
            if seen != self.stamp or self.fault:
                self.stamp = seen
                self.reread()
        finally:
            self.looking.release()

    def digest(self, user, password):
        """What stands for a pair in memory; the length tells where the user ends (CVE-2022-46146 joined the parts without)."""
        return hmac.new(self.key, b"%d:%b%b" % (len(user), user, password), "sha256").digest()

    def recall(self, authorization):
        """The Verdict where it takes no hash, within microseconds and whatever others attempt; else None."""
        self.refresh()
        pair = basic_pair(authorization)
        if pair is None:
            return REFUSED
        name = self.book.good.get(self.digest(*pair))
        return None if name is None else Verdict(True, name, None)

    def judge(self, key, address, user, password):
        with self.hashing:
            book = self.book    # after the wait, in which it may have become another
            if not matches(book, user, password):
                return REFUSED
        with self.lock:
            self.limit.give_back(address)
        name = book.good[key] = user.decode("utf-8")    # bounded, since a line of the file has one password
        return Verdict(True, name, None)

    def attempt(self, address, user, password):
        """The Verdict by hashing. Threads with the same header, such as a client's connections after our start, share a hash."""
        key = self.digest(user, password)
        with self.lock:
            first = key not in self.attempts
            wait = 0 if not first else 1 if len(self.attempts) == PLACES else self.limit.take(address)
            if wait:
                return Verdict(False, None, wait)
            future = self.attempts.setdefault(key, Future())
        try:
            if first:
                future.set_result(self.judge(key, address, user, password))
            return future.result()
        finally:
            if first:
                with self.lock:
                    del self.attempts[key]
            future.cancel()     # does nothing unless judge raised: then nobody shall wait for it

    def verify(self, authorization, address=None):
        """The Verdict on the value of an Authorization header that came from an address: allowed, with the user's name; refused,
        to be answered 401; or too many attempts, to be answered 429 with retry_after. May take as long as PLACES hashes."""
        return self.recall(authorization) or self.attempt(address, *basic_pair(authorization))


# A new line

def ask_password():
    """A password as bytes: from the terminal, unseen and twice, or else the first line of standard input. Never from an argument,
    which every user of the host could read. Raises CredentialsError, and OSError of standard input."""
    if not os.isatty(0):
        with open(0, "rb", closefd=False) as stdin:
            return re.sub(rb"\r?\n\Z", b"", stdin.readline(PASSWORD_MAX + 3))
    try:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise CredentialsError("the two passwords differ; try again")
        return password.encode("utf-8")
    except (EOFError, KeyboardInterrupt):
        raise CredentialsError("no password was given") from None
    except UnicodeError:
        raise CredentialsError("the password is not text in the terminal's encoding; pipe it in, as UTF-8") from None


def hash_line(user=None):
    """The line of the file for a user, or only the hash where none is given. Raises like ask_password."""
    if user is not None:
        check_user(user)
    password = ask_password()
    if not password:
        raise CredentialsError("the password is empty; give one")
    if len(password) > PASSWORD_MAX:
        raise CredentialsError("the password is longer than %d bytes; choose a shorter one" % PASSWORD_MAX)
    if CONTROL.search(password):
        raise CredentialsError("the password contains a control character, which HTTP cannot carry; choose another")
    return hash_password(password) if user is None else "%s:%s" % (user, hash_password(password))
