"""TLS for webserver.py: the connections, the context, and when a certificate ends.

Apart, so that a service without TLS need not load OpenSSL, which takes 4 MiB.
"""

import base64
import calendar
import contextlib
import os
import re
import socket
import ssl
import stat
import time

import messages
from webserver import ON, PIECE, READ, WRITE, Handler

WOULD_BLOCK = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
HANDSHAKE = b"\x16"     # first byte of a TLS connection (RFC 8446, 5.1)
UTC_TIME = 0x17         # tag of a time with two digits of the year (X.690)
VERSION = 0xa0          # tag of a certificate's version, which the oldest ones lack
CERTIFICATE = re.compile("-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----(.*?)-----END \\1-----", re.DOTALL)
MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")    # OpenSSL's, of a key of another kind too


# Connections

class SecureHandler(Handler):
    """A connection whose handshake is its first step, under the deadline of the first head."""

    context = None      # set by handler_of
    portable = False
    secure = True

    def read(self, flags=None):
        try:
            return self.connection.recv(PIECE)
        except WOULD_BLOCK + (BlockingIOError,):    # the latter once finish() has ended the TLS
            return None

    def push(self):
        try:
            self.unsent = self.unsent[self.connection.send(self.unsent):]
        except WOULD_BLOCK:
            return False
        return True

    def finish(self):
        if self.step not in (SecureHandler.begin, Handler.discard):     # else there is no TLS yet, or no more
            with contextlib.suppress(OSError):  # close_notify; the client's own has not come yet
                self.connection.unwrap()
        return super().finish()

    def refuse_plain(self):
        """Says to whoever speaks plain HTTP what is spoken here."""
        name = self.server.new_id()
        answer = messages.problem(400, "TLS is spoken here: the URL starts with https://", name, [
            ("Connection", "close"), ("X-Request-ID", name)])
        self.connection.send(self.server.dated_bytes(answer))
        self.server.count("tls_failures")
        return self.finish()

    def shake(self):
        """A step of the handshake."""
        try:
            self.connection.do_handshake()
        except ssl.SSLWantReadError:
            return READ
        except ssl.SSLWantWriteError:
            return WRITE
        except OSError:
            self.server.count("tls_failures")
            return self.close()
        self.step = Handler.receive
        return ON

    def begin(self):
        """Starts TLS, now that the client has said something."""
        self.connection.setblocking(False)
        try:
            first = self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:     # woken for another that had this number
            return READ
        if first not in (HANDSHAKE, b""):
            return self.refuse_plain()
        try:
            self.connection = self.context.wrap_socket(self.connection, True, do_handshake_on_connect=False)
        except ValueError:  # the client has left already
            return self.close()
        self.step = SecureHandler.shake
        return ON


# Files

def open_at_once(path, flags):
    return os.open(path, flags | os.O_NONBLOCK)     # a FIFO that nobody writes would hold us up for ever


def read_pem(path):
    """The text of a PEM file. Raises ValueError that names it."""
    try:
        with open(path, "rb", opener=open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("%s is no regular file" % path)
            return file.read().decode("latin-1")
    except OSError as error:
        raise ValueError("%s: %s" % (path, error.strerror)) from None


def first_certificate(path):
    """The DER bytes of the first certificate of a PEM file. Raises ValueError."""
    found = CERTIFICATE.search(read_pem(path))
    if not found:
        raise ValueError("%s has no certificate" % path)
    return base64.b64decode(found.group(2))


def check_files(certificate, key):
    """Raises ValueError for what OpenSSL would not explain, or wait for."""
    first_certificate(certificate)
    text = read_pem(key)
    if "PRIVATE KEY-----" not in text:
        raise ValueError("%s has no private key" % key)
    if "ENCRYPTED" in text:
        raise ValueError("%s has a passphrase" % key)


def handler_of(certificate, key=None):
    """The class of connections with TLS 1.2 up by these PEM files. Raises ValueError, or ssl.SSLError for what is damaged within;
    never asks for a passphrase."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if hasattr(ssl, "TLSVersion"):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:   # Python 3.6
        context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    check_files(certificate, key or certificate)
    try:
        context.load_cert_chain(certificate, key, password=b"")
    except ssl.SSLError as error:
        if error.reason in MISMATCHES:
            raise ValueError("the key is not that of the certificate") from None
        raise
    return type("SecureHandler", (SecureHandler,), {"context": context})


# When a certificate ends

def der_element(data, at):
    """(tag, start, end) of the DER element at `at` (X.690, 8.1)."""
    length, start = data[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7f
        length = int.from_bytes(data[at + 2:start], "big")
    return data[at], start, start + length


def expiry(path):
    """Unix time at which the first certificate of a PEM file ends: notAfter of RFC 5280, 4.1. Raises ValueError."""
    data = first_certificate(path)
    at = der_element(data, der_element(data, 0)[1])[1]      # Certificate, TBSCertificate
    if data[at] == VERSION:
        at = der_element(data, at)[2]
    for _ in range(3):                                      # serial number, signature algorithm, issuer
        at = der_element(data, at)[2]
    at = der_element(data, der_element(data, at)[1])[2]     # Validity: behind notBefore
    tag, start, stop = der_element(data, at)
    form = "%y%m%d%H%M%SZ" if tag == UTC_TIME else "%Y%m%d%H%M%SZ"
    return calendar.timegm(time.strptime(data[start:stop].decode("ascii"), form))
