"""SGLang with LoRA on a machine without a GPU, and requests with an adapter."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from engines.site import site

ENABLED: dict[str, Any] = {"enable_lora": True, "lora_backend": "torch_native"}


def unpinned() -> dict[str, str]:
    """Settings. SGLang's LoRA asks for pinned memory, which torch has none of without a GPU."""
    return {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "unpinned"), str(site())])}


def with_adapter(ask: Ask, name: str | None) -> Ask:
    """name: what SGLang calls the adapter."""
    return replace(ask, options={"request": {"lora_path": name}} if name else {})


def wait_until_known(driver: Driver, *folders: Path, times: int = 1) -> None:
    """Until the digests of these adapters are known, on so many ranks or after so many loads."""
    end = time.monotonic() + 60
    while not all(driver.log_text().count(f"adapter in {folder} is known") >= times for folder in folders):
        assert time.monotonic() < end, "its digest isn't computed"
        time.sleep(0.1)
