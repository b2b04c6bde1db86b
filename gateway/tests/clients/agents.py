"""Coding agents from npm, unmodified: each takes one scripted turn with a tool through a running cortex.

    agents.py ENDPOINT FOLDER AGENT...     AGENT: claude, codex

An agent is asked for something, the node calls the agent's own shell tool, the agent runs it, sends the
result back, and ends with the node's last words. Proof is the file the tool made and what the agent printed.
"""

import json
import os
import pathlib
import subprocess
import sys

ENDPOINT, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
LIMIT_S = 120


def run(command, folder, **environment):
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    (work / "trace.txt").unlink(missing_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC", "CLAUDE", "OPENAI", "CODEX"))}
    clean |= {"HOME": str(home), "CODEX_HOME": str(home), "CLAUDE_CONFIG_DIR": str(home)} | environment
    done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"exit {done.returncode}\n{said[-4000:]}"
    trace = work / "trace.txt"
    assert trace.exists() and trace.read_text().strip() == "made-by-a-tool", f"the tool never ran\n{said[-4000:]}"
    assert "the-tool-ran" in said, f"the result never came back\n{said[-4000:]}"
    return said


def claude():
    binary = next((FOLDER / "node_modules/@anthropic-ai").glob("claude-code-*/claude"))
    command = [str(binary), "-p", "please use Bash now", "--model", "claude-scripted", "--output-format", "stream-json", "--verbose", "--allowedTools", "Bash"]
    said = run(
        command,
        FOLDER / "claude",
        ANTHROPIC_BASE_URL=ENDPOINT,
        ANTHROPIC_AUTH_TOKEN="unused",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
    )
    last = json.loads([line for line in said.splitlines() if line.startswith("{")][-1])
    assert last["type"] == "result" and not last["is_error"] and "The tool said" in last["result"], last
    return f"{last['num_turns']} turns, usage {last['usage']['input_tokens']} in, {last['usage']['output_tokens']} out"


def codex():
    settings = {
        "model_provider": '"cortex"',
        "model_providers.cortex.name": '"cortex"',
        "model_providers.cortex.base_url": f'"{ENDPOINT}/v1"',
        "model_providers.cortex.wire_api": '"responses"',
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    tool = "exec_command"
    command = [str(FOLDER / "node_modules/.bin/codex"), "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "-m", "scripted", *options, f"please use {tool} now"]
    said = run(command, FOLDER / "codex")
    assert "The tool said" in said, said[-4000:]
    return "answered with the tool's words"


failed = False
for name in sys.argv[3:]:
    try:
        print(f"  ok {name}:", {"claude": claude, "codex": codex}[name](), flush=True)
    except Exception as error:  # noqa: BLE001: whatever it is, it is the finding
        failed = True
        print(f"  FAILED {name}: {type(error).__name__}: {error}", flush=True)
sys.exit(failed)
