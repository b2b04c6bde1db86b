"""The page for people, in a real browser, over a fleet of a real neuron and a scripted node."""

import os
import pathlib
import subprocess

from node import Node

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parents[2] / "fixtures/models"


def key(cortex, file, name, *more):
    made = subprocess.run([cortex, "keys", "new", "--file", file, *more, name], capture_output=True, text=True, check=True)
    return made.stdout.strip()


def run_page(arguments, folder, chromium, suite):
    from run import Server, skip  # noqa: PLC0415: it imports this file

    if not arguments.neuron.exists() or not any(arguments.plugins.rglob("*.so")):
        skip("the page in a browser", "there is no neuron to show")
        return True
    settings = f'listen = "127.0.0.1:0"\n[plugins]\ndirectories = ["{arguments.plugins}"]\nallow_unowned = true\n[engine]\nmemory = "2 GiB"\n'
    with Server("neuron", arguments.neuron, settings, folder) as neuron:
        address = neuron.address(r"neuron serves .*?address=(\S+)")
        admin = key(arguments.cortex, folder / "keys.toml", "operator", "--admin")
        user = key(arguments.cortex, folder / "keys.toml", "somebody")
        models = "".join(f'[[models]]\nid = "{name}"\nsource = "{FIXTURES / name}"\nnodes = ["workshop"]\n' for name in ("echo", "tiny-llama"))
        (folder / "models.toml").write_text(models)
        nodes = f'[[neurons]]\nname = "workshop"\nendpoint = "http://{address}"\n[[neurons]]\nname = "scripted"\nendpoint = "{Node().endpoint}"\n'
        nodes += '[[neurons]]\nname = "gone"\nendpoint = "http://127.0.0.1:9"\n'
        settings = f'[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n[eviction]\nmin_residency_s = 0\n[keys]\nfile = "keys.toml"\n{nodes}'
        with Server("cortex", arguments.cortex, settings, folder) as server:
            endpoint = "http://" + server.address(r"cortex serves .*?address=(\S+)")
            pictures = arguments.folder / "pictures"
            pictures.mkdir(exist_ok=True)
            os.environ["CHROMIUM"] = chromium
            command = [arguments.node, HERE / "page.mjs", endpoint, admin, user, pictures]
            return suite(f"the page in {chromium}; pictures in {pictures}", command, arguments.folder / "npm")
