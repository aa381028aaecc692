"""The gateway's page in headless Chromium, by WebDriver: streams are drawn, a question is asked in
the page and answered, nothing in the console is an error. SILT_SHOTS=DIR keeps the screenshots."""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import lib
import texts
from test_gateway import Gateway

SIZE_LEAST = 10_000  # bytes of a screenshot that shows something


class Browser:
    """A chromedriver of one's own; WebDriver needs no more than HTTP and JSON."""

    def __init__(self, width=1280, height=860, dark=False):
        driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
        if not driver or not chromium:
            raise lib.Skip("no chromium with chromedriver: apt-get install chromium-driver")
        self.home = lib.folder()
        self.process = lib.spawn(driver, "--port=0", stdout=subprocess.PIPE,
                                 env={**os.environ, "HOME": str(self.home)})
        line = b""
        while b"successfully on port" not in line:
            line = self.process.stdout.readline()
            assert line, "chromedriver ended"
        self.url = f"http://127.0.0.1:{int(line.split()[-1].rstrip(b'.'))}/session"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                     "--disable-dev-shm-usage", f"--window-size={width},{height}",
                     *(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]
                       if dark else [])]
        session = self.call("POST", "", {"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments, "binary": chromium}}}})
        self.url += f"/{session['sessionId']}"

    def call(self, method, path, body=None):
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.url + path, data, method=method,
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60 * lib.SLOW) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()[:400]}") from None

    def run(self, script, *arguments):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def shot(self, name):
        png = base64.b64decode(self.call("GET", "/screenshot"))
        assert png[:4] == b"\x89PNG" and len(png) > SIZE_LEAST, len(png)
        kept = os.environ.get("SILT_SHOTS")
        if kept:
            pathlib.Path(kept).mkdir(parents=True, exist_ok=True)
            (pathlib.Path(kept) / f"{name}.png").write_bytes(png)

    def complaints(self):
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})
                if entry["level"] == "SEVERE"]

    def close(self):
        self.call("DELETE", "")
        lib.reap(self.process)


def card(browser, name):
    """What the page shows of a stream: text, and its strip's parts with their widths."""
    return browser.run("""
        const root = [...document.querySelectorAll(".stream")].find(
            (one) => one.querySelector(".name").textContent === arguments[0]);
        return root && {text: root.innerText, parts: [...root.querySelectorAll(".part")].map(
            (one) => [one.title, one.getBoundingClientRect().width])};""", name)


def fed(gateway):
    for name, size in (("router.log", 90_000), ("standup-monday", 20_000), ("agent-7", 3000)):
        path = gateway.home / name
        path.write_bytes(texts.text(size))
        lib.silt(gateway.endpoint, "feed", name, path, "--wait")


def test_page_shows_and_asks():
    with Gateway(siltd_args=("--pin-tokens-max", "64")) as gateway:
        fed(gateway)
        lib.silt(gateway.endpoint, "pin", "router.log", "--from", 0, "--to", 48)
        browser = Browser()
        browser.call("POST", "/url", {"url": gateway.url})
        shown = lib.wait_until("the streams are drawn", lambda: card(browser, "router.log"))
        seen = lib.stat(gateway.endpoint, "router.log")
        assert f"{seen['tokens_acked']:,} tokens" in shown["text"], shown
        titles = [title.split(":")[0].split(" ", 1)[-1] for title, _ in shown["parts"]]
        assert titles == ["cold segments on disk", "sinks", "tokens pinned", "summary", "ring",
                          "window"], shown
        assert all(width >= 6 for _, width in shown["parts"]), shown
        browser.shot("streams")
        browser.run("""
            [...document.querySelectorAll(".stream")].find((one) =>
                one.querySelector(".name").textContent === "router.log").click();
            document.getElementById("question").value = "What runs slow?";
            document.getElementById("recall").value = "text";
            document.getElementById("ask").requestSubmit();""")
        answer = lib.wait_until("the answer's end", lambda: browser.run(
            'const box = document.querySelector(".answer .faint"); return box && '
            'box.parentElement.innerText;'), 60)
        assert "router.log: What runs slow?" in answer and "at token" in answer, answer
        assert "tokens" in answer.split("at token")[1], answer
        lib.wait_until("what was recalled lights up", lambda: browser.run(
            'return document.querySelectorAll(".tick").length'))
        browser.shot("answer")
        # A stream that is removed goes, one that grows is drawn anew, siltd's end is said.
        lib.silt(gateway.endpoint, "rm", "agent-7")
        lib.silt(gateway.endpoint, "feed", "standup-monday", stdin=texts.text(5000, 2))
        lib.wait_until("gone", lambda: not card(browser, "agent-7"))
        count = lib.stat(gateway.endpoint, "standup-monday")["tokens_acked"]
        lib.wait_until("grown", lambda: f"{count:,} tokens" in
                       card(browser, "standup-monday")["text"])
        assert not browser.complaints(), browser.complaints()
        gateway.siltd.kill()
        lib.wait_until("trouble is said", lambda: browser.run(
            'const bar = document.getElementById("trouble"); '
            'return !bar.hidden && bar.innerText;'), 60)
        browser.shot("trouble")
        browser.close()


def test_page_asks_for_its_key_once():
    """Who has none is told so, and not asked again with each look, once a second."""
    key = lib.folder() / "key"
    key.write_text("correct horse battery\n")
    key.chmod(0o600)
    with Gateway("--key-file", key) as gateway:
        lib.silt(gateway.endpoint, "open", "s")
        browser = Browser()
        browser.call("POST", "/goog/cdp/execute", {
            "cmd": "Page.addScriptToEvaluateOnNewDocument", "params": {
                "source": "window.asked = 0; window.given = [null, 'wrong', 'correct horse "
                          "battery'];\nwindow.prompt = () => given[Math.min(asked++, 2)];"}})
        browser.call("POST", "/url", {"url": gateway.url})
        lib.wait_until("the key is missed", lambda: browser.run("return window.asked"))
        time.sleep(3.5)
        asked, said = browser.run(
            "return [asked, document.getElementById('trouble').innerText];")
        assert asked == 1 and "key" in said, (asked, said)
        browser.run("document.getElementById('trouble').click();")
        lib.wait_until("the stream is drawn", lambda: card(browser, "s"))
        assert browser.run("return asked;") == 3
        browser.close()


def test_page_on_a_phone_with_many_streams():
    """Nothing is wider than the screen, and whichever stream is chosen can be asked at once."""
    with Gateway(siltd_args=("--streams-max", "24")) as gateway:
        browser = Browser(500, 900)
        browser.call("POST", "/goog/cdp/execute", {
            "cmd": "Emulation.setDeviceMetricsOverride",
            "params": {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}})
        browser.call("POST", "/url", {"url": gateway.url})
        lib.wait_until("no streams are said", lambda: browser.run(
            'return !document.getElementById("none").hidden'))
        browser.shot("phone-none")
        names = [f"service-{i}" for i in range(20)] + ["long-" + "and-longer-" * 11]
        for name in names:
            lib.silt(gateway.endpoint, "feed", name, stdin=texts.text(900))
        lib.wait_until("all are drawn", lambda: browser.run(
            'return document.querySelectorAll(".stream").length') == len(names))
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        browser.run('document.querySelectorAll(".stream")[20].click()')
        top, bottom, height = browser.run("""
            const box = document.getElementById("ask").getBoundingClientRect();
            return [box.top, box.bottom, innerHeight];""")
        assert 0 <= top < bottom <= height, (top, bottom, height)
        browser.shot("phone-asking")
        browser.run('location.hash = "service-3"')
        lib.wait_until("the address chooses", lambda: browser.run(
            'return document.getElementById("asked-name").textContent') == "service-3")
        assert not browser.complaints(), browser.complaints()
        browser.close()


def test_page_on_a_small_dark_screen():
    with Gateway() as gateway:
        fed(gateway)
        browser = Browser(500, 900, dark=True)
        browser.call("POST", "/url", {"url": gateway.url + "#standup-monday"})
        lib.wait_until("the streams are drawn", lambda: card(browser, "standup-monday"))
        lib.wait_until("one is chosen", lambda: not browser.run(
            'return document.getElementById("side").hidden'))
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), \
            "the page is wider than the screen"
        browser.shot("small")
        assert not browser.complaints(), browser.complaints()
        browser.close()


if __name__ == "__main__":
    lib.main(globals())
