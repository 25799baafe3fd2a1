"""9. The CPU time of `aif --help` and `aif status`."""

from pathlib import Path
from statistics import median

from trials.harness import Figures
from trials.performance.measured_run import aif, pipeline, serving

NUMBER = 9
PROMISE = "Start-up: `aif --help` within 0.3 s of CPU, `aif status` within 0.5 s"
GOALS = {"help": 0.3, "status": 0.5}
TIMES = 7


def trial(folder: Path, full: bool) -> Figures:
    with serving(0, 0) as server:
        path = pipeline(folder, server.base_url, 20, 32)
        aif("run", path)
    commands: dict[str, list[object]] = {"help": ["--help"], "status": ["status", path]}
    costs = {name: [aif(*command) for _ in range(TIMES if full else 1)] for name, command in commands.items()}
    return {
        name: {
            "cpu_s": round(median(cost.cpu_s for cost in costs_of_command), 3),
            "wall_s": round(median(cost.wall_s for cost in costs_of_command), 3),
        }
        for name, costs_of_command in costs.items()
    }


def measurement_errors(figures: Figures) -> list[str]:
    return [f"{name} takes no time" for name in GOALS if not min(figures[name].values()) > 0]


def violations(figures: Figures) -> list[str]:
    return [f"{name} takes {figures[name]['cpu_s']} s" for name, goal in GOALS.items() if figures[name]["cpu_s"] > goal]


def summary(figures: Figures) -> str:
    return ", ".join(f"`{name}` {cost['cpu_s']} s of CPU ({cost['wall_s']} s)" for name, cost in figures.items())
