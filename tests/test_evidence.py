"""The recorded evidence is what the product prints today, and each picture is of the text beside it."""

import re
import subprocess
import sys
import zlib

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs" / "evidence"))

import record

TEXTS = sorted(record.SCREENSHOTS.glob("*/*.txt"))
NAMES = [str(path.relative_to(record.SCREENSHOTS)) for path in TEXTS]
PLAYED = [act for act in record.SCENES if act != "drills"]      # drills have a run of their own, .ci/run


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    """The folder of the texts as a run of this moment records them."""
    folder = tmp_path_factory.mktemp("today")
    subprocess.run([sys.executable, str(ROOT / "docs" / "evidence" / "record.py"), "--texts", str(folder)] + PLAYED, check=True)
    return folder


def shape(text):
    """A record without what differs from run to run: times, numbers, the names of instances and of Python."""
    text = re.sub(r"(?<=request_id=)[\w-]+|\b[0-9a-f]{16,32}\b", "H", text)
    return re.sub(r"\d[\d.,:-]*", "N", text)


def test_every_scene_is_recorded_and_nothing_else_is():
    scenes = {"%s/%s" % (act, scene.name) + end for act, scenes in record.SCENES.items() for scene in scenes
              for end in (".txt", ".png") if scene.commands or end == ".png"}
    found = {str(path.relative_to(record.SCREENSHOTS)) for act in record.SCENES for path in (record.SCREENSHOTS / act).iterdir()}
    assert found == scenes


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_carries_the_digest_of_the_text_beside_it(name):
    path = record.SCREENSHOTS / name
    assert record.signature(path.with_suffix(".png").read_bytes()) == record.digest(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("drills/")])
def test_a_record_says_what_the_product_says_today(name, today):
    recorded = (record.SCREENSHOTS / name).read_text(encoding="utf-8")
    assert shape(recorded) == shape((today / name).read_text(encoding="utf-8"))


def pixels(png):
    """The compressed pixels of a picture as they are, without what else its file says."""
    data, place = b"", 8
    while place < len(png):
        size, kind = int.from_bytes(png[place:place + 4], "big"), png[place + 4:place + 8]
        assert zlib.crc32(png[place + 4:place + 8 + size]) == int.from_bytes(png[place + 8 + size:place + 12 + size], "big")
        data += png[place + 8:place + 8 + size] if kind == b"IDAT" else b""
        place += 12 + size
    return zlib.decompress(data)


def test_a_text_gives_one_picture_and_another_text_another(tmp_path):
    drawn = []
    with record.chromium.Chromium() as browser:
        for text in ("$ ls\na <b> & c\n", "$ ls\na <b> & c\n", "$ ls\na <b> & d\n"):
            path = tmp_path / ("%d.txt" % len(drawn))
            path.write_text(text, encoding="utf-8")
            record.draw(browser, path)
            drawn.append(path.with_suffix(".png").read_bytes())
    assert pixels(drawn[0]) == pixels(drawn[1]) != pixels(drawn[2])
    assert record.signature(drawn[0]) == record.digest("$ ls\na <b> & c\n") != record.signature(drawn[2])
