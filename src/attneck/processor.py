"""Which processor this machine has."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What Linux says of the first processor, by its own names; empty on other systems."""
    try:
        first = cpuinfo.read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def processor_name() -> str:
    """Its name, with family and model where they are known: a virtual machine's name may say too little."""
    about = processor()
    name = about.get("model name") or platform.processor()
    known = (("family", "cpu family"), ("model", "model"))
    numbers = [f"{word} {about[key]}" for word, key in known if key in about]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def ran_on(environment: Mapping[str, Any]) -> str:
    """What a recorded environment ran on: the GPU, or the processor, and with how many threads."""
    threads = environment["torch_threads"]
    return f"{environment['gpu'] or environment['processor']}, {threads} thread{'s' * (threads > 1)}"
