"""`kvlingua doctor`: versions, kernels, engines, the configuration as resolved, and why nothing hits."""

import argparse
import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from kvlingua.common.cli.inspect import contents
from kvlingua.common.cli.sizes import size
from kvlingua.common.cli.target import NothingStored, add_target, existing_store
from kvlingua.common.config import Config
from kvlingua.common.errors import ConfigError, KVLinguaError
from kvlingua.common.identity.fingerprint import FingerprintTask
from kvlingua.common.identity.model import describe_model
from kvlingua.common.identity.namespace import COMPUTE_DTYPES, Namespace
from kvlingua.common.nearest import nearest, stored_namespaces
from kvlingua.common.stores.store import Store
from kvlingua.common.supported import ENGINES
from kvlingua.layouts import gpu, native

FINGERPRINT_TIMEOUT_S = 3600


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "doctor", help="what is installed, what is configured, why nothing hits", description=__doc__
    )
    add_target(parser)
    parser.add_argument(
        "--model", metavar="PATH|ID", help="the model that doesn't hit: its namespace is worked out and compared"
    )
    parser.add_argument("--dtype", choices=COMPUTE_DTYPES, help="the dtype it runs in (with --model)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if (options.model is None) != (options.dtype is None):
        raise ConfigError("--model and --dtype go together: the same weights in another dtype have other KV")
    if options.model == "":
        raise ConfigError("--model takes a folder or a hub id, got an empty one")
    for title, lines in (("installed", installed()), ("configuration", configuration())):
        print(f"{title}\n" + "\n".join(f"  {line}" for line in lines))
    print("store")
    store, status = None, 0
    try:
        store = existing_store(options.target)
        found = contents(store)
        print(f"  {store.describe()}: {len(found)} namespaces, {size(sum(one.nbytes for one in found))}")
    except (KVLinguaError, OSError) as problem:
        store = None
        if isinstance(problem, NothingStored) and options.target is None:
            print(f"  {problem}")  # nothing stored yet is no illness
        else:
            print("  there is none that can be used")
            print(f"kvlingua doctor: {problem}", file=sys.stderr)
            status = 2
    if options.model is not None:
        advice = model_advice(options.model, options.dtype, store)
    elif store is not None:
        advice = store_advice(store)
    else:
        return status
    print("why nothing hits")
    for line in advice:
        print(f"  {line}")
    if store is not None:
        store.close()
    return status


def installed() -> Iterator[str]:
    yield f"kvlingua {metadata.version('kvlingua')}, Python {platform.python_version()}, {platform.machine()}"
    yield f"kernels: {native.describe()}"
    yield f"kernels for GPUs: {gpu.describe()}"
    try:
        yield f"torch {metadata.version('torch')}"
    except metadata.PackageNotFoundError:
        yield "torch isn't installed here"
    for engine in ENGINES:
        version = engine.installed()
        if version is None:
            yield f"{engine.title} isn't installed in this environment"
        elif engine.supports(version):
            yield f"{engine.title} {version}, supported"
        else:
            yield f"{engine.title} {version}, NOT supported: {engine.refusal(version)}"


def configuration() -> Iterator[str]:
    config = Config.resolve()
    for key, source in config.sources().items():
        yield f"{key} = {getattr(config, key)}  ({source})"


def model_advice(model: str, dtype: str, store: Store | None) -> Iterator[str]:
    """The namespace an engine would use for this model, and the stored one that is nearest to it, if there is a
    store."""
    config = Config.resolve()
    description = describe_model(model, compute_dtype=dtype, kv_dtype=dtype)
    task = FingerprintTask(description, config)
    fingerprint = task.wait(FINGERPRINT_TIMEOUT_S)
    if task.error is not None:
        raise task.error
    if fingerprint is None:
        raise ConfigError(f"the weights of {model} could not be read within {FINGERPRINT_TIMEOUT_S} s")
    here = description.namespace(
        fingerprint, chunk_tokens=config.chunk_tokens, layers_per_shard=config.layers_per_shard
    )
    yield f"{model} in {dtype} is namespace {here.digest[:12]}"
    if store is None:
        yield "there is no store to compare it with"
        return
    if here in stored_namespaces(store):
        yield "it is in the store: prompts that begin like a stored one hit"
        return
    yield from differences(here, store)


def store_advice(store: Store) -> Iterator[str]:
    """For each namespace the nearest other one: two engines that should share, but don't, show up here."""
    stored = stored_namespaces(store)
    if len(stored) < 2:
        yield f"{len(stored)} namespaces are stored; name the model that doesn't hit: --model PATH --dtype DTYPE"
        return
    for here in stored:
        yield f"namespace {here.digest[:12]}:"
        yield from differences(here, store)


def differences(here: Namespace, store: Store) -> Iterator[str]:
    found = nearest(store, here)
    if found is None:
        yield "the store holds nothing else to compare it with"
        return
    there, lines = found
    yield f"  the nearest other is {there.digest[:12]}, which differs in:"
    for line in lines:
        yield f"    {line}"
