"""credentials.py on real files with real permissions; the clock is injected, and hashes are cheap where the file says so."""

import base64
import hashlib
import os
import pty
import re
import shutil
import subprocess
import sys
import threading

import pytest

import credentials
from conftest import ROOT, wait_for
from credentials import REFUSED, Credentials, CredentialsError, Verdict

NOBODY = 65534
COMMAND = "import sys; sys.path.insert(0, %r); import credentials\n" \
          "try: print(credentials.hash_line(*sys.argv[1:]))\n" \
          "except credentials.CredentialsError as error: sys.exit(str(error))" % str(ROOT)
VERIFY = "import sys; sys.path.insert(0, %r); import credentials\n" \
         "try: print(sorted(credentials.read_users(sys.argv[1])))\n" \
         "except credentials.CredentialsError as error: print(error)"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hashes(monkeypatch):
    """The iterations of every hash computed, in order."""
    computed, derive = [], credentials.derive

    def counted(password, salt, iterations):
        computed.append(iterations)
        return derive(password, salt, iterations)
    monkeypatch.setattr(credentials, "derive", counted)
    return computed


@pytest.fixture
def slow(monkeypatch):
    """An event without which no hash is finished, and the number of those begun."""
    gate, begun, derive = threading.Event(), [], credentials.derive

    def held(*arguments):
        begun.append(arguments)
        assert gate.wait(10)
        return derive(*arguments)
    monkeypatch.setattr(credentials, "derive", held)
    yield gate, begun
    gate.set()


def cheap(password, iterations=1000):
    salt = os.urandom(16)
    parts = [base64.b64encode(raw).decode() for raw in (salt, hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations))]
    return "pbkdf2_sha256$%d$%s$%s" % (iterations, parts[0], parts[1])


def line(user="prom", password="secret", iterations=1000):
    return "%s:%s\n" % (user, cheap(password, iterations))


def basic(user="prom", password="secret"):
    return "Basic " + base64.b64encode(("%s:%s" % (user, password)).encode()).decode()


def write(path, text, mode=0o600):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return str(path)


@pytest.fixture
def file(tmp_path):
    """A password file with the users prom and ann, both with the password secret."""
    path = tmp_path / "users"
    write(path, line() + line("ann"))
    return path


@pytest.fixture
def guard(file, clock):
    return Credentials(str(file), clock=clock)


def fault(path):
    with pytest.raises(CredentialsError) as raised:
        credentials.read_users(str(path))
    return str(raised.value)


def in_threads(function, arguments):
    """Starts a thread for each argument: (threads, the list that gets their results)."""
    results = []
    threads = [threading.Thread(target=lambda one=one: results.append(function(one))) for one in arguments]
    for thread in threads:
        thread.start()
    return threads, results


# A password and its hash

def test_a_hash_has_the_iterations_that_owasp_asks_for_and_a_salt_of_its_own():
    first, second = credentials.hash_password(b"secret"), credentials.hash_password(b"secret")
    assert re.match(r"pbkdf2_sha256\$600000\$[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}=\Z", first) and first != second


def test_a_new_line_lets_its_user_in(tmp_path):
    made = subprocess.run([sys.executable, "-c", COMMAND, "prom"], input=b"p:\xc3\xa9 \nmore\n", stdout=subprocess.PIPE)
    guard = Credentials(write(tmp_path / "users", made.stdout))
    assert guard.verify(basic("prom", "p:\u00e9 ")) == Verdict(True, "prom", None)


def test_without_a_user_the_hash_alone_is_printed():
    made = subprocess.run([sys.executable, "-c", COMMAND], input=b"secret", stdout=subprocess.PIPE)
    assert credentials.HASH.match(made.stdout.rstrip(b"\n"))


@pytest.mark.parametrize("password, words", [
    (b"", "the password is empty; give one"),
    (b"\nsecret\n", "the password is empty; give one"),
    (b"\r\n", "the password is empty; give one"),
    (b"a" * 1025, "the password is longer than 1024 bytes; choose a shorter one"),
    (b"a\0\n", "the password contains a control character, which HTTP cannot carry; choose another"),
])
def test_a_password_that_is_none_is_refused(password, words):
    done = subprocess.run([sys.executable, "-c", COMMAND, "prom"], input=password, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", words + "\n")


def test_a_password_as_long_as_may_be_is_taken():
    made = subprocess.run([sys.executable, "-c", COMMAND], input=b"a" * 1024 + b"\r\n", stdout=subprocess.PIPE)
    assert credentials.HASH.match(made.stdout.rstrip(b"\n"))


@pytest.mark.parametrize("user", ["", "a:b", " a", "a\n", "#a", "a\x07", "\ufeffa"])
def test_a_user_name_that_the_file_could_not_hold_is_refused_before_a_password_is_asked_for(user):
    with pytest.raises(CredentialsError, match="a user name is printable, without a colon, a leading # or blanks at its ends; "):
        credentials.hash_line(user)


def typed(*answers):
    """What hash_line shows at a terminal where these lines are typed, and its exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", COMMAND, "prom"])
    shown = b""
    for prompt, answer in zip((b"Password: ", b"Again: "), answers):
        while not shown.endswith(prompt):
            shown += os.read(terminal, 1000)
        os.write(terminal, answer)
    try:
        while True:
            shown += os.read(terminal, 1000)
    except OSError:     # the other end is closed
        return shown.decode(), os.WEXITSTATUS(os.waitpid(pid, 0)[1])
    finally:
        os.close(terminal)


def test_a_terminal_is_asked_twice_and_shows_no_password():
    shown, code = typed(b"secret\n", b"secret\n")
    assert re.match(r"Password: \r\nAgain: \r\nprom:pbkdf2_sha256\S+\r\n\Z", shown) and code == 0


@pytest.mark.parametrize("answers, words", [
    ([b"secret\n", b"Secret\n"], "the two passwords differ; try again"),
    ([b"\n", b"\n"], "the password is empty; give one"),
    ([b"\x04"], "no password was given"),
    ([b"\x03"], "no password was given"),
])
def test_what_is_typed_wrongly_is_refused(answers, words):
    shown, code = typed(*answers)
    assert shown.endswith(words + "\r\n") and code == 1


# The file

def test_comments_blank_lines_and_windows_line_ends_do_not_count(tmp_path):
    path = write(tmp_path / "users", "# who scrapes\r\n\r\n  \n" + line().replace("\n", "\r\n") + " " + line("\u00e9va b"))
    assert sorted(credentials.read_users(path)) == [b"prom", "\u00e9va b".encode()]


GOOD_HASH = cheap("secret")
SHAPE = "the hash of user prom is not pbkdf2_sha256$ITERATIONS$SALT$HASH; make it anew with --hash-password"


@pytest.mark.parametrize("text, words", [
    ("secret", "1: is no user:hash; write the line that --hash-password USER prints, or # before a comment"),
    ("\n# x\nprom:secret", "3: " + SHAPE),
    ("prom:", "1: " + SHAPE),
    ("prom:$2y$10$abcdefghijklmnopqrstuv", "1: " + SHAPE),
    ("prom:" + GOOD_HASH[:-1], "1: " + SHAPE),
    ("prom:" + GOOD_HASH + "=", "1: " + SHAPE),
    ("prom:" + GOOD_HASH + " # x", "1: " + SHAPE),
    ("prom: " + GOOD_HASH, "1: " + SHAPE),
    ("prom:" + GOOD_HASH.replace("$1000$", "$1_000$"), "1: " + SHAPE),
    ("prom:" + GOOD_HASH.replace("$1000$", "$-1000$"), "1: " + SHAPE),
    ("prom:" + GOOD_HASH.replace("$1000$", "$9999999999$"), "1: " + SHAPE),
    ("prom:" + GOOD_HASH.replace("$1000$", "$999$"), "1: the hash of user prom has 999 iterations, wanted are 1000 to 10000000; "
                                                     "make it anew with --hash-password"),
    ("prom:" + GOOD_HASH.replace("$1000$", "$10000001$"), "1: the hash of user prom has 10000001 iterations, wanted are 1000 to "
                                                          "10000000; make it anew with --hash-password"),
    (":" + GOOD_HASH, "1: a user name is printable, without a colon, a leading # or blanks at its ends; choose another"),
    (b"\xe9va:" + GOOD_HASH.encode(), "1: the user name is not UTF-8; save the file as UTF-8"),
    ("a:{0}\n\nb:{0}\na:{0}\n".format(GOOD_HASH),
     "4: user a stands in line 1 already; remove one of the two, or rename the user of one"),
])
def test_a_bad_line_is_named_with_its_cure_and_never_shown(tmp_path, text, words):
    path = write(tmp_path / "users", text)
    assert fault(path) == "%s:%s" % (path, words)


@pytest.mark.parametrize("text", ["", "\n# prom:x\n"])
def test_a_file_without_users_is_refused(tmp_path, text):
    path = write(tmp_path / "users", text)
    assert fault(path) == path + ": lists no user; add the line that --hash-password USER prints"


def test_a_file_that_is_too_large_is_refused_before_it_is_looked_into(tmp_path):
    path = write(tmp_path / "users", "#" * 65536)
    assert "lists no user" in fault(path)
    write(tmp_path / "users", "#" * 65537)
    assert fault(path) == path + ": is larger than 65536 bytes; keep one line user:hash for each user"


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(str(tmp_path / "fifo"))
    for path, words in ((tmp_path, "could not be read by uid %d: Is a directory; make it with --hash-password, or let that user "
                                   "read it" % os.geteuid()), (tmp_path / "fifo", "is no regular file; name one"),
                        ("/dev/null", "is no regular file; name one")):
        assert fault(path) == "%s: %s" % (path, words)


def test_a_missing_file_is_named(tmp_path):
    assert fault(tmp_path / "none") == "%s/none: could not be read by uid %d: No such file or directory; " \
        "make it with --hash-password, or let that user read it" % (tmp_path, os.geteuid())


# Its permissions

def give(path, uid, gid, mode):
    os.chown(str(path), uid, gid)
    path.chmod(mode)


@as_root
@pytest.mark.parametrize("uid, gid, mode", [
    (0, 0, 0o600), (0, 0, 0o400), (0, NOBODY, 0o640), (0, NOBODY, 0o440), (0, 0, 0o640), (NOBODY, NOBODY, 0o600),
    (NOBODY, NOBODY, 0o711),
])
def test_a_file_for_its_owner_is_taken_and_one_for_a_group_where_it_is_of_root(file, uid, gid, mode):
    give(file, uid, gid, mode)
    assert len(credentials.read_users(str(file))) == 2


@as_root
@pytest.mark.parametrize("uid, gid, mode, words", [
    (0, 0, 0o644, "is open to every user (mode 644); run: chmod 600 "),
    (0, 0, 0o602, "is open to every user (mode 602); run: chmod 600 "),
    (0, NOBODY, 0o604, "is open to every user (mode 604); run: chmod 640 "),
    (0, NOBODY, 0o660, "can be changed by its group (mode 660); run: chmod 640 "),
    (NOBODY, NOBODY, 0o644, "is open to every user (mode 644); run: chmod 600 "),
    (NOBODY, 0, 0o620, "can be changed by its group (mode 620); run: chmod 600 "),
    (NOBODY, 0, 0o640, "can be read by its group, which is right for a file of root's only (mode 640); run: chmod 600 "),
])
def test_a_file_for_more_is_refused_with_the_command_that_cures_it(file, uid, gid, mode, words):
    give(file, uid, gid, mode)
    assert fault(file) == "%s: %s%s" % (file, words, file)


@as_root
def test_the_command_quotes_what_a_shell_would_take_apart_and_works(tmp_path):
    path = tmp_path / "users; rm x"
    write(path, line(), 0o644)
    subprocess.check_call(fault(path).split("run: ")[1], shell=True)
    assert credentials.read_users(str(path))


@as_root
def test_under_the_credentials_directory_a_group_may_read(tmp_path, monkeypatch):
    folder = tmp_path / "credentials"
    folder.mkdir()
    write(folder / "users", line())
    give(folder / "users", NOBODY, NOBODY, 0o440)
    (tmp_path / "link").symlink_to(folder / "users")
    assert "can be read by its group" in fault(folder / "users")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert credentials.read_users(str(folder / "users")) and credentials.read_users(str(tmp_path / "link"))
    give(folder / "users", NOBODY, NOBODY, 0o444)
    assert "is open to every user" in fault(folder / "users")


@as_root
@pytest.mark.parametrize("directory", ["", "/", "users", "cred"])
def test_a_folder_that_is_not_the_credentials_directory_excuses_nothing(tmp_path, monkeypatch, directory):
    (tmp_path / "credentials").mkdir()
    path = tmp_path / "credentials" / "users"
    write(path, line())
    give(path, NOBODY, NOBODY, 0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", directory and str(tmp_path / directory))
    assert "can be read by its group" in fault(path)


def test_of_a_symbolic_link_the_target_is_judged(file, tmp_path):
    (tmp_path / "link").symlink_to(file)
    assert len(credentials.read_users(str(tmp_path / "link"))) == 2
    file.chmod(0o644)
    assert "is open to every user (mode 644); run: chmod 600 %s/link" % tmp_path in fault(tmp_path / "link")


def test_no_other_file_can_be_slipped_in_between_the_judgement_and_the_reading(file, tmp_path, monkeypatch):
    judge = credentials.exposure

    def swap(opened, path):
        os.rename(write(tmp_path / "other", line("mallory")), path)
        return judge(opened, path)
    monkeypatch.setattr(credentials, "exposure", swap)
    assert sorted(credentials.read_users(str(file))) == [b"ann", b"prom"]


@as_root
def test_a_user_without_rights_is_told_who_cannot_read_the_file(file, tmp_path):
    for folder in [tmp_path] + list(tmp_path.parents)[:-2]:
        folder.chmod(folder.stat().st_mode | 0o011)
    shutil.copy(str(ROOT / "credentials.py"), str(tmp_path))
    give(tmp_path / "credentials.py", 0, 0, 0o644)
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-B", "-c",
               VERIFY % str(tmp_path), str(file)]
    assert subprocess.check_output(command).decode() == "%s: could not be read by uid 65534: Permission denied; " \
        "make it with --hash-password, or let that user read it\n" % file
    give(file, 0, NOBODY, 0o640)
    assert subprocess.check_output(command).decode() == "[b'ann', b'prom']\n"


# The verdict

@pytest.mark.parametrize("header", [basic(), basic().replace("Basic ", "bASIC   "), basic("ann")])
def test_a_good_header_is_allowed_and_names_its_user(guard, header):
    user = "ann" if header == basic("ann") else "prom"
    assert [guard.verify(header), guard.verify(header)] == [Verdict(True, user, None)] * 2


@pytest.mark.parametrize("header", [
    basic("prom", "Secret"), basic("prom", ""), basic("prom", "secret "), basic("Prom"), basic(" prom"), basic("", "secret"),
    basic("nobody"), basic("prom:x"), basic("prom", "s" * 30000), basic("prom", "\u00e9"),
])
def test_a_wrong_pair_is_refused_after_one_hash(guard, hashes, header):
    assert guard.verify(header) == REFUSED and hashes == [1000]


@pytest.mark.parametrize("header", [
    None, "", "Basic", "Basic ", "Basic  ", "Bearer x", "Digest " + basic()[6:], basic()[6:], basic()[:-1], basic() + "=",
    basic() + " x", basic() + ", " + basic(), basic().replace("Basic ", "Basic\t"), "Basic:" + basic()[6:], "Basic \xe9",
    "Basic cHJvbQ==", "Basic cHJvbTpzZWNyZXR=", "Basic cHJv\nbTpzZWNyZXQ=", "Basic -_-_", "Basic ====",
    basic("prom", "secret\0"), basic("prom\x7f"), basic("prom", "a\nb"),
])
def test_a_malformed_header_is_refused_without_a_hash_and_costs_no_attempt(guard, hashes, header):
    assert {guard.verify(header) for _ in range(20)} == {REFUSED} and hashes == []
    assert guard.verify(basic()).allowed


def test_a_repeated_good_header_takes_no_hash_and_no_waiting(guard, hashes):
    assert guard.verify(basic()).allowed and len(hashes) == 1
    with guard.hashing, guard.lock:
        assert [guard.verify(basic()) for _ in range(100)] == [Verdict(True, "prom", None)] * 100
    assert len(hashes) == 1


def test_what_takes_no_hash_is_recalled_and_nothing_else(guard, hashes):
    assert (guard.recall(None), guard.recall(basic())) == (REFUSED, None)
    guard.verify(basic())
    assert guard.recall(basic()) == Verdict(True, "prom", None) and len(hashes) == 1


def test_what_is_remembered_is_the_pair_and_not_the_joined_text(tmp_path, clock):
    guard = Credentials(write(tmp_path / "users", line("a", "bc") + line("ab", "x")), clock=clock)
    assert guard.verify(basic("a", "bc")).allowed
    assert guard.digest(b"a", b"bc") != guard.digest(b"ab", b"c") and guard.verify(basic("ab", "c")) == REFUSED


def test_no_password_and_no_digest_that_another_process_could_make_is_remembered(file):
    one, other = Credentials(str(file)), Credentials(str(file))
    assert one.digest(b"prom", b"secret") != other.digest(b"prom", b"secret")
    one.verify(basic())
    assert list(one.book.good) == [one.digest(b"prom", b"secret")]


def test_an_unknown_user_costs_as_much_as_a_known_one_whatever_their_iterations(tmp_path, clock, hashes):
    path = write(tmp_path / "users", line("old", iterations=1000) + line("new", iterations=3000))
    costs = {}
    for user in ("old", "new", "nobody"):
        del hashes[:]
        assert Credentials(path, clock=clock).verify(basic(user, "wrong")) == REFUSED
        costs[user] = sum(hashes)
    assert costs == {"old": 3000, "new": 3000, "nobody": 3000}


def test_an_unknown_user_is_refused_even_by_the_password_of_the_hash_in_its_place(guard):
    book = guard.book._replace(dummy=guard.book.users[b"prom"])
    assert not credentials.matches(book, b"nobody", b"secret") and credentials.matches(book, b"prom", b"secret")


def test_hashes_are_computed_one_at_a_time(guard, slow):
    gate, begun = slow
    threads, results = in_threads(guard.verify, [basic("prom", "wrong"), basic("ann"), basic()])
    wait_for(lambda: len(guard.attempts) == 3, "three attempts")
    assert len(begun) == 1
    gate.set()
    for thread in threads:
        thread.join()
    assert sorted(str(one.user) for one in results) == ["None", "ann", "prom"]


# Its limits

def exhaust(guard):
    """As many wrong attempts as are answered by hashing."""
    count = 0
    while guard.verify(basic("prom", "wrong %d" % count)) == REFUSED:
        count += 1
    return count


def test_five_wrong_attempts_are_hashed_at_once_and_then_one_in_five_seconds(guard, clock, hashes):
    assert exhaust(guard) == len(hashes) == 5
    assert guard.verify(basic("nobody")) == Verdict(False, None, 5) and len(hashes) == 5
    clock.now += 4.99
    assert guard.verify(basic("nobody")) == Verdict(False, None, 1)
    clock.now += 0.01
    assert exhaust(guard) == 1
    clock.now += 3600
    assert exhaust(guard) == 5


def test_whoever_hammers_from_one_address_leaves_attempts_to_the_others(guard):
    hammered = [guard.verify(basic(password=str(number)), "192.0.2.1") for number in range(8)]
    assert [verdict.retry_after for verdict in hammered] == [None] * 5 + [5] * 3
    assert guard.verify(basic(), "192.0.2.2").allowed


def test_all_addresses_together_are_limited_too(guard):
    verdicts = [guard.verify(basic(password="wrong"), "192.0.2.%d" % number) for number in range(25)]
    assert [verdict.retry_after for verdict in verdicts] == [None] * 20 + [1] * 5


def test_the_addresses_remembered_are_bounded(guard, monkeypatch):
    monkeypatch.setattr(credentials, "ADDRESSES", 3)
    for number in range(5):
        guard.verify(basic(password="wrong"), "192.0.2.%d" % number)
    assert list(guard.limit.addresses) == ["192.0.2.%d" % number for number in (2, 3, 4)]


def test_of_ipv6_a_whole_network_is_one_address():
    sources = [credentials.source(address) for address in ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1", "fe80::1%eth0")]
    assert sources[0] == sources[1] and len(set(sources)) == 3
    assert credentials.source("::ffff:192.0.2.1") == "::ffff:192.0.2.1" and credentials.source("192.0.2.1") == "192.0.2.1"


def test_hammering_never_locks_out_a_header_that_was_good_before(guard, hashes):
    guard.verify(basic())
    exhaust(guard)
    assert guard.verify(basic()) == Verdict(True, "prom", None)
    assert guard.verify(basic("ann")) == Verdict(False, None, 5), "this one was never seen"


def test_good_attempts_are_not_counted(file, clock, hashes):
    write(file, "".join(line("user%d" % number) for number in range(20)))
    guard = Credentials(str(file), clock=clock)
    assert all(guard.verify(basic("user%d" % number)).allowed for number in range(20)) and len(hashes) == 20
    assert exhaust(guard) == 5


def test_connections_that_come_at_once_with_one_header_share_its_hash(guard, slow):
    gate, begun = slow
    threads, results = in_threads(guard.verify, [basic()] * 16)
    wait_for(lambda: begun, "the hash")
    gate.set()
    for thread in threads:
        thread.join()
    assert results == [Verdict(True, "prom", None)] * 16 and len(begun) == 1
    assert guard.attempts == {}


def test_hashes_do_not_pile_up(guard, slow):
    gate, begun = slow
    verify = lambda number: guard.verify(basic("prom", "wrong %d" % number), "192.0.2.%d" % number)
    threads, results = in_threads(verify, range(40))
    wait_for(lambda: len(results) == 40 - credentials.PLACES, "those who need not wait")
    assert set(results) == {Verdict(False, None, 1)}
    gate.set()
    for thread in threads:
        thread.join()
    assert results[-credentials.PLACES:] == [REFUSED] * credentials.PLACES and len(begun) == credentials.PLACES


def test_nobody_waits_for_a_hash_that_failed(guard, monkeypatch):
    gate = threading.Event()

    def fail(*arguments):
        gate.wait(10)
        raise MemoryError
    monkeypatch.setattr(credentials, "derive", fail)
    threads, _ = in_threads(lambda header: pytest.raises(BaseException, guard.verify, header), [basic()] * 3)
    wait_for(lambda: guard.attempts, "the hash")
    gate.set()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads) and guard.attempts == {}


# The file changes

@pytest.fixture
def told():
    return []


@pytest.fixture
def watched(file, clock, told):
    return Credentials(str(file), told.append, clock)


def test_a_removed_user_is_refused_within_a_second_though_remembered(file, guard, clock):
    assert guard.verify(basic("ann")).allowed and guard.verify(basic()).allowed
    write(file, line())
    assert guard.verify(basic("ann")).allowed, "the file is looked at once a second"
    clock.now += 1
    assert guard.verify(basic("ann")) == REFUSED and guard.verify(basic()).allowed


@pytest.mark.parametrize("change", ["write", "replace", "link"])
def test_a_password_is_rotated_however_the_file_is_written(file, tmp_path, clock, change):
    new = tmp_path / "new"
    write(new, line("prom", "second"))
    if change == "link":
        os.rename(str(file), str(tmp_path / "old"))
        file.symlink_to("old")
    guard = Credentials(str(file), clock=clock)
    if change == "write":
        write(file, new.read_bytes())
    elif change == "replace":
        os.rename(str(new), str(file))
    else:
        file.unlink()
        file.symlink_to("new")
    clock.now += 1
    assert guard.verify(basic()) == REFUSED and guard.verify(basic("prom", "second")).allowed


def test_a_file_that_did_not_change_is_not_read_again(guard, clock, monkeypatch):
    monkeypatch.setattr(credentials, "read_book", lambda path: pytest.fail("read again"))
    for _ in range(3):
        clock.now += 1
        assert guard.verify(basic()).allowed


def spoil_by_mode(file):
    file.chmod(0o644)
    return "%s: is open to every user (mode 644); run: chmod 600 %s" % (file, file)


def spoil_by_line(file):
    file.write_text("nonsense")
    return "%s:1: is no user:hash; write the line that --hash-password USER prints, or # before a comment" % file


def spoil_by_removal(file):
    os.rename(str(file), str(file) + ".old")
    return "%s: could not be read by uid %d: No such file or directory; make it with --hash-password, or let that user " \
        "read it" % (file, os.geteuid())


@pytest.mark.parametrize("spoil", [spoil_by_mode, spoil_by_line, spoil_by_removal])
def test_while_the_file_is_bad_the_last_users_stay_and_the_fault_is_told_once(file, watched, clock, told, spoil):
    words = spoil(file)
    for _ in range(3):
        clock.now += 1
        assert watched.verify(basic()).allowed
    assert (watched.fault, told) == (words, [words])
    write(file, line("prom", "second"))
    clock.now += 1
    assert watched.verify(basic()) == REFUSED and watched.verify(basic("prom", "second")).allowed
    assert (watched.fault, told) == (None, [words, None])


def test_a_fault_that_becomes_another_is_told_again(file, watched, clock, told):
    first = spoil_by_line(file)
    clock.now += 1
    watched.refresh()
    second = spoil_by_mode(file)
    clock.now += 1
    watched.refresh()
    assert told == [first, second]


def test_a_file_that_was_repaired_by_what_no_stamp_shows_is_read_again(file, watched, clock, told, monkeypatch):
    read = credentials.read_secret
    monkeypatch.setattr(credentials, "read_secret", lambda path: read("/none"))
    file.chmod(0o400)
    clock.now += 1
    watched.refresh()
    monkeypatch.setattr(credentials, "read_secret", read)
    clock.now += 1
    watched.refresh()
    assert len(told) == 2 and watched.fault is None


def test_a_bad_file_is_refused_from_the_start(file):
    file.chmod(0o644)
    with pytest.raises(CredentialsError):
        Credentials(str(file))


def test_a_verdict_by_the_old_file_is_not_remembered_for_the_new(file, guard, clock, slow):
    gate, begun = slow
    threads, results = in_threads(guard.verify, [basic("ann")])
    wait_for(lambda: begun, "the hash")
    write(file, line())
    clock.now += 1
    guard.refresh()
    gate.set()
    threads[0].join()
    assert results[0].allowed and guard.recall(basic("ann")) is None and guard.verify(basic("ann")) == REFUSED


def test_a_new_user_does_not_make_the_others_prove_themselves_again(file, guard, clock, hashes):
    assert guard.verify(basic()).allowed
    write(file, file.read_text() + line("new"))
    clock.now += 1
    assert guard.recall(basic()).allowed and len(hashes) == 1
    write(file, line("prom", "other") + line("ann"))
    clock.now += 1
    assert guard.recall(basic()) is None


def test_nobody_waits_for_the_one_who_reads_the_file(file, guard, clock, monkeypatch):
    gate, reading, read = threading.Event(), threading.Event(), credentials.read_book

    def slowly(path):
        reading.set()
        gate.wait(10)
        return read(path)
    guard.verify(basic())
    monkeypatch.setattr(credentials, "read_book", slowly)
    file.chmod(0o400)
    clock.now += 1
    threads, results = in_threads(guard.verify, [basic()])
    assert reading.wait(10)
    clock.now += 5
    assert guard.verify(basic()).allowed and not results
    gate.set()
    threads[0].join()
    assert results[0].allowed
