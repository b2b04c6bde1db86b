#!/usr/bin/env python3
"""Official clients, unmodified, through a running cortex: see README.md beside this file.

The SDKs are installed from PyPI and npm into FOLDER the first time; nothing else needs a network. What
cannot be had is skipped, and said so; what fails, fails.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PYTHON_SDKS = ["openai", "anthropic", "httpx"]
NODE_SDKS = ["openai", "@anthropic-ai/sdk", "ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic"]
# The newest SDKs need this much; npm has it for machines whose own is older.
NODE_MAJOR = 22
AGENTS = {"claude": "@anthropic-ai/claude-code-linux-x64", "codex": "@openai/codex"}
BROWSER_DRIVER = "playwright-core"
PATIENCE_S = 300
EYES = "eyes"  # the model that is asked about pictures
skipped = []


def skip(what, why):
    skipped.append(what)
    print(f"SKIPPED {what}: {why}", flush=True)


def quiet(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    return done.returncode == 0, (done.stdout + done.stderr).strip()


def python_with_sdks(folder):
    """A Python that has the SDKs; None when they cannot be installed."""
    python = folder / "venv/bin/python"
    if not python.exists():
        venv.create(folder / "venv", with_pip=True)
    if quiet([python, "-c", "import openai, anthropic, httpx"])[0]:
        return python
    fine, said = quiet([python, "-m", "pip", "install", "--quiet", *PYTHON_SDKS])
    return python if fine else skip("the Python SDKs", said.splitlines()[-1] if said else "pip failed")


def node_version(node):
    fine, said = quiet([str(node), "--version"])
    return int(said.lstrip("v").split(".")[0]) if fine else 0


def packages(folder, names, what):
    """Installs npm packages that are not there yet; says whether they are there now."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not (folder / "node_modules" / name).exists()]
    if not missing:
        return True
    if not shutil.which("npm"):
        return bool(skip(what, "there is no npm"))
    # npm takes the newest release that runs on the Node it runs on itself.
    path = f"{folder}/node_modules/.bin:{os.environ['PATH']}"
    wanted = [name if "@" in name[1:] else name + "@latest" for name in missing]
    fine, said = quiet(["npm", "install", "--no-fund", "--no-audit", "--no-save", "--prefix", str(folder), *wanted], env=os.environ | {"PATH": path}, cwd=folder)
    return fine or bool(skip(what, (said.splitlines() or ["npm failed"])[-1]))


def node_with_sdks(folder):
    """A Node that has the SDKs; None when there is none."""
    node = shutil.which("node")
    if not node or node_version(node) < NODE_MAJOR:
        local = folder / "node/node_modules/.bin/node"
        if not local.exists() and not packages(folder / "node", [f"node@{NODE_MAJOR}"], f"Node {NODE_MAJOR}"):
            return None
        node = str(local)
    os.environ["PATH"] = f"{pathlib.Path(node).parent}:{os.environ['PATH']}"
    return node if packages(folder / "npm", NODE_SDKS, "the JavaScript SDKs") else None


class Server:
    """A server of ours; it ends with the block."""

    def __init__(self, name, binary, settings, folder, environment=None):
        self.name, self.log = name, folder / f"{name}.log"
        (folder / f"{name}.toml").write_text(settings)
        command = [str(binary), "serve", "--config", str(folder / f"{name}.toml")]
        environment = os.environ | (environment or {})
        self.process = subprocess.Popen(command, stderr=self.log.open("w"), stdout=subprocess.DEVNULL, env=environment)

    def address(self, pattern):
        """The first thing in its log that matches."""
        for _ in range(PATIENCE_S * 20):
            found = re.search(pattern, re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text()))
            if found:
                return found.group(1)
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit(f"{self.name} did not start:\n{self.log.read_text()[-3000:]}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def cortex(binary, endpoint, folder, more="", environment=None):
    settings = f'[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n[[neurons]]\nname = "node"\nendpoint = "{endpoint}"\n'
    return Server("cortex", binary, settings + more, folder, environment)


def ask(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def wait_for_model(endpoint, model):
    for _ in range(PATIENCE_S * 5):
        known = {entry["id"]: entry.get("state") for entry in ask(endpoint + "/v1/models")["data"]}
        if known.get(model) == "ready":
            return
        time.sleep(0.2)
    raise SystemExit(f"the model {model} never became ready: {known}")


def suite(title, command, cwd=None):
    print(f"== {title}", flush=True)
    return subprocess.run([str(word) for word in command], cwd=cwd).returncode == 0


def suites(arguments, endpoint, model, kind):
    results = []
    if arguments.python:
        results.append(suite(f"Python SDKs, {kind} node, {model}", [arguments.python, HERE / "sdk_python.py", endpoint, model, kind]))
    if arguments.node and kind != "eyes":
        results.append(suite(f"JavaScript SDKs, {kind} node, {model}", [arguments.node, HERE / "sdk_node.mjs", endpoint, model, kind], arguments.folder / "npm"))
    return results


def against_a_script(arguments, folder):
    sys.path.insert(0, str(HERE))
    from node import Node  # noqa: PLC0415: beside this file

    node = Node()
    with cortex(arguments.cortex, node.endpoint, folder) as server:
        endpoint = "http://" + server.address(r"cortex serves .*?address=(\S+)")
        wait_for_model(endpoint, "scripted")
        results = suites(arguments, endpoint, "scripted", "scripted")
        agents = [name for name, package in AGENTS.items() if packages(arguments.folder / "agents", [package], f"the agent {name}")]
        if agents and arguments.agents:
            results.append(suite("agents, scripted node", [sys.executable, HERE / "agents.py", endpoint, arguments.folder / "agents", *agents]))
    return results


def over_tls(arguments, folder):
    """A server of OpenAI's API behind https, with a key from a file."""
    from node import Node  # noqa: PLC0415: beside this file

    if not shutil.which("openssl"):
        skip("a node over https", "there is no openssl to make a certificate with")
        return []
    pair = (folder / "node.pem", folder / "node.key")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    quiet([*made, "-out", str(pair[0]), "-keyout", str(pair[1])])
    node = Node(certificate=pair)
    (folder / "vendor.key").write_text("sk-vendor\n")
    more = 'kind = "openai"\napi_key_file = "vendor.key"\n'
    with cortex(arguments.cortex, node.endpoint, folder, more, {"SSL_CERT_FILE": str(pair[0])}) as server:
        endpoint = "http://" + server.address(r"cortex serves .*?address=(\S+)")
        wait_for_model(endpoint, "scripted")
        results = []
        if arguments.python:
            command = [arguments.python, HERE / "sdk_python.py", endpoint, "scripted", "scripted"]
            results.append(suite("Python SDKs, a server of OpenAI's API over https", command))
    told = {entry["headers"].get("authorization") for entry in node.seen}
    if told != {"Bearer sk-vendor"}:
        print(f"  FAILED: the server was shown {told} as keys")
        results.append(False)
    return results


def against_a_neuron(arguments, folder, id, source):
    text = json.dumps
    settings = f'listen = "127.0.0.1:0"\n[plugins]\ndirectories = [{text(str(arguments.plugins))}]\nallow_unowned = true\n[[models]]\nid = {text(id)}\nsource = {text(str(source))}\n'
    with Server("neuron", arguments.neuron, settings, folder) as neuron:
        address = neuron.address(r"neuron serves .*?address=(\S+)")
        with cortex(arguments.cortex, f"http://{address}", folder) as server:
            endpoint = "http://" + server.address(r"cortex serves .*?address=(\S+)")
            wait_for_model(endpoint, id)
            return suites(arguments, endpoint, id, "eyes" if id == EYES else "real")


def browser(arguments, folder):
    """The page for people in a real headless Chromium."""
    chromium = next((found for found in map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome")) if found), None)
    chromium = os.environ.get("CHROMIUM", chromium)
    if not chromium:
        skip("the page in a browser", "there is no chromium; install one or set CHROMIUM to its path")
        return []
    if not arguments.node or not packages(arguments.folder / "npm", [BROWSER_DRIVER], "the page in a browser"):
        return []
    from page import run_page  # noqa: PLC0415: beside this file

    return [run_page(arguments, folder, chromium, suite)]


def main():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", type=pathlib.Path, default=target / "release", help="folder with cortex and neuron (default: %(default)s)")
    parser.add_argument("--plugins", type=pathlib.Path, default=target / "plugins", help="architecture plugins (default: %(default)s)")
    parser.add_argument("--model", action="append", default=[], metavar="ID=PATH", help="a real model to ask as well; may be given several times")
    parser.add_argument("--folder", type=pathlib.Path, default=target / "clients", help="where clients are installed (default: %(default)s)")
    parser.add_argument("--only", choices=["script", "tls", "neuron", "page"], help="just this part")
    parser.add_argument("--no-agents", dest="agents", action="store_false", help="leave the coding agents out")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    arguments.cortex, arguments.neuron = arguments.binaries / "cortex", arguments.binaries / "neuron"
    if not arguments.cortex.exists():
        raise SystemExit(f"{arguments.cortex} is not there; run 'cargo build --release -p cortex -p neuron' first")
    arguments.python, arguments.node = python_with_sdks(arguments.folder), node_with_sdks(arguments.folder)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if arguments.only in (None, "script"):
            results += against_a_script(arguments, folder)
        if arguments.only in (None, "tls"):
            results += over_tls(arguments, folder)
        if arguments.only in (None, "neuron"):
            models = [entry.split("=", 1) for entry in arguments.model] or [["echo", ROOT / "fixtures/models/echo"], [EYES, ROOT / "fixtures/models/tiny-qwen3_5-vl"]]
            if arguments.neuron.exists() and any(arguments.plugins.rglob("*.so")):
                for id, source in models:
                    results += against_a_neuron(arguments, folder, id, source)
            else:
                skip("a real neuron", f"{arguments.neuron} or plugins in {arguments.plugins} are missing; run 'cargo xtask plugins'")
        if arguments.only in (None, "page"):
            results += browser(arguments, folder)
    print(f"{sum(results)} of {len(results)} suites passed" + (f"; skipped: {', '.join(skipped)}" if skipped else ""))
    sys.exit(not all(results) or not results)


if __name__ == "__main__":
    main()
