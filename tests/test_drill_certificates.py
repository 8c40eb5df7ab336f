"""The throw-away certificates of drills, as OpenSSL reads them."""

import subprocess
import time

import pytest

from drills import certificate


def judge(path):
    """(exit code, output) of openssl verify, strictly."""
    done = subprocess.run(["openssl", "verify", "-x509_strict", "-CAfile", str(path), str(path)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("begins, ends, words", [
    (-60, 86400, "OK"),
    (-86400, -60, "certificate has expired"),
    (60, 86400, "certificate is not yet valid"),
])
def test_a_certificate_is_good_for_the_time_that_was_asked_for(tmp_path, begins, ends, words):
    path, now = tmp_path / "made.pem", time.time()
    path.write_text(certificate.make(now + begins, now + ends))
    code, output = judge(path)
    assert (code == 0, words in output) == (words == "OK", True), output


def test_no_two_are_alike():
    assert certificate.make(0, 1) != certificate.make(0, 1)
