"""`kvlingua inspect`: what is stored. With `--verify` every byte of every object is read and checked."""

import argparse
import os
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path

from kvlingua.common.cli.progress import progress
from kvlingua.common.cli.sizes import size
from kvlingua.common.cli.target import add_target, existing_store
from kvlingua.common.cli.verification import verify_object
from kvlingua.common.errors import ContainerError, IdentityError, StoreError
from kvlingua.common.identity.keys import NAMESPACE_FILE, OBJECT_SUFFIX, namespace_key, parse_key
from kvlingua.common.identity.namespace import FORMAT_VERSION, MAX_NAMESPACE_BYTES, Namespace
from kvlingua.common.nearest import stored_namespaces
from kvlingua.common.stores.store import Entry, Read, Store


@dataclass
class Contents:
    """What one namespace holds."""

    digest: str
    namespace: Namespace | None
    objects: int = 0
    nbytes: int = 0
    chains: set[bytes] = field(default_factory=set)

    def lines(self) -> list[str]:
        if self.namespace is None:
            why = f"its {NAMESPACE_FILE} is missing, damaged, or of another format version than {FORMAT_VERSION}"
            return [f"{self.digest[:12]}  ({why})", self._counts("?")]
        one = self.namespace
        family = one.model_config.get("model_type", "unknown")
        widths = " + ".join(f"{name} {width}" for name, width in one.planes.items())
        numbers = one.kv_dtype if one.scales_policy == "none" else f"{one.kv_dtype} with scales per {one.scales_policy}"
        return [
            f"{self.digest[:12]}  {family}, {one.layers} layers x {one.kv_heads} kv heads x ({widths}), "
            f"{numbers}, chunks of {one.chunk_tokens}, weights {one.fingerprint[:19]}",
            self._counts(str(len(self.chains) * one.chunk_tokens)),
        ]

    def _counts(self, tokens: str) -> str:
        return f"              {len(self.chains)} chunks, {tokens} tokens, {self.objects} objects, {size(self.nbytes)}"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("inspect", help="what a store or one object holds", description=__doc__)
    add_target(parser)
    parser.add_argument("--verify", action="store_true", help="read every object and check every checksum")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.target and Path(options.target).is_file():
        return inspect_object(Path(options.target))
    store = existing_store(options.target)
    print(report(store))
    return verify(store) if options.verify else 0


def inspect_object(path: Path) -> int:
    """Describes and verifies one file."""
    try:
        with path.open("rb", buffering=0) as file:
            header = verify_object(os.fstat(file.fileno()).st_size, partial(read_file, file))
    except ContainerError as problem:
        print(f"{path}: damaged or foreign ({problem.reason}): {problem}")
        return 1
    container = header.container
    last = header.first_token + container.namespace.chunk_tokens
    print(
        f"{path}: tokens {header.first_token}-{last} of chain {header.chain.hex()[:12]}, {container.extent}, "
        f"{container.namespace.kv_dtype}, namespace {container.namespace.digest[:12]}; checksums right"
    )
    return 0


def read_file(file: FileIO, offset: int, into: memoryview) -> bool:
    file.seek(offset)
    filled = 0
    while filled < into.nbytes:
        count = file.readinto(into[filled:])
        if not count:
            return False
        filled += count
    return True


def report(store: Store) -> str:
    """Models, chunks, tokens and bytes of a store, as text."""
    found = contents(store)
    lines = [f"{store.describe()}: {len(found)} namespaces, {size(sum(one.nbytes for one in found))}"]
    for one in found:
        lines += one.lines()
    return "\n".join(lines)


def contents(store: Store) -> list[Contents]:
    """What each namespace of a store holds, the largest first."""
    known = {namespace.digest: namespace for namespace in stored_namespaces(store)}
    found: dict[str, Contents] = {}
    for entry in store.scan():
        digest = entry.key.partition("/")[0]
        one = found.setdefault(digest, Contents(digest, known.get(digest)))
        one.nbytes += entry.nbytes
        key = parse_key(entry.key)
        if key is not None:
            one.objects += 1
            one.chains.add(key.chain)
    return sorted(found.values(), key=lambda one: (-one.nbytes, one.digest))


def verify(store: Store) -> int:
    """Reads everything, prints a line for each object and namespace that can't be trusted. Exit status 1 if there is
    one."""
    everything = list(store.scan())
    entries = [entry for entry in everything if entry.key.endswith(OBJECT_SUFFIX)]
    if not everything:
        print("nothing to verify: the store is empty")
        return 0
    unnamed = 0
    for digest in sorted({entry.key.partition("/")[0] for entry in everything}):
        try:
            verify_namespace(store, digest)
        except ContainerError as problem:
            unnamed += 1
            print(f"{namespace_key(digest)}: {problem}")
    damaged = 0
    for entry in progress(entries, len(entries), "verifying"):
        try:
            verify_entry(store, entry)
        except (ContainerError, StoreError) as problem:
            damaged += 1
            print(f"{entry.key}: {problem}")
    wrong = f"{damaged} damaged" + (f", and {unnamed} {NAMESPACE_FILE} missing or damaged" if unnamed else "")
    print(f"verified {len(entries)} objects: {wrong if damaged or unnamed else 'all right'}")
    return 1 if damaged or unnamed else 0


def verify_namespace(store: Store, digest: str) -> None:
    """Raises ContainerError unless the namespace's JSON is there, and is what its name says."""
    remedy = "remove it, an engine that stores to this namespace writes it anew"
    buffer = bytearray(MAX_NAMESPACE_BYTES)
    (nbytes,) = store.get_many([Read(namespace_key(digest), 0, memoryview(buffer))])
    if nbytes is None:
        raise ContainerError("absent", "it is missing; an engine that stores to this namespace writes it anew")
    if nbytes > len(buffer):
        raise ContainerError("size", f"{nbytes} bytes, expected at most {len(buffer)}; {remedy}")
    try:
        namespace = Namespace.from_json(memoryview(buffer)[:nbytes])
    except IdentityError as error:
        raise ContainerError("namespace", f"{error}; {remedy}") from None
    if namespace.digest != digest:
        raise ContainerError("identity", f"it is another namespace's, somebody has renamed it; {remedy}")


def verify_entry(store: Store, entry: Entry) -> None:
    """Raises ContainerError unless the object is undamaged and is the one that its key names."""

    def read(offset: int, into: memoryview) -> bool:
        return store.get_many([Read(entry.key, offset, into)]) == [entry.nbytes]

    header = verify_object(entry.nbytes, read)
    key = parse_key(entry.key)
    holds = (header.container.namespace.digest, header.chain, header.container.extent)
    if key is None or (key.namespace, key.chain, key.extent) != holds:
        raise ContainerError("identity", "it is an undamaged object of another key: somebody has renamed it")
