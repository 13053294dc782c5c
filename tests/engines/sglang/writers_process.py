"""SGLang's real classes that write weights after the start, with the adapter's hooks on them."""

import json
import pkgutil
from contextlib import suppress
from types import FunctionType, SimpleNamespace

from kvlingua.adapters.sglang.releases import WEIGHT_WRITERS
from kvlingua.adapters.sglang.weights import watch

UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"


def main() -> None:
    public = {
        name
        for name, method in vars(pkgutil.resolve_name(UPDATER)).items()
        if isinstance(method, FunctionType) and not name.startswith("_")
    }
    heard: list[str] = []
    watch(lambda code, message: heard.append(message))
    called = {}
    for target in WEIGHT_WRITERS:
        path, _, name = target.rpartition(".")
        heard.clear()
        with suppress(Exception):  # the hook runs before SGLang finds that nothing is there
            getattr(pkgutil.resolve_name(path), name)(SimpleNamespace())
        called[target] = len(heard) == 1 and f"({name})" in heard[0]
    watched = {target.rpartition(".")[2] for target in WEIGHT_WRITERS if target.startswith(f"{UPDATER}.")}
    print(json.dumps({"unwatched": sorted(public - watched), "called": called}))


if __name__ == "__main__":
    main()
