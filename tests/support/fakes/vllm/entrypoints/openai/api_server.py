"""A fake vLLM, started by `python -m vllm.entrypoints.openai.api_server` if tests/support/fakes is on PYTHONPATH.

It has vLLM's command line, the simulator's answers, and, like vLLM, an engine process that survives when the server is
killed. FAKE_FOLDER is the folder for a record of each start and for calls.jsonl, which has a line for each finished
call: its model, its body's digest, and whether a complete reply was sent. FAKE_ENDS prints a traceback as vLLM does and
exits. FAKE_STALLS never becomes healthy. FAKE_LATENCY is in seconds.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

TRACEBACK = """\
(EngineCore_DP0 pid=7) ERROR 11-21 12:00:00 [core.py:842] Traceback (most recent call last):
(EngineCore_DP0 pid=7) ERROR 11-21 12:00:00 [core.py:842]     raise ValueError("Error, see below")
(EngineCore_DP0 pid=7) ERROR 11-21 12:00:00 [core.py:842] ValueError: No room for the weights
(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
(APIServer pid=6) that is all
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def leave_record(folder: Path, words: list[str]) -> None:
    beside = [record for file in folder.glob("*.json") if alive((record := json.loads(file.read_text()))["pid"])]
    engine = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
    record = {
        "started": time.time(),
        "pid": os.getpid(),
        "engine": engine.pid,
        "words": words,
        "environ": dict(os.environ),
        "beside": [one["pid"] for one in beside],
    }
    aside = folder / f"{os.getpid()}.tmp"
    aside.write_text(json.dumps(record))
    aside.rename(folder / f"{os.getpid()}.json")


async def serve(name: str, host: str, port: int) -> None:
    from aif.simulator import Call, SimulatedModels, Simulator

    with (Path(os.environ["FAKE_FOLDER"]) / "calls.jsonl").open("ab", buffering=0) as calls:

        def leave(call: Call) -> None:
            told = {"model": call.model, "key": call.key, "answered": call.sent and call.usage is not None}
            calls.write(json.dumps(told).encode() + b"\n")

        latency_s = float(os.environ.get("FAKE_LATENCY", "0"))
        async with Simulator(SimulatedModels({}, {}, open=True), host, port, latency_s, on_call=leave):
            say(f"{name} is served")
            await asyncio.Event().wait()


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--model", "--served-model-name", "--host"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--port", type=int, required=True)
    given, _ = parser.parse_known_args()
    leave_record(Path(os.environ["FAKE_FOLDER"]), sys.argv[1:])
    if "FAKE_ENDS" in os.environ:
        sys.stderr.write(TRACEBACK)
        sys.exit(3)
    if "FAKE_STALLS" in os.environ:
        time.sleep(600)
    asyncio.run(serve(given.served_model_name, given.host, given.port))


if __name__ == "__main__":
    main()
