"""Run the checks side by side, say how long is left, and in the end which failed.

    python tools/check.py all      style, tests, every notebook, the book
    python tools/check.py quick    all but what trains or starts many processes

What needs no more than one core runs in lanes, one for each core, up to four; then the
notebooks that train, each alone with all cores. The output of a check is shown if it
failed.
"""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAINING = ["09_pretraining", "10_sft"]
TRAINING_A_LITTLE = ["00_welcome", "05_decoder_layer", "12_scaling_out"]
NOT_QUICK = [*TRAINING, *TRAINING_A_LITTLE, "slow tests"]
# What each takes on 2 quiet cores: to share them out, and to say how long is left.
# These may be wrong by half without harm. A notebook that is not listed counts as 12.
SECONDS = {
    "tests": 80, "slow tests": 80, "book": 30, "format": 1, "style": 1,
    "00_welcome": 30, "01_data": 30, "02_tokenizer": 25, "03_attention": 14,
    "04_mlp": 13, "05_decoder_layer": 30, "06_transformer": 13, "07_generation": 18,
    "08_optimization": 22, "11_chat": 15, "12_scaling_out": 40,
    "appendix_command_line": 10, "appendix_relay": 5, "appendix_run_log": 4,
    "09_pretraining": 480, "10_sft": 105,
}  # fmt: skip
PYTEST = [
    sys.executable,
    "-u",
    "-m",
    "pytest",
    "-p",
    "no:cacheprovider",
    "--durations=5",
]
NBVAL = [*PYTEST, "-vv", "--tb=short", "--nbval", "-p", "no:hypothesispytest"]


def cost(part: str) -> float:
    return SECONDS.get(part, 12)


@dataclass(eq=False)
class Check:
    """One command, and the parts (notebooks, or itself) that show how far it is."""

    name: str
    command: list[str]
    parts: list[str]
    done: int = 0  # parts that have ended
    since: float = 0.0  # when the part that runs now began
    spent: float = 0.0
    code: int | None = None
    output: list[str] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)  # of the parts that ended

    def run(self, threads: dict[str, str]) -> None:
        """Run the command, and note in what it says which notebook it has reached."""
        start = self.since = time.time()
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(  # each kernel would compile all modules again
            self.command, env=kept | threads, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        for line in process.stdout:
            self.output.append(line)
            found = re.match(r"notebooks/(\w+)(\.ipynb)?::", line)
            if found and found[1] in self.parts[self.done + 1 :]:
                self.reach(self.parts.index(found[1]))
        self.reach(self.done)
        self.spent, self.code = time.time() - start, process.wait()

    def reach(self, part: int) -> None:
        """Note how long the part that ran until now took; another one begins."""
        self.times[self.parts[self.done]] = time.time() - self.since
        self.done, self.since = part, time.time()

    def behind(self) -> float:
        """How many of its usual seconds have passed."""
        if self.code is not None:
            return sum(map(cost, self.parts))
        now = time.time() - self.since if self.since else 0.0
        part = cost(self.parts[self.done])
        return sum(map(cost, self.parts[: self.done])) + min(now, 0.9 * part)


def notebooks(name: str, stems: list[str]) -> Check:
    """A check that runs these notebooks again and compares every output."""
    files = [f"notebooks/{stem}.ipynb" for stem in stems]
    return Check(name, [*NBVAL, *files], stems)


def others() -> list[Check]:
    """Every check that is not a notebook."""
    ruff = [sys.executable, "-m", "ruff"]
    commands = {
        "tests": [*PYTEST, "tests", "-m", "not slow"],
        "slow tests": [*PYTEST, "tests", "-m", "slow"],
        "book": [sys.executable, "tools/book.py"],
        "style": [*ruff, "check", "."],
        "format": [*ruff, "format", "--check", "--quiet", "."],
    }
    return [Check(name, command, [name]) for name, command in commands.items()]


def lanes(wanted: list[str], number: int) -> list[list[Check]]:
    """Share out checks and notebooks: the dearest first, each to the emptiest lane."""
    checks = {check.name: check for check in others() if check.name in wanted}
    stems = [part for part in wanted if part not in checks]
    shared: list[list[str]] = [[] for _ in range(number)]
    for part in sorted(wanted, key=cost, reverse=True):
        min(shared, key=lambda parts: sum(map(cost, parts))).append(part)
    result = []
    for place, parts in enumerate(shared, 1):
        lane = [checks[part] for part in parts if part in checks]
        if own := sorted(set(parts) & set(stems)):
            lane.append(notebooks(f"notebooks {place}", own))
        result.append(lane)
    return result


def status(phases: list[list[list[Check]]], start: float) -> str:
    """What is running, and about how long is left of all."""
    usual = behind = 0.0  # seconds of each phase's longest lane, summed
    for phase in phases:
        loads = [(sum(cost(p) for c in lane for p in c.parts), lane) for lane in phase]
        load, lane = max(loads, key=lambda item: item[0])
        usual, behind = usual + load, behind + sum(c.behind() for c in lane)
    pace = (time.time() - start + 30) / (behind + 30)  # at first, as usual
    left = max((usual - behind) * pace, 5)
    checks = [check for phase in phases for lane in phase for check in lane]
    now = [c.parts[c.done] for c in checks if c.since and c.code is None]
    time_left = f"{left / 60:.0f} minutes" if left > 99 else f"{left:.0f} s"
    return f"about {time_left} left; now {', '.join(now)}"


def report(check: Check) -> None:
    """One line for a check that has passed; all that it said for one that failed."""
    verdict = "FAILED" if check.code else "passed"
    last = [line for line in check.output if " passed" in line or " failed" in line]
    said = last[-1].strip("= \n") if last else ""
    print(f"{check.name:14} {verdict} in {check.spent:3.0f} s  {said}", flush=True)
    if len(check.parts) > 1:
        print("   " + ", ".join(f"{n} {t:.0f} s" for n, t in check.times.items()))
    if check.code:
        print("".join(x for x in check.output if " PASSED " not in x), flush=True)


def work(lane: list[Check], threads: dict[str, str]) -> None:
    for check in lane:
        check.run(threads)


def run(phases: list[list[list[Check]]]) -> list[Check]:
    """Run phase after phase, the lanes of each side by side, and show how far it is."""
    start = said = time.time()
    bar, told = sys.stdout.isatty(), []
    for phase in phases:
        threads = {"OMP_NUM_THREADS": "1"} if len(phase) > 1 else {}
        with ThreadPoolExecutor(len(phase)) as pool:
            waiting = {pool.submit(work, lane, threads) for lane in phase}
            while waiting:
                waiting = wait(waiting, timeout=0.5).not_done
                ended = [c for lane in phase for c in lane if c.code is not None]
                for check in [check for check in ended if check not in told]:
                    print(" " * 78 * bar, end="\r" * bar)
                    report(check)
                    told.append(check)
                if waiting and time.time() - said > (1 if bar else 20):
                    note, said = status(phases, start), time.time()
                    print(
                        f"{note:78.78}".rstrip(), end="\r" if bar else "\n", flush=True
                    )
    return told


def main() -> int:
    os.chdir(ROOT)
    quick, start = sys.argv[1:] == ["quick"], time.time()
    stems = sorted(path.stem for path in Path("notebooks").glob("*.ipynb"))
    left_out = NOT_QUICK if quick else TRAINING
    parts = [check.name for check in others()] + stems
    light = [part for part in parts if part not in left_out]
    # One lane more than there are cores: tests that wait and kernels that start
    # leave gaps.
    phases = [lanes(light, min((os.cpu_count() or 1) + 1, 4))]
    if not quick:
        phases.append([[notebooks(stem, [stem]) for stem in TRAINING]])
    found = run(phases)
    failed = [check.name for check in found if check.code]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all passed"
    print(f"=== {(time.time() - start) / 60:.1f} minutes; {verdict}")
    return bool(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
