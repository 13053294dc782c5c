"""What a soak has shown: counts, what is measured against which bound, and the verdict."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.watch import DESCRIPTORS, MEMORY_MIB_PER_MINUTE, Trend


@dataclass(frozen=True)
class Report:
    """`counts`: what happened, by name. `servers`: their names. `trends`: of every life of a server that was long
    enough; `samples`: what they were made of, [seconds, MiB, descriptors] by "server, life". `errors`: what went wrong,
    described."""

    seed: int
    minutes: float
    servers: Sequence[str]
    engines: dict[str, str]
    counts: dict[str, float]
    max_bytes: int
    trends: Sequence[Trend]
    samples: Mapping[str, Sequence[tuple[float, ...]]] = field(default_factory=dict)
    errors: Sequence[str] = ()
    warnings: Sequence[str] = ()

    def violations(self) -> list[str]:
        """One sentence each; none: the soak is passed."""
        counts = self.counts
        found = [*self.errors]
        for name in ("wrong", "failed", "stuck"):
            if counts[name]:
                found.append(f"{counts[name]:.0f} requests {name}")
        if counts["max_disk"] > self.max_bytes:
            found.append(f"the store took {counts['max_disk']:.0f} bytes, its cap is {self.max_bytes}")
        must = [*MUST_HAPPEN, *(f"hits_{server}" for server in self.servers)]
        found += [f"{name} is 0, so the soak shows nothing of it" for name in must if not counts[name]]
        found += [line for line in self.warnings if DEFECT in line]
        for server in self.servers if self.minutes >= JUDGED_MINUTES else ():
            if server not in {trend.server for trend in self.trends}:
                found.append(f"{server} didn't live long enough for its memory to be judged")
        for trend in self.trends:
            if not trend.flat:
                found.append(
                    f"{trend.server}, life {trend.life}: memory rises by {trend.mib_per_minute} MiB a minute (at most "
                    f"{MEMORY_MIB_PER_MINUTE}), descriptors by {trend.descriptors} (at most {DESCRIPTORS})"
                )
        return found

    def text(self) -> str:
        lines = [
            f"soak of {self.minutes:g} minutes, seed {self.seed}: {', '.join(map(' '.join, self.engines.items()))}"
        ]
        lines += [f"  {name.replace('_', ' '):<28}{value:>14,.0f}" for name, value in self.counts.items()]
        lines.append(f"  {'cap of the store':<28}{self.max_bytes:>14,}")
        lines.append("  server       life   seconds       MiB   MiB/minute   descriptors")
        for one in self.trends:
            lines.append(
                f"  {one.server:<12}{one.life:>5}{one.seconds:>10.0f}{one.mib:>10.0f}{one.mib_per_minute:>13.2f}"
                f"{one.descriptors:>+14.1f}"
            )
        found = self.violations()
        lines += [f"VIOLATION: {each}" for each in found] or ["no violation"]
        return "\n".join(lines)

    def write(self, file: Path, **more: Any) -> None:
        """As JSON, one object."""
        values = {**asdict(self), "violations": self.violations(), **more}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values, indent=1) + "\n")


DEFECT = "this is a defect of kvlingua"  # the guard's words for what it has kept from an engine
JUDGED_MINUTES = 10  # in a shorter soak servers may not live long enough
MUST_HAPPEN = ("answers", "hits", "reused_tokens", "aborts", "kills", "corruptions", "corrupt_refused", "evictions")
