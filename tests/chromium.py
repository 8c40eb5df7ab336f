"""A headless Chromium by its DevTools protocol, over a pipe: nothing but the browser is needed, no package and no port.

    with Chromium() as browser:
        page = browser.page(1440, 900)
        page.open("http://127.0.0.1:8321/")
        page.wait("document.title !== ''")
        page.screenshot("page.png")

Each page has cookies, logins and a window of its own. One thread uses a browser: events are taken in while it waits.
"""

import base64
import collections
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
         "--disable-dev-shm-usage", "--disable-extensions", "--mute-audio", "--force-color-profile=srgb",
         "--font-render-hinting=none", "--disable-features=Translate,MediaRouter,OptimizationHints")
DEADLINE = 20           # s, for what should come at once, on a machine that has other work
PIECE = 1 << 16         # bytes of one read

Node = collections.namedtuple("Node", "role name description properties")     # of the accessibility tree


class BrowserError(Exception):
    """The browser ended, refused a command, or threw an exception in the page."""


class Page:
    """One tab. `console` has the lines and exceptions that it has printed since the last open(), `requests` the URLs that
    it has asked for, `failures` what of these the browser blocked or could not get."""

    def __init__(self, browser, context, target, session):
        self.browser, self.context, self.target, self.session = browser, context, target, session
        self.console, self.requests, self.failures, self.login = [], [], [], None

    def send(self, method, **parameters):
        """The result of a command to this tab. Raises BrowserError."""
        return self.browser.send(method, self.session, **parameters)

    def take(self, method, event):
        """Takes in one event of the tab."""
        if method == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(value.get("value", value.get("description"))) for value in event["args"]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(event["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.console.append("%s %s" % (event["entry"]["text"], event["entry"].get("url", "")))
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Network.loadingFailed":
            self.failures.append(event["errorText"])
        elif method == "Fetch.requestPaused":
            self.browser.post("Fetch.continueRequest", self.session, requestId=event["requestId"])
        elif method == "Fetch.authRequired":
            answer = {"response": "CancelAuth"}
            if self.login:
                answer = {"response": "ProvideCredentials", "username": self.login[0], "password": self.login[1]}
            self.browser.post("Fetch.continueWithAuth", self.session, requestId=event["requestId"], authChallengeResponse=answer)

    def sign_in(self, user, password):
        """Answers the browser's question for a password from now on."""
        self.login = user, password
        self.send("Fetch.enable", handleAuthRequests=True)

    def open(self, url):
        """Loads the page, up to its load event, and begins the lists anew. Raises BrowserError where nothing answers."""
        del self.console[:], self.requests[:], self.failures[:]
        loaded = self.browser.expect("Page.loadEventFired", self.session)
        error = self.send("Page.navigate", url=url).get("errorText")
        if error:
            raise BrowserError("%s: %s" % (url, error))
        self.browser.wait(lambda: loaded, "%s to load" % url)

    def run(self, expression):
        """The value of a JavaScript expression, of its promise where it is one. Raises BrowserError."""
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise BrowserError(json.dumps(done["exceptionDetails"]))
        return done["result"].get("value")

    def wait(self, expression, deadline=DEADLINE):
        """The first true value of a JavaScript expression."""
        return self.browser.wait(lambda: self.run(expression), expression, deadline)

    def resize(self, width, height, scale=1, mobile=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)

    def media(self, kind="", **features):
        """Emulates a medium, such as print, and its features, such as prefers_color_scheme='dark'."""
        self.send("Emulation.setEmulatedMedia", media=kind, features=[
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()])

    def key(self, name, code=0):
        """Presses a key, such as Tab with the code 9."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def point(self, x, y):
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def show(self, visible=True):
        """Brings the window back, or hides it, as a tab that nobody looks at."""
        window = self.browser.send("Browser.getWindowForTarget", targetId=self.target)["windowId"]
        bounds = {"windowState": "normal" if visible else "minimized"}
        self.browser.send("Browser.setWindowBounds", windowId=window, bounds=bounds)
        self.wait("document.visibilityState === '%s'" % ("visible" if visible else "hidden"))

    def accessible(self):
        """The Nodes that the browser tells a screen reader, in their order; properties is a dict."""
        found = []
        for node in self.send("Accessibility.getFullAXTree")["nodes"]:
            if not node.get("ignored"):
                role, name, words = (node.get(part, {}).get("value", "") for part in ("role", "name", "description"))
                properties = {one["name"]: one["value"].get("value") for one in node.get("properties", ())}
                found.append(Node(role, name, words, properties))
        return found

    def screenshot(self, path, whole=False, scale=1):
        """Writes a PNG file of the window, or of the whole page, in another scale than the screen's."""
        layout = self.send("Page.getLayoutMetrics")
        window, content = layout["cssLayoutViewport"], layout["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": window["clientWidth"], "scale": scale,
                "height": max(window["clientHeight"], content["height"]) if whole else window["clientHeight"]}
        data = self.send("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=whole)["data"]
        Path(str(path)).write_bytes(base64.b64decode(data))

    def close(self):
        self.browser.send("Target.disposeBrowserContext", browserContextId=self.context)
        self.browser.pages.pop(self.session, None)


class Chromium:
    """A browser process and its pipe. Raises FileNotFoundError where there is no chromium."""

    def __init__(self, command="chromium", flags=()):
        self.folder = tempfile.mkdtemp(prefix="chromium_")
        self.pages, self.replies, self.expected, self.number, self.data = {}, {}, [], 0, b""
        inner, outer = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (inner[0], outer[1])]  # out of the way of 3 and 4

        def connect():
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)
        try:
            self.process = subprocess.Popen(
                [command, "--remote-debugging-pipe", "--user-data-dir=" + self.folder] + list(FLAGS) + list(flags),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
                preexec_fn=connect)
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            for end in theirs + [inner[0], outer[1]]:
                os.close(end)
        self.writer, self.reader = inner[1], outer[0]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        if self.process.poll() is None:
            try:
                self.post("Browser.close")
                self.process.wait(DEADLINE)
            except (OSError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()
        os.close(self.writer)
        os.close(self.reader)
        shutil.rmtree(self.folder, ignore_errors=True)

    def post(self, method, session=None, **parameters):
        """Sends a command without waiting for its result; its number."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.writer, data):]
        return self.number

    def send(self, method, session=None, **parameters):
        """The result of a command. Raises BrowserError."""
        number = self.post(method, session, **parameters)
        self.wait(lambda: number in self.replies, method)
        reply = self.replies.pop(number)
        if "error" in reply:
            raise BrowserError("%s: %s" % (method, reply["error"]["message"]))
        return reply["result"]

    def expect(self, method, session):
        """A list that the next such event is put into."""
        found = []
        self.expected.append((method, session, found))
        return found

    def take(self, message):
        if "id" in message:
            self.replies[message["id"]] = message
            return
        method, session = message["method"], message.get("sessionId")
        for waiting in [one for one in self.expected if one[:2] == (method, session)]:
            waiting[2].append(message["params"])
            self.expected.remove(waiting)
        if session in self.pages:
            self.pages[session].take(method, message["params"])

    def pump(self, seconds):
        """Takes in what the browser sends, waiting so long for the first of it."""
        if not select.select([self.reader], [], [], seconds)[0]:
            return
        data = os.read(self.reader, PIECE)
        if not data:
            raise BrowserError("the browser has ended")
        *whole, self.data = (self.data + data).split(b"\0")
        for message in whole:
            self.take(json.loads(message.decode()))

    def wait(self, condition, what, deadline=DEADLINE):
        """The first true value of condition(), asked again after each event."""
        end = time.monotonic() + deadline
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                raise AssertionError("waited %d s in vain for %s" % (deadline, what))
            self.pump(0.02)

    def page(self, width=1440, height=900, **size):
        """A new Page of that size."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context, width=width, height=height)
        session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, context, target["targetId"], session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(domain + ".enable")
        page.resize(width, height, **size)
        return page
