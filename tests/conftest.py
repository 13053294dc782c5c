"""For all tests: property tests have no deadline per example, because the machine may be busy with other work."""

from hypothesis import HealthCheck, settings

settings.register_profile("kvlingua", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvlingua")
