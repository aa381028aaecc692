"""silt gateway: OpenAI's chat without sending anything twice, metrics, and who is let in."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import lib
import texts
from mock import Mock

GATEWAY = lib.BUILD / "silt-gateway"


class Gateway:
    """A siltd with a gateway before it."""

    def __init__(self, *args, endpoint=None, siltd_args=()):
        if not GATEWAY.exists():
            raise lib.Skip("no build/silt-gateway")
        self.siltd = None if endpoint else lib.Daemon(*lib.tiny(), siltd_args)
        self.home = lib.folder()
        self.endpoint = endpoint or self.siltd.endpoint
        self.args = args
        self.start()

    def start(self):
        self.process = lib.spawn(lib.SILT, "-c", self.endpoint, "gateway", "--listen",
                                 "127.0.0.1:0", "--state", self.home / "state", *self.args,
                                 stdout=subprocess.PIPE)
        self.url = self.process.stdout.readline().decode().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.url
        self.address = urllib.parse.urlparse(self.url).netloc

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        lib.reap(self.process)
        if self.siltd:
            self.siltd.__exit__(kind, value, trace)

    def call(self, method, path, body=None, headers=None, raw=False):
        link = http.client.HTTPConnection(self.address, timeout=60 * lib.SLOW)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        base = {"Content-Type": "application/json"} if data else {}
        link.request(method, path, data, {**base, **(headers or {})})
        response = link.getresponse()
        text = response.read()
        link.close()
        if raw:
            return response.status, text.decode(), response.headers
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text.decode()

    def chat(self, messages, stream="s", headers=None, **more):
        return self.call("POST", "/v1/chat/completions", {
            "model": "silt", "user": stream, "max_tokens": 8,
            "messages": [{"role": role, "content": text} for role, text in messages], **more},
            headers)

    def healthy(self):
        try:
            return self.call("GET", "/healthz")[0] == 200
        except OSError:
            return False

    def tokens(self, stream="s"):
        return lib.stat(self.endpoint, stream)["tokens_acked"]


def refused(answer, status, text):
    assert answer[0] == status and text in answer[1]["error"]["message"], answer


def words(answer):
    assert answer[0] == 200, answer
    return answer[1]["choices"][0]["message"]["content"]


def test_history_is_sent_once():
    with Gateway() as gateway:
        history = [("system", "Be brief."), ("user", "One?")]
        for turn in range(6):
            answer = gateway.chat(history)
            reply = words(answer)
            silt = answer[1]["silt"]
            assert silt["messages_known"] == (0 if not turn else len(history) - 1), silt
            assert silt["messages_new"] == (2 if not turn else 1)
            assert answer[1]["usage"]["completion_tokens"] <= 8
            history += [("assistant", reply), ("user", f"And {turn}?")]
            if turn == 2:  # what the gateway knows outlives it
                gateway.process.terminate()
                assert lib.ends(gateway.process) == 0
                gateway.start()
        sizes = [gateway.tokens()]
        words(gateway.chat(history))
        sizes.append(gateway.tokens())
        assert 4 < sizes[1] - sizes[0] < 60, sizes  # a turn's worth, not a history's


def test_edited_history_is_refused():
    with Gateway() as gateway:
        history = [("user", "One?")]
        reply = words(gateway.chat(history))
        history += [("assistant", f"  {reply.strip()}\n"), ("user", "Two?")]  # trimmed is the same
        reply = words(gateway.chat(history))
        before = gateway.tokens()
        history += [("assistant", reply), ("user", "Three?")]
        edited = [("user", "Other?"), *history[1:]]
        strict = {"X-Silt-History": "strict"}
        refused(gateway.chat(edited, headers=strict), 409, "message 0 is not what stream s holds")
        refused(gateway.chat(history[:1], headers=strict), 409, "message 1")
        refused(gateway.chat([*history[:3], ("assistant", "forged"), history[4]], headers=strict),
                409, "message 3")
        assert gateway.tokens() == before
        adopted = gateway.chat(edited, headers={"X-Silt-History": "adopt"})
        edited += [("assistant", words(adopted)), ("user", "Four?")]
        assert gateway.chat(edited)[1]["silt"]["messages_known"] == len(edited) - 1
        alone = gateway.chat([("user", "Five?")], headers={"X-Silt-History": "append"})
        assert alone[1]["silt"]["messages_new"] == 1
        # A stream that was removed and made again knows nothing.
        lib.silt(gateway.endpoint, "rm", "s")
        assert gateway.chat([("user", "One?")])[1]["silt"]["messages_known"] == 0


def test_edited_history_branches():
    with Gateway() as gateway:
        history = [("user", "One?")]
        for text in ("Two?", "Three?"):
            history += [("assistant", words(gateway.chat(history))), ("user", text)]
        origin = gateway.tokens()
        edited = [*history[:2], ("user", "Other?")]
        answer = gateway.chat(edited)
        assert answer[1]["silt"]["branched"] and answer[1]["silt"]["stream"] == "s.edit-1", answer
        assert answer[1]["silt"]["messages_new"] == 3
        edited += [("assistant", words(answer)), ("user", "And?")]
        answer = gateway.chat(edited)  # it goes on there, and only what is new is sent
        assert answer[1]["silt"]["stream"] == "s.edit-1" and not answer[1]["silt"]["branched"]
        assert answer[1]["silt"]["messages_new"] == 1
        assert gateway.tokens() == origin  # the stream itself is as it was,
        answer = gateway.chat(history)  # and goes on too
        assert answer[1]["silt"]["stream"] == "s" and answer[1]["silt"]["messages_new"] == 1
        answer = gateway.chat(history)  # the same once more: another answer, in another branch
        assert answer[1]["silt"]["stream"] == "s.edit-2" and answer[1]["silt"]["branched"]
        # A branch has what a stream of the same turns has.
        plain = gateway.chat(history, "plain", temperature=0)
        assert gateway.tokens("s.edit-2") - answer[1]["usage"]["completion_tokens"] == (
            gateway.tokens("plain") - plain[1]["usage"]["completion_tokens"])
        for i in range(8):
            words(gateway.chat([("user", f"Branch {i}?")]))
        names = lib.silt(gateway.endpoint, "ls", "-q").out.decode().split()
        assert sum(name.startswith("s.edit-") for name in names) == 8, names


def test_cut_off_request_is_known():
    with Gateway() as gateway:
        history = [("user", "One?")]
        history += [("assistant", words(gateway.chat(history))), ("user", "Two?")]
        chain = gateway.home / "state/s.chain"
        data = bytearray(chain.read_bytes())
        data[16] = 1  # begun and not ended
        data[24:32] = gateway.tokens().to_bytes(8, "little")
        chain.write_bytes(data)
        history += [("assistant", words(gateway.chat(history))), ("user", "Three?")]
        data = bytearray(chain.read_bytes())
        data[16] = 1  # and siltd has more than it had then
        chain.write_bytes(data)
        refused(gateway.chat(history), 409, "not known")
        words(gateway.chat(history, headers={"X-Silt-History": "adopt"}))


def test_what_a_refused_request_fed_is_known():
    """Turns that siltd had acked before one was too large are in the stream, and not sent again."""
    with Gateway() as gateway:
        old = [(("user", "assistant")[i % 2], f"Turn {i}.") for i in range(70)]
        large = [*old, ("user", "x" * 600_000), ("assistant", "Yes."), ("user", "And?")]
        refused(gateway.chat(large), 413, "at most")
        answer = gateway.chat([*old, ("user", "And?")])
        assert words(answer) and answer[1]["silt"]["messages_known"] == 70, answer[1]["silt"]
        plain = gateway.chat([*old, ("user", "And?")], "plain")
        assert gateway.tokens() - answer[1]["usage"]["completion_tokens"] == (
            gateway.tokens("plain") - plain[1]["usage"]["completion_tokens"])


def test_top_p_of_nothing_is_the_likeliest():
    with Gateway() as gateway:
        hot = [words(gateway.chat([("user", "Hi")], f"p{seed}", temperature=2, top_p=0, seed=seed))
               for seed in (1, 2, 3)]
        cold = words(gateway.chat([("user", "Hi")], "cold", temperature=0))
        assert set(hot) == {cold}, (hot, cold)


def test_an_answer_has_its_time():
    """Also one that is read as it comes, and stops coming."""
    siltd = Mock()
    with Gateway("--answer-seconds", "1", endpoint=siltd.endpoint) as gateway:
        siltd.streams["s"] = [bytearray(), {}]
        status, text, _ = gateway.call("POST", "/api/ask", {"stream": "s", "question": "endless"},
                                       raw=True)
        assert status == 200 and "It was" in text, text
        assert "took longer than 1 s" in events(text)[-1]["error"]["message"], text
    siltd.kill()


def begin_chat(gateway, question, stream="s"):
    """Asks for a whole answer on a connection of its own."""
    body = json.dumps({"user": stream,
                       "messages": [{"role": "user", "content": question}]}).encode()
    link = socket.create_connection(gateway.address.split(":"))
    link.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                 b"application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    return link


def under_way(gateway):
    text = gateway.call("GET", "/metrics")[1]
    return int(re.search(r"^silt_gateway_questions_under_way (\d+)$", text, re.M)[1])


def test_who_hangs_up_is_not_answered():
    """The stream is the next request's, and nothing is kept that nobody has read."""
    siltd = Mock()
    with Gateway(endpoint=siltd.endpoint) as gateway:
        siltd.streams["s"] = [bytearray(), {}]
        link = begin_chat(gateway, "endless")
        lib.wait_until("it is asked", lambda: siltd.asks)
        link.close()
        lib.wait_until("the question ends", lambda: not under_way(gateway), 10)
        words(gateway.chat([("user", "Once more?")]))
    siltd.kill()


def test_ends_behind_the_last_question():
    """One that nobody waits for too: siltd has said what became of it."""
    siltd = Mock()
    cancel, told, answered = siltd.on_cancel, threading.Event(), threading.Event()

    def cancel_late(*request):
        told.set()
        time.sleep(1)
        cancel(*request)
        answered.set()

    siltd.on_cancel = cancel_late
    with Gateway(endpoint=siltd.endpoint) as gateway:
        siltd.streams["s"] = [bytearray(), {}]
        link = begin_chat(gateway, "endless")
        lib.wait_until("it is asked", lambda: siltd.asks)
        link.close()
        assert told.wait(10 * lib.SLOW)
        gateway.process.terminate()
        assert lib.ends(gateway.process) == 0 and answered.is_set()
    siltd.kill()


def test_who_hangs_up_makes_no_room_for_more():
    """Until siltd has ended the question that was left: there are as many as connections."""
    siltd = Mock()
    siltd.on_cancel = lambda *request: None
    with Gateway("--connections", "3", endpoint=siltd.endpoint) as gateway:
        for i in range(30):
            siltd.streams[f"s{i}"] = [bytearray(), {}]
            link = begin_chat(gateway, "endless", f"s{i}")
            time.sleep(0.1)
            link.close()
        assert 1 <= len(siltd.asks) <= 3, len(siltd.asks)
    siltd.kill()


def test_idle_connections_are_closed():
    """Also one that had a whole answer: it had kept a place for as long as an answer may take."""
    siltd = Mock()
    with Gateway(endpoint=siltd.endpoint) as gateway:
        siltd.streams["s"] = [bytearray(), {}]
        link = begin_chat(gateway, "Who?")
        link.settimeout(60 * lib.SLOW)
        while link.recv(4096):
            pass
    siltd.kill()


def events(text):
    return [json.loads(line[6:]) for line in text.split("\n\n")
            if line.startswith("data: ") and line != "data: [DONE]"]


def test_events():
    with Gateway() as gateway:
        body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
                "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 12}
        status, text, headers = gateway.call("POST", "/v1/chat/completions", body,
                                             {"X-Silt-Stream": "ev"}, raw=True)
        assert status == 200 and headers["Content-Type"] == "text/event-stream", text
        assert text.endswith("data: [DONE]\n\n")
        chunks = events(text)
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
        assert deltas[0]["role"] == "assistant" and len(deltas) > 2
        assert chunks[-2]["choices"][0]["finish_reason"] in ("length", "stop")
        assert chunks[-1]["usage"]["completion_tokens"] == 12 or chunks[-1]["usage"]
        reply = "".join(d.get("content", "") for d in deltas)
        answer = gateway.chat([("user", "Hi"), ("assistant", reply), ("user", "More")], "ev")
        assert answer[1]["silt"]["messages_known"] == 2, answer
        status, text, _ = gateway.call("POST", "/api/ask", {"stream": "ev", "question": "What?",
                                                            "max_tokens": 5}, raw=True)
        assert status == 200 and events(text)[-1]["done"]["stream"] == "ev"
        before = gateway.tokens("ev")
        link = socket.create_connection(gateway.address.split(":"))
        body = json.dumps({"user": "ev", "stream": True, "messages": [
            {"role": "user", "content": "All?"}]}).encode()
        link.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                     b"X-Silt-History: append\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        link.recv(1)
        link.close()  # nobody reads: cancelled, or kept where it was done before that was seen
        none = "silt_gateway_questions_under_way 0\n"
        lib.wait_until("the question ends", lambda: none in gateway.call("GET", "/metrics")[1])
        assert gateway.tokens("ev") >= before


def test_refusals():
    with Gateway("--body", "20000", "--connections", "8") as gateway:
        messages = [{"role": "user", "content": "x"}]

        def post(body, headers=None):
            return gateway.call("POST", "/v1/chat/completions", body, headers)

        refused(post({"messages": messages}), 400, "name the stream")
        for field, value, name in (
                ("max_tokens", "9", "max_tokens"), ("max_tokens", 0, "max_tokens"),
                ("seed", 1.5, "seed"), ("n", "2", "n must"), ("stop", 5, "stop"),
                ("stream", "yes", "stream"), ("temperature", "hot", "temperature"),
                ("frequency_penalty", "1", "frequency_penalty"),
                ("silt", {"recall": 1}, "recall"), ("silt", {"wait": 1}, "wait")):
            refused(post({"user": "s", "messages": messages, field: value}), 400, name)
        long = {"user": "x" + 100 * "ä", "messages": messages}  # shown cut, in a character
        refused(post(long), 400, "is not a stream's name")
        refused(post({"messages": messages, "user": "../x"}), 400, "not a stream's name")
        refused(post({"messages": [], "user": "s"}), 400, "messages")
        refused(post({"messages": messages, "user": "s", "n": 2}), 400, "n must be 1")
        refused(post({"messages": messages, "user": "s", "tools": [{}]}), 400, "tools")
        refused(post({"messages": messages, "user": "s", "temperature": 9}), 400, "temperature")
        refused(post({"messages": [{"role": "king", "content": ""}], "user": "s"}), 400, "role")
        picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
        refused(post({"messages": picture, "user": "s"}), 400, "text alone")
        answered = [*messages, {"role": "assistant", "content": "y"}]
        refused(post({"messages": answered, "user": "s"}), 400, "must be the user's")
        refused(post({"messages": messages, "user": "s", "silt": {"recall": "all"}}), 400,
                "silt.recall is auto")
        refused(post({"messages": messages, "user": "s"}, {"X-Silt-History": "some"}), 400,
                "full, strict, append or adopt")
        refused(post(b"{", None), 400, "not JSON")
        refused(post(b"[" * 15000), 400, "JSON")
        refused(post(b"x" * 30000), 413, "at most 20000 bytes")
        refused(post({"messages": messages}, {"Content-Type": "text/plain"}), 415, "JSON")
        refused(post({"messages": messages}, {"Host": "evil.example:80"}), 403, "this machine")
        refused(gateway.call("GET", "/etc/passwd"), 404, "nothing here")
        refused(gateway.call("DELETE", "/v1/models"), 405, "GET")
        refused(gateway.call("GET", "/api/streams/none"), 404, "no stream")
        refused(gateway.call("POST", "/api/ask", {"stream": "none", "question": "?"}), 404,
                "no stream")
        held = [socket.create_connection(gateway.address.split(":")) for _ in range(20)]
        for link in held:
            link.close()
        lib.wait_until("it serves again", gateway.healthy)


def test_keys_and_other_machines():
    home = lib.folder()
    key = home / "key"
    key.write_text("correct horse battery\n")
    run = [lib.SILT, "gateway", "--listen", "0.0.0.0:0"]
    done = subprocess.run(run, capture_output=True, check=False)
    assert done.returncode == 2 and b"--key-file" in done.stderr, done.stderr
    os.chmod(key, 0o644)
    done = subprocess.run([*run, "--key-file", key], capture_output=True, check=False)
    assert done.returncode == 2 and b"chmod 600" in done.stderr, done.stderr
    os.chmod(key, 0o600)
    key.write_text("horse\n")
    done = subprocess.run([*run, "--key-file", key], capture_output=True, check=False)
    assert done.returncode == 2 and b"shorter than 16" in done.stderr, done.stderr
    key.write_text("correct horse battery\n")
    with Gateway("--key-file", key) as gateway:
        refused(gateway.call("GET", "/v1/models"), 401, "key")
        refused(gateway.call("GET", "/metrics", headers={"Authorization": "Bearer corr"}), 401, "")
        assert gateway.call("GET", "/healthz")[0] == 200
        right = {"Authorization": "Bearer correct horse battery"}
        assert gateway.call("GET", "/v1/models", headers=right)[1]["data"][0]["id"] == "silt"


def test_metrics_and_page():
    with Gateway(siltd_args=("--pin-tokens-max", "64")) as gateway:
        path = gateway.home / "text"
        path.write_bytes(texts.text(8000))
        lib.silt(gateway.endpoint, "feed", "log", path)
        lib.silt(gateway.endpoint, "pin", "log", "--from", "5", "--to", "40")
        words(gateway.chat([("user", "One?")]))
        status, text, headers = gateway.call("GET", "/metrics", raw=True)
        assert status == 200 and headers["Content-Type"].startswith("text/plain")
        check_metrics(text)
        seen = lib.wait_until("log is computed", lambda: settled(gateway.endpoint, "log"))
        text = gateway.call("GET", "/metrics")[1]
        assert f'silt_stream_tokens_acked_total{{stream="log"}} {seen["tokens_acked"]}\n' in text
        assert re.search(r'silt_stream_memory_used_bytes\{stream="log",tier="ring"\} [1-9]', text)
        assert 'silt_gateway_questions_total{result="answered"} 1\n' in text
        assert 'silt_stream_pinned_tokens{stream="log"} 35\n' in text
        assert 'silt_stream_segments_merged_total{stream="log"} 0\n' in text
        page = gateway.call("GET", "/", raw=True)
        assert page[0] == 200 and "<title>silt</title>" in page[1]
        assert "default-src 'self'" in page[2]["Content-Security-Policy"]
        for part in ("/app.js", "/style.css"):
            assert gateway.call("GET", part)[0] == 200
        names = [s["stream"] for s in gateway.call("GET", "/api/status")[1]["streams"]]
        assert names == ["log", "s"]
        one = gateway.call("GET", "/api/streams/log")[1]
        assert one["memory_hash"] == seen["memory_hash"] and one["tiers"]
        assert one["pin_tokens"] == 35 and one["pin_tokens_max"] == 64
        assert [(pin["from"], pin["to"]) for pin in one["pins"]] == [(5, 40)]
        status, text, _ = gateway.call("POST", "/api/ask", {
            "stream": "log", "question": "Which river is slow?", "max_tokens": 4,
            "silt": {"recall": "text"}}, raw=True)
        assert status == 200, text
        one = gateway.call("GET", "/api/streams/log")[1]
        assert one["recall_hits"] >= len(one["recalled"]) > 0 and one["recalled_us"], one
        gateway.siltd.kill()
        assert gateway.call("GET", "/healthz")[0] == 503
        assert "silt_up 0\n" in gateway.call("GET", "/metrics")[1]
        gateway.siltd.start()
        assert gateway.call("GET", "/healthz")[0] == 200


def settled(endpoint, stream):
    stat = lib.stat(endpoint, stream)
    return stat if stat["tokens_computed"] == stat["tokens_acked"] else None


def check_metrics(text):
    """Each name has help and type before it, its samples stand together, counters end in _total."""
    seen, current = {}, None
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, current, kind = line.split()
            assert current not in seen, current
            assert (kind == "counter") == current.endswith("_total"), line
            seen[current] = kind
        elif not line.startswith("# HELP "):
            name = re.fullmatch(r'([a-z_]+)(\{([a-z]+="([^"\\\n]|\\.)*",?)*\})? '
                                r'(NaN|[-+0-9.e]+)', line)
            assert name, line
            base = re.sub(r"_(bucket|sum|count)$", "", name[1])
            assert current in (name[1], base), line


def test_one_at_a_time_and_many():
    with Gateway(siltd_args=("--forks-max", "4")) as gateway:
        results = []

        def ask(stream, tokens):
            results.append(gateway.chat([("user", "Hi")], stream, max_tokens=tokens))

        threads = [threading.Thread(target=ask, args=("one", 200)) for _ in range(4)]
        threads += [threading.Thread(target=ask, args=(f"s{i}", 8)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(r[0] for r in results if r[1].get("silt", {}).get("stream") != "one"
                       or r[0] != 200)
        assert set(codes) <= {200, 409, 429}, results
        assert sum(r[0] == 200 and r[1]["silt"]["stream"] == "one" for r in results) == 1, results


def test_a_stream_comes_back_to_its_place():
    """Others have been there meanwhile: whoever asks waits for that, and is not sent away."""
    with Gateway(siltd_args=("--streams-max", "1")) as gateway:
        held = {}
        for turn in range(3):
            for stream in ("a", "b"):
                messages = held.setdefault(stream, []) + [("user", f"Turn {turn}")]
                status, reply = gateway.chat(messages, stream)
                assert status == 200, reply
                held[stream] = messages + [("assistant", reply["choices"][0]["message"]["content"])]
        assert gateway.chat([("user", "Something else")], "a")[1]["silt"]["stream"] == "a.edit-1"
        for stream in ("a", "b"):
            status, text, _ = gateway.call("POST", "/api/ask", {
                "stream": stream, "question": "Hm?", "max_tokens": 4}, raw=True)
            assert status == 200 and "busy" not in text, text


def test_a_burst_leaves_places_to_others():
    """Of many requests at once the connections go again: siltd has --clients-max places."""
    with Gateway(siltd_args=("--clients-max", "6", "--streams-max", "8")) as gateway:
        threads = [threading.Thread(target=gateway.chat, args=([("user", "Hi")], f"s{i % 8}"))
                   for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lib.wait_until("another client has a place", lambda: lib.silt(
            gateway.endpoint, "ls", code=None).code == 0, 10)
        assert gateway.call("GET", "/api/status")[0] == 200


def test_forty_browsers():
    """More at once than siltd takes clients, by the defaults of both: all are answered, and siltd
    has places for others; questions leave some to the page."""
    with Gateway() as gateway:
        assert gateway.call("GET", "/api/status")[0] == 200
        codes = []
        threads = [threading.Thread(target=lambda: codes.append(
            gateway.call("GET", "/api/status")[0])) for _ in range(40)]
        os.kill(gateway.siltd.process.pid, signal.SIGSTOP)
        try:
            for thread in threads:
                thread.start()
            time.sleep(0.7)
            assert not codes, "siltd is stopped"
            ls = lib.spawn(lib.SILT, "-c", gateway.endpoint, "ls", stdout=subprocess.DEVNULL)
        finally:
            os.kill(gateway.siltd.process.pid, signal.SIGCONT)
        for thread in threads:
            thread.join()
        assert codes == [200] * 40, codes
        assert lib.ends(ls) == 0, "the gateway has all of siltd's places"
    mock = Mock()
    mock.silent = True
    with Gateway("--siltd-connections", "4", endpoint=mock.endpoint) as gateway:
        asked = [threading.Thread(target=gateway.chat, args=([("user", "Hi")], f"s{i}"))
                 for i in range(8)]
        for thread in asked:
            thread.start()
        time.sleep(0.5)
        mock.silent = False  # to the page's request; the others' are lost
        assert gateway.call("GET", "/api/status")[0] == 200
        mock.kill()
        for thread in asked:
            thread.join()


def openai_client():
    """The official client: this Python's, else PyPI's where that is asked for."""
    try:
        import openai
        return openai
    except ImportError:
        if not os.environ.get("SILT_OPENAI"):
            raise lib.Skip("no Python package openai here; SILT_OPENAI=1 gets it from PyPI")
    site = lib.folder() / "site"
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", site,
                           "--disable-pip-version-check", "openai"], capture_output=True,
                          check=False)
    if done.returncode:
        raise lib.Skip("openai cannot be installed: no network?")
    sys.path.insert(0, str(site))
    import openai
    return openai


def test_openai_client_over_many_turns():
    openai = openai_client()
    with Gateway() as gateway:
        client = openai.OpenAI(base_url=f"{gateway.url}v1", api_key="none", max_retries=0)
        assert client.models.list().data[0].id == "silt"
        history = [{"role": "system", "content": "Be brief."}]
        grown = []
        for turn in range(200):
            history.append({"role": "user", "content": f"Question {turn}?"})
            before = gateway.tokens("agent") if turn else 0
            if turn % 2:
                answer = client.chat.completions.create(model="silt", messages=history,
                                                        user="agent", max_tokens=6)
                reply = answer.choices[0].message.content
            else:
                reply = "".join(
                    chunk.choices[0].delta.content or "" for chunk in
                    client.chat.completions.create(model="silt", messages=history, user="agent",
                                                   max_tokens=6, stream=True) if chunk.choices)
            history.append({"role": "assistant", "content": reply})
            grown.append(gateway.tokens("agent") - before)
        assert max(grown[1:]) < 80, grown
        edited = [*history[:101], {"role": "user", "content": "Something else?"}]
        client.chat.completions.create(model="silt", messages=edited, user="agent", max_tokens=6)
        names = lib.silt(gateway.endpoint, "ls", "-q").out.decode().split()
        assert names == ["agent", "agent.edit-1"], names
        try:
            client.chat.completions.create(model="silt", messages=edited[1:], user="agent",
                                           extra_headers={"X-Silt-History": "strict"})
        except openai.ConflictError as error:
            assert "cannot be edited" in str(error)
        else:
            raise AssertionError("an edited history was taken")


if __name__ == "__main__":
    lib.main(globals())
