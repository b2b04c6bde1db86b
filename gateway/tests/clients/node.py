"""A node that answers by script, so that a client meets exactly what a test wants it to meet.

It keeps as much of the node API as cortex asks for, and speaks OpenAI chat. What happens is told by the
request itself: words of the last user message, and the tools that were offered.

    fail N [code]    answer with status N
    break            end the stream in the middle of an answer
    event error      an error event in the middle of an answer
    think            reasoning before the answer
    parallel         two tool calls at once
    use TOOL         call the tool of this name; the answer to its result quotes the result
    silence S        say nothing for S seconds, then answer

Everything that reached it is kept in `Node.seen`.
"""

import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GREETING = "Hello 🧑‍🚀, this was scripted."
CHARACTERS = 3  # of text in one event
SHORT = 200  # characters: longer text is never a script


def text_of(content):
    """The words of a message, whatever form it has."""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content or [] if isinstance(part, dict))


def texts_of(content):
    """The same, part by part."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or [] if part.get("type") == "text"]


def images_of(messages):
    """The addresses of all images."""
    parts = [part for m in messages if isinstance(m.get("content"), list) for part in m["content"]]
    return [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]


def command_for(tool):
    """Arguments that make an agent's own tool leave a trace: a file in its working directory."""
    properties = tool["function"].get("parameters", {}).get("properties", {})
    line = "echo made-by-a-tool > trace.txt && echo the-tool-ran"
    arguments = {}
    for name in ("command", "cmd"):
        if name in properties:
            of_words = properties[name].get("type") == "array"
            arguments[name] = ["bash", "-c", line] if of_words else line
    if "description" in properties:
        arguments["description"] = "leave a trace"
    return arguments or {"city": "Paris", "note": 'quotes " and \\ and 🧑‍🚀'}


class Script:
    """What to answer to one request."""

    def __init__(self, request):
        self.request = request
        self.messages = request["messages"]
        users = [m for m in self.messages if m["role"] == "user"]
        # Agents say much around what a person said: the last short part is the script.
        short = [text for user in users for text in texts_of(user.get("content")) if len(text) < SHORT]
        self.last_user = short[-1] if short else ""
        self.tools = {tool["function"]["name"]: tool for tool in request.get("tools") or []}
        since = max((at for at, m in enumerate(self.messages) if m["role"] == "assistant"), default=-1)
        # Pictures of a result follow it as a user's message.
        self.results = [m for m in self.messages[since + 1 :] if m["role"] == "tool"]

    def word_after(self, word):
        words = self.last_user.split()
        return words[words.index(word) + 1 :] if word in words[:-1] else []

    def wants(self, word):
        return word in self.last_user.split()

    def calls(self):
        """The tool calls of this turn."""
        if self.results or not self.tools or self.request.get("tool_choice") == "none":
            return []
        names = self.word_after("use")[:1]
        forced = self.request.get("tool_choice")
        if isinstance(forced, dict):
            names = [forced["function"]["name"]]
        if forced == "required" and not names:
            names = list(self.tools)[:1]
        if self.wants("parallel"):
            names = list(self.tools)[:2]
        calls = []
        for number, name in enumerate(name for name in names if name in self.tools):
            arguments = json.dumps(command_for(self.tools[name]), ensure_ascii=False)
            calls.append((f"call_{number}", name, arguments))
        return calls

    def text(self):
        images = images_of(self.messages)
        if self.results and not images:
            return "The tool said: " + text_of(self.results[-1]["content"]).strip()
        if images:
            return f"{len(images)} image(s), the last of {len(images[-1])} characters."
        return GREETING


class Node(ThreadingHTTPServer):
    """The node; `endpoint` is where it is."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, name="scripted", certificate=None):
        """`certificate`: paths of a certificate and its key, to be reached over TLS."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        self.seen = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            # Each connection's own thread shakes hands: a slow one must not keep the others out.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self.endpoint = f"https://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Small frames must leave at once.
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def json(self, status, value, headers=()):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/models":
            models = [{"id": name, "state": "ready", "details": {"context_tokens": 200_000}} for name in MODELS]
            return self.json(200, {"boot_id": "scripted", "sequence": int(time.time() * 1000), "models": models})
        if self.path == "/v1/models":
            return self.json(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})
        if self.path == "/discovery":
            return self.json(200, {})
        self.json(404, {"error": {"message": f"no route {self.path}", "type": "invalid_request_error", "code": "not_found", "param": None}})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        request = json.loads(body)
        self.server.seen.append({"path": self.path, "headers": dict(self.headers), "body": request})
        if self.path == "/tokenize":
            count = len(json.dumps(request.get("messages") or request.get("prompt"))) // 4
            return self.json(200, {"tokens": list(range(count)), "count": count, "max_model_len": 200_000})
        if self.path == "/v1/embeddings":
            error = {"message": "the model 'scripted' makes no embeddings", "type": "invalid_request_error", "code": "unsupported", "param": "model"}
            return self.json(422, {"error": error})
        if self.path == "/v1/completions":
            return self.completion(request)
        if self.path != "/v1/chat/completions":
            return self.json(404, {"error": {"message": f"no route {self.path}", "type": "invalid_request_error", "code": "not_found", "param": None}})
        script = Script(request)
        failure = script.word_after("fail")
        if failure and failure[0].isdigit():
            status, code = int(failure[0]), (failure[1:2] or ["scripted_failure"])[0]
            message = f"scripted failure {status}"
            if code == "context_length_exceeded":
                message = "prompt is too long: 300000 tokens > 200000 maximum"
            headers = [("retry-after", "1")] if status in (429, 503) else []
            return self.json(status, {"error": {"message": message, "type": "error", "code": code, "param": None}}, headers)
        for seconds in script.word_after("silence")[:1]:
            time.sleep(float(seconds))
        (self.stream if request.get("stream") else self.whole)(request, script)

    def completion(self, request):
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": request["model"]}
        if not request.get("stream"):
            choice = {"index": 0, "text": GREETING, "logprobs": None, "finish_reason": "stop"}
            return self.json(200, head | {"choices": [choice], "usage": usage})
        self.events()
        for at in range(0, len(GREETING), CHARACTERS):
            piece = GREETING[at : at + CHARACTERS]
            self.data(head | {"choices": [{"index": 0, "text": piece, "logprobs": None, "finish_reason": None}]})
        self.data(head | {"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]})
        self.end()

    def usage(self, request, script):
        prompt = max(1, len(json.dumps(request["messages"])) // 4)
        completion = max(1, len(script.text()) // CHARACTERS)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": min(2, prompt)},
        }

    def head(self, request, kind):
        return {"id": "chatcmpl-scripted", "object": kind, "created": 1_700_000_000, "model": request["model"]}

    def whole(self, request, script):
        calls = script.calls()
        message = {"role": "assistant", "content": None if calls else script.text()}
        if script.wants("think"):
            message["reasoning_content"] = "hm, let me see"
        if calls:
            message["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id, name, arguments in calls
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls" if calls else "stop"}
        self.json(200, self.head(request, "chat.completion") | {"choices": [choice], "usage": self.usage(request, script)})

    def events(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def data(self, value):
        self.chunk(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")

    def end(self):
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def stream(self, request, script):
        head = self.head(request, "chat.completion.chunk")

        def delta(delta, finish=None):
            self.data(head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]})

        self.events()
        delta({"role": "assistant", "content": ""})
        if script.wants("think"):
            for piece in ("hm, ", "let me ", "see"):
                delta({"reasoning_content": piece})
                time.sleep(0.1)
        calls = script.calls()
        text = "" if calls else script.text()
        for at in range(0, len(text), CHARACTERS):
            delta({"content": text[at : at + CHARACTERS]})
            if at >= 6 and script.wants("break"):
                self.close_connection = True
                return
            if at >= 6 and script.wants("event"):
                self.data({"error": {"message": "the scripted worker died", "type": "server_error", "code": "worker_lost", "param": None}})
                self.wfile.write(b"0\r\n\r\n")
                return
        for index, (id, name, arguments) in enumerate(calls):
            call = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
            delta({"tool_calls": [call]})
            for at in range(0, len(arguments), 7):
                delta({"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + 7]}}]})
        delta({}, "tool_calls" if calls else "stop")
        if (request.get("stream_options") or {}).get("include_usage"):
            self.data(head | {"choices": [], "usage": self.usage(request, script)})
        self.end()


MODELS = ["scripted", "claude-scripted"]
