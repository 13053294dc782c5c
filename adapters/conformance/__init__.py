"""What every adapter must do, as tests: an adapter's author derives from `AdapterConformance` and says how its engine
is started.

    from kvlingua.adapters.conformance import AdapterConformance

    class TestMyEngine(AdapterConformance):
        model, other_model, pages = MODEL, OTHER_MODEL, (64, 32)
        @classmethod
        def start(cls, setup): return MyEngine(setup)       # a context manager that gives a RunningEngine
        @classmethod
        def prompt(cls, seed, tokens): return [...]         # token ids

Every test runs on real engine processes. Needs pytest where it runs, not where kvlingua is imported; with
`pytest.register_assert_rewrite("kvlingua.adapters.conformance.suite")` in a conftest, failures say what they compared.
"""

from kvlingua.adapters.conformance.engine import Answered, HangingStore, Passing, Prompt, RunningEngine, Setup
from kvlingua.adapters.conformance.suite import AdapterConformance

__all__ = ["AdapterConformance", "Answered", "HangingStore", "Passing", "Prompt", "RunningEngine", "Setup"]
