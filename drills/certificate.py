"""Throw-away certificates of any age, by the standard library alone: openssl may be absent, and its req makes no expired ones.

  make(begins, ends) -> PEM text of a key of P-256 and of a certificate that it signs itself, for localhost and 127.0.0.1

For a sandbox only: the arithmetic takes no care of what its time betrays. Sources: RFC 5280 (certificate), RFC 5915 (key),
FIPS 186-4 (ECDSA and the curve), X.690 (DER).
"""

import base64
import hashlib
import os
import time

# The curve y^2 = x^3 - 3x + b over the integers modulo P, its order N, its generator G.
P = 2 ** 256 - 2 ** 224 + 2 ** 192 + 2 ** 96 - 1
N = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551
G = (0x6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296,
     0x4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5)

ECDSA_SHA256 = bytes.fromhex("2a8648ce3d040302")    # object identifiers
EC_KEY = bytes.fromhex("2a8648ce3d0201")
CURVE = bytes.fromhex("2a8648ce3d030107")
COMMON_NAME = bytes.fromhex("550403")
SUBJECT_KEY, KEY_USAGE, ALTERNATIVE_NAMES, CONSTRAINTS = (bytes.fromhex("551d" + end) for end in ("0e", "0f", "11", "13"))
SEQUENCE, SET, INTEGER, BITS, OCTETS, OBJECT, TEXT, UTC_TIME, TRUE = 0x30, 0x31, 2, 3, 4, 6, 12, 23, b"\x01\x01\xff"


def inverse(number, modulus):
    return pow(number, modulus - 2, modulus)


def add(one, other):
    """The sum of two points; None is the neutral one."""
    if one is None or other is None:
        return one or other
    if one[0] == other[0]:
        if (one[1] + other[1]) % P == 0:
            return None
        slope = 3 * (one[0] * one[0] - 1) * inverse(2 * one[1], P)
    else:
        slope = (other[1] - one[1]) * inverse(other[0] - one[0], P)
    x = (slope * slope - one[0] - other[0]) % P
    return x, (slope * (one[0] - x) - one[1]) % P


def multiply(number, point):
    total = None
    while number:
        total = add(total, point) if number & 1 else total
        point, number = add(point, point), number >> 1
    return total


def draw():
    """A number from 1 to N - 1."""
    return int.from_bytes(os.urandom(40), "big") % (N - 1) + 1


def sign(key, message):
    """(r, s) of FIPS 186-4, 6.4."""
    digest, nonce = int.from_bytes(hashlib.sha256(message).digest(), "big"), draw()
    r = multiply(nonce, G)[0] % N
    return r, inverse(nonce, N) * (digest + r * key) % N


def der(tag, *parts):
    body = b"".join(parts)
    size = len(body)
    length = bytes([size]) if size < 128 else b"\x81" + bytes([size]) if size < 256 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + body


def integer(number):
    return der(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def extension(name, value, critical=b""):
    return der(SEQUENCE, der(OBJECT, name), critical, der(OCTETS, value))


def extensions(public):
    names = der(SEQUENCE, der(0x82, b"localhost"), der(0x87, bytes([127, 0, 0, 1])))
    return der(0xa3, der(
        SEQUENCE, extension(CONSTRAINTS, der(SEQUENCE, TRUE), TRUE), extension(KEY_USAGE, der(BITS, b"\x02\x84"), TRUE),
        extension(SUBJECT_KEY, der(OCTETS, hashlib.sha1(public).digest())), extension(ALTERNATIVE_NAMES, names)))


def moment(seconds):
    return der(UTC_TIME, time.strftime("%y%m%d%H%M%SZ", time.gmtime(seconds)).encode())


def certificate(key, public, begins, ends):
    """DER of a certificate of its own making, from and to these Unix times."""
    algorithm = der(SEQUENCE, der(OBJECT, ECDSA_SHA256))
    name = der(SEQUENCE, der(SET, der(SEQUENCE, der(OBJECT, COMMON_NAME), der(TEXT, b"localhost"))))
    holder = der(SEQUENCE, der(SEQUENCE, der(OBJECT, EC_KEY), der(OBJECT, CURVE)), der(BITS, b"\0", public))
    body = der(SEQUENCE, der(0xa0, integer(2)), integer(draw() >> 128), algorithm, name, der(SEQUENCE, moment(begins),
                                                                                             moment(ends)),
               name, holder, extensions(public))
    return der(SEQUENCE, body, algorithm, der(BITS, b"\0", der(SEQUENCE, *map(integer, sign(key, body)))))


def pem(kind, data):
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[at:at + 64] for at in range(0, len(text), 64))
    return "-----BEGIN {0}-----\n{1}\n-----END {0}-----\n".format(kind, lines)


def make(begins, ends):
    """PEM of a new key and its certificate, valid from and to these Unix times."""
    key = draw()
    x, y = multiply(key, G)
    public = b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")
    private = der(SEQUENCE, integer(1), der(OCTETS, key.to_bytes(32, "big")), der(0xa0, der(OBJECT, CURVE)),
                  der(0xa1, der(BITS, b"\0", public)))
    return pem("EC PRIVATE KEY", private) + pem("CERTIFICATE", certificate(key, public, begins, ends))
